"""SVG text: shapes, words and axes that charts are made of, legible on light and dark pages alike."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# At least 3 : 1 on white and on near black, and told apart without red and green (Okabe and Ito's,
# the light ones darkened).
PALETTE = ("#1f77b8", "#d55e00", "#009e73", "#b565a0", "#8a7a00", "#6e7f96")
SHAPES = ("circle", "square", "diamond", "triangle")
DASHES = ("none", "6 3", "2 3")

# The characters of DejaVu Sans, the widest face that a page may fall back on, in parts of its size.
_NARROW, _WIDE = set(" fijlrtI.,:;'|!()[]/-"), set("mwMW@%&\N{HORIZONTAL ELLIPSIS}")
_BOLD = 1.12


def escaped(words: str) -> str:
    """Words as they stand in HTML and SVG, quotes too; bytes of a path that are no UTF-8 as \\udcff."""
    return html.escape(words.encode("utf-8", "backslashreplace").decode())


def svg(width_px: float, height_px: float, title: str, description: str, content: list[str]) -> str:
    """A drawing that scales to its page's width, takes its text colour and is named to a reader.

    It shrinks to three quarters at most: a page narrower than that has to scroll it.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px:g} {height_px:g}" '
        f'width="{width_px:g}" height="{height_px:g}" role="img" fill="currentColor" '
        f'style="max-width:100%;min-width:{0.75 * width_px:g}px;height:auto" '
        'font-family="system-ui, sans-serif">'
        f"<title>{escaped(title)}</title><desc>{escaped(description)}</desc>{''.join(content)}</svg>"
    )


def text(
    x_px: float,
    y_px: float,
    content: str,
    size_px: int = 13,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    """A line of text; `anchor` is what of it stands at x: start, middle or end."""
    return (
        f'<text x="{x_px:.1f}" y="{y_px:.1f}" font-size="{size_px}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escaped(content)}</text>'
    )


def bar(
    x_px: float, y_px: float, width_px: float, height_px: float, colour: str, hover: str = ""
) -> str:
    """A filled rectangle; `hover` is what a pointer over it shows."""
    return (
        f'<rect x="{x_px:.1f}" y="{y_px:.1f}" width="{width_px:.1f}" height="{height_px:.1f}" '
        f'rx="2" fill="{colour}">{_hover(hover)}</rect>'
    )


def line(
    points: Sequence[tuple[float, float]],
    colour: str = "currentColor",
    width_px: float = 1,
    dash: str = "none",
    opacity: float = 1,
) -> str:
    """A line through points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width_px:g}" '
        f'stroke-dasharray="{dash}" stroke-opacity="{opacity:g}"/>'
    )


def area(points: Sequence[tuple[float, float]], colour: str) -> str:
    """What points enclose, filled so that lines behind it show."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{joined}" fill="{colour}" fill-opacity="0.6" stroke="{colour}"/>'


def marker(
    shape: str, x_px: float, y_px: float, radius_px: float, colour: str, hover: str = ""
) -> str:
    """A point as one of SHAPES, of about the same area each."""
    r = radius_px
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
        "triangle": [(0.0, -1.25), (1.2, 0.95), (-1.2, 0.95)],
    }.get(shape)
    if corners is None:
        return (
            f'<circle cx="{x_px:.1f}" cy="{y_px:.1f}" r="{r:g}" fill="{colour}">'
            f"{_hover(hover)}</circle>"
        )
    joined = " ".join(f"{x_px + r * x:.1f},{y_px + r * y:.1f}" for x, y in corners)
    return f'<polygon points="{joined}" fill="{colour}">{_hover(hover)}</polygon>'


def legend(
    entries: Sequence[tuple[str, str, str]], top_px: float, width_px: float
) -> tuple[list[str], float]:
    """Names with their shape and colour, in as many lines as they take, and the height of these."""
    drawn, x_px, y_px = [], 0.0, top_px + 14
    for name, shape, colour in entries:
        label = shortened(name, width_px - 24)
        needed_px = 16 + width_of(label) + 10
        if x_px and x_px + needed_px > width_px:
            x_px, y_px = 0.0, y_px + 20
        drawn += [marker(shape, x_px + 6, y_px - 4.5, 4.5, colour), text(x_px + 16, y_px, label)]
        x_px += needed_px
    return drawn, y_px + 8 - top_px if entries else 0.0


def width_of(words: str, size_px: int = 13, weight: str = "normal") -> float:
    """About as wide as words get in any of a browser's own faces, in pixels."""
    ems = sum(
        0.42 if c in _NARROW else 1.0 if c in _WIDE or ord(c) > 0x2FF else 0.76 if c.isupper() else 0.64
        for c in words
    )  # fmt: skip
    return ems * size_px * (_BOLD if weight == "bold" else 1)


def shortened(words: str, room_px: float, size_px: int = 13, weight: str = "normal") -> str:
    """Words that fit, their middle left out if need be: paths differ at the end."""
    words = words.encode("utf-8", "backslashreplace").decode()
    if width_of(words, size_px, weight) <= room_px:
        return words
    kept = len(words)
    while kept > 1:
        kept -= 1
        head = kept // 3
        cut = f"{words[:head]}\N{HORIZONTAL ELLIPSIS}{words[len(words) - (kept - head) :]}"
        if width_of(cut, size_px, weight) <= room_px:
            return cut
    return "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Scale:
    """Where the values of an axis stand, and which of them are written beside it."""

    low: float
    high: float
    from_px: float
    to_px: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """In pixels; values off the axis stand at its end."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.from_px + (value - low) / (high - low) * (self.to_px - self.from_px)


def linear_scale(
    low: float, high: float, from_px: float, to_px: float, most_ticks: int = 7
) -> Scale:
    """From a round number at or under low to one at or over high, which is larger."""
    step = 10 ** math.floor(math.log10((high - low) / most_ticks))
    step *= next(
        factor
        for factor in (1, 2, 2.5, 5, 10, 20)
        if _steps(low, high, step * factor) <= most_ticks
    )
    first, count = math.floor(low / step + 1e-9), _steps(low, high, step)
    ticks = tuple(float(f"{step * (first + n):.10g}") for n in range(count + 1))
    return Scale(ticks[0], ticks[-1], from_px, to_px, ticks)


def log_scale(low: float, high: float, from_px: float, to_px: float) -> Scale:
    """From low to high, both over 0; ticks at 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = (float(f"{factor * 10.0**power:.10g}") for power in powers for factor in (1, 2, 5))
    return Scale(low, high, from_px, to_px, tuple(t for t in found if low <= t <= high), log=True)


def _steps(low: float, high: float, step: float) -> int:
    return math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9)


def _hover(words: str) -> str:
    return f"<title>{escaped(words)}</title>" if words else ""
