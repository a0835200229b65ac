"""The named networks, and the way from a name and its options to a ModelSpec."""

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
from gft_edge.model.dense import create_dense
from gft_edge.model.gft import check_backbone, create_backbone
from gft_edge.model.timm_models import (
    check_classifier,
    close_names,
    create_model,
    default_image_size_px,
    is_model,
)
from gft_edge.model.transfg import DEFAULT_STRIDE_PX, PATCH_STRIDE, create_overlapping


@dataclass(frozen=True)
class NamedNetwork:
    """A row of the table below; `stages` as `parse_stages` reads it."""

    backbone: str
    gala: GalaMode
    stages: str
    score: Score = "gala"
    backbone_args: Mapping[str, int] = field(default_factory=dict)


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


VARIANTS: Mapping[str, NamedNetwork] = {**_family("tiny"), **_family("small"), **_family("base")}

# The authors start from the ViT-B/16 of ImageNet-21k.
TRANSFG: Mapping[str, str] = {
    "transfg": "vit_base_patch16_224",
    **{f"transfg_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")},
}


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
    """The spec of a GFT variant, of TransFG, or of any timm classifier by its timm name.

    `stages` as `parse_stages` reads it makes a GFT of a plain timm ViT, which without them is
    trained dense; counts that were not given as plain numbers are said. `score` and `gala` unless
    given are the variant's own. The preprocessing is timm's evaluation set-up of the backbone.
    Raises SpecError.
    """
    if not 0 < temperature < math.inf:
        raise SpecError(f"--temperature is {temperature:g}: give a number above 0, such as 1")
    variant = VARIANTS.get(name)
    family = _family_of(name)
    arguments = {**(variant.backbone_args if variant else {}), **(backbone_args or {})}
    # Shapes alone: timm has models of a gigabyte.
    with torch.device("meta"):
        if family == "transfg":
            arguments.setdefault(PATCH_STRIDE, DEFAULT_STRIDE_PX)
            size = image_size_px or default_image_size_px(TRANSFG[name])
            backbone = create_overlapping(TRANSFG[name], size, len(labels), **arguments)
        elif family == "timm":
            size = image_size_px or default_image_size_px(name)
            backbone = create_dense(name, size, len(labels), **arguments)
            check_classifier(backbone, name, size, len(labels))
        else:
            variant = variant or NamedNetwork(name, "layer", "none")
            sized = {} if image_size_px is None else {"img_size": image_size_px}
            backbone = create_backbone(
                variant.backbone, num_classes=len(labels), **arguments, **sized
            )
            size = backbone.patch_embed.img_size[0]
    chosen: tuple[Stage, ...] = ()
    mode = gala or (variant.gala if variant else "layer")
    if family == "gft":
        assert variant is not None
        text = variant.stages if stages is None else stages
        patches, prefix = backbone.patch_embed.num_patches, backbone.num_prefix_tokens
        chosen = parse_stages(text, patches, prefix)
        check_stages(chosen, mode, len(backbone.blocks), patches)
        if chosen and stages_text(chosen).replace(" ", "") != text.replace(" ", ""):
            totals = ", ".join(str(stage.keep + prefix) for stage in chosen)
            say(f"stages {stages_text(chosen)}: token totals {totals}")
    elif stages is not None and stages.strip().lower() != "none":
        raise SpecError(f"--stages {stages}: {_why_no_stages(name, backbone)}: leave it out")
    for option, given in (("--score", score), ("--gala", gala)):
        if given is not None and not chosen:
            raise SpecError(
                f"{option} {given} is for a network that selects patches, and {name} has no stages: "
                f"leave {option} out"
            )
    return ModelSpec(
        name=name,
        backbone=TRANSFG.get(name) or (variant.backbone if variant else name),
        backbone_args=arguments,
        stages=chosen,
        gala=mode,
        score=score or (variant.score if variant else "gala"),
        temperature=temperature,
        patch_grid=(
            (0, 0)
            if family == "timm"
            else cast("tuple[int, int]", tuple(backbone.patch_embed.grid_size))
        ),
        preprocessing=_preprocessing(backbone, size),
        labels=labels,
        family=family,
    )


def squashed(spec: ModelSpec) -> ModelSpec:
    """The same network under the paper's preprocessing: the whole image resized, nothing cropped."""
    preprocessing = dataclasses.replace(spec.preprocessing, crop_mode="squash", crop_pct=1.0)
    return dataclasses.replace(spec, preprocessing=preprocessing)


def _family_of(name: str) -> Family:
    """Raises SpecError for a name that nothing here or in timm has."""
    if name in VARIANTS:
        return "gft"
    if name in TRANSFG:
        return "transfg"
    if ":" not in name and not is_model(name):
        close = close_names(name, [*VARIANTS, *TRANSFG])
        raise SpecError(
            f"{name!r} is no GFT variant ({', '.join(VARIANTS)}), not transfg and no timm model"
            + (f": did you mean {' or '.join(close)}?" if close else ": see timm.list_models()")
        )
    with torch.device("meta"):
        model = create_model(name)
    try:
        check_backbone(model)
    except SpecError:
        return "timm"
    return "gft"


def _why_no_stages(name: str, backbone: Any) -> str:
    if name in TRANSFG:
        return "TransFG chooses its parts by itself"
    try:
        check_backbone(backbone)
    except SpecError as error:
        return str(error)
    raise AssertionError(name)


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
