"""One image's explanation as one picture: rows of panels, each with its caption and colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec
from gft_edge.explanation.colours import (
    DIVERGING,
    SEQUENTIAL,
    Anchors,
    colour_bar,
    heat_map,
    overlay,
)
from gft_edge.explanation.occlusion import Occlusion
from gft_edge.explanation.subject import log_probabilities
from gft_edge.explanation.view import Explanation, StageView, composite, on_grid
from gft_edge.reporting.pictures import BACKGROUND, INK, MARGIN_PX, kept_patches, plain

PANEL_PX = 280
LINE_PX = 17
BAR_PX = (90, 11)
FAINT = (95, 95, 95)
_TITLE, _TEXT = 15, 13


@dataclass(frozen=True)
class Panel:
    """A square picture, up to two lines over it, and under it its colours with their two ends."""

    picture: Image.Image
    title: str
    note: str
    anchors: Anchors = ()
    low: float = 0.0
    high: float = 0.0


def explanation_sheet(
    name: str,
    pixels: npt.NDArray[np.uint8],
    explained: Explanation,
    model: ModelSpec,
    occlusion: Occlusion | None,
    footnotes: Sequence[str],
) -> Image.Image:
    """The sheet of one image (S,S,3): the image, each stage, and what speaks for its two best classes."""
    probabilities = np.exp(log_probabilities(explained.logits))
    best = np.argsort(-probabilities, kind="stable")[:2]
    says = ", then ".join(f"{model.labels[i]} {100 * probabilities[i]:.1f} %" for i in best)
    told = bool(explained.stages) and explained.stages[0].importance is not None
    first = [Panel(_enlarged(pixels), "what the network sees", f"{len(pixels)} x {len(pixels)} px")]
    if told:
        values = composite(explained.stages, model.patch_count)
        most = float(values.max()) or 1.0
        first += [
            Panel(
                heat_map(values, model.patch_grid, PANEL_PX, 0, most, SEQUENTIAL),
                "importance over all stages",
                "mean of the stages, each from 0 to 1",
                SEQUENTIAL, 0, most,
            ),
            Panel(
                overlay(pixels, values / most, model.patch_grid, PANEL_PX),
                "the same over the image",
                "dim where it is small",
                SEQUENTIAL, 0, most,
            ),
        ]  # fmt: skip
    rows = [first]
    for number, stage in enumerate(explained.stages, start=1):
        rows.append(_stage_row(number, stage, pixels, model))
    if occlusion is not None:
        rows.append(_occlusion_row(occlusion, model))
    return _composed(f"{name}:  {says}", rows, footnotes)


def _stage_row(
    number: int, stage: StageView, pixels: npt.NDArray[np.uint8], model: ModelSpec
) -> list[Panel]:
    panels = []
    dropped = "" if len(stage.present) == model.patch_count else ", grey: dropped before"
    ranked = f"{len(stage.present)} patches{dropped}"
    if stage.attention is not None:
        size = np.abs(stage.attention)
        panels.append(
            _map_panel(stage, size, model, f"stage {number}: absolute attention, |Eq. 1|", ranked)
        )
    if stage.importance is not None:
        title = f"stage {number}: importance ({SCORES[model.score].title})"
        panels.append(_map_panel(stage, stage.importance, model, title, ranked))
    kept = kept_patches(pixels, stage.kept, model.patch_grid, 1)
    panels.append(
        Panel(
            kept.resize((PANEL_PX, PANEL_PX), Image.Resampling.BICUBIC),
            f"stage {number}: kept patches",
            f"{len(stage.kept)} of {model.patch_count}, the rest dark",
        )
    )
    return panels


def _map_panel(
    stage: StageView, values: npt.NDArray[np.float32], model: ModelSpec, title: str, note: str
) -> Panel:
    low, high = float(values.min()), float(values.max())
    whole = on_grid(stage.present, values, model.patch_count)
    picture = heat_map(whole, model.patch_grid, PANEL_PX, low, high, SEQUENTIAL)
    return Panel(picture, title, note, SEQUENTIAL, low, high)


def _occlusion_row(occlusion: Occlusion, model: ModelSpec) -> list[Panel]:
    """Drops of log p of both classes, and their difference, on one scale around 0."""
    names = [model.labels[index] for index in occlusion.classes]
    maps = [
        (
            f"speaks for {name}",
            f"log p {log_p:.2f}, falls by {drop.min():.2f} to {drop.max():.2f}",
            drop,
        )
        for name, log_p, drop in zip(names, occlusion.log_p, occlusion.drops, strict=True)
    ]
    if len(names) == 2:
        difference = occlusion.drops[0] - occlusion.drops[1]
        maps.append(
            ("speaks for the first, not the second", "the first fall less the second", difference)
        )
    reach = max(float(np.abs(drop).max()) for _, _, drop in maps) or 1.0
    return [
        Panel(
            heat_map(
                drop.astype(np.float32).ravel(), drop.shape, PANEL_PX, -reach, reach, DIVERGING
            ),
            title, note, DIVERGING, -reach, reach,
        )
        for title, note, drop in maps
    ]  # fmt: skip


def _enlarged(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).resize((PANEL_PX, PANEL_PX), Image.Resampling.BICUBIC)


def _composed(title: str, rows: Sequence[Sequence[Panel]], footnotes: Sequence[str]) -> Image.Image:
    step = PANEL_PX + 2 * MARGIN_PX
    columns = max(map(len, rows))
    width = max(columns, 2) * step + 2 * MARGIN_PX
    lines = [line for note in footnotes for line in wrapped(note, width - 4 * MARGIN_PX)]
    row_height = PANEL_PX + 3 * LINE_PX + 4 * MARGIN_PX
    top = 2 * LINE_PX
    height = top + len(rows) * row_height + len(lines) * LINE_PX + 2 * MARGIN_PX
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    heading = fitted(title, width - 4 * MARGIN_PX, _TITLE)
    draw.text((2 * MARGIN_PX, MARGIN_PX), heading, INK, _font(_TITLE))
    for row in rows:
        for column, panel in enumerate(row):
            _draw_panel(canvas, draw, panel, 2 * MARGIN_PX + column * step, top)
        top += row_height
    for line in lines:
        draw.text((2 * MARGIN_PX, top), line, FAINT, _font(_TEXT))
        top += LINE_PX
    return canvas


def _draw_panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int
) -> None:
    font = _font(_TEXT)
    draw.text((left, top), fitted(panel.title, PANEL_PX, _TEXT), INK, font)
    draw.text((left, top + LINE_PX), fitted(panel.note, PANEL_PX, _TEXT), FAINT, font)
    top += 2 * LINE_PX + 3
    canvas.paste(panel.picture, (left, top))
    if not panel.anchors:
        return
    top += PANEL_PX + 4
    low, high = number(panel.low), number(panel.high)
    if not panel.low < panel.high:
        draw.text((left, top), f"all {low}", INK, font)
        return
    draw.text((left, top), low, INK, font)
    left += round(draw.textlength(low, font)) + MARGIN_PX
    canvas.paste(colour_bar(*BAR_PX, panel.anchors), (left, top + 3))
    draw.text((left + BAR_PX[0] + MARGIN_PX, top), high, INK, font)


def number(value: float) -> str:
    """Three digits: 0.0123, -1.05, 1.2e-05, 0."""
    return "0" if value == 0 else f"{value:.3g}".replace("e-0", "e-")


def fitted(words: str, room_px: float, size_px: int) -> str:
    """Words in the font's letters that fit; what is cut in the middle becomes three dots."""
    words, font = plain(words), _font(size_px)
    if font.getlength(words) <= room_px:
        return words
    kept = len(words)
    while kept > 1:
        kept -= 1
        cut = f"{words[: math.ceil(kept / 2)]}...{words[len(words) - kept // 2 :]}"
        if font.getlength(cut) <= room_px:
            return cut
    return "..."


def wrapped(words: str, room_px: float) -> list[str]:
    """Words in as many lines as they take."""
    font, lines = _font(_TEXT), [""]
    for word in plain(words).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room_px:
            lines.append(fitted(word, room_px, _TEXT))
        else:
            lines[-1] = fitted(longer, room_px, _TEXT)
    return lines


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
