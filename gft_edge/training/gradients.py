"""The gradient norm of each layer over chosen epochs: the paper's figure 5."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gft_edge.errors import UsageError
from gft_edge.model.checkpoint import replace_file
from gft_edge.model.gft import GFT

GRADIENTS_FILE = "gradients.csv"
FIELDS = ("epoch", "layer", "norm")
DEFAULT_EPOCHS = 5

# The stem of a transformer without a group matcher of its own.
STEM = r"^(?:backbone\.)?(?:cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre)"

# What timm's group matchers and PyTorch's modules call the layers of a transformer, what they are here,
# with the number of the first.
SPOKEN = (
    (re.compile(r"blocks\.(\d+)"), "block", 0),
    (re.compile(r"layers\.(\d+)"), "GALA layer", 1),
    (re.compile(r"selections\.(\d+)"), "selection", 1),
)


class GradientNorms:
    """The L2 norm of a network's gradient, layer by layer, as a mean over steps.

    Give the network itself, not a wrapper around it. Layers are the patch embedding (or stem), each
    block, each GALA layer with its selection, the norm and the head; of any other network those that
    its timm `group_matcher` names, or else its modules down to the first number in their names. Sums
    stay on the device in float32 until `means` is asked for: a step costs one foreach norm.
    """

    def __init__(self, network: nn.Module):
        layers = layers_of(network)
        self.layers = tuple(layers)
        self._parameters = [
            (parameter, number)
            for number, parameters in enumerate(layers.values())
            for parameter in parameters
        ]
        self._total: Tensor | None = None
        self._steps = 0

    def add(self) -> None:
        """Take in the gradients as they are: after backward, before they are clipped or stepped on.

        A parameter without a gradient counts as zero. Loss scaling, if any, has to be undone before.
        """
        found = [(p.grad, number) for p, number in self._parameters if p.grad is not None]
        self._steps += 1
        if not found:
            return
        grads = [grad.detach() for grad, _ in found]
        norms = torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float32))
        layer = torch.tensor([number for _, number in found], device=norms.device)
        squares = torch.zeros(len(self.layers), device=norms.device)
        step = squares.index_add_(0, layer, norms.square()).sqrt_()
        self._total = step if self._total is None else self._total.add_(step)

    def means(self) -> dict[str, float]:
        """Layer -> mean norm over the steps added so far, in the order of the forward pass."""
        if self._total is None:
            return dict.fromkeys(self.layers, 0.0)
        return dict(zip(self.layers, (self._total / self._steps).tolist(), strict=True))


def layers_of(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of a network by layer, in the order of the forward pass."""
    name_of = _namer(network)
    grouped: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            grouped.setdefault(name_of(name), []).append(parameter)
    order = {name: place for place, name in enumerate(_in_forward_order(network, grouped))}
    return dict(sorted(grouped.items(), key=lambda item: order[item[0]]))


def _namer(network: nn.Module) -> Callable[[str], str]:
    """What layer a parameter belongs to."""
    matcher = getattr(network, "group_matcher", None)
    groups: dict[str, Any] = {"stem": STEM, "blocks": []}
    found = None if matcher is None else matcher(coarse=False)
    # timm's own networks are grouped by a function, whose depths have no names.
    if isinstance(found, dict):
        groups = found
    stem, blocks = groups["stem"], groups["blocks"]
    patterns = [blocks] if isinstance(blocks, str) else [pattern for pattern, _ in blocks]
    has_patches = any("patch_embed" in name for name, _ in network.named_parameters())
    in_layers = isinstance(network, GFT) and network.mode == "layer"

    def name_of(parameter: str) -> str:
        if re.match(stem, parameter):
            return "patch embedding" if has_patches else "stem"
        for pattern in patterns:
            if layer := re.match(pattern, parameter):
                return _spoken(layer.group(0), in_layers)
        return _spoken(_module(parameter), in_layers)

    return name_of


def _module(parameter: str) -> str:
    """The module of a parameter: down to the first number in its name, or its first two parts."""
    parts = parameter.removeprefix("backbone.").split(".")[:-1] or [parameter]
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2])


def _spoken(module: str, in_layers: bool) -> str:
    name = module.removeprefix("backbone.").rstrip(".")
    # A selection's kernel belongs to its GALA layer where there is one.
    name = name.replace("selections.", "layers.") if in_layers else name
    for pattern, spoken, first in SPOKEN:
        if found := pattern.fullmatch(name):
            return f"{spoken} {first + int(found.group(1))}"
    return name


def _in_forward_order(network: nn.Module, names: Iterable[str]) -> list[str]:
    """A GFT's stages stand among its blocks; other networks define their modules in order."""
    if not isinstance(network, GFT):
        first = [name for name in names if name in ("patch embedding", "stem")]
        return [*first, *(name for name in names if name not in first)]
    order = ["patch embedding"]
    for number in range(len(network.backbone.blocks) + 1):
        stages = [stage + 1 for stage in network._stages_at.get(number, ())]
        if network.mode == "layer":
            order += [f"GALA layer {stage}" for stage in stages]
        order.append(f"block {number}")
        if network.mode == "block":
            order += [f"selection {stage}" for stage in stages]
    return [*order, *(name for name in names if name not in order)]


def chosen_epochs(text: str | None, epochs: int) -> tuple[int, ...]:
    """Which epochs, counted from 1, to log: `1,11,21`, `all`, or None for five from first to last.

    Raises UsageError for anything else, and for an epoch that the training does not have.
    """
    if text is None:
        count = min(DEFAULT_EPOCHS, epochs)
        return tuple(1 + round(n * (epochs - 1) / max(count - 1, 1)) for n in range(count))
    if text.strip().lower() == "all":
        return tuple(range(1, epochs + 1))
    try:
        chosen = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UsageError(
            f"--log-gradients {text} is no list of epochs: write 1,11,21,31,41 or all"
        ) from None
    for epoch in chosen:
        if not 1 <= epoch <= epochs:
            raise UsageError(f"--log-gradients has epoch {epoch}: the run has 1 to {epochs}")
    return tuple(chosen)


def write_norms(run: Path, epoch: int, means: dict[str, float]) -> None:
    """Append an epoch to the run's gradients.csv; what it had of that epoch and later goes.

    An interrupted epoch is trained again when the run is resumed. Raises CheckpointError when it
    cannot be written, UsageError when what is there cannot be read.
    """
    path = run / GRADIENTS_FILE
    before = read_norms(path) if path.exists() else {}
    kept = {number: norms for number, norms in before.items() if number < epoch}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for number, norms in {**kept, epoch: means}.items():
        writer.writerows((number, layer, f"{norm:.6g}") for layer, norm in norms.items())
    content = text.getvalue()
    replace_file(path, lambda partial: partial.write_text(content, encoding="utf-8"))


def read_norms(path: Path) -> dict[int, dict[str, float]]:
    """Epoch -> layer -> norm, as write_norms left them. Raises UsageError naming a line that is wrong."""
    with path.open(newline="", encoding="utf-8") as file:
        lines: Sequence[dict[str, str]] = list(csv.DictReader(file))
    found: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            found.setdefault(int(line["epoch"]), {})[line["layer"]] = float(line["norm"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{path}, line {number}: expected {','.join(FIELDS)}: remove the file, and log the "
                "gradients again with gft-edge train --log-gradients"
            ) from None
    return found
