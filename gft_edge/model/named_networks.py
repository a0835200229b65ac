"""The named networks: from a name and its options to a ModelSpec, and from a spec to its network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from gft_edge.bundle.specs import (
    CropMode,
    Family,
    GalaMode,
    ModelSpec,
    Preprocessing,
    Say,
    Score,
    Stage,
)
from gft_edge.bundle.stages import check_stages, parse_stages, stages_text
from gft_edge.errors import SpecError
from gft_edge.model.dense import build_dense, create_dense
from gft_edge.model.gft import build_gft, check_backbone, check_image_size
from gft_edge.model.network import Network
from gft_edge.model.timm_models import check_classifier, check_name, default_image_size_px
from gft_edge.model.transfg import (
    DEFAULT_STRIDE_PX,
    PATCH_STRIDE,
    build_transfg,
    create_overlapping,
)


@dataclass(frozen=True)
class NamedNetwork:
    """A row of the table below; `stages` as `parse_stages` reads it."""

    backbone: str
    gala: GalaMode = "layer"
    stages: str = "none"
    score: Score = "gala"
    backbone_args: Mapping[str, int] = field(default_factory=dict)
    family: Family = "gft"


def _family(size: str) -> dict[str, NamedNetwork]:
    backbone = f"deit_{size}_patch16_224"
    return {
        # The paper's parameter count: 12 blocks and three extra layers (93 M for base).
        f"gft_{size}": NamedNetwork(backbone, "layer", "8:75%,9:50%,10:25%"),
        # The paper's text read literally: 8 blocks, three extra layers, head.
        f"gft_{size}_d8": NamedNetwork(
            backbone, "layer", "8:75%,8:50%,8:25%", backbone_args={"depth": 8}
        ),
        # Early stages without extra layers. Totals of 144, 96 and 48 tokens fill the 16-row tiles
        # of matrix units. So early GALA chooses no better than chance: README, "Which score selects well".
        f"gft_{size}_edge": NamedNetwork(
            backbone, "block", "3:auto:16,6:auto:16,9:auto:16", "class-laplacian"
        ),
    }


def _transfg(size: str) -> NamedNetwork:
    arguments = {PATCH_STRIDE: DEFAULT_STRIDE_PX}
    return NamedNetwork(f"vit_{size}_patch16_224", backbone_args=arguments, family="transfg")


NETWORKS: Mapping[str, NamedNetwork] = {
    **_family("tiny"), **_family("small"), **_family("base"),
    # The authors start from the ViT-B/16 of ImageNet-21k.
    "transfg": _transfg("base"),
    **{f"transfg_{size}": _transfg(size) for size in ("tiny", "small", "base")},
}  # fmt: skip

_BUILDERS = {"gft": build_gft, "timm": build_dense, "transfg": build_transfg}


def build_network(spec: ModelSpec) -> Network:
    """The network of a spec with fresh weights. Raises SpecError when timm cannot build it."""
    return _BUILDERS[spec.family](spec)


def spec_from_name(
    name: str,
    labels: tuple[str, ...],
    *,
    image_size_px: int | None = None,
    stages: str | None = None,
    score: Score | None = None,
    gala: GalaMode | None = None,
    temperature: float = 1.0,
    backbone_args: Mapping[str, int] | None = None,
    say: Say = lambda text: None,
) -> ModelSpec:
    """The spec of a named GFT, of TransFG, or of any timm classifier by its timm name.

    `stages` as `parse_stages` reads it makes a GFT of a plain timm ViT, which without them is
    trained dense; counts that were not given as plain numbers are said. `score` and `gala` unless
    given are the named network's own. The preprocessing is timm's evaluation set-up of the backbone.
    Raises SpecError.
    """
    if not 0 < temperature < math.inf:
        raise SpecError(f"--temperature is {temperature:g}: give a number above 0, such as 1")
    named = NETWORKS.get(name)
    if named is None:
        check_name(name, NETWORKS)
        named = NamedNetwork(name)
    arguments = {**named.backbone_args, **(backbone_args or {})}
    size = default_image_size_px(named.backbone) if image_size_px is None else image_size_px
    if size < 1:
        raise SpecError(
            f"--image-size is {size}: give the side of the images in pixels, such as 224"
        )
    family = named.family
    # Shapes alone: timm has models of a gigabyte.
    with torch.device("meta"):
        if family == "transfg":
            backbone = create_overlapping(named.backbone, size, len(labels), **arguments)
            unfit = "TransFG chooses its parts by itself"
        else:
            backbone = create_dense(named.backbone, size, len(labels), **arguments)
            try:
                check_backbone(backbone)
            except SpecError as error:
                if name in NETWORKS:
                    raise
                family, unfit = "timm", str(error)
                check_classifier(backbone, name, size, len(labels))
    chosen: tuple[Stage, ...] = ()
    mode = gala or named.gala
    if family == "gft":
        check_image_size(backbone, size)
        text = named.stages if stages is None else stages
        patches, prefix = backbone.patch_embed.num_patches, backbone.num_prefix_tokens
        chosen = parse_stages(text, patches, prefix)
        check_stages(chosen, mode, len(backbone.blocks), patches)
        if chosen and stages_text(chosen).replace(" ", "") != text.replace(" ", ""):
            totals = ", ".join(str(stage.keep + prefix) for stage in chosen)
            say(f"stages {stages_text(chosen)}: token totals {totals}")
    elif stages is not None and stages.strip().lower() != "none":
        raise SpecError(f"--stages {stages}: {unfit}: leave it out")
    for option, given in (("--score", score), ("--gala", gala)):
        if given is not None and not chosen:
            raise SpecError(
                f"{option} {given} is for a network that selects patches, and {name} has no stages: "
                f"leave {option} out"
            )
    grid = (0, 0) if family == "timm" else tuple(backbone.patch_embed.grid_size)
    return ModelSpec(
        name=name,
        backbone=named.backbone,
        backbone_args=arguments,
        stages=chosen,
        gala=mode,
        score=score or named.score,
        temperature=temperature,
        patch_grid=cast("tuple[int, int]", grid),
        preprocessing=_preprocessing(backbone, size),
        labels=labels,
        family=family,
    )


def squashed(spec: ModelSpec) -> ModelSpec:
    """The same network under the paper's preprocessing: the whole image resized, nothing cropped."""
    preprocessing = dataclasses.replace(spec.preprocessing, crop_mode="squash", crop_pct=1.0)
    return dataclasses.replace(spec, preprocessing=preprocessing)


def _preprocessing(backbone: Any, image_size_px: int) -> Preprocessing:
    set_up = backbone.pretrained_cfg
    mode = set_up.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise SpecError(
            f"this backbone prepares images by crop mode {mode!r}: not center or squash"
        )
    return Preprocessing(
        image_size_px=image_size_px,
        crop_pct=set_up["crop_pct"],
        crop_mode=cast(CropMode, mode),
        interpolation=set_up["interpolation"],
        mean=tuple(set_up["mean"]),
        std=tuple(set_up["std"]),
    )
