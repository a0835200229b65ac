"""The Pareto front of cost against accuracy, and its chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gft_edge.reporting.drawing import (
    INK,
    MARKERS,
    PALETTE,
    Chart,
    drawn,
    heading,
    legend,
    legend_px,
    literal,
    new_figure,
    panel,
    plain_log,
    shortened,
)

WIDTH_PX = 640
LONGEST_LABEL = 36


@dataclass(frozen=True)
class ParetoPoint:
    """One deployment: `cost` in whatever the axis says, `accuracy` of 1; a group shares a look."""

    label: str
    cost: float
    accuracy: float
    group: str


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The Pareto-optimal points, cheapest first."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


@drawn
def pareto_chart(points: Sequence[ParetoPoint], title: str, cost: str) -> Chart:
    """Every point with its label, the front as a line in steps; `cost` names the x axis and its unit.

    A label that finds no place without covering another is left out, and the axis says how many.
    """
    assert points, "nothing to draw"
    front = pareto_front(points)
    groups = list(dict.fromkeys(point.group for point in points))
    top_px = legend_px(WIDTH_PX, groups) + 26
    plot_px = 320 + 6 * min(max(0, len(points) - 20), 40)
    figure = new_figure(WIDTH_PX, top_px + plot_px + 44)
    heading(figure, title)
    axes = panel(figure, 54, top_px, 24, 44)
    marks: list[Any] = []
    for n, group in enumerate(groups):
        own = [point for point in points if point.group == group]
        marks += axes.plot(
            [p.cost for p in own], [100 * p.accuracy for p in own], MARKERS[n % 4], markersize=8,
            color=PALETTE[n % len(PALETTE)], zorder=3,
        )  # fmt: skip
    legend(figure, marks, groups)
    costs = [point.cost for point in points]
    shares = [100 * point.accuracy for point in points]
    if max(costs) > 8 * min(costs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.15, max(costs) * 1.15)
        plain_log(axes.xaxis)
    else:
        room = 0.08 * (max(costs) - min(costs)) or 0.1 * max(costs) or 1.0
        axes.set_xlim(max(min(costs) - room, 0), max(costs) + room)
    room = max(0.1 * (max(shares) - min(shares)), 0.1)
    axes.set_ylim(max(min(shares) - room, 0), min(max(shares) + room, 100.5))
    # Between two points of the front nothing better was measured.
    reached = [*((p.cost, 100 * p.accuracy) for p in front), (axes.get_xlim()[1], max(shares))]
    axes.step(*zip(*reached, strict=True), where="post", color=INK, lw=1.5, alpha=0.6)
    axes.tick_params(axis="x", pad=6)
    axes.grid()
    axes.set_title(
        "accuracy, %; bold: on the Pareto front (the line)", loc="left", size=12, x=-0.08, pad=12
    )
    left_out = _label(axes, points, front)
    missing = f"; {left_out} labels found no room" if left_out else ""
    axes.set_xlabel(f"{cost}{missing}")
    words = "; ".join(
        f"{p.label}: {p.cost:.3f}, {p.accuracy:.2%}" + (", on the front" if p in front else "")
        for p in points
    )
    return Chart("pareto", title, words, figure)


# Where a label stands beside its point: which end of it, and how far right and up, in pixels.
_PLACES = [
    (align, dx * far, dy * far)
    for far in (1, 2, 3.5, 5, 7, 10, 14)
    for align, dx, dy in (
        ("left", 8, 0), ("right", -8, 0), ("center", 0, 14), ("center", 0, -14), ("left", 8, 14),
        ("right", -8, 14), ("left", 8, -14), ("right", -8, -14),
    )
]  # fmt: skip
_SHARE_LEFT = {"left": 0.0, "center": 0.5, "right": 1.0}


def _label(axes: Any, points: Sequence[ParetoPoint], front: Sequence[ParetoPoint]) -> int:
    """Write the labels that find a place, those of the front first. Return how many found none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    scale = axes.figure.dpi / 72
    spots = axes.transData.transform([(p.cost, 100 * p.accuracy) for p in points])
    # Left, bottom, right, top of everything that no label may cover.
    taken = np.hstack([spots - 5 * scale, spots + 5 * scale])
    room = axes.get_window_extent(renderer).extents + scale * np.array([2, 5, -2, -2])
    left_out = 0
    for n in sorted(range(len(points)), key=lambda n: points[n] not in front):
        weight = "bold" if points[n] in front else "normal"
        words = literal(shortened(points[n].label, LONGEST_LABEL))
        text = axes.text(0, 0, words, weight=weight)
        size = text.get_window_extent(renderer).size
        text.remove()
        for align, dx, dy in _PLACES:
            low = spots[n] + scale * np.array([dx, dy]) - size * (_SHARE_LEFT[align], 0.5)
            box = np.hstack([low, low + size])
            inside = (box[:2] >= room[:2]).all() and (box[2:] <= room[2:]).all()
            meets = (taken[:, :2] < box[2:]).all(axis=1) & (taken[:, 2:] > box[:2]).all(axis=1)
            if inside and not meets.any():
                far = abs(dy) > 20 or abs(dx) > 12
                axes.annotate(
                    words, (points[n].cost, 100 * points[n].accuracy), xytext=(dx, dy),
                    textcoords="offset points", ha=align, va="center", weight=weight,
                    arrowprops={"arrowstyle": "-", "alpha": 0.3, "color": INK} if far else None,
                )  # fmt: skip
                taken = np.vstack([taken, box])
                break
        else:
            left_out += 1
    return left_out
