"""A self-contained HTML page of sections, by one template; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gft_edge.errors import MissingDependencyError
from gft_edge.reporting.drawing import Chart, svg_of
from gft_edge.reporting.table import Table

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Banner:
    """Lines of judgement, the words before each one's first colon in bold; green where it is good."""

    kind: ClassVar[str] = "banner"
    lines: Sequence[str]
    good: bool


@dataclass(frozen=True)
class Note:
    """A remark in small print."""

    kind: ClassVar[str] = "note"
    words: str


@dataclass(frozen=True)
class Bullets:
    """A bulleted list, an item a line."""

    kind: ClassVar[str] = "bullets"
    lines: Sequence[str]


@dataclass(frozen=True)
class Charts:
    """Charts, two in a row where the page is wide enough."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


# A string is a paragraph. Everything but a drawing is words, never markup.
Block = str | Banner | Note | Bullets | Charts | Table


@dataclass(frozen=True)
class Section:
    """What stands under one heading; without a heading it belongs to the page's title."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A title and what stands below it."""

    title: str
    sections: Sequence[Section]

    def charts(self) -> dict[str, Chart]:
        """Every chart by a name of its own: "layers", "layers-2"."""
        found: dict[str, Chart] = {}
        blocks = [block for section in self.sections for block in section.blocks]
        every = [chart for block in blocks if isinstance(block, Charts) for chart in block.charts]
        for chart in every:
            again = sum(other.name == chart.name for other in found.values())
            found[f"{chart.name}-{again + 1}" if again else chart.name] = chart
        return found


def html_of(page: Page) -> str:
    """The page as HTML: light or dark as its reader's browser is, its tables sort by a press.

    Bytes of a path that are no UTF-8 are written as \\udcff. Raises MissingDependencyError without
    Jinja2.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError("Jinja2", "report") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["digest"] = _digest
    environment.filters["svg"] = svg_of
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(title=page.title, sections=page.sections)
    return text.encode("utf-8", "backslashreplace").decode()


def _digest(script: str) -> str:
    """The sha256 of a script as a page's policy names it."""
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
