"""The named networks, and the way from a name and its options to a ModelSpec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from timm.models.vision_transformer import VisionTransformer

from gft_edge.errors import SpecError
from gft_edge.model.gft import create_backbone
from gft_edge.specs import (
    CropMode,
    GalaMode,
    ModelSpec,
    Preprocessing,
    Score,
    Stage,
    check_stages,
    parse_stages,
)

PAPER_RATIOS = (0.75, 0.50, 0.25)


@dataclass(frozen=True)
class Variant:
    """A row of the table below. `token_multiple` rounds each token total down to such a multiple."""

    backbone: str
    gala: GalaMode
    positions: tuple[int, ...]
    token_multiple: int = 1
    backbone_args: Mapping[str, int] = field(default_factory=dict)


def _family(size: str) -> dict[str, Variant]:
    backbone = f"deit_{size}_patch16_224"
    return {
        # The paper's parameter count: 12 blocks and three extra layers (93 M for base).
        f"gft_{size}": Variant(backbone, "layer", (8, 9, 10)),
        # The paper's text read literally: 8 blocks, three extra layers, head.
        f"gft_{size}_d8": Variant(backbone, "layer", (8, 8, 8), backbone_args={"depth": 8}),
        # Early stages without extra layers. Totals of 144, 96 and 48 tokens fill the 16-row tiles
        # of matrix units.
        f"gft_{size}_edge": Variant(backbone, "block", (3, 6, 9), token_multiple=16),
    }


VARIANTS: Mapping[str, Variant] = {**_family("tiny"), **_family("small"), **_family("base")}


def spec_from_name(
    name: str,
    labels: tuple[str, ...],
    *,
    image_size_px: int | None = None,
    stages: str | None = None,
    score: Score = "gala",
    gala: GalaMode | None = None,
    temperature: float = 1.0,
    backbone_args: Mapping[str, int] | None = None,
) -> ModelSpec:
    """The spec of a variant, or of any plain timm VisionTransformer by its timm name.

    `stages` as `parse_stages` reads it; a backbone without stages of its own needs them. The
    preprocessing is timm's evaluation set-up of the backbone. Raises SpecError.
    """
    variant = VARIANTS.get(name)
    if variant is None:
        variant = Variant(name, "layer", ())
        if stages is None:
            raise SpecError(
                f"{name!r} is no GFT variant ({', '.join(VARIANTS)}): to wrap the timm model of "
                "that name say where it selects, for example --stages 8:75%,9:50%,10:25%"
            )
    arguments = {**variant.backbone_args, **(backbone_args or {})}
    if image_size_px is not None:
        arguments["img_size"] = image_size_px
    backbone = create_backbone(variant.backbone, num_classes=len(labels), **arguments)
    arguments.pop("img_size", None)
    mode = gala or variant.gala
    patches = backbone.patch_embed.num_patches
    chosen = (
        _default_stages(variant, patches, backbone.num_prefix_tokens)
        if stages is None
        else parse_stages(stages, patches)
    )
    check_stages(chosen, mode, len(backbone.blocks), patches)
    return ModelSpec(
        name=name,
        backbone=variant.backbone,
        backbone_args=arguments,
        stages=chosen,
        gala=mode,
        score=score,
        temperature=temperature,
        patch_grid=cast("tuple[int, int]", tuple(backbone.patch_embed.grid_size)),
        preprocessing=_preprocessing(backbone),
        labels=labels,
    )


def squashed(spec: ModelSpec) -> ModelSpec:
    """The same network under the paper's preprocessing: the whole image resized, nothing cropped."""
    preprocessing = dataclasses.replace(spec.preprocessing, crop_mode="squash", crop_pct=1.0)
    return dataclasses.replace(spec, preprocessing=preprocessing)


def _default_stages(variant: Variant, patches: int, prefix: int) -> tuple[Stage, ...]:
    multiple = variant.token_multiple
    stages = []
    for position, ratio in zip(variant.positions, PAPER_RATIOS, strict=True):
        tokens = int(ratio * patches) + prefix
        stages.append(Stage(position, tokens // multiple * multiple - prefix))
    return tuple(stages)


def _preprocessing(backbone: VisionTransformer) -> Preprocessing:
    set_up = backbone.pretrained_cfg
    mode = set_up.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise SpecError(
            f"this backbone prepares images by crop mode {mode!r}: not center or squash"
        )
    return Preprocessing(
        image_size_px=backbone.patch_embed.img_size[0],
        crop_pct=set_up["crop_pct"],
        crop_mode=cast(CropMode, mode),
        interpolation=set_up["interpolation"],
        mean=tuple(set_up["mean"]),
        std=tuple(set_up["std"]),
    )
