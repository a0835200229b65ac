"""The page of a profile says all that was measured, and its charts stay legible whatever was."""

from __future__ import annotations

import dataclasses
import html
import re
from xml.etree import ElementTree

import pytest

from gft_edge.profiling.report import END_TO_END, Boundaries
from gft_edge.reporting.drawing import PALETTE, Chart, shortened, svg_of
from gft_edge.reporting.latency_charts import distribution_chart, timeline_chart
from gft_edge.reporting.page import html_of
from gft_edge.reporting.pareto import ParetoPoint, pareto_chart, pareto_front
from gft_edge.reporting.profile_page import profile_page
from gft_edge.reporting.profile_tables import across_table, profile_blocks
from tests.reporting.pages import page_of, points
from tests.support.profiles import (
    CONDITIONS,
    boundaries_of,
    disturbed_profile,
    profile_of,
    report_of,
    stable_profile,
    turns_of,
)


def words_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_a_profile_measured_over_ssh_names_its_host_wherever_its_machine_stands() -> None:
    here = stable_profile()
    there = dataclasses.replace(here, host="orin-7")
    assert "orin-7" in words_of(page_of(one=there))
    assert "orin-7" in str(profile_blocks(there, "one.json")[0])
    assert "orin-7" not in str(profile_blocks(here, "one.json")[0])
    row = across_table({"a.json": here, "b.json": there}).rows[-1]
    assert "orin-7" in str(row[2])


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
