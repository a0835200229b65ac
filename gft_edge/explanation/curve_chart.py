"""Deletion and insertion curves as one picture, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from gft_edge.explanation.deletion import DeletionReport
from gft_edge.explanation.sheet import fitted
from gft_edge.reporting.drawing import PALETTE
from gft_edge.reporting.pictures import BACKGROUND, INK

PLOT_PX = (400, 300)
GAP_PX = 70
TOP_PX, LEFT_PX, BOTTOM_PX = 92, 60, 60
GRID = (225, 225, 225)
# Lines are drawn so much larger and then reduced: Pillow's own are jagged.
_FINER = 3


def curve_chart(report: DeletionReport, title: str) -> Image.Image:
    """Both measures side by side; a curve an order, with the area under it in the legend."""
    legend = 20 * len(report.results)
    width = LEFT_PX + 2 * PLOT_PX[0] + GAP_PX + 40
    height = TOP_PX + PLOT_PX[1] + BOTTOM_PX + legend
    start = "the blurred image" if report.insert_from == "blur" else "the mean colour"
    panels = (
        ("deletion: lower is better", "patches covered, most important first",
         [(r.order, r.deletion_curve, r.deletion.mean) for r in report.results]),
        (f"insertion into {start}: higher is better", "patches shown, most important first",
         [(r.order, r.insertion_curve, r.insertion.mean) for r in report.results]),
    )  # fmt: skip
    lines = Image.new("RGB", (width * _FINER, height * _FINER), BACKGROUND)
    for number, (_, _, curves) in enumerate(panels):
        _draw_lines(lines, report.fractions, [c for _, c, _ in curves], _left(number))
    canvas = lines.resize((width, height), Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    heading = fitted(f"{title}, {report.images} images", width - 40, 15)
    draw.text((20, 14), heading, INK, ImageFont.load_default(15))
    for number, (name, axis, curves) in enumerate(panels):
        left, bottom = _left(number), TOP_PX + PLOT_PX[1]
        draw.text((left, TOP_PX - 26), name, INK, font)
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            across, up = left + tick * PLOT_PX[0], bottom - tick * PLOT_PX[1]
            draw.text((across, bottom + 6), f"{100 * tick:.0f} %", INK, font, anchor="ma")
            draw.text((left - 8, up), f"{tick:g}", INK, font, anchor="rm")
        draw.text((left + PLOT_PX[0] / 2, bottom + 25), axis, INK, font, anchor="ma")
        for place, (order, _, area) in enumerate(curves):
            top = bottom + 52 + 20 * place
            draw.line((left, top + 7, left + 24, top + 7), PALETTE[place % len(PALETTE)], 3)
            draw.text((left + 32, top), f"{order}: area {area:.3f}", INK, font)
    draw.text((20, 38), "mean probability of the class predicted for the whole image", INK, font)
    return canvas


def _left(number: int) -> int:
    return LEFT_PX + number * (PLOT_PX[0] + GAP_PX)


def _draw_lines(
    canvas: Image.Image,
    fractions: Sequence[float],
    curves: Sequence[Sequence[float]],
    left: int,
) -> None:
    draw = ImageDraw.Draw(canvas)

    def at(fraction: float, value: float) -> tuple[float, float]:
        across = left + fraction * PLOT_PX[0]
        return _FINER * across, _FINER * (TOP_PX + (1 - value) * PLOT_PX[1])

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.line([at(tick, 0), at(tick, 1)], GRID, _FINER)
        draw.line([at(0, tick), at(1, tick)], GRID, _FINER)
    # The network's own order last, on top.
    for place in reversed(range(len(curves))):
        points = [at(x, y) for x, y in zip(fractions, curves[place], strict=True)]
        draw.line(points, PALETTE[place % len(PALETTE)], 2 * _FINER, joint="curve")
