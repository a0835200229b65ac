"""Weights on disk: pretrained backbones in, and a run's network out and in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.specs import ModelSpec, Say, check_preprocessing
from gft_edge.bundle.store import check_room
from gft_edge.datasets.names import class_name
from gft_edge.errors import CheckpointError, SpecError, UnwrittenError
from gft_edge.model.gft import build_backbone, source_blocks
from gft_edge.model.named_networks import build_network
from gft_edge.model.network import Network
from gft_edge.model.state_dicts import naming_of, timm_names, without_wrapper
from gft_edge.model.timm_models import filter_weights
from gft_edge.model.weight_files import (
    BACKBONE_FILE,
    stated_classes,
    stated_heads,
    weight_files,
)

SPEC_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
IMPORT_FILE = "import.json"

# Where timm's training, and DeiT's, keep the moving average of the weights.
AVERAGES = ("state_dict_ema", "model_ema")

PUBLISHED_START = (
    "is of a published GFT checkpoint: its first 8 blocks and its classifier are trained; no gradient "
    "reached the blocks behind them and the final norm, which are as they were before, nor its GALA "
    "layers, which hold their random initialisation and are left out"
)


def read_weights(path: Path, say: Say = lambda text: None) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a PyTorch file through weights_only.

    A folder gives its one weights file or all shards (`weight_files`). Of a file with averaged weights
    these are taken, as timm does, which is said. Raises CheckpointError when a file is missing, is
    neither, or holds quantized numbers, none at all, a NaN or infinity.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= _read_file(file, say)
    for name, tensor in state.items():
        if reason := _why_unusable(tensor):
            raise CheckpointError(f"{path}: tensor {name} {reason}")
    return state


def _why_unusable(tensor: Tensor) -> str | None:
    full = "take the checkpoint in float32, float16 or bfloat16"
    if tensor.is_meta:
        return "has a shape and no numbers (it lies on the meta device): save the loaded network"
    if tensor.layout is not torch.strided:
        return f"is sparse ({tensor.layout}): {full}, dense"
    # A network's own integers are counters and positions, in 64 bits; a mask's are bool.
    whole = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    if tensor.dtype not in whole:
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}, quantized or otherwise coded: {full}"
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        return "holds NaN or infinity: take an earlier checkpoint"
    return None


def _read_file(path: Path, say: Say) -> dict[str, Tensor]:
    try:
        with path.open("rb"):
            pass
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        return _read_pickle(path, say)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return state


def _read_pickle(path: Path, say: Say) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # A file that is no checkpoint at all makes the unpickler wonder about its protocol.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Arbitrary bytes make the unpickler raise nearly anything.
    except Exception as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} is a pickle with more than tensors, which could run code on loading: save "
                "the state dict alone with safetensors.torch.save_file"
            ) from error
        raise CheckpointError(f"{path} is neither safetensors nor a PyTorch checkpoint") from error
    for key in (*AVERAGES, "state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            if key in AVERAGES:
                say(f"{path}: its averaged weights ({key}) are taken")
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(state) != len(content):
        others = [str(name) for name in content if name not in state]
        raise CheckpointError(
            f"{path} holds more than tensors ({', '.join(others[:5])}): save the state dict alone, or as "
            "its 'state_dict'"
        )
    return state


def load_backbone(
    model: Network, spec: ModelSpec, path: Path, say: Say = lambda text: None
) -> list[str]:
    """Start `model` from a checkpoint of its backbone; GALA layers start from its blocks.

    Names may be timm's, or others that `timm_names` knows. The classifier is left fresh when it is
    not there or its class count differs, and its rows are put in the order of the spec's labels where the
    checkpoint names the same classes; position embeddings are resampled when the grid differs.
    Returns what was left fresh. Raises CheckpointError when the file is of another architecture.
    """
    stored = without_wrapper(read_weights(path, say))
    weights = {name: value.float() for name, value in timm_names(stored).items()}
    if naming_of(stored) == "published gft" or _is_imported(path):
        say(f"{path} {PUBLISHED_START}")
    _check_heads(model.backbone, path, spec.backbone)
    order = _order_of_classes(path, spec.labels)
    if spec.family != "gft":
        return _load_whole(model.backbone, weights, path, spec.backbone, order)
    depth = 1 + max((int(n.split(".")[1]) for n in weights if n.startswith("blocks.")), default=-1)
    # Blocks behind the network's own depth still serve as sources of GALA layers (gft_*_d8).
    donor = build_backbone(spec, depth=max(depth, len(model.backbone.blocks)))
    if "dist_token" in weights and not hasattr(donor, "dist_token"):
        raise CheckpointError(
            f"{path} is no checkpoint of {spec.backbone}: it holds a distillation token, so take a "
            "distilled network, such as --model deit_base_distilled_patch16_224 with --stages"
        )
    fresh = _load_whole(donor, weights, path, spec.backbone, order)
    own = model.backbone.state_dict()
    model.backbone.load_state_dict({name: donor.state_dict()[name] for name in own})
    sources = source_blocks(spec.stages, len(donor.blocks))[: len(model.layers)]
    for layer, block in zip(model.layers, sources, strict=True):
        source = donor.blocks[block]
        layer.norm.load_state_dict(source.norm1.state_dict())
        kept = {n: t for n, t in source.attn.state_dict().items() if not n.startswith("proj.")}
        layer.attn.load_state_dict(kept, strict=False)
    return fresh


def _is_imported(path: Path) -> bool:
    """Whether these are the weights that an imported run keeps of its whole base."""
    (file, *_) = weight_files(path)
    return file.name == BACKBONE_FILE and (file.parent / IMPORT_FILE).is_file()


def _check_heads(backbone: Any, path: Path, name: str) -> None:
    """Raise CheckpointError where a checkpoint's config.json states other heads than a ViT has."""
    try:
        heads = backbone.blocks[0].attn.num_heads
    # Networks of timm's without such blocks: the shapes of their weights say all.
    except (AttributeError, IndexError, TypeError):
        return
    stated = stated_heads(path)
    if stated not in (None, heads):
        raise CheckpointError(
            f"{path} is no checkpoint of {name}: its config.json says {stated} attention heads, "
            f"expected {heads}"
        )


def _order_of_classes(path: Path, labels: Sequence[str]) -> list[int] | None:
    """The row of each label in a checkpoint's classifier; None where it states no or other classes."""
    rows = {class_name(name): row for row, name in stated_classes(path).items()}
    names = [class_name(label) for label in labels]
    return [rows[name] for name in names] if rows.keys() == set(names) else None


def _load_whole(
    backbone: Any,
    weights: Mapping[str, Tensor],
    path: Path,
    name: str,
    order: Sequence[int] | None,
) -> list[str]:
    """load_backbone of a network that is timm's own: every block is in the file."""
    own = backbone.state_dict()
    try:
        state = filter_weights(weights, backbone)
    except (RuntimeError, KeyError, AttributeError, IndexError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of {name}: {error}") from error
    # None in timm's configuration of a network that was published without one.
    classifiers = backbone.pretrained_cfg.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    fresh = []
    for tensor in [n for n in own if n.rpartition(".")[0] in heads]:
        if tensor not in state or state[tensor].shape != own[tensor].shape:
            state[tensor] = own[tensor]
            fresh.append(tensor)
        elif order is not None:
            state[tensor] = state[tensor][list(order)]
    # Older PyTorch did not count the batches of a BatchNorm.
    state = {n: t for n, t in own.items() if n.endswith(".num_batches_tracked")} | state
    check_fit(own, state, path, name)
    backbone.load_state_dict(state)
    return fresh


def check_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Raise CheckpointError naming the first tensor that is missing, too many or of another shape."""
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    shapes = [n for n in expected if n in found and expected[n].shape != found[n].shape]
    if missing:
        wrong = f"{len(missing)} tensors are missing ({missing[0]}, ...)"
    elif extra:
        wrong = f"it holds {len(extra)} tensors more ({extra[0]}, ...)"
    elif shapes:
        found_shape, expected_shape = (tuple(each[shapes[0]].shape) for each in (found, expected))
        wrong = f"{shapes[0]} is {found_shape}, expected {expected_shape}"
    else:
        return
    raise CheckpointError(f"{path} is no checkpoint of {name}: {wrong}")


def save_network(folder: Path, model: Network, spec: ModelSpec) -> None:
    """Write model.json and model.safetensors into a run folder, each replaced in one step."""
    write_network(folder, model.state_dict(), spec)


def write_network(folder: Path, weights: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """save_network of a network's state dict."""
    text = json.dumps(to_json(spec), indent=2) + "\n"
    state = {name: tensor.contiguous() for name, tensor in weights.items()}
    replace_file(folder / SPEC_FILE, lambda partial: partial.write_text(text, encoding="utf-8"))
    # save_file would make it readable by its owner alone.
    content = safetensors.torch.save(state)
    replace_file(folder / WEIGHTS_FILE, lambda partial: partial.write_bytes(content))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a new file and put it in place of `path` in one step.

    Raises UnwrittenError when it cannot be written; `path` then stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        reason = _reason(error, path.parent)
        partial.unlink(missing_ok=True)
        raise UnwrittenError(path, reason) from error


def _reason(error: OSError | RuntimeError, folder: Path) -> str:
    """Why a file could not be written; of a full disk torch makes an error of its own."""
    if isinstance(error, RuntimeError):
        try:
            check_room(folder)
        except OSError as full:
            error = full
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or str(error).splitlines()[0]


def load_run(folder: Path) -> tuple[ModelSpec, Network]:
    """The network of a run folder, in evaluation mode.

    Raises CheckpointError when the folder is no run or its weights do not fit its spec.
    """
    if not (folder / SPEC_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no run: it has no {SPEC_FILE} (gft-edge train writes one)"
        )
    try:
        data = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        spec = from_json(ModelSpec, data, SPEC_FILE)
        check_preprocessing(spec.preprocessing)
    except (ValueError, SpecError) as error:
        raise CheckpointError(f"{folder / SPEC_FILE} cannot be used: {error}") from error
    model = build_network(spec)
    state = read_weights(folder / WEIGHTS_FILE)
    check_fit(model.state_dict(), state, folder / WEIGHTS_FILE, f"the {spec.name} of {SPEC_FILE}")
    model.load_state_dict(state)
    return spec, model.eval()
