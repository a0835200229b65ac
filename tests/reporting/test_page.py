"""The page of a profile says all that was measured, loads nothing, and lies right in a real browser."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pytest

from gft_edge.profiling.report import END_TO_END, Boundaries, Profile
from gft_edge.reporting.benchmark_page import benchmark_sections
from gft_edge.reporting.drawing import PALETTE, Chart, shortened, svg_of
from gft_edge.reporting.latency_charts import distribution_chart, split_chart, timeline_chart
from gft_edge.reporting.page import Block, Charts, Page, Section, Verdict, html_of
from gft_edge.reporting.pareto import ParetoPoint, pareto_chart, pareto_front
from gft_edge.reporting.profile_page import profile_page
from gft_edge.reporting.table import Cell, Table, Value
from gft_edge.runtime.classifier import Timing
from tests.support.profiles import (
    CONDITIONS,
    boundaries_of,
    disturbed_profile,
    profile_of,
    report_of,
    stable_profile,
    turns_of,
)


def page_of(**profiles: Profile) -> str:
    """The HTML of profiles; the only one is called by no file."""
    (first, *others) = profiles.values()
    return html_of(profile_page(profiles if others else {"": first}))


def words_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def points() -> list[ParetoPoint]:
    """Thirty deployments, two thirds of them in a crowd."""
    noise = random.Random(3)
    crowd = [(noise.gauss(12, 0.6), noise.gauss(0.9, 0.002)) for _ in range(20)]
    rest = [(noise.uniform(4, 90), noise.uniform(0.82, 0.92)) for _ in range(10)]
    engines = ("onnx", "openvino", "tensorrt")
    return [
        ParetoPoint(f"gft_tiny_{n} {engines[n % 3]} int8", ms, share, engines[n % 3])
        for n, (ms, share) in enumerate(crowd + rest)
    ]


def benchmark_page() -> Page:
    """Two bundles measured, and what is missing."""
    dense, sparse, _ = stable_profile().reports
    rows: list[list[Value]] = [["dense", Cell("90.0", best=True), 13], ["sparse", 89.0, 10]]
    table = Table("Targets", ("bundle", "top-1 %", "ms"), rows)
    summary: list[Block] = [Verdict(["fastest: sparse"], True)]
    missing = ["not here: tensorrt fp16: no NVIDIA driver <script>"]
    at = [ParetoPoint("dense", 13.0, 0.9, "onnx"), ParetoPoint("sparse", 10.2, 0.89, "onnx")]
    reports = {"dense": dense, "sparse": sparse}
    return Page(
        "Benchmark", benchmark_sections(summary, table, missing, at, "Top-1", "ms", reports)
    )


def test_a_stable_profile_says_so_and_whether_selecting_pays() -> None:
    page = words_of(page_of(one=stable_profile()))
    assert "STABLE: windows" in page.replace("  ", " ")
    assert "UNSTABLE" not in page
    assert re.search(r"/runs/sparse.*selection against vit: engine: pays x 1\.\d\d here", page)


def test_an_interrupted_and_restless_profile_leads_with_both_and_their_causes() -> None:
    page = words_of(page_of(one=disturbed_profile()))
    top = page[: page.index("Milliseconds a call")]
    assert "PARTIAL" in top
    assert "other processes used 1.6 cores; the <clock> fell by 50 %" in top
    assert not re.search(r"\bSTABLE", top)


def test_the_page_has_everything_that_the_profile_knows() -> None:
    page = words_of(page_of(one=stable_profile()))
    for said in (
        "Some CPU, 8 cores", "Some GPU", "580.1", "2000 to 2400 MHz", "1200 MHz", "MAXN (mode 0)",
        "918 MHz, 1200 MHz at most, 51 °C, 97 % busy, slowed by power cap", "2.00 cores at work",
        "226.8 mJ an image, 145.8 over idle", "RAPL: package-0, 31.50 W; 1460 images in 10.5 s",
        "not available: RAPL: no package in /sys/class/powercap", "over-current oc3: 2 events",
        "420 ms each", "32 encoded images from photographs", "ab" * 32, "0f" * 32,
        "The two boundaries hold different things", f"{END_TO_END[1:]}.", "/blocks.14/mlp/fc1/MatMul",
        "stage 3: refinement blocks", "one ScaledDotProductAttention", "Mean milliseconds of each part",
    ):  # fmt: skip
        assert said in page, said


def test_a_percentile_with_too_few_calls_is_withheld_on_the_page() -> None:
    page = page_of(one=disturbed_profile())
    assert page.count(">withheld</td>") == 4, "p99 of two bundles and boundaries"
    assert "p99 662" in page


def test_what_a_machine_does_not_say_is_named_and_not_shown_as_nothing() -> None:
    silent = dataclasses.replace(CONDITIONS, power_mode=None, throttling=None, busy_cpu_s=None)
    page = words_of(page_of(one=dataclasses.replace(stable_profile(), before=silent, after=silent)))
    assert "The machine does not say: power mode, slowed down by." in page
    assert "cores at work" not in page


def test_profiles_of_several_files_stand_side_by_side_under_names_that_differ() -> None:
    second = profile_of(report_of("/runs/dense", boundaries_of(turns_of(20.0))))
    page = page_of(a=stable_profile(), b=second)
    across = page[page.index("Profiles side by side") : page.index("<h2>Latency")]
    assert across.count("<tr") == 1 + 3 * 2 + 2
    assert ">dense in a</td>" in across
    assert re.search(r">dense in b</td>.*>(1\.99\d|2\.00\d)</td>", across)


def test_the_same_bundle_twice_is_two_rows_and_bundles_of_one_name_have_their_folders() -> None:
    twice = report_of("/runs/dense", boundaries_of(turns_of(10.0)))
    page = page_of(one=profile_of(twice, twice))
    assert page.count(">dense (1)</text>") == page.count(">dense (2)</text>") == 5
    reports = [report_of(f"/{run}/int8", boundaries_of(turns_of(10.0))) for run in "ab"]
    assert all(f">{run}/int8</td>" in page_of(one=profile_of(*reports)) for run in "ab")


def test_a_throughput_profile_has_no_end_to_end() -> None:
    report = report_of("/runs/a", Boundaries(boundaries_of(turns_of(10.0)).engine, None))
    page = page_of(one=profile_of(report))
    assert "calls that overlap have no latency of their own" in page
    assert "Every call, end to end" not in page


def test_words_of_bundles_are_never_markup() -> None:
    page = html_of(profile_page({"a<b>.json": disturbed_profile()}))
    page.encode()
    assert page.count("<script") == 1
    assert "<img" not in page
    assert page.count("onerror=window.hacked=1&gt;") > 5
    assert "a&lt;b&gt;.json" in page
    assert r"\udcff" in page


# Charts


def texts(chart: Chart) -> list[str]:
    root = ElementTree.fromstring(svg_of(chart))
    assert root.get("role") == "img"
    assert [child.tag.split("}")[1] for child in root[:2]] == ["title", "desc"]
    return [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("calls", [3, 20, 1000])
def test_one_call_a_hundred_times_as_long_does_not_stretch_the_axis(calls: int) -> None:
    samples = [10 + n / calls for n in range(calls)]
    chart = distribution_chart({"outlier": [*samples, 1000.0]}, "engine")
    said = texts(chart)
    assert max(float(t) for t in said if re.fullmatch(r"[\d.]+", t)) <= 60
    assert "1 beyond, up to 1000 ms \N{RIGHTWARDS ARROW}" in said
    two = texts(distribution_chart({"two modes": [1.0] * 60 + [50.0] * 40}, "engine"))
    assert not any("beyond" in t for t in two)


def test_calls_of_one_duration_have_a_chart_and_no_exponent() -> None:
    assert "median 5, p90 withheld, p99 withheld ms, 1 calls" in texts(
        distribution_chart({"a": [5.0]}, "engine")
    )
    assert "turn (dashed: the three windows)" in texts(timeline_chart({"a": [[5.0]]}, "engine"))
    for samples, median in (([12345.6], "12346"), ([1500.25], "1500"), ([0.01234], "0.01234")):
        assert any(f"median {median}," in t for t in texts(distribution_chart({"a": samples}, "")))


def test_a_turn_that_stalled_stands_at_the_edge_and_the_axis_says_so() -> None:
    turns = turns_of(10.0)
    turns[4] = [500.0] * 60
    said = " ".join(texts(timeline_chart({"a": turns}, "engine")))
    assert re.search(r"1 over the axis, up to \+4[89]\d\d%", said)


def test_the_front_holds_what_nothing_else_beats() -> None:
    measured = {
        "fast": (1.0, 0.8), "good": (2.0, 0.9), "worse": (3.0, 0.85), "dear": (9.0, 0.91),
        "tie": (9.0, 0.9),
    }  # fmt: skip
    found = [ParetoPoint(name, *point, "g") for name, point in reversed(measured.items())]
    assert [point.label for point in pareto_front(found)] == ["fast", "good", "dear"]


def test_a_deployment_is_labelled_or_counted_among_those_without_room() -> None:
    said = texts(pareto_chart(points(), "Front", "ms"))
    assert {p.label for p in pareto_front(points())} <= {*said}
    crowd = [ParetoPoint(f"a deployment of a long name {n}", 5.0, 0.9, "g") for n in range(150)]
    said = texts(pareto_chart(crowd, "Crowd", "ms"))
    counted = next(found for t in said if (found := re.search(r"; (\d+) labels found no room", t)))
    assert int(counted[1]) + sum(t.startswith("a deployment") for t in said) == 150


def test_a_shortened_path_keeps_its_end() -> None:
    path = "/data/runs/2026/grocery/openvino-int8"
    assert shortened(path, 40) == path
    assert len(shortened(path, 20)) == 20
    assert shortened(path, 20).endswith("nvino-int8")


@pytest.mark.parametrize("paper", ["#ffffff", "#14181c"])
def test_colours_stand_out_from_light_and_dark_paper(paper: str) -> None:
    for colour in PALETTE:
        light, dark = sorted(map(luminance, (colour, paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, f"WCAG asks 3 : 1 of graphics: {colour}"


def luminance(colour: str) -> float:
    """WCAG's relative luminance of #rrggbb."""
    shares = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# In a browser

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
        reason = f"no browser to open the page in: none of {', '.join(names)} is on the PATH"
        if os.environ.get("GFT_EDGE_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize("name", ["stable", "disturbed", "several", "benchmark", "extremes"])
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_press_on_a_column_sorts_by_its_numbers(seen: dict[tuple[str, int], Seen]) -> None:
    found = seen["stable", 390].found
    assert found["sorted"] == sorted(found["unsorted"], key=float)
    assert found["sorted"] != found["unsorted"]
