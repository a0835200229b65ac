"""One table in a terminal, as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

import csv
import io
import re
import sys

import pytest
from rich.console import Console

from gft_edge.errors import MissingDependencyError
from gft_edge.reporting.table import Cell, Table, latex, markdown, terminal, to_csv, write
from tests.support.refusals import refusal_of

TABLE = Table(
    "80 classes, 50 % seen",
    ("model", "top-1 %", "p50 ms", "of"),
    [
        (r"a|b_c $x \ [y]*" + "\n", Cell("97.50", best=True, value=0.97512), 4.1, "x"),
        ("plain", Cell("96.25", value=0.9625), None, "3 of the rows"),
    ],
    ["machine: 2 cores"],
)


def printed(table: Table) -> str:
    """Return what a terminal of 120 columns shows."""
    console = Console(width=120, file=io.StringIO())
    console.print(terminal(table))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_terminal_marks_the_best_and_shows_a_dash_for_what_is_not_known() -> None:
    shown = printed(TABLE)
    assert "80 classes, 50 % seen; * best" in shown
    assert "97.50 *" in shown
    assert re.search(r"plain +│ +96.25 │ +- │", shown)


def test_a_column_of_numbers_aligns_right_in_every_form() -> None:
    assert TABLE.numeric() == [False, True, True, False]
    assert re.search(r"\n\|:-+\|-+:\|-+:\|:-+\|\n", markdown(TABLE))
    assert r"\begin{tabular}{lrrl}" in latex(TABLE)


def test_csv_has_every_value_in_full_and_nothing_where_nothing_is_known() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == list(TABLE.columns)
    assert rows[1][1:] == ["0.97512", "4.1", "x"]
    assert rows[2] == ["plain", "0.9625", "", "3 of the rows"]


def test_markdown_has_a_cell_for_each_column_whatever_a_name_holds() -> None:
    lines = [line for line in markdown(TABLE).splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [5, 5, 5, 5]
    assert r"a&#124;b_c $x \\ \[y\]\*" in lines[2]
    assert "**97.50**" in lines[2]
    assert "machine: 2 cores\n\nBold is best.\n" in markdown(TABLE)


def test_latex_escapes_what_it_would_run_and_rules_with_booktabs() -> None:
    text = latex(TABLE)
    assert r"a\textbar{}b\_c \$x \textbackslash{} {[}y{]}{*}" in text
    assert r"\textbf{97.50}" in text
    assert [text.count(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule", "hline")] == [
        1, 1, 1, 0,
    ]  # fmt: skip
    assert r"\caption{80 classes, 50 \% seen. machine: 2 cores.}" in text
    assert r"\label{tab:80-classes-50-seen}" in text


def test_a_table_without_rows_has_its_heads() -> None:
    empty = Table("", ("a", "b"), [])
    assert to_csv(empty) == "a,b\n"
    assert markdown(empty).startswith("| a")
    assert "a" in printed(empty)


def test_markdown_and_latex_name_the_extra_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tabulate", None)
    for form in ("markdown", "latex"):
        refusal_of(MissingDependencyError, lambda form=form: write(TABLE, form), "gft-edge[report]")  # type: ignore[misc]
    assert write(TABLE, "csv")


@pytest.mark.parametrize("name", ["#$%&_{}~^\\", '"a" <b>|*', "}{", "two\nlines \x00", "[5]"])
def test_latex_stays_balanced_whatever_a_run_is_called(name: str) -> None:
    body = re.sub(r"(?m)^%.*$", "", latex(Table("", ("a", "b"), [(name, 1), (name, None)])))
    depth = 0
    for sign in re.findall(r"\\.|[{}]", body):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    for line in rows:
        plain = re.sub(r"\\[a-zA-Z]+|\\.", "", line.removesuffix(r"\\"))
        assert plain.count("&") == 1
        assert not set(plain) & set('#$%_~^|<>"')
        assert not line.lstrip().startswith(("[", "*"))
