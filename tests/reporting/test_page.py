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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pytest

from gft_edge.profiling.conditions import Conditions, GpuState
from gft_edge.profiling.energy import Energy
from gft_edge.profiling.layers import AttentionKernel, Breakdown, Part, TopLayer
from gft_edge.profiling.machine import Machine
from gft_edge.profiling.report import (
    END_TO_END,
    ENGINE,
    Boundaries,
    Inputs,
    Profile,
    Report,
    Settings,
    boundary_of,
    is_stable,
)
from gft_edge.reporting.drawing import (
    PALETTE,
    Scale,
    linear_scale,
    log_scale,
    shortened,
    svg,
    text,
    width_of,
)
from gft_edge.reporting.latency_charts import (
    ParetoPoint,
    distribution_chart,
    pareto_chart,
    pareto_front,
    split_chart,
    timeline_chart,
)
from gft_edge.reporting.page import figure, html_page, section, table
from gft_edge.reporting.profile_page import profile_page
from gft_edge.runtime.classifier import Timing
from gft_edge.studies.benchmark_page import benchmark_page
from gft_edge.studies.results import Benchmark, best_rows
from gft_edge.studies.variants import Accuracy, Variant, measured

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
HOSTILE = (
    "/runs/<script>window.hacked=1<&sol;script>\"'&\udcff\n<img src=x onerror=window.hacked=1>"
)

Turns = list[list[float]]


def turns_of(
    middle_ms: float, count: int = 12, calls: int = 60, scatter: float = 0.01, seed: int = 0
) -> Turns:
    noise = random.Random(f"{middle_ms} {seed}")
    return [[middle_ms * noise.gauss(1, scatter) for _ in range(calls)] for _ in range(count)]


def boundaries_of(engine: Turns, first: Turns | None = None) -> Boundaries:
    """End to end takes 3 ms longer."""
    others = None if first is None else boundaries_of(first)
    whole = [[ms + 3 for ms in turn] for turn in engine]
    first_whole = None if others is None else others.end_to_end
    end_to_end = boundary_of(END_TO_END, whole, PERCENTILES, 1, 1, first_whole)
    split = Timing(1.8, 0.9, 0, end_to_end.mean_ms - 3, 0, 0.3)
    return Boundaries(
        boundary_of(ENGINE, engine, PERCENTILES, 1, 1, None if others is None else others.engine),
        dataclasses.replace(end_to_end, split_ms=split),
    )


def report_of(bundle: str, boundaries: Boundaries, **changes: Any) -> Report:
    report = Report(
        bundle=bundle,
        digest="0f" * 32,
        role="bundle",
        network="gft_tiny",
        target="openvino",
        precision="int8",
        engine="openvino 2026.4.1",
        flags=("INFERENCE_PRECISION_HINT=float32", "PERFORMANCE_HINT=LATENCY"),
        files_mb=21.5,
        load_ms=792.6,
        first_ms=193.3,
        peak_rss_mb=172.7,
        device_memory_mb=None,
        boundaries=boundaries,
        ratio_to_first=boundaries.engine.ratio_to_first,
        energy=Energy(available=False, why="RAPL: no package in /sys/class/powercap"),
        layers=None,
    )
    return dataclasses.replace(report, **changes)


CONDITIONS = Conditions(
    at_s=100.0,
    cpu_mhz=(2000.0, 2400.0),
    cpu_max_mhz=(2600.0, 2600.0),
    governors=("performance",),
    temperatures_c={"cpu-thermal": 50.0},
    gpus=(GpuState("GPU 0", 918.0, 1200.0, 51.0, 97.0, ("power cap",)),),
    power_mode="MAXN (mode 0)",
    throttling=(),
    throttle_counts={"over-current oc3": 4},
    load_1min=0.1,
    busy_cpu_s=1000.0,
    stolen_cpu_s=10.0,
    own_cpu_s=5.0,
)


def profile_of(*reports: Report, **changes: Any) -> Profile:
    profile = Profile(
        schema_version=1,
        version="0.1.0",
        made_at="2026-11-21T06:45:22+00:00",
        complete=True,
        stable=is_stable(reports, 0.0, 8),
        causes=(),
        other_cores=0.0,
        machine=Machine(
            "Some CPU", 8, ("avx2",), 2**34, ("Some GPU",), "580.1", None, None, "Linux", "3.11"
        ),
        before=CONDITIONS,
        after=dataclasses.replace(CONDITIONS, at_s=130.0, busy_cpu_s=1060.0, cpu_mhz=(1200.0,)),
        settings=Settings(10, 200, 662, PERCENTILES, "latency", None, 1, None, False, 420.0, 50.0),
        inputs=Inputs("encoded images", 32, "ab" * 32, "photographs"),
        reports=reports,
    )
    return dataclasses.replace(profile, **changes)


def breakdown() -> Breakdown:
    kinds = ("GALA", "selection", "refinement blocks")
    stages = [f"stage {n}: {kind}" for n in (1, 2, 3) for kind in kinds]
    names = ["patch embedding", "base blocks", *stages, "head", "other"]
    total = sum(range(1, len(names) + 1))
    parts = tuple(Part(name, n * 0.1, n / total, n) for n, name in enumerate(names, 1))
    top = tuple(
        TopLayer(f"/blocks.{n}/mlp/fc1/MatMul <fused>", "base blocks", "FullyConnected", "brgemm_avx512_amx",
                 "int8", 0.3, 0.04) for n in range(15)
    )  # fmt: skip
    attention = (AttentionKernel("block 0", "fused", "one ScaledDotProductAttention, ref_any"),)
    return Breakdown("openvino", "openvino 2026.4.1", 50, parts, top, attention, 9.1, 8.0, 0.13)


def stable_profile() -> Profile:
    """Dense, sparse and a baseline; one call took a hundred times as long."""
    dense = turns_of(10.0)
    sparse = turns_of(7.2)
    energy = Energy(
        available=True, why=None, source="RAPL", total="package-0", mean_power_w=31.5,
        idle_power_w=11.25, gross_mj_per_image=226.8, net_mj_per_image=145.8, window_s=10.5,
        images=1460, throttled=("over-current oc3: 2 events",),
    )  # fmt: skip
    return profile_of(
        report_of("/runs/dense", boundaries_of(dense)),
        report_of("/runs/sparse", boundaries_of(sparse, dense), energy=energy, layers=breakdown()),
        report_of(
            "/runs/vit", boundaries_of(turns_of(12.0), dense), role="baseline", network="vit"
        ),
    )


def disturbed_profile() -> Profile:
    """Interrupted, of names that break pages, with an outlier, a drift, and too few calls for a p99."""
    dense, sparse = turns_of(10.0, 7, 20), turns_of(7.2, 7, 20)
    dense[3][5] = 1000.0
    drifting = [[ms * (1 + n / 10) for ms in turn] for n, turn in enumerate(sparse)]
    return profile_of(
        report_of(HOSTILE, boundaries_of(dense), layers=breakdown()),
        report_of("/runs/" + "a-long-name-of-a-bundle-" * 5, boundaries_of(drifting, dense)),
        complete=False,
        causes=("other processes used 1.6 cores", "the <clock> fell by 50 %"),
    )


def benchmark_profile() -> Profile:
    """Of the rows that were measured, by digest."""
    reports = stable_profile().reports[:2]
    return profile_of(*(dataclasses.replace(r, digest=f"{n}" * 64) for n, r in enumerate(reports)))


def benchmark() -> Benchmark:
    """Two bundles measured, one that missed its bounds, one that this machine cannot run."""
    reports = benchmark_profile().reports
    rows = [
        Variant(
            "openvino", precision, bundle=f"bundles/openvino-{precision}",
            digest=report.digest, files_mb=21.6 - 10 * n, build_s=90.0,
            accuracy=Accuracy(0.9 - n / 100, 0.9, n / 100, 0.99, (1.0, 0.98, 0.95), (), ()),
            measured=measured(report),
        )
        for n, (precision, report) in enumerate(zip(("fp32", "int8"), reports, strict=True))
    ]  # fmt: skip
    rows.append(Variant("onnx", "int8").failed("kept patches of stage 3 0.62, at least 0.88"))
    rows.append(Variant("tensorrt", "fp16").absent("no NVIDIA driver here <script>"))
    profile = benchmark_profile()
    return Benchmark(
        schema_version=1, version="0.1.0", made_at=profile.made_at, complete=True, run="runs/grocery",
        network="gft_tiny_edge", patches=196, weights_sha256="0" * 64, data="grocery",
        split="test", images=600,
        split_digest="0" * 64, reference_top1=0.9, machine=profile.machine, stable=True, causes=(),
        rows=tuple(rows), best=best_rows(rows, 600, profile),
    )  # fmt: skip


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


def words_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


# The words of a page


def test_a_stable_profile_says_so_and_whether_selecting_pays() -> None:
    page = words_of(profile_page({"": stable_profile()}))
    assert "STABLE: windows" in page.replace("  ", " ")
    assert "UNSTABLE" not in page
    assert re.search(r"/runs/sparse.*selection against vit: engine: pays x 1\.\d\d here", page)


def test_an_interrupted_and_restless_profile_leads_with_both_and_their_causes() -> None:
    page = words_of(profile_page({"": disturbed_profile()}))
    top = page[: page.index("Milliseconds a call")]
    assert "PARTIAL" in top
    assert "other processes used 1.6 cores; the <clock> fell by 50 %" in top
    assert not re.search(r"\bSTABLE", top)


def test_a_percentile_with_too_few_calls_is_withheld_on_the_page() -> None:
    page = profile_page({"": disturbed_profile()})
    assert page.count('<td class="number">withheld</td>') == 4, "p99 of two bundles and boundaries"
    assert "p99 662" in page


def test_the_page_has_the_machine_before_and_after_the_energy_and_the_settings() -> None:
    page = words_of(profile_page({"": stable_profile()}))
    for said in (
        "Some CPU, 8 cores", "Some GPU", "580.1", "2000 to 2400 MHz", "1200 MHz", "MAXN (mode 0)",
        "918 MHz, 1200 MHz at most, 51 °C, 97 % busy, slowed by power cap", "2.00 cores at work",
        "226.8 mJ an image, 145.8 over idle", "RAPL: package-0, 31.50 W; 1460 images in 10.5 s",
        "not available: RAPL: no package in /sys/class/powercap", "over-current oc3: 2 events",
        "420 ms each", "32 encoded images from photographs", "ab" * 32, "0f" * 32,
        "The two boundaries hold different things", f"{END_TO_END[1:]}.",
    ):  # fmt: skip
        assert said in page, said


def test_what_a_machine_does_not_say_is_named_and_not_shown_as_nothing() -> None:
    silent = dataclasses.replace(CONDITIONS, power_mode=None, throttling=None, busy_cpu_s=None)
    profile = dataclasses.replace(stable_profile(), before=silent, after=silent)
    page = words_of(profile_page({"": profile}))
    assert "The machine does not say: power mode, slowed down by." in page
    assert "cores at work" not in page


def test_profiles_of_several_files_stand_side_by_side_under_names_that_differ() -> None:
    first, second = stable_profile(), disturbed_profile()
    second = dataclasses.replace(
        second, reports=(report_of("/runs/dense", boundaries_of(turns_of(20.0))),)
    )
    page = profile_page({"a.json": first, "b.json": second})
    across = page[page.index("Profiles side by side") : page.index("<h2>Latency")]
    assert across.count("<tr") == 1 + 3 * 2 + 2
    assert "<td>dense in a.json</td>" in across
    assert re.search(r"<td>dense in b.json</td>.*>(1\.99\d|2\.00\d)</td>", across)


def test_the_same_bundle_twice_is_two_rows_of_every_chart() -> None:
    twice = report_of("/runs/dense", boundaries_of(turns_of(10.0)))
    page = profile_page({"": profile_of(twice, twice)})
    assert page.count(">dense (1)</text>") == page.count(">dense (2)</text>") == 5


def test_bundles_of_one_name_are_told_apart_by_their_folders() -> None:
    reports = [report_of(f"/{run}/int8", boundaries_of(turns_of(10.0))) for run in "ab"]
    page = profile_page({"": profile_of(*reports)})
    assert "<td>a/int8</td>" in page
    assert "<td>b/int8</td>" in page


def test_a_throughput_profile_has_no_end_to_end() -> None:
    report = report_of("/runs/a", Boundaries(boundaries_of(turns_of(10.0)).engine, None))
    page = profile_page({"": profile_of(report)})
    assert "calls that overlap have no latency of their own" in page
    assert "Every call, end to end" not in page


def test_words_of_bundles_are_never_markup() -> None:
    page = profile_page({"a<b>.json": disturbed_profile()})
    page.encode()
    assert page.count("<script") == 1
    assert "<img" not in page
    assert page.count("onerror=window.hacked=1&gt;") > 5
    assert "a&lt;b&gt;.json" in page
    assert r"\udcff" in page


def test_a_table_of_no_rows_is_a_head_alone_and_marked_rows_are_marked() -> None:
    assert "<th" in table(("a", "b"), [])
    marked = table(("a",), [("x",), ("y",)], marked=[1])
    assert "<tr><td>x" in marked
    assert '<tr class="marked"><td>y' in marked


# The drawings


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def texts(drawing: str) -> list[str]:
    return [t.text or "" for t in parsed(drawing).iter("{http://www.w3.org/2000/svg}text")]


def ends_at(drawing: str) -> float:
    """The largest number written on the axis."""
    return max(float(t) for t in texts(drawing) if re.fullmatch(r"[\d.]+", t))


def test_every_chart_has_a_title_and_the_numbers_for_a_reader() -> None:
    turns = {"dense": turns_of(10.0), "sparse": turns_of(7.0)}
    for drawing, said in (
        (distribution_chart({n: [s for t in own for s in t] for n, own in turns.items()}), "p99"),
        (timeline_chart(turns), "dense: 12 turns"),
        (split_chart({"dense": Timing(1, 2, 0, 7.5, 0, 0.25)}), "compute 7.500 ms"),
        (pareto_chart(points()), "on the front"),
    ):
        root = parsed(drawing)
        assert root.get("role") == "img"
        assert [child.tag.split("}")[1] for child in root[:2]] == ["title", "desc"]
        assert said in (root[1].text or "")
        assert any("ms" in t or "%" in t for t in texts(drawing))


@pytest.mark.parametrize("calls", [3, 11, 20, 1000])
def test_one_call_a_hundred_times_as_long_does_not_stretch_the_axis(calls: int) -> None:
    samples = [10 + n / calls for n in range(calls)]
    assert ends_at(distribution_chart({"calm": samples})) < 12
    drawing = distribution_chart({"outlier": [*samples, 1000.0]})
    assert ends_at(drawing) < (40 if calls > 3 else 60)
    assert "1 beyond, up to 1000 ms \N{RIGHTWARDS ARROW}" in texts(drawing)


def test_two_modes_far_apart_are_both_on_the_axis() -> None:
    drawing = distribution_chart({"two": [1.0] * 60 + [50.0] * 40})
    assert ends_at(drawing) >= 50
    assert not any("beyond" in t for t in texts(drawing))


def test_calls_of_one_duration_have_a_chart_too() -> None:
    said = texts(distribution_chart({"a": [5.0]}))
    assert "median 5, p90 withheld, p99 withheld ms, 1 calls" in said
    assert "turn (dashed: the three windows)" in texts(timeline_chart({"a": [[5.0]]}))


def test_durations_are_written_without_exponents() -> None:
    for samples, median in (([12345.6], "12346"), ([1500.25], "1500"), ([0.01234], "0.01234")):
        assert any(f"median {median}," in t for t in texts(distribution_chart({"a": samples})))


def test_a_turn_that_stalled_stands_at_the_edge_and_the_axis_says_so() -> None:
    turns = turns_of(10.0)
    turns[4] = [500.0] * 60
    said = " ".join(texts(timeline_chart({"a": turns})))
    assert re.search(r"1 over the axis, up to \+4[89]\d\d%", said)


def test_the_front_holds_what_nothing_else_beats() -> None:
    measured = {
        "fast": (1.0, 0.8), "good": (2.0, 0.9), "worse": (3.0, 0.85), "dear": (9.0, 0.91),
        "tie": (9.0, 0.9),
    }  # fmt: skip
    found = [ParetoPoint(name, *point, "g") for name, point in reversed(measured.items())]
    assert [point.label for point in pareto_front(found)] == ["fast", "good", "dear"]


def test_every_deployment_is_labelled_and_the_front_in_bold() -> None:
    drawing = pareto_chart(points())
    assert {p.label for p in points()} <= set(texts(drawing))
    bold = {t.text for t in parsed(drawing).iter() if t.get("font-weight") == "bold"}
    assert {p.label for p in pareto_front(points())} == bold - {"Accuracy against latency"}


def test_labels_without_room_are_counted_and_left_to_the_pointer() -> None:
    crowd = [ParetoPoint(f"a deployment of a long name {n}", 5.0, 0.9, "g") for n in range(150)]
    drawing = pareto_chart(crowd)
    counted = next(
        re.search(r"; (\d+) labels found no room", t) for t in texts(drawing) if "room" in t
    )
    assert counted
    assert int(counted[1]) + sum(t.startswith("a deployment") for t in texts(drawing)) == 150
    assert "a deployment of a long name 149: 5.000 ms" in drawing


def test_an_accuracy_of_all_images_does_not_draw_an_axis_over_100_percent() -> None:
    drawing = pareto_chart([ParetoPoint("a", 1.0, 1.0, "g"), ParetoPoint("b", 2.0, 0.5, "g")])
    assert ends_at(drawing) == 100


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (9.97, 10.02), (0.001, 0.0013), (-75, 50), (0, 1e6)]
)
def test_an_axis_begins_and_ends_at_round_numbers_around_its_values(
    low: float, high: float
) -> None:
    scale = linear_scale(low, high, 0, 100)
    assert scale.ticks[0] <= low
    assert high <= scale.ticks[-1]
    assert 2 <= len(scale.ticks) <= 8
    assert scale.at(scale.low) == 0
    assert scale.at(2 * scale.high) == 100


def test_a_logarithmic_axis_gives_equal_ratios_equal_room() -> None:
    scale: Scale = log_scale(1, 100, 0, 100)
    assert scale.ticks == (1, 2, 5, 10, 20, 50, 100)
    assert scale.at(10) == pytest.approx(50)


def test_a_shortened_path_keeps_its_end() -> None:
    path = "/data/runs/2026/grocery/openvino-int8"
    assert shortened(path, 1000) == path
    cut = shortened(path, 150)
    assert width_of(cut) <= 150
    assert cut.endswith("vino-int8")


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
    for (const shape of drawing.querySelectorAll('rect, polygon, circle, polyline'))
      if (outside(shape.getBoundingClientRect(), edge)) found.outside.push(shape.outerHTML);
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
    charts = section("Front", figure(pareto_chart(points())))
    pages = {
        "stable": profile_page({"": stable_profile()}),
        "disturbed": profile_page({"": disturbed_profile()}),
        "several": profile_page({"a.json": stable_profile(), "b.json": disturbed_profile()}),
        "benchmark": benchmark_page(benchmark(), benchmark_profile()),
        "front": html_page("Front", [charts]),
        "extremes": html_page("Extremes", [section("Extremes", extremes())]),
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


def extremes() -> str:
    """Microseconds and minutes, one call, hundreds of turns, a dozen bundles, a front over decades."""
    drawn = []
    for middle_ms in (0.0123, 12345.6):
        turns = {"one": turns_of(middle_ms, 1, 1), "many": turns_of(middle_ms * 3, 300, 5)}
        drawn.append(timeline_chart(turns))
        drawn.append(distribution_chart({n: [s for t in o for s in t] for n, o in turns.items()}))
        still = distribution_chart({"still": [middle_ms] * 700})
        drawn += [still, split_chart({"tiny": Timing(*[middle_ms / 6] * 6)})]
    dozen = {f"bundle {n} of a dozen": turns_of(10.0 + n, scatter=0.2) for n in range(12)}
    drawn.append(timeline_chart(dozen))
    drawn.append(split_chart({name: Timing(0.1, n, 0, 9, 0.01, 2) for n, name in enumerate(dozen)}))
    for most_ms in (1000.0, 0.02):
        times = [0.02 + n / 12 * (most_ms - 0.02) for n in range(12)]
        drawn.append(
            pareto_chart([ParetoPoint(f"{n}", ms, n / 12, "g") for n, ms in enumerate(times)])
        )
    return "".join(map(figure, drawn))


def broken_page() -> str:
    """All that the browser has to find."""
    words = [text(5, 30, "under it"), text(9, 30, "over it"), text(380, 50, "far out")]
    drawing = svg(400, 60, "broken", "", words)
    body = (
        '<img src="https://example.org/a.png"><script>window.hacked = 1</script>'
        '<div style="width:2000px">wide</div>'
    )
    return html_page("Broken", [figure(drawing), body])


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_a_broken_page_shows_every_fault_that_is_looked_for(
    seen: dict[tuple[str, int], Seen], width_px: int
) -> None:
    broken = seen["broken", width_px]
    assert broken.found["overlaps"] == ["under it | over it"]
    assert "far out" in broken.found["outside"]
    assert broken.found["overflow"] > 0
    assert any("example.org" in line for line in broken.console)
    assert not broken.found["hacked"], "the page's policy lets no other script run"


@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize(
    "name", ["stable", "disturbed", "several", "benchmark", "front", "extremes"]
)
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


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_the_verdict_is_seen_before_anything_is_scrolled(
    seen: dict[tuple[str, int], Seen], width_px: int
) -> None:
    assert seen["stable", width_px].found["verdict"].startswith("STABLE: ")
    disturbed = seen["disturbed", width_px].found
    assert disturbed["verdict"].startswith("PARTIAL: ")
    assert "UNSTABLE: do not decide on these numbers" in disturbed["verdict"]
    assert disturbed["verdictBottom"] < 844, "the height of a phone 390 px wide"


def test_tables_have_a_row_for_every_bundle_and_boundary(
    seen: dict[tuple[str, int], Seen],
) -> None:
    rows = seen["stable", 1280].found["rows"]
    assert rows["Milliseconds a call"] == 3 * 2
    assert rows["Mean milliseconds of each part"] == 3
    assert rows["What was measured"] == 3
    assert rows["Parts of the network"] == 13
    assert rows["The layers that take longest"] == 15
    several = seen["several", 1280].found["rows"]
    assert several["Milliseconds a call: a.json"] == 3 * 2
    assert several["Milliseconds a call: b.json"] == 2 * 2


def test_a_benchmark_shows_what_was_measured_what_failed_the_front_and_where_the_time_goes(
    seen: dict[tuple[str, int], Seen],
) -> None:
    found = seen["benchmark", 1280].found
    assert found["rows"] == {"Targets and precisions": 2}
    words = words_of(benchmark_page(benchmark(), benchmark_profile()))
    assert "kept patches of stage 3 0.62" in words
    assert "no NVIDIA driver here <script>" in words
    assert [chart.partition(":")[0] for chart in found["charts"]] == [
        "Top-1 on test", "Every call, engine", "Every call, end to end", "Mean of a call",
        "Where the time goes",
    ]  # fmt: skip
    assert found["verdict"].startswith("fastest: ")


def test_charts_show_latency_turns_parts_and_layers(seen: dict[tuple[str, int], Seen]) -> None:
    charts: Sequence[str] = seen["stable", 1280].found["charts"]
    assert [chart.partition(":")[0] for chart in charts] == [
        "Every call, engine", "Turn by turn, engine", "Every call, end to end",
        "Turn by turn, end to end", "End to end, part by part", "Where the time goes",
    ]  # fmt: skip


def test_a_press_on_a_column_sorts_by_its_numbers(seen: dict[tuple[str, int], Seen]) -> None:
    found = seen["stable", 390].found
    assert found["sorted"] == sorted(found["unsorted"], key=float)
    assert found["sorted"] != found["unsorted"]
