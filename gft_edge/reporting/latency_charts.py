"""Charts of latency: every call, turn by turn, the parts of a call, the parts of a network."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.samples import WINDOWS, percentile_ms
from gft_edge.reporting.drawing import (
    DASHES,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PALETTE,
    Chart,
    drawn,
    heading,
    legend,
    legend_px,
    literal,
    new_figure,
    panel,
    shortened,
)
from gft_edge.runtime.classifier import Timing

WIDTH_PX = 480  # three quarters of it are a phone's width
MARGIN_PX = 20  # half of an axis' last number stands out over its end
BINS = 100
LONGEST_NAME = 44

# One call that waited can take a hundred times as long as the rest: the axis ends at this quantile,
# or at three times the 90 % one where so few calls were taken that it is the outlier itself.
AXIS_QUANTILE, AXIS_TIMES_P90 = 0.995, 3.0
# A turn further off than this, in percent, is drawn at the edge.
MOST_OFF = 200.0

PART_NAMES = ("decode", "preprocess", "host to device", "compute", "device to host", "postprocess")
# A stage's parts share their colour in every stage; what a GFT adds to a ViT is darkest.
STAGE_COLOURS = {"scoring": ORANGE, "selection": "#c23030", "refinement blocks": "#2b8a8a"}


@drawn
def distribution_chart(series: Mapping[str, Sequence[float]], boundary: str) -> Chart:
    """How often a call took how long, one row a series on a common axis of milliseconds.

    No series is empty. The axis is cut where outliers begin, and a row says how many lie beyond.
    """
    low, high = _latency_range(series)
    title = f"Every call, {boundary}"
    figure = new_figure(WIDTH_PX, 48 + 96 * len(series) + 42)
    heading(figure, title, "height: share of the calls; box: their middle half, and the median")
    axes = panel(figure, MARGIN_PX, 48, MARGIN_PX, 42)
    left = axes.get_yaxis_transform()
    beside = -MARGIN_PX / (WIDTH_PX - 2 * MARGIN_PX)
    for row, (name, samples) in enumerate(series.items()):
        colour = PALETTE[row % len(PALETTE)]
        inside = [sample for sample in samples if sample <= high]
        beyond = len(samples) - len(inside)
        counts, edges = np.histogram(inside, BINS, (low, high))
        heights = row + 0.78 - 0.36 * counts / max(counts.max(), 1)
        axes.stairs(heights, edges, baseline=row + 0.78, fill=True, color=colour, alpha=0.6, lw=0)
        axes.stairs(heights, edges, baseline=row + 0.78, color=colour, lw=1)
        first, middle, third = np.quantile(samples, (0.25, 0.5, 0.75))
        wide = max(third - first, (high - low) / 400)
        axes.barh(row + 0.87, wide, 0.08, left=first, color=colour)
        axes.plot([middle, middle], [row + 0.8, row + 0.94], color=INK, lw=2.5, clip_on=False)
        axes.text(beside, row + 0.16, literal(shortened(name, LONGEST_NAME if not beyond else 24)),
                  transform=left, size=13, weight="bold")  # fmt: skip
        axes.text(beside, row + 0.32, _in_words(samples), transform=left)
        if beyond:
            far = f"{beyond} beyond, up to {_rounded(max(samples), 4)} ms \N{RIGHTWARDS ARROW}"
            axes.text(1 - beside, row + 0.16, far, transform=left, ha="right")
    axes.set(xlim=(low, high), ylim=(len(series), 0), yticks=[], xlabel="ms a call")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    words = "; ".join(f"{name}: {_in_words(samples)}" for name, samples in series.items())
    return Chart(f"calls-{boundary}".replace(" ", "-"), title, words, figure)


@drawn
def timeline_chart(turns: Mapping[str, Sequence[Sequence[float]]], boundary: str) -> Chart:
    """The median of each turn, in percent off the median of the series' turns, in the order they ran.

    A level line is a quiet machine; a slope is drift; all lines moving together is the machine's doing.
    """
    from matplotlib.ticker import MaxNLocator

    off = {name: _off_median(own) for name, own in turns.items()}
    every = [value for own in off.values() for value in own]
    count = max(map(len, off.values()))
    top_px = legend_px(WIDTH_PX, [*off])
    figure = new_figure(WIDTH_PX, top_px + 250)
    title = f"Turn by turn, {boundary}"
    heading(figure, title)
    axes = panel(figure, 54, top_px + 32, MARGIN_PX, 42)
    lines = []
    for n, own in enumerate(off.values()):
        shown = [min(value, MOST_OFF) for value in own]
        lines += axes.plot(
            range(1, len(own) + 1), shown, DASHES[n // 6 % 3], marker=MARKERS[n % 4], lw=1.5,
            markersize=5 if count <= 60 else 2.5, color=PALETTE[n % 6],
        )  # fmt: skip
    legend(figure, lines, [*off])
    low, high = max(min(every), -100.0), min(max(every), MOST_OFF)
    axes.set_ylim(min(1.1 * low, -6), max(1.1 * high, 6))
    axes.set_xlim(0.7, max(count, 2) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0 %")
    for n in range(1, WINDOWS if count >= WINDOWS else 1):
        axes.axvline(count * n // WINDOWS + 0.5, color=INK, lw=1, ls=(0, (3, 4)), alpha=0.7)
    axes.set_title("% off the median of its own turns", loc="left", size=12, x=-0.13, pad=12)
    over = sum(value > MOST_OFF for value in every)
    said = f"{over} over the axis, up to {max(every):+.0f}%; " if over else ""
    axes.set_xlabel(f"turn ({said}dashed: the three windows)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y")
    words = "; ".join(
        f"{name}: {len(own)} turns, {min(own):+.1f}% to {max(own):+.1f}%"
        for name, own in off.items()
    )
    return Chart(f"turns-{boundary}".replace(" ", "-"), title, words, figure)


@drawn
def split_chart(splits: Mapping[str, Timing]) -> Chart:
    """The mean milliseconds of each part of a call end to end, stacked, one bar a name."""
    title = "End to end, part by part"
    top_px = legend_px(WIDTH_PX, PART_NAMES) + 8
    figure = new_figure(WIDTH_PX, top_px + 66 * len(splits) + 42)
    heading(figure, title)
    axes = panel(figure, MARGIN_PX, top_px, MARGIN_PX, 42)
    longest_ms = max(sum(dataclasses.astuple(parts)) for parts in splits.values())
    axes.set(xlim=(0, 1.02 * longest_ms), ylim=(len(splits), 0), yticks=[])
    left = axes.get_yaxis_transform()
    beside = MARGIN_PX / (WIDTH_PX - 2 * MARGIN_PX)
    handles = {}
    for row, (name, parts) in enumerate(splits.items()):
        total = sum(dataclasses.astuple(parts))
        axes.text(-beside, row + 0.26, literal(shortened(name, LONGEST_NAME)), transform=left,
                  size=13, weight="bold")  # fmt: skip
        axes.text(1 + beside, row + 0.26, f"{total:.3f} ms", transform=left, ha="right")
        done_ms = 0.0
        for (part, ms), colour in zip(_by_name(parts), PALETTE, strict=True):
            # The gap tells neighbours apart whatever their colours look like.
            wide = max(ms - 0.003 * longest_ms, 0)
            bar = axes.barh(row + 0.52, wide, 0.3, left=done_ms, color=colour)
            handles[part] = bar[0]
            _write_below(axes, part, ms, done_ms, row + 0.85, longest_ms)
            done_ms += ms
    legend(figure, [*handles.values()], [*handles])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms, mean of a call")
    axes.grid(axis="x")
    words = "; ".join(
        f"{name}: " + ", ".join(f"{part} {ms:.3f} ms" for part, ms in _by_name(parts))
        for name, parts in splits.items()
    )
    return Chart("parts", title, words, figure)


@drawn
def breakdown_chart(breakdown: Breakdown) -> Chart:
    """Horizontal bars, a part of the network each, with its time and its share of all layers'."""
    parts = breakdown.parts
    figure = new_figure(760, 58 + 26 * len(parts) + 34)
    title = f"Where the time goes: {breakdown.layers_ms:.2f} ms in the layers"
    heading(
        figure,
        title,
        f"{breakdown.engine}, mean of {breakdown.runs} instrumented inferences of "
        f"{breakdown.instrumented_ms:.2f} ms",
    )
    axes = panel(figure, 220, 52, 160, 34)
    longest_ms = max(part.mean_ms for part in parts) or 1.0
    colours = [STAGE_COLOURS.get(part.name.partition(": ")[2], GREY) for part in parts]
    axes.barh(range(len(parts)), [part.mean_ms for part in parts], 0.7, color=colours)
    for place, part in enumerate(parts):
        said = f"{part.mean_ms:.3f} ms, {part.share:.1%}"
        axes.text(part.mean_ms + 0.02 * longest_ms, place, said, va="center")
    axes.set_yticks(range(len(parts)), [literal(part.name) for part in parts])
    axes.set(xlim=(0, longest_ms), ylim=(len(parts) - 0.4, -0.6), xticks=[])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    foot = (
        f"instrumented against plain inferences of {breakdown.plain_ms:.2f} ms, in turn: "
        f"{breakdown.overhead:+.1%}"
    )
    figure.text(0, 10 / (72 * figure.get_size_inches()[1]), foot)
    words = "; ".join(f"{part.name} {part.share:.1%}" for part in parts)
    return Chart("layers", title, words, figure)


def _latency_range(series: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Both ends of the axis in ms; it starts at 0 where that leaves room enough for the rows."""
    low = min(map(min, series.values()))
    high = max(
        min(_quantile(samples, AXIS_QUANTILE), AXIS_TIMES_P90 * _quantile(samples, 0.9))
        for samples in series.values()
    )
    low = 0.0 if low < 0.5 * high else low
    if high - low < 0.01 * high:
        return 0.99 * low, 1.01 * high
    room = 0.03 * (high - low)
    return max(low - room, 0.0), high + room


def _quantile(samples: Sequence[float], fraction: float) -> float:
    # A sample, not between two: of a few, the highest may be the outlier.
    return float(np.quantile(samples, fraction, method="lower"))


def _in_words(samples: Sequence[float]) -> str:
    said = [f"median {_rounded(statistics.median(samples), 4)}"]
    for percentile in (90, 99):
        value = percentile_ms(samples, percentile)
        said.append(f"p{percentile} " + ("withheld" if value is None else _rounded(value, 4)))
    return f"{', '.join(said)} ms, {len(samples)} calls"


def _rounded(value: float, digits: int) -> str:
    """The value to so many significant digits, never with an exponent."""
    return (
        f"{value:.{digits}g}"
        if 1e-4 <= value < 10**digits - 0.5
        else f"{value:.{4 * (value < 1)}f}"
    )


def _off_median(turns: Sequence[Sequence[float]]) -> list[float]:
    """Each turn's median, in percent off the median of the turns."""
    medians = [statistics.median(turn) for turn in turns]
    middle = statistics.median(medians)
    return [100 * (value / middle - 1) for value in medians]


def _by_name(parts: Timing) -> list[tuple[str, float]]:
    return list(zip(PART_NAMES, dataclasses.astuple(parts), strict=True))


def _write_below(
    axes: Any, part: str, ms: float, start_ms: float, y: float, longest_ms: float
) -> None:
    """The part's time below its segment, with its name where there is room for it."""
    room = ms / longest_ms * 54  # in characters
    words = f"{part} {_rounded(ms, 3)}"
    if len(words) > room:
        words = _rounded(ms, 3)
    if len(words) <= room:
        axes.text(start_ms, y, words, va="center")
