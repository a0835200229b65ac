"""Pages lie right in a real browser, on a desk and on a phone, and load nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gft_edge.fidelity.confusion import confusion_of
from gft_edge.reporting.drawing import Chart
from gft_edge.reporting.latency_charts import distribution_chart, split_chart, timeline_chart
from gft_edge.reporting.page import Banner, Bullets, Charts, Page, Section, html_of
from gft_edge.reporting.pareto import ParetoPoint, pareto_chart
from gft_edge.reporting.profile_page import latency_charts, layer_sections, parts_blocks
from gft_edge.reporting.run_page import RunResult, run_page
from gft_edge.reporting.table import Cell, Table, Value
from gft_edge.runtime.classifier import Timing
from tests.reporting.pages import page_of, points
from tests.support.profiles import disturbed_profile, stable_profile, turns_of
from tests.support.tools import lacking

pytestmark = pytest.mark.slow

WIDTHS_PX = (1280, 390)

# Frames of both widths, each measured by this script: the pages' own policy lets none in.
HARNESS = """
const outside = (a, b) => a.left < b.left - 1 || a.right > b.right + 1
  || a.top < b.top - 1 || a.bottom > b.bottom + 1;
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const look = frame => {
  const page = frame.contentDocument, found = {overlaps: [], outside: []};
  for (const drawing of page.querySelectorAll('svg')) {
    const edge = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll('text')];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((box, n) => {
      if (outside(box, edge)) found.outside.push(texts[n].textContent);
      boxes.slice(0, n).forEach((other, m) => {
        if (meet(box, other)) found.overlaps.push(texts[m].textContent + ' | ' + texts[n].textContent);
      });
    });
  }
  found.spilled = [...page.querySelectorAll('td, th')].filter(
    cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent);
  const verdict = page.querySelector('.verdict');
  found.overflow = page.documentElement.scrollWidth - frame.clientWidth;
  found.verdict = verdict && verdict.checkVisibility() ? verdict.innerText : '';
  found.verdictBottom = verdict ? verdict.getBoundingClientRect().bottom : 0;
  found.requests = frame.contentWindow.performance.getEntriesByType('resource').map(entry => entry.name);
  found.hacked = Boolean(frame.contentWindow.hacked);
  found.charts = [...page.querySelectorAll('svg > title')].map(title => title.textContent);
  const tables = [...page.querySelectorAll('table')].filter(table => table.caption);
  found.rows = Object.fromEntries(tables.map(
    table => [table.caption.textContent, table.tBodies[0].rows.length]));
  const table = page.querySelector('table.sortable');
  if (table) {
    const column = () => [...table.tBodies[0].rows].map(row => row.cells[2].textContent);
    found.unsorted = column();
    table.tHead.rows[0].cells[2].querySelector('button').click();
    found.sorted = column();
  }
  return found;
};
addEventListener('load', () => {
  const result = Object.fromEntries([...document.querySelectorAll('iframe')].map(f => [f.id, look(f)]));
  document.body.textContent = 'RESULT' + JSON.stringify(result) + 'END';
});
"""


@dataclass(frozen=True)
class Seen:
    """What the browser found on one page at one width, and what it wrote to its console of the page."""

    found: dict[str, Any]
    console: list[str]


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        lacking(f"no browser to open the page in: none of {', '.join(names)} is on the PATH")
    return found


@pytest.fixture(scope="module")
def seen(browser: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Seen]:
    """Every page at both widths, in one run of the browser."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {
        "stable": page_of(one=stable_profile()),
        "disturbed": page_of(one=disturbed_profile()),
        "several": page_of(a=stable_profile(), b=disturbed_profile()),
        "benchmark": html_of(benchmark_page()),
        "run": html_of(a_run_page()),
        "extremes": html_of(Page("Extremes", [Section("Extremes", [Charts(extremes())])])),
        "broken": broken_page(),
    }
    frames = ""
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page)
        for width_px in WIDTHS_PX:
            style = f"border:0;width:{width_px}px;height:900px"
            frames += f'<iframe id="{name} {width_px}" src="{name}.html" style="{style}"></iframe>'
    (folder / "all.html").write_text(f"<body>{frames}<script>{HARNESS}</script></body>")
    ran = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--enable-logging=stderr", f"--user-data-dir={folder / 'user'}", "--window-size=1400,900",
         "--dump-dom", (folder / "all.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    answer = re.search("RESULT(.*)END", ran.stdout, re.DOTALL)
    assert answer, f"the browser measured nothing: {ran.stderr[-2000:]}"
    found = json.loads(html.unescape(answer[1]))
    console = [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]
    assert all(".html" in line for line in console), console
    return {
        (name, width_px): Seen(found[f"{name} {width_px}"], [c for c in console if f"/{name}.html" in c])
        for name in pages
        for width_px in WIDTHS_PX
    }  # fmt: skip


def benchmark_page() -> Page:
    """Two bundles measured, and what is missing."""
    dense, sparse, _ = stable_profile().reports
    rows: list[list[Value]] = [["dense", Cell("90.0", best=True), 13], ["sparse", 89.0, 10]]
    table = Table("Targets", ("bundle", "top-1 %", "ms"), rows)
    missing = ["not here: tensorrt fp16: no NVIDIA driver <script>"]
    at = [ParetoPoint("dense", 13.0, 0.9, "onnx"), ParetoPoint("sparse", 10.2, 0.89, "onnx")]
    reports = {"dense": dense, "sparse": sparse}
    sections = [
        Section("", [Banner(["fastest: sparse"], True)]),
        Section("Everything that runs here", [table, Bullets(missing)]),
        Section("Accuracy against cost", [Charts([pareto_chart(at, "Top-1", "ms")])]),
        Section("Latency", latency_charts(reports)),
        Section("End to end", parts_blocks(reports)),
        *layer_sections(reports),
    ]
    return Page("Benchmark", sections)


def a_run_page() -> Page:
    """Four classes, three epochs, a dozen layers."""
    columns: dict[str, list[float]] = {
        "epoch": [1, 2, 3],
        "train_loss": [2, 1.5, 1.2],
        "val_loss": [2.1, 1.7, 1.4],
        "val_top1": [0.2, 0.5, 0.6],
        "val_top5": [0.9, 0.95, 1.0],
    }
    norms = {n: {f"blocks.{layer}.attn": 0.5**layer for layer in range(12)} for n in (1, 2)}
    targets = np.repeat(np.arange(4), 6)
    logits = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    confusion = confusion_of(logits, targets, ("apple", "brown bread", "café", "dill"))
    return run_page({"runs/gft": columns}, norms, RunResult("test", 24, 0.25, confusion))


def extremes() -> list[Chart]:
    """Microseconds and minutes, one call, hundreds of turns, a dozen bundles, a front over decades."""
    drawn = [pareto_chart(points(), "Front", "ms")]
    for middle_ms in (0.0123, 12345.6):
        turns = {"one": turns_of(middle_ms, 1, 1), "many": turns_of(middle_ms * 3, 300, 5)}
        drawn.append(timeline_chart(turns, "engine"))
        samples = {n: [s for t in o for s in t] for n, o in turns.items()}
        drawn.append(distribution_chart(samples, "engine"))
        drawn.append(distribution_chart({"still": [middle_ms] * 700}, "engine"))
        drawn.append(split_chart({"tiny": Timing(*[middle_ms / 6] * 6)}))
    dozen = {f"bundle {n} of a dozen": turns_of(10.0 + n, scatter=0.2) for n in range(12)}
    drawn.append(timeline_chart(dozen, "engine"))
    drawn.append(split_chart({name: Timing(0.1, n, 0, 9, 0.01, 2) for n, name in enumerate(dozen)}))
    for most_ms in (1000.0, 0.02):
        times = [0.02 + n / 12 * (most_ms - 0.02) for n in range(12)]
        spread = [ParetoPoint(f"{n}", ms, n / 12, "g") for n, ms in enumerate(times)]
        drawn.append(pareto_chart(spread, "Front", "ms"))
    return drawn


def broken_page() -> str:
    """All that the browser has to find."""
    words = "".join(f'<text x="{x}" y="30">{t}</text>' for x, t in ((5, "under"), (9, "over")))
    body = (
        f'<svg width="400" height="60">{words}<text x="380" y="50">far out</text></svg>'
        '<img src="https://example.org/a.png"><script>window.hacked = 1</script>'
        '<div style="width:2000px">wide</div>'
    )
    return html_of(Page("Broken", [])).replace("</h1>", f"</h1>{body}")


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_a_broken_page_shows_every_fault_that_is_looked_for(
    seen: dict[tuple[str, int], Seen], width_px: int
) -> None:
    broken = seen["broken", width_px]
    assert broken.found["overlaps"] == ["under | over"]
    assert "far out" in broken.found["outside"]
    assert broken.found["overflow"] > 0
    assert any("example.org" in line for line in broken.console)
    assert not broken.found["hacked"], "the page's policy lets no other script run"


@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize("name", ["stable", "disturbed", "several", "benchmark", "run", "extremes"])
def test_a_page_lies_right_and_loads_nothing(
    seen: dict[tuple[str, int], Seen], name: str, width_px: int
) -> None:
    page = seen[name, width_px]
    assert page.console == []
    assert page.found["requests"] == []
    assert page.found["overlaps"] == []
    assert page.found["outside"] == []
    assert page.found["spilled"] == []
    assert page.found["overflow"] <= 0
    assert not page.found["hacked"]


def test_the_verdict_is_seen_before_anything_is_scrolled(
    seen: dict[tuple[str, int], Seen],
) -> None:
    for width_px in WIDTHS_PX:
        assert seen["stable", width_px].found["verdict"].startswith("STABLE: ")
        disturbed = seen["disturbed", width_px].found
        assert disturbed["verdict"].startswith("PARTIAL: ")
        assert "UNSTABLE: do not decide on these numbers" in disturbed["verdict"]
        assert disturbed["verdictBottom"] < 844, "the height of a phone 390 px wide"
    assert seen["benchmark", 1280].found["verdict"].startswith("fastest: ")


def test_a_page_has_its_charts_and_a_row_for_every_bundle_and_boundary(
    seen: dict[tuple[str, int], Seen],
) -> None:
    found = seen["stable", 1280].found
    assert found["rows"]["Milliseconds a call"] == 3 * 2
    assert found["rows"]["Parts of the network"] == 13
    assert seen["several", 1280].found["rows"]["Milliseconds a call: b"] == 2 * 2
    assert [chart.partition(":")[0] for chart in found["charts"]] == [
        "Every call, engine", "Turn by turn, engine", "Every call, end to end",
        "Turn by turn, end to end", "End to end, part by part", "Where the time goes",
    ]  # fmt: skip
    assert [chart.partition(":")[0] for chart in seen["benchmark", 1280].found["charts"]] == [
        "Top-1", "Every call, engine", "Every call, end to end", "End to end, part by part",
        "Where the time goes",
    ]  # fmt: skip


def test_a_press_on_a_column_sorts_by_its_numbers(seen: dict[tuple[str, int], Seen]) -> None:
    found = seen["stable", 390].found
    assert found["sorted"] == sorted(found["unsorted"], key=float)
    assert found["sorted"] != found["unsorted"]
