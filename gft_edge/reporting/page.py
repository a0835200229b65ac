"""The parts of a self-contained HTML page: its frame and style, sections, tables, figures."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Sequence

from gft_edge.reporting.drawing import escaped

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2126; --soft: #57636e; --paper: #ffffff;
  --panel: #f4f6f8; --rule: #d5dbe1; --good: #0a6b4b; --bad: #b3261e; --mark: #e3f1ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #a3aeb9; --paper: #14181c;
  --panel: #1d2329; --rule: #39424b; --good: #5cc79f; --bad: #ff8a80; --mark: #1b3329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.2rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 48rem; }
.note { color: var(--soft); font-size: .9rem; }
.verdict { border-left: .4rem solid var(--good); background: var(--panel); padding: .6rem 1rem;
  margin: .6rem 0; }
.verdict strong { color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict.bad strong { color: var(--bad); }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: break-word; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--rule); min-width: 3rem; max-width: 20rem; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.number { text-align: right; }
td.bad { color: var(--bad); font-weight: 600; min-width: 9rem; }
tr.marked { background: var(--mark); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1rem 0; overflow-x: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 48rem; }
.charts { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.charts > * { min-width: 0; }
.charts svg { width: 36rem; }
svg { display: block; }
@media (max-width: 30rem) { body { padding: .8rem; }
  td { max-width: 11rem; } }
@media print { body { max-width: none; padding: 0; font-size: .8rem; }
  h2, h3, caption { break-after: avoid; } figure, tr, .verdict { break-inside: avoid; }
  .scroll, figure { overflow: visible; } .scroll table { width: 100%; } th { white-space: normal; }
  table { font-size: .7rem; } svg { min-width: 0 !important; } }
"""

# Tables stand in the order they were written; a press on a column's head sorts by it.
_SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, n) => row.cells[n].textContent.trim();
  heads.forEach((head, n) => {
    const button = document.createElement('button');
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const compare = (a, b) => {
        const x = parseFloat(key(a, n)), y = parseFloat(key(b, n));
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
        const order = isNaN(x) ? key(a, n).localeCompare(key(b, n)) : x - y;
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
"""

# A column of these is one of numbers: 12.3, -4 %, +1.2, - or withheld.
_NUMERIC = re.compile(r"[-+]?\d[\d.,]*( ?%)?( \[.*\])?|-|withheld|")


def html_page(title: str, sections: Sequence[str]) -> str:
    """One file that loads nothing: its own policy forbids it, and any script but the one above."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n{''.join(sections)}"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(heading: str, body: str) -> str:
    """`body` is markup, the heading is not."""
    return f"<section>\n<h2>{escaped(heading)}</h2>\n{body}</section>\n"


def paragraph(words: str, kind: str = "") -> str:
    """Words; of kind "note" they are small."""
    return f'<p class="{kind}">{escaped(words)}</p>\n' if kind else f"<p>{escaped(words)}</p>\n"


def bullets(lines: Sequence[str]) -> str:
    """A list of words."""
    return "<ul>\n" + "".join(f"<li>{escaped(words)}</li>\n" for words in lines) + "</ul>\n"


def verdict(lines: Sequence[str], good: bool) -> str:
    """Lines of judgement, the word before each one's first colon in bold."""
    items = []
    for words in lines:
        head, colon, rest = words.partition(":")
        items.append(f"<p><strong>{escaped(head + colon)}</strong>{escaped(rest)}</p>")
    return f'<div class="verdict{"" if good else " bad"}" role="note">{"".join(items)}</div>\n'


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    caption: str = "",
    marked: Collection[int] = (),
) -> str:
    """A table that sorts by a press on a column; numbers align right, cells of trouble stand out.

    Cells are words, never markup. `marked` numbers the rows to highlight, from 0.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [
        bool(cells) and all(_NUMERIC.fullmatch(row[n]) for row in cells)
        for n in range(len(columns))
    ]
    sortable = ' class="sortable"' if len(rows) > 1 else ""
    head = "".join(
        f'<th scope="col"{_class("number" if number else "")}>{escaped(column)}</th>'
        for column, number in zip(columns, numeric, strict=True)
    )
    body = "".join(
        f"<tr{_class('marked' if n in marked else '')}>"
        + "".join(
            f"<td{_class(_cell_class(cell, number))}>{escaped(cell)}</td>"
            for cell, number in zip(row, numeric, strict=True)
        )
        + "</tr>\n"
        for n, row in enumerate(cells)
    )
    name = f"<caption>{escaped(caption)}</caption>" if caption else ""
    label = escaped(caption or columns[0])
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="table: {label}">'
        f"<table{sortable}>{name}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n"
        "</table></div>\n"
    )


def figure(drawing: str, caption: str = "") -> str:
    """A chart with what there is to say about it; on a narrow page it scrolls by itself."""
    words = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return f'<figure tabindex="0">{drawing}{words}</figure>\n'


def side_by_side(figures: Sequence[str]) -> str:
    """Figures two in a row where the page is wide enough."""
    return f'<div class="charts">{"".join(figures)}</div>\n'


def _cell_class(cell: str, number: bool) -> str:
    return "number" if number else "bad" if cell.startswith(("UNSTABLE", "FAILED")) else ""


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
