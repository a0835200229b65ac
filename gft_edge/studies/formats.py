"""A table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.studies.table import Row, Table

Format = Literal["markdown", "latex", "csv"]

SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}


@dataclass(frozen=True)
class Cell:
    """A cell's text, and whether it is the best of its column as far as its digits tell."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column with a cell for each row."""

    head: str
    cells: tuple[Cell, ...]
    numeric: bool = True


def columns(table: Table) -> list[Column]:
    """What all formats but CSV show. Nothing is the best of fewer than two."""
    average = table.average
    columns = [
        Column("model", tuple(Cell(row.model) for row in table.rows), numeric=False),
        _column("accuracy %", table, lambda row: 100 * row.metrics.top1, "{:.2f}".format, max),
        *(
            _column(head, table, _metric(f"{name}_{average}"), "{:.3f}".format, max)
            for head, name in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
        ),
        _column("parameters M", table, lambda row: row.parameters / 1e6, _figures, min),
        _column("GFLOPs", table, lambda row: row.gflops, _figures, min),
        Column("type", tuple(Cell(row.type) for row in table.rows), numeric=False),
    ]
    for target, precision in _measured(table):
        head = f"{target} {precision} ms"
        times = _column(head, table, _time(target, precision), "{:.2f}".format, min)
        ratios = [_ratio(row, target, precision) for row in table.rows]
        cells = [
            cell if ratio is None else Cell(f"{cell.text} ({ratio:.2f})", cell.best)
            for cell, ratio in zip(times.cells, ratios, strict=True)
        ]
        columns.append(Column(head, tuple(cells)))
    return columns


def _metric(name: str) -> Callable[[Row], float]:
    return lambda row: float(getattr(row.metrics, name))


def _time(target: str, precision: str) -> Callable[[Row], float | None]:
    return lambda row: next(
        (x.p50_ms for x in row.latency if (x.target, x.precision) == (target, precision)), None
    )


def _ratio(row: Row, target: str, precision: str) -> float | None:
    return next(
        (x.ratio for x in row.latency if (x.target, x.precision) == (target, precision)), None
    )


def _column(
    head: str,
    table: Table,
    value: Callable[[Row], float | None],
    shown: Callable[[float], str],
    best: Callable[[list[float]], float],
) -> Column:
    values = [value(row) for row in table.rows]
    known = [number for number in values if number is not None]
    leader = shown(best(known)) if len(known) > 1 else None
    texts = ["-" if number is None else shown(number) for number in values]
    return Column(head, tuple(Cell(text, text == leader) for text in texts))


def _figures(value: float) -> str:
    """Three significant figures, one decimal at least: 93.0, 2.17, 0.0061."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 1
    return f"{value:.{max(digits, 1)}f}"


def _measured(table: Table) -> list[tuple[str, str]]:
    """Target and precision of every bundle, sorted."""
    return sorted({(x.target, x.precision) for row in table.rows for x in row.latency})


def heading(table: Table) -> str:
    """What was evaluated."""
    return (
        f"{table.data}, {table.split} ({table.images} images, {table.classes} classes), "
        f"{table.average} averages"
    )


def notes(table: Table) -> Iterator[str]:
    """What belongs to the latencies: the machine, and whether they are to be trusted."""
    if table.measured is None:
        return
    measured = table.measured
    yield (
        f"ms: median of the engine at batch {measured.batch}, all bundles measured in turn on "
        f"{measured.machine}; in brackets relative to the first row that has one"
    )
    if not measured.stable:
        causes = "; ".join(measured.causes) or "unknown, nothing was recorded that explains it"
        yield f"UNSTABLE: do not decide on these latencies. Likely cause: {causes}"


def write(table: Table, form: Format) -> str:
    """The table in one of the formats, with a line feed at its end."""
    return {"markdown": markdown, "latex": latex, "csv": to_csv}[form](table)


def markdown(table: Table) -> str:
    """GitHub's tables, best cells bold."""
    shown = columns(table)
    rows = [
        [f"**{cell.text}**" if cell.best else markdown_text(cell.text) for cell in row]
        for row in zip(*(column.cells for column in shown), strict=True)
    ]
    lines = [
        markdown_row([column.head for column in shown]),
        markdown_row(["---:" if column.numeric else "---" for column in shown]),
        *map(markdown_row, rows),
        "",
        markdown_text(f"{heading(table)}. Bold is best."),
    ]
    for note in notes(table):
        lines += ["", markdown_text(f"{note}.")]
    return "\n".join(lines) + "\n"


def markdown_row(texts: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(texts)} |"


def markdown_text(text: str) -> str:
    """A name's own signs are no Markdown; an underscore inside a word is none anyway."""
    text = re.sub(r"([\\`*\[\]<>])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", _line(text))
    return text.replace("|", "&#124;")


# https://www.ctan.org/pkg/comprehensive, "Escapable special characters" and what OT1 fonts lack. Braces keep
# a bracket or a star that begins a row from being an argument of the \\ before it.
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}",
    "*": "{*}", "\"": "''",
}  # fmt: skip


def latex(table: Table) -> str:
    r"""A table with booktabs, best cells bold; its preamble needs \usepackage{booktabs}."""
    shown = columns(table)
    rows = [
        [rf"\textbf{{{_latex(cell.text)}}}" if cell.best else _latex(cell.text) for cell in row]
        for row in zip(*(column.cells for column in shown), strict=True)
    ]
    caption = ". ".join([_capital(heading(table)), *map(_capital, notes(table))])
    label = re.sub(r"[^a-z0-9]+", "-", f"{table.data}-{table.split}".lower()).strip("-")
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_latex(caption)}.}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in shown)}}}",
        r"    \toprule",
        rf"    {' & '.join(_latex(_capital(column.head)) for column in shown)} \\",
        r"    \midrule",
        *(rf"    {' & '.join('--' if cell == '-' else cell for cell in row)} \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in _line(text))


def _capital(text: str) -> str:
    """With a capital letter, unless it is a unit or a name of its own."""
    return (
        text
        if text.split()[0] in ("ms:", "onnx", "openvino", "tensorrt")
        else text[:1].upper() + text[1:]
    )


def _line(text: str) -> str:
    """On one line: a folder's name may hold anything."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def to_csv(table: Table) -> str:
    """A line a run, every number in full; what is not known is empty. Rates are fractions of 1."""
    measured = _measured(table)
    lines = []
    for row in table.rows:
        line: dict[str, object] = {
            "model": _line(row.model),
            "run": _line(row.run),
            "type": row.type,
            "data": table.data,
            "split": table.split,
            "images": table.images,
            "accuracy": row.metrics.top1,
            "average": table.average,
            **{
                name: getattr(row.metrics, f"{name}_{table.average}")
                for name in ("precision", "recall", "f1")
            },
            "parameters": row.parameters,
            "gflops": row.gflops,
        }
        for target, precision in measured:
            line[f"{target}_{precision}_p50_ms"] = _time(target, precision)(row)
            line[f"{target}_{precision}_ratio"] = _ratio(row, target, precision)
        if table.measured is not None:
            line["stable"] = table.measured.stable
            line["machine"] = table.measured.machine
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
