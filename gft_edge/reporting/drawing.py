"""Matplotlib figures without a window: made in pixels, written as PNG or as SVG for a page."""

from __future__ import annotations

import functools
import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from gft_edge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

# At least 3 : 1 on white and on near black, and told apart without red and green (Okabe and Ito's,
# the light ones darkened).
PALETTE = ("#1f77b8", "#d55e00", "#009e73", "#b565a0", "#8a7a00", "#6e7f96")
MARKERS = ("o", "s", "D", "^")
DASHES = ("-", "--", ":")
GREY, ORANGE = "#7a8aa0", "#d9822b"
# Words and axes: a page replaces it by the colour of its own text.
INK = "#1b2126"
DPI = 120
HEADING_PX = 22

_STYLE: dict[str, Any] = {
    "font.size": 12, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.grid.axis": "both", "grid.color": INK,
    "grid.alpha": 0.15, "axes.axisbelow": True, "legend.frameon": False, "legend.borderpad": 0,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.labelsize": 12,
    "ytick.labelsize": 12, "axes.labelsize": 12, "axes.titlesize": 13, "legend.fontsize": 12,
    # Words stay words in an SVG: they are searched, and drawn in the page's own face.
    "svg.fonttype": "none", "svg.hashsalt": "gft-edge", "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A figure, the name of its file, and its title and numbers in words for who does not see it."""

    name: str
    title: str
    words: str
    figure: Figure


def drawn(chart: Callable[P, R]) -> Callable[P, R]:
    """Give a function that draws a chart the common style.

    The function then raises MissingDependencyError without matplotlib.
    """

    @functools.wraps(chart)
    def draw(*args: P.args, **kwargs: P.kwargs) -> R:
        check_installed()
        import matplotlib

        with matplotlib.rc_context(_STYLE), _missing_glyphs_allowed():
            return chart(*args, **kwargs)

    return draw


def check_installed() -> None:
    """Raise MissingDependencyError without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("Matplotlib", "report") from error


def new_figure(
    width_px: float, height_px: float, layout: Literal["constrained"] | None = None
) -> Figure:
    """A figure of so many pixels of a page; a font's point is a pixel there."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_px / 72, height_px / 72), layout=layout, facecolor="white")


def panel(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """The axes between margins of so many pixels."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    across, up = width - left - right, height - top - bottom
    return figure.add_axes((left / width, bottom / height, across / width, up / height))


def heading(figure: Figure, title: str, subtitle: str = "") -> None:
    """A title at the top left, HEADING_PX high, and 18 more for a line of small words below it."""
    height = 72 * figure.get_size_inches()[1]
    figure.text(0, 1 - 2 / height, literal(title), va="top", size=15, weight="bold")
    figure.text(0, 1 - 26 / height, literal(subtitle), va="top")


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Names with their signs below the heading, in as many columns as fit."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    labels, columns = _legend(width, names)
    figure.legend(
        handles, labels, loc="upper left", ncols=columns, borderaxespad=0, labelspacing=0.4,
        handletextpad=0.5, columnspacing=1.2, handlelength=1.2,
        bbox_to_anchor=(0, 1 - HEADING_PX / height),
    )  # fmt: skip


def legend_px(width_px: float, names: Sequence[str]) -> float:
    """The height of a heading and a legend of these names in a figure of that width."""
    labels, columns = _legend(width_px, names)
    return HEADING_PX + 18 * math.ceil(len(labels) / columns) + 4


def _legend(width_px: float, names: Sequence[str]) -> tuple[list[str], int]:
    """The names as they are written, and the number of their columns."""
    labels = [literal(shortened(name, int(width_px / 9))) for name in names]
    return labels, max(1, int(width_px / (9 * max(map(len, labels)) + 34)))


def svg_of(chart: Chart) -> str:
    """The chart as SVG in a page: scaled to its width, in its text colour, named to a reader.

    It shrinks to three quarters at most: a page narrower than that has to scroll it.
    """
    import matplotlib

    figure, text = chart.figure, io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(_STYLE), _missing_glyphs_allowed():
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    width, height = (72 * inches for inches in figure.get_size_inches())
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawing, count=1, flags=re.DOTALL)
    # The page's own face: it is never wider than the one that matplotlib laid out.
    drawing = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", drawing)
    title, words = (html.escape(literal(said)) for said in (chart.title, chart.words))
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" fill="currentColor" '
        f'style="width:{min(1.2 * width, max(width, 800)):g}px;max-width:100%;min-width:{0.75 * width:g}px;'
        f'height:auto"><title>{title}</title><desc>{words}</desc>'
    )
    return opening + drawing[drawing.index(">") + 1 :].strip()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG. Raises UsageError for a path that cannot be written."""
    import matplotlib

    try:
        with matplotlib.rc_context(_STYLE), _missing_glyphs_allowed():
            figure.savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): choose another --out"
        ) from error


def literal(text: str) -> str:
    """The text on one line: a name may hold anything."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def shortened(words: str, most: int) -> str:
    """The words in at most so many characters, the middle left out: paths differ at the end."""
    if len(words) <= most:
        return words
    head = most // 3
    return f"{words[:head]}\N{HORIZONTAL ELLIPSIS}{words[len(words) - (most - 1 - head) :]}"


def plain_log(axis: Any) -> None:
    """Write plain numbers on a logarithmic axis: at powers of ten, and where these are few at 2 and 5."""

    def minor(value: float, _: object) -> str:
        low, high = axis.get_view_interval()
        return f"{value:g}" if high < 1000 * low and f"{value:e}"[0] in "25" else ""

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(minor)


@contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
    """Draw a class named in a script that the font lacks as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield
