"""Pictures of latency as SVG text: distributions, turns over a run, end-to-end parts, Pareto front."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gft_edge.profiling.samples import WINDOWS, percentile_ms
from gft_edge.reporting.drawing import (
    DASHES,
    PALETTE,
    SHAPES,
    Scale,
    area,
    bar,
    legend,
    line,
    linear_scale,
    log_scale,
    marker,
    shortened,
    svg,
    text,
    width_of,
)
from gft_edge.runtime.classifier import Timing

WIDTH_PX = 480  # three quarters of it are a phone's width
PARETO_WIDTH_PX = 640
MARGIN_PX = 24  # half of an axis' last number stands out over its end
TITLE_PX = 22
BINS = 100
ROW_PX = 96

# How many places are tried for a label on the Pareto chart.
NEAREST = 200

# One call that waited can take a hundred times as long as the rest: the axis ends at this quantile,
# or at three times the 90 % one where so few calls were taken that it is the outlier itself.
AXIS_QUANTILE, AXIS_TIMES_P90 = 0.995, 3.0
# A turn further off than this is drawn at the edge.
MOST_OFF = 2.0

PART_NAMES = ("decode", "preprocess", "host to device", "compute", "device to host", "postprocess")


@dataclass(frozen=True)
class ParetoPoint:
    """A deployment: `accuracy` is of 1, points of a `group` share colour and shape."""

    label: str
    latency_ms: float
    accuracy: float
    group: str


def distribution_chart(series: Mapping[str, Sequence[float]], title: str = "Every call") -> str:
    """How often a call took how long, one row a series on a common axis of milliseconds.

    No series is empty. The axis is cut where outliers begin, and a row says how many lie beyond.
    """
    end_ms = max(_axis_end(samples) for samples in series.values())
    start_ms = min(min(samples) for samples in series.values())
    scale = _latency_scale(start_ms, end_ms)
    subtitle = "height: share of the calls; box: their middle half, and the median"
    content = [text(0, 16, title, 15, "bold"), text(0, 36, subtitle, 12)]
    end_px = 48 + ROW_PX * len(series)
    content += _vertical_grid(scale, 48, end_px)
    for number, (name, samples) in enumerate(series.items()):
        content += _distribution_row(
            name, samples, scale, 48 + ROW_PX * number, PALETTE[number % 6]
        )
    content += _x_axis(scale, end_px, "ms a call")
    said = "; ".join(f"{name}: {_in_words(samples)}" for name, samples in series.items())
    return svg(WIDTH_PX, end_px + 40, title, said, content)


def timeline_chart(
    turns: Mapping[str, Sequence[Sequence[float]]], title: str = "Turn by turn"
) -> str:
    """The median of each turn, in percent off the median of the series' turns, in the order they ran.

    A level line is a quiet machine; a slope is drift; all lines moving together is the machine's doing.
    """
    medians = {name: [statistics.median(turn) for turn in own] for name, own in turns.items()}
    off = {name: _off_median(own) for name, own in medians.items()}
    every = [value for own in off.values() for value in own]
    low, high = max(min(every), -1.0), min(max(every), MOST_OFF)
    looks = {
        name: (SHAPES[n % 4], PALETTE[n % 6], DASHES[n // 6 % 3]) for n, name in enumerate(turns)
    }
    content = [text(0, 16, title, 15, "bold")]
    keys, keys_px = legend([(n, s, c) for n, (s, c, _) in looks.items()], TITLE_PX, WIDTH_PX)
    top_px = TITLE_PX + keys_px
    content += [*keys, text(0, top_px + 14, "% off the median of its own turns", 12)]
    plot_top_px, plot_end_px = top_px + 30, top_px + 210
    y = linear_scale(100 * min(low, -0.05), 100 * max(high, 0.05), plot_end_px, plot_top_px, 6)
    count = max(map(len, off.values()))
    x = _turn_scale(count)
    content += _horizontal_grid(y, [f"{tick:+g} %" if tick else "0 %" for tick in y.ticks], x.to_px)
    content += _window_bounds(x, count, plot_top_px, plot_end_px)
    for name, own in off.items():
        shape, colour, dash = looks[name]
        spots = [(x.at(n), y.at(100 * value)) for n, value in enumerate(own, 1)]
        content.append(line(spots, colour, 1.5, dash))
        for (x_px, y_px), number, value in zip(spots, range(1, count + 1), own, strict=False):
            hover = f"{name}, turn {number}: {medians[name][number - 1]:.3f} ms, {value:+.1%}"
            content.append(marker(shape, x_px, y_px, 3 if count <= 60 else 1.5, colour, hover))
    content += _x_axis(x, plot_end_px, f"turn ({_beyond(every)}dashed: the three windows)")
    said = "; ".join(
        f"{name}: {len(own)} turns, {min(own):+.1%} to {max(own):+.1%}" for name, own in off.items()
    )
    return svg(WIDTH_PX, plot_end_px + 40, title, said, content)


def split_chart(splits: Mapping[str, Timing], title: str = "End to end, part by part") -> str:
    """The mean milliseconds of each part of a call end to end, stacked, one bar a name."""
    longest_ms = max(sum(dataclasses.astuple(parts)) for parts in splits.values())
    colours = dict(zip(PART_NAMES, PALETTE, strict=True))
    keys, keys_px = legend([(n, "square", c) for n, c in colours.items()], TITLE_PX, WIDTH_PX)
    top_px = TITLE_PX + keys_px + 8
    scale = linear_scale(0, longest_ms, MARGIN_PX, WIDTH_PX - MARGIN_PX)
    end_px = top_px + 70 * len(splits)
    content = [text(0, 16, title, 15, "bold"), *keys, *_vertical_grid(scale, top_px, end_px)]
    for number, (name, parts) in enumerate(splits.items()):
        content += _split_row(name, parts, scale, top_px + 70 * number, colours)
    content += _x_axis(scale, end_px, "ms, mean of a call")
    said = "; ".join(
        f"{name}: " + ", ".join(f"{part} {ms:.3f} ms" for part, ms in _by_name(parts))
        for name, parts in splits.items()
    )
    return svg(WIDTH_PX, end_px + 40, title, said, content)


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Those that no other point is both at least as fast and at least as accurate as, fastest first."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def pareto_chart(
    points: Sequence[ParetoPoint],
    title: str = "Accuracy against latency",
    latency: str = "p50 latency, ms a call",
) -> str:
    """Every point with its label, and the Pareto front as a line; `latency` is the axis' name.

    A label that finds no place without covering another is left to the pointer, and the axis says so.
    """
    assert points, "nothing to draw"
    front = pareto_front(points)
    groups = list(dict.fromkeys(point.group for point in points))
    looks = {group: (SHAPES[n % 4], PALETTE[n % 6]) for n, group in enumerate(groups)}
    keys, keys_px = legend([(g, *look) for g, look in looks.items()], TITLE_PX, PARETO_WIDTH_PX)
    plot_top_px = TITLE_PX + keys_px + 34
    plot_end_px = plot_top_px + 320 + 6 * min(max(0, len(points) - 20), 40)
    x, y = _pareto_scales(points, plot_top_px, plot_end_px)
    spots = [(x.at(p.latency_ms), y.at(100 * p.accuracy)) for p in points]
    steps = _front_line(front, x, y)
    labels, left_out = _placed_labels(points, front, spots, steps, plot_top_px, plot_end_px)
    content = [text(0, 16, title, 15, "bold"), *keys]
    content.append(
        text(0, plot_top_px - 16, "accuracy, %; bold: on the Pareto front (the line)", 12)
    )
    content += _horizontal_grid(y, [f"{tick:g}" for tick in y.ticks], x.to_px)
    content += _vertical_grid(x, plot_top_px, plot_end_px)
    content.append(line(steps, "currentColor", 1.5, "none", 0.6))
    for point, (x_px, y_px) in zip(points, spots, strict=True):
        shape, colour = looks[point.group]
        hover = f"{point.label}: {point.latency_ms:.3f} ms, {point.accuracy:.2%}"
        content.append(marker(shape, x_px, y_px, 5, colour, hover))
    missing = f"; {left_out} labels found no room" if left_out else ""
    content += [*labels, *_x_axis(x, plot_end_px, f"{latency}{missing}")]
    said = "; ".join(
        f"{p.label} {p.latency_ms:.3f} ms {p.accuracy:.2%}"
        + (", on the front" if p in front else "")
        for p in points
    )
    return svg(PARETO_WIDTH_PX, plot_end_px + 40, title, said, content)


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    return ordered[int(fraction * (len(ordered) - 1))]


def _axis_end(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return min(_quantile(ordered, AXIS_QUANTILE), AXIS_TIMES_P90 * _quantile(ordered, 0.9))


def _latency_scale(start_ms: float, end_ms: float) -> Scale:
    """From 0 where that leaves room enough for the rows."""
    start_ms = 0.0 if start_ms < 0.5 * end_ms else start_ms
    if end_ms - start_ms < 0.01 * end_ms:
        start_ms, end_ms = 0.99 * start_ms, 1.01 * end_ms
    return linear_scale(start_ms, end_ms, MARGIN_PX, WIDTH_PX - MARGIN_PX)


def _distribution_row(
    name: str, samples: Sequence[float], scale: Scale, top_px: float, colour: str
) -> list[str]:
    ordered = sorted(samples)
    beyond = len(ordered) - bisect.bisect_right(ordered, scale.high)
    far = (
        f"{beyond} beyond, up to {_rounded(ordered[-1], 4)} ms \N{RIGHTWARDS ARROW}"
        if beyond
        else ""
    )
    label = shortened(name, WIDTH_PX - width_of(far, 12) - 12, weight="bold")
    base_px = top_px + 74
    low_px, high_px = (scale.at(_quantile(ordered, f)) for f in (0.25, 0.75))
    middle_px = scale.at(statistics.median(ordered))
    return [
        text(0, top_px + 14, label, weight="bold"),
        text(WIDTH_PX, top_px + 14, far, 12, anchor="end") if far else "",
        text(0, top_px + 31, _in_words(samples), 12),
        area(_ridge(ordered[: len(ordered) - beyond], scale, base_px, 36), colour),
        bar(low_px, base_px + 4, max(high_px - low_px, 1), 8, colour, name),
        line([(middle_px, base_px + 1), (middle_px, base_px + 15)], width_px=2.5),
    ]


def _ridge(
    ordered: Sequence[float], scale: Scale, base_px: float, height_px: float
) -> list[tuple[float, float]]:
    """The outline of a histogram."""
    width_ms = (scale.high - scale.low) / BINS
    counts = [0] * BINS
    for sample in ordered:
        counts[min(int((sample - scale.low) / width_ms), BINS - 1)] += 1
    points = []
    for number, count in enumerate(counts):
        y_px = base_px - height_px * count / max(counts)
        points += [(scale.at(scale.low + width_ms * edge), y_px) for edge in (number, number + 1)]
    return [(points[0][0], base_px), *points, (points[-1][0], base_px)]


def _in_words(samples: Sequence[float]) -> str:
    said = [f"median {_rounded(statistics.median(samples), 4)}"]
    for percentile in (90, 99):
        value = percentile_ms(samples, percentile)
        said.append(f"p{percentile} " + ("withheld" if value is None else _rounded(value, 4)))
    return f"{', '.join(said)} ms, {len(samples)} calls"


def _rounded(value: float, digits: int) -> str:
    """To so many digits that count, and never with an exponent."""
    return (
        f"{value:.{digits}g}"
        if 1e-4 <= value < 10**digits - 0.5
        else f"{value:.{4 * (value < 1)}f}"
    )


def _off_median(medians: Sequence[float]) -> list[float]:
    middle = statistics.median(medians)
    return [value / middle - 1 for value in medians]


def _turn_scale(count: int) -> Scale:
    scale = linear_scale(1, max(count, 2), MARGIN_PX + 36, WIDTH_PX - MARGIN_PX, 10)
    ticks = tuple(tick for tick in scale.ticks if tick == int(tick) and 1 <= tick <= count)
    return dataclasses.replace(scale, low=1, high=max(count, 2), ticks=ticks)


def _window_bounds(x: Scale, count: int, top_px: float, end_px: float) -> list[str]:
    """Between the turns that samples.window_medians parts."""
    bounds = [count * n // WINDOWS + 0.5 for n in range(1, WINDOWS)] if count >= WINDOWS else []
    return [line([(x.at(b), top_px), (x.at(b), end_px)], dash="3 4", opacity=0.7) for b in bounds]


def _beyond(off: Sequence[float]) -> str:
    count = sum(value > MOST_OFF for value in off)
    return f"{count} over the axis, up to {max(off):+.0%}; " if count else ""


def _split_row(
    name: str, parts: Timing, scale: Scale, top_px: float, colours: Mapping[str, str]
) -> list[str]:
    total = f"{sum(dataclasses.astuple(parts)):.3f} ms"
    room_px = WIDTH_PX - width_of(total) - 20
    content = [
        text(0, top_px + 14, shortened(name, room_px, weight="bold"), weight="bold"),
        text(WIDTH_PX, top_px + 14, total, anchor="end"),
    ]
    done_ms = 0.0
    segments = []
    for part, ms in _by_name(parts):
        start_px, end_px = scale.at(done_ms), scale.at(done_ms + ms)
        done_ms += ms
        # The gap tells neighbours apart whatever their colours look like.
        width_px = max(end_px - start_px - 1.5, 0)
        content.append(
            bar(start_px, top_px + 22, width_px, 20, colours[part], f"{part} {ms:.3f} ms")
        )
        segments.append((width_px, start_px, f"{part} {_rounded(ms, 3)}", _rounded(ms, 3)))
    written: list[tuple[float, float]] = []
    for width_px, start_px, *wordings in sorted(segments, reverse=True):
        words = next((words for words in wordings if width_of(words, 12) <= width_px + 6), "")
        end_px = start_px + width_of(words, 12) + 4
        if words and all(end_px <= left or right <= start_px for left, right in written):
            content.append(text(start_px, top_px + 57, words, 12))
            written.append((start_px, end_px))
    return content


def _by_name(parts: Timing) -> list[tuple[str, float]]:
    return list(zip(PART_NAMES, dataclasses.astuple(parts), strict=True))


def _pareto_scales(
    points: Sequence[ParetoPoint], top_px: float, end_px: float
) -> tuple[Scale, Scale]:
    times = [point.latency_ms for point in points]
    shares = [100 * point.accuracy for point in points]
    left_px, right_px = 54, PARETO_WIDTH_PX - MARGIN_PX
    low, high = min(times), max(times)
    if high > 8 * low:
        x = log_scale(low / 1.15, high * 1.15, left_px, right_px)
    else:
        room = 0.05 * (high - low) or 0.1 * high
        x = linear_scale(max(low - room, 0), high + room, left_px, right_px)
    room = max(0.1 * (max(shares) - min(shares)), 0.1)
    y = linear_scale(max(min(shares) - room, 0), max(shares) + room, end_px, top_px)
    y = dataclasses.replace(y, high=min(y.high, 100), ticks=tuple(t for t in y.ticks if t <= 100))
    return x, y


def _front_line(front: Sequence[ParetoPoint], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """In steps: between two points of the front nothing better was measured."""
    spots = [(x.at(p.latency_ms), y.at(100 * p.accuracy)) for p in front]
    corners = [(right, y_px) for (_, y_px), (right, _) in itertools.pairwise(spots)]
    steps = [spots[0]]
    for corner, spot in zip(corners, spots[1:], strict=True):
        steps += [corner, spot]
    return [*steps, (x.to_px, spots[-1][1])]


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _placed_labels(
    points: Sequence[ParetoPoint],
    front: Sequence[ParetoPoint],
    spots: Sequence[tuple[float, float]],
    steps: Sequence[tuple[float, float]],
    top_px: float,
    end_px: float,
) -> tuple[list[str], int]:
    """A label for each point, as near as it is free, and how many found no place; the front first."""
    taken: list[_Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    for (x, y), (right, top) in itertools.pairwise(steps):
        taken.append((x - 1, top - 1, right + 1, y + 1))
    labels: list[_Box] = []
    leaders: list[_Box] = []
    drawn: list[str] = []
    left_out, too_wide_px = 0, math.inf
    room = (56, top_px, PARETO_WIDTH_PX - 2, end_px - 2)
    for n in sorted(range(len(points)), key=lambda n: points[n] not in front):
        weight = "bold" if points[n] in front else "normal"
        label = shortened(points[n].label, 260, 12, weight)
        size = (width_of(label, 12, weight), 14.0)
        free = _free_boxes(spots[n], size, [*taken, *labels], room) if size[0] < too_wide_px else []
        if not free:
            left_out, too_wide_px = left_out + 1, min(too_wide_px, size[0])
            continue
        # Leaders that cross labels leave a reader guessing: better a little further off.
        clear = (
            box
            for box in free
            if not any(_overlap(box, other) for other in leaders)
            and not any(_overlap(a, b) for a in _leader_boxes(spots[n], box) for b in labels)
        )
        box = next(clear, free[0])
        labels.append(box)
        leaders += _leader_boxes(spots[n], box)
        drawn += [_leader(spots[n], box), text(box[0], box[3] - 3, label, 12, weight)]
    return drawn, left_out


def _free_boxes(
    spot: tuple[float, float], size: tuple[float, float], taken: Sequence[_Box], room: _Box
) -> list[_Box]:
    """Places for a label: beside the spot, above or below it, then anywhere, the nearest first."""
    (x, y), (width, height) = spot, size
    beside = [
        (x + 9, y - 7),
        (x - 9 - width, y - 7),
        (x - width / 2, y - 23),
        (x - width / 2, y + 9),
    ]
    anywhere = [
        (left, top)
        for top in _steps_through(room[1], room[3] - height, 8)
        for left in _steps_through(room[0], room[2] - width, 20)
    ]
    anywhere.sort(key=lambda at: _away(spot, (*at, at[0] + width, at[1] + height)))
    boxes = ((left, top, left + width, top + height) for left, top in [*beside, *anywhere])
    free = (
        box
        for box in boxes
        if room[0] <= box[0] and room[1] <= box[1] and box[2] <= room[2] and box[3] <= room[3]
        and not any(_overlap(box, other) for other in taken)
    )  # fmt: skip
    return list(itertools.islice(free, NEAREST))


def _steps_through(start: float, end: float, step: int) -> list[float]:
    return [start + n for n in range(0, int(end - start) + 1, step)]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _away(spot: tuple[float, float], box: _Box) -> float:
    """How far, in pixels; a leader to what stands over or under its point crosses what lies between."""
    x, y = _leader_end(spot, box)
    return math.hypot(x - spot[0], y - spot[1]) + (0 if x in (box[0], box[2]) else 80)


def _leader_end(spot: tuple[float, float], box: _Box) -> tuple[float, float]:
    """The middle of the side that faces the point, or of what lies over or under it."""
    left, top, right, bottom = box
    if left < spot[0] < right:
        return spot[0], min(max(spot[1], top), bottom)
    return left if spot[0] <= left else right, (top + bottom) / 2


def _leader(spot: tuple[float, float], box: _Box) -> str:
    """From a point to a label that does not stand beside it."""
    return line([spot, _leader_end(spot, box)], opacity=0.5) if _leader_boxes(spot, box) else ""


def _leader_boxes(spot: tuple[float, float], box: _Box) -> list[_Box]:
    """What a leader covers, from a little off its point on; none where it is too short to draw."""
    (x, y), (end_x, end_y) = spot, _leader_end(spot, box)
    length_px = math.hypot(end_x - x, end_y - y)
    if length_px < 14:
        return []
    shares = [n / length_px for n in range(8, int(length_px), 4)]
    spots = [(x + share * (end_x - x), y + share * (end_y - y)) for share in shares]
    return [(px - 1, py - 1, px + 1, py + 1) for px, py in spots]


def _x_axis(scale: Scale, y_px: float, name: str) -> list[str]:
    """Its line, numbers, and name in the middle below them."""
    middle_px = (scale.from_px + scale.to_px) / 2
    return [
        line([(scale.from_px, y_px), (scale.to_px, y_px)]),
        *(text(scale.at(t), y_px + 19, f"{t:g}", 12, anchor="middle") for t in scale.ticks),
        text(middle_px, y_px + 36, name, 12, anchor="middle"),
    ]


def _vertical_grid(scale: Scale, top_px: float, end_px: float) -> list[str]:
    return [line([(scale.at(t), top_px), (scale.at(t), end_px)], opacity=0.15) for t in scale.ticks]


def _horizontal_grid(scale: Scale, names: Sequence[str], right_px: float) -> list[str]:
    """Lines across, each with its number at the left."""
    drawn = []
    for tick, name in zip(scale.ticks, names, strict=True):
        y_px = scale.at(tick)
        drawn.append(line([(54, y_px), (right_px, y_px)], opacity=0.15))
        drawn.append(text(46, y_px + 4, name, 12, anchor="end"))
    return drawn
