"""One table of results, shown in a terminal and written as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rich.table import Table as RichTable
from rich.text import Text

from gft_edge.errors import MissingDependencyError

Format = Literal["markdown", "latex", "csv"]

SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}

# A column aligns right where every cell looks so: 12.3, -4 %, 1.02 [0.98, 1.10], 12.1 MiB.
_NUMBER = re.compile(r"[-+]?\d[\d.,]*%?( .{1,24})?|-|withheld|")

# https://www.ctan.org/pkg/comprehensive, "Escapable special characters" and what OT1 fonts lack. Braces keep
# a bracket or a star that begins a row from being an argument of the \\ before it.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}",
    "*": "{*}", "\"": "''",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell: the text that people read, whether it is the best of its column, its value for CSV.

    CSV writes `value` where there is one, in full, and the text otherwise.
    """

    text: str
    best: bool = False
    value: float | str | None = None


# What a row may hold in the place of a Cell; None is a dash to people and an empty field in CSV.
Value = Cell | str | float | None


@dataclass(frozen=True)
class Table:
    """Columns by their heads, rows of cells, and lines of notes below: one value for every form.

    Cells are plain text in every form: what would be markup is escaped. An empty title is left out.

    >>> table = Table(
    ...     "gft_tiny on test, 80 images",
    ...     ("bundle", "top-1 %", "p50 ms"),
    ...     [("onnx-fp32", Cell("97.50", best=True, value=0.975), 4.1), ("onnx-int8", 96.25, None)],
    ...     ["machine: 2 cores"],
    ... )
    >>> write(table, "csv").splitlines()
    ['bundle,top-1 %,p50 ms', 'onnx-fp32,0.975,4.1', 'onnx-int8,96.25,']

    `terminal` gives what rich prints (cli.output.show prints it with its notes), `markdown`, `latex`
    and `to_csv` the text of a file, with a line feed at its end; `write` chooses by name. Markdown and
    LaTeX need tabulate, of the extra [report]. A page takes the Table as it is (reporting.page.Section).
    """

    kind: ClassVar[str] = "table"  # for a page's template
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    notes: Sequence[str] = ()

    def cells(self) -> list[list[Cell]]:
        """Every row as Cells, each text on one line: a folder's name may hold anything."""
        return [[_cell(value) for value in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Whether each column holds numbers alone, and so aligns right."""
        columns = zip(*self.cells(), strict=True) if self.rows else [()] * len(self.columns)
        return [
            bool(cells) and all(_NUMBER.fullmatch(cell.text) for cell in cells) for cells in columns
        ]

    def records(self) -> list[dict[str, float | str | None]]:
        """Each row by its columns' heads, with every value in full."""
        return [dict(zip(self.columns, map(_field, row), strict=True)) for row in self.rows]

    def without(self, *heads: str) -> Table:
        """The same table with fewer columns."""
        kept = [n for n, head in enumerate(self.columns) if head not in heads]
        columns = [self.columns[n] for n in kept]
        return Table(self.title, columns, [[row[n] for n in kept] for row in self.rows], self.notes)

    def has_best(self) -> bool:
        """Whether any cell is marked as the best."""
        return any(cell.best for row in self.cells() for cell in row)


def write(table: Table, form: Format) -> str:
    """The table in one of the formats of files, with a line feed at its end."""
    forms: dict[Format, Callable[[Table], str]] = {
        "markdown": markdown, "latex": latex, "csv": to_csv,
    }  # fmt: skip
    return forms[form](table)


def terminal(table: Table) -> RichTable:
    """What rich prints, without the notes; a star marks the best of a column."""
    title = f"{table.title}; * best" if table.has_best() else table.title
    # Text, not markup: 'gft-edge[openvino]' would lose its bracket.
    shown = RichTable(title=Text(title), title_justify="left", header_style="bold")
    for column, numeric in zip(table.columns, table.numeric(), strict=True):
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in table.cells():
        shown.add_row(*(Text(f"{cell.text} *" if cell.best else cell.text) for cell in row))
    return shown


def markdown(table: Table) -> str:
    """GitHub's table below its title, the best cells bold, a paragraph a note.

    Raises MissingDependencyError without tabulate.
    """
    rows = [
        [f"**{markdown_text(c.text)}**" if c.best else markdown_text(c.text) for c in row]
        for row in table.cells()
    ]
    notes = [*table.notes, *(["Bold is best."] if table.has_best() else [])]
    parts = [
        *([markdown_text(table.title)] if table.title else []),
        _tabulated(table, [markdown_text(head) for head in table.columns], rows, "pipe"),
        *map(markdown_text, notes),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_text(text: str) -> str:
    """Escape what would be Markdown; an underscore inside a word is none anyway."""
    text = re.sub(r"([\\`*\[\]<>])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", _line(text))
    return text.replace("|", "&#124;")


def latex(table: Table) -> str:
    r"""A table with booktabs, its title and notes as the caption, the best cells bold.

    The document's preamble needs \usepackage{booktabs}. Raises MissingDependencyError without
    tabulate.
    """
    rows = [
        [
            rf"\textbf{{{latex_text(c.text)}}}" if c.best else _dashed(latex_text(c.text))
            for c in row
        ]
        for row in table.cells()
    ]
    ruled = _tabulated(table, [latex_text(head) for head in table.columns], rows, "latex_raw")
    for rule in ("toprule", "midrule", "bottomrule"):
        ruled = ruled.replace(r"\hline", rf"\{rule}", 1)
    caption = ". ".join(text.rstrip(".") for text in (table.title, *table.notes) if text)
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(caption)}.}}",
        rf"  \label{{tab:{label}}}",
        *(f"  {line}" for line in ruled.splitlines()),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Escape what LaTeX takes for a command."""
    return "".join(_LATEX.get(sign, sign) for sign in _line(text))


def to_csv(table: Table) -> str:
    """A line of heads, then a line a row with every value in full; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_field(value) for value in row] for row in table.rows)
    return text.getvalue()


def _cell(value: Value) -> Cell:
    if isinstance(value, Cell):
        return Cell(_line(value.text), value.best, value.value)
    return Cell("-" if value is None else _line(str(value)))


def _field(value: Value) -> float | str | None:
    if isinstance(value, Cell):
        value = value.text if value.value is None else value.value
    return _line(value) if isinstance(value, str) else value


def _tabulated(table: Table, heads: list[str], rows: list[list[str]], form: str) -> str:
    try:
        from tabulate import tabulate
    except ImportError as error:
        raise MissingDependencyError("tabulate", "report") from error
    aligned = ["right" if numeric else "left" for numeric in table.numeric()]
    written: Any = tabulate(rows, heads, form, colalign=aligned, disable_numparse=True)
    return str(written)


def _dashed(text: str) -> str:
    return "--" if text == "-" else text


def _line(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


def percent(fraction: float | None) -> str:
    """The fraction as a percentage: 0.8996 is 89.96 %."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def per_stage(values: Sequence[float] | None) -> str:
    """The values as one number a stage, such as the overlaps of the kept patches."""
    return "-" if values is None else " / ".join(f"{value:.4f}" for value in values) or "no stage"
