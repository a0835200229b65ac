"""Where the time of an inference goes, as a chart."""

from __future__ import annotations

from collections.abc import Mapping

from gft_edge.profiling.layers import Breakdown
from gft_edge.reporting.drawing import bar, svg, text

WIDTH_PX = 760
ROW_PX = 26
LABEL_PX = 220  # the widest part's name, "stage 3: refinement blocks", takes 180
VALUE_PX = 160
TITLE_PX = 58
FOOT_PX = 34
# Seen on white and on black; a stage's parts share its colour, what a GFT adds to a ViT is darkest.
BASE_COLOUR = "#7a8aa0"
STAGE_COLOURS = {"GALA": "#d9822b", "selection": "#c23030", "refinement blocks": "#2b8a8a"}


def breakdown_chart(breakdown: Breakdown) -> str:
    """Horizontal bars, a part of the network each, with its time and its share of all layers'."""
    longest_ms = max(part.mean_ms for part in breakdown.parts)
    room_px = WIDTH_PX - LABEL_PX - VALUE_PX
    rows = []
    for number, part in enumerate(breakdown.parts):
        top_px = TITLE_PX + number * ROW_PX
        value = f"{part.mean_ms:.3f} ms, {part.share:.1%}"
        length_px = room_px * part.mean_ms / longest_ms
        rows.append(_bar_row(part.name, value, top_px, length_px, part_colour(part.name)))
    title = f"Where the time goes: {breakdown.layers_ms:.2f} ms in the layers"
    subtitle = (
        f"{breakdown.engine}, mean of {breakdown.runs} instrumented inferences of "
        f"{breakdown.instrumented_ms:.2f} ms"
    )
    foot = (
        f"instrumented against plain inferences of {breakdown.plain_ms:.2f} ms, in turn: "
        f"{breakdown.overhead:+.1%}"
    )
    height_px = TITLE_PX + len(breakdown.parts) * ROW_PX + FOOT_PX
    description = "; ".join(f"{part.name} {part.share:.1%}" for part in breakdown.parts)
    return svg(
        WIDTH_PX,
        height_px,
        title,
        description,
        [
            text(0, 18, title, size_px=16, weight="bold"),
            text(0, 40, subtitle, size_px=12),
            *rows,
            text(0, height_px - 10, foot, size_px=12),
        ],
    )


def breakdown_sheet(breakdowns: Mapping[str, Breakdown]) -> str:
    """A picture of its own, on white: the chart of each bundle under its name."""
    rows, top_px = [], 0
    for name, breakdown in breakdowns.items():
        height_px = TITLE_PX + len(breakdown.parts) * ROW_PX + FOOT_PX
        chart = breakdown_chart(breakdown).replace("<svg ", f'<svg y="{top_px + 30}" ', 1)
        rows += [text(0, top_px + 18, name, weight="bold"), chart]
        top_px += height_px + 50
    white = bar(0, 0, WIDTH_PX, top_px, "#ffffff")
    names = ", ".join(breakdowns)
    return svg(WIDTH_PX, top_px, "Where the time goes", names, [white, *rows])


def part_colour(part: str) -> str:
    """The fill of a part of the network, the same in every stage."""
    return STAGE_COLOURS.get(part.partition(": ")[2], BASE_COLOUR)


def _bar_row(name: str, value: str, top_px: float, length_px: float, colour: str) -> str:
    baseline_px = top_px + ROW_PX * 0.68
    return (
        text(LABEL_PX - 10, baseline_px, name, anchor="end")
        + bar(LABEL_PX, top_px + 4, max(length_px, 1), ROW_PX - 8, colour)
        + text(LABEL_PX + length_px + 8, baseline_px, value)
    )
