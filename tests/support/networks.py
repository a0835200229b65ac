"""Small real networks with seeded weights, saved as runs and exported as bundles."""

from __future__ import annotations

import copy
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.specs import ModelSpec
from tests.support.pictures import MICRO_LABELS

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

    from gft_edge.bundle.specs import GalaMode, Score
    from gft_edge.export.request import ExportRequest
    from gft_edge.model.gft import GFT

MICRO_STAGES = "1:48,2:32,3:16"
WIDE_LABELS = ("ash", "birch", "cherry tree")
# Four blocks of three heads, 48 channels, patches of 8 px.
MICRO_BACKBONE = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
VIT_OF_TRANSFG = {**MICRO_BACKBONE, "patch_size": 16}


@functools.cache
def micro_spec(
    labels: tuple[str, ...] = MICRO_LABELS,
    stages: str = MICRO_STAGES,
    image_size_px: int = 64,
    name: str = "vit_tiny_patch16_224",
    **backbone_args: int,
) -> ModelSpec:
    """Return the spec of a 4-block GFT; `backbone_args` change MICRO_BACKBONE."""
    from gft_edge.model.named_networks import spec_from_name

    return spec_from_name(
        name,
        labels,
        image_size_px=image_size_px,
        backbone_args={**MICRO_BACKBONE, **backbone_args},
        stages=stages,
    )


def wide_network(
    stages: str = "0:20,1:15,2:10",
    gala: GalaMode = "block",
    score: Score = "gala",
    bias_spread: float = 0.0,
    **backbone_args: int,
) -> tuple[ModelSpec, GFT]:
    """Return a GFT at 48 px, 36 patches, whose random weights are wide enough to tell images apart."""
    spec, model = _wide_network(stages, gala, score, bias_spread, tuple(backbone_args.items()))
    return spec, copy.deepcopy(model)


@functools.cache
def _wide_network(
    stages: str, gala: GalaMode, score: Score, bias_spread: float, changes: tuple[Any, ...]
) -> tuple[ModelSpec, GFT]:
    import torch

    from gft_edge.model.gft import build_gft
    from gft_edge.model.named_networks import spec_from_name

    selects = stages != "none"
    spec = spec_from_name(
        "vit_tiny_patch16_224",
        WIDE_LABELS,
        image_size_px=48,
        stages=stages,
        gala=gala if selects else None,
        score=score if selects else None,
        backbone_args={**MICRO_BACKBONE, **dict(changes)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "selections" in name or "pos_embed" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        wide = noise / 6 if parameter.ndim > 1 else parameter.data + bias_spread * noise
        parameter.data = wide
    return spec, model.eval()


def small_spec(name: str, labels: tuple[str, ...] = MICRO_LABELS) -> ModelSpec:
    """Return the spec of a network of timm's, or of a small TransFG, for images of 64 px."""
    from gft_edge.model.named_networks import spec_from_name

    given = {**VIT_OF_TRANSFG, "patch_stride": 8} if name.startswith("transfg") else None
    return spec_from_name(name, labels, image_size_px=64, backbone_args=given)


def seeded(spec: ModelSpec) -> Any:
    """Return the network of a spec with seeded random weights."""
    import torch

    from gft_edge.model.named_networks import build_network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(spec).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return a tensor of seeded normal noise."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save_micro_network(
    folder: Path, data: Path, split: str, spread: float, spec: ModelSpec | None = None
) -> npt.NDArray[np.uint8]:
    """Save a GFT with random weights of that spread; return the pixels it was centred on.

    `spec` is micro_spec() unless it is given.
    """
    import torch

    from gft_edge.datasets import read_split
    from gft_edge.model.checkpoint import save_network
    from gft_edge.model.gft import build_gft
    from gft_edge.runtime.preprocess import open_rgb, resize_and_crop

    spec = spec or micro_spec()
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.add_(spread * torch.randn(parameter.shape))
    pixels = np.stack(
        [
            resize_and_crop(open_rgb(path), spec.preprocessing)
            for path in read_split(data, split).paths
        ]
    )
    # Random weights prefer one class on every image: centred logits make the decisions differ.
    logits = _logits(model, pixels, spec)
    with torch.no_grad():
        model.backbone.head.bias.sub_(torch.from_numpy(logits.mean(axis=0)))
    save_network(folder, model, spec)
    return pixels


def save_calm_network(folder: Path, data: Path) -> None:
    """Save a network that rounding disturbs no more than a trained one.

    Wide random weights are chaotic, and a random head looks where images hardly differ: FP16 alone
    would change decisions. This one reads the directions in which the images of val/ differ most.
    """
    import torch

    from gft_edge.model.checkpoint import load_run, save_network

    pixels = save_micro_network(folder, data, "val", spread=0.04)
    spec, model = load_run(folder)
    head = model.backbone.head
    with torch.no_grad():
        read: list[torch.Tensor] = []
        with head.register_forward_pre_hook(lambda _, given: read.append(given[0])):
            _logits(model, pixels, spec)
        features = torch.cat(read)
        centre = features.mean(dim=0)
        _, _, directions = torch.linalg.svd(features - centre, full_matrices=False)
        head.weight.copy_(directions[: len(MICRO_LABELS)])
        head.bias.copy_(-head.weight @ centre)
    save_network(folder, model, spec)


def convert_once(patch: pytest.MonkeyPatch) -> None:
    """Let exports convert a network to ONNX once a graph: of their steps it takes by far the longest.

    The conversion itself is tested by calls of onnx_from_torch, which stay as they are.
    """
    from gft_edge.export import pipeline
    from gft_edge.export.onnx_from_torch import onnx_from_torch

    made: dict[str, Any] = {}

    def converted(model: Any, spec: Any, given: Any, opset: int, centred: bool = False) -> Any:
        digest = hashlib.sha256(repr((model, spec, given, opset, centred)).encode())
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode() + tensor.detach().numpy().tobytes())
        key = digest.hexdigest()
        if key not in made:
            made[key] = onnx_from_torch(model, spec, given, opset, centred)
        model.eval()
        return made[key]

    patch.setattr(pipeline, "onnx_from_torch", converted)


def export_run(
    run: Path, data: Path, out: Path, request: ExportRequest, split: str = "test", count: int = 12
) -> Path:
    """Export a run, verified on `count` images of a split, into `out`, and return it."""
    from gft_edge.calibration.image_set import draw_image_set
    from gft_edge.datasets import read_split
    from gft_edge.export.pipeline import export
    from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run

    spec, model = load_run(run)
    images = draw_image_set(read_split(data, split, spec.labels), count=count, seed=0)
    export(model, spec, images, request, out, weights=run / WEIGHTS_FILE)
    return out


def _logits(model: Any, pixels: npt.NDArray[np.uint8], spec: ModelSpec) -> npt.NDArray[np.float32]:
    from gft_edge.model.reference import torch_outputs

    return torch_outputs(model.eval(), pixels, spec.preprocessing).logits
