"""A profile says what was measured, on which machine, how sure it is, and refuses what it cannot say."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from click.testing import CliRunner, Result

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import read_bundle, size_bytes
from gft_edge.cli import main
from gft_edge.errors import UsageError
from gft_edge.profiling.profile import MOST_IMAGES, ProfileRequest, profile
from gft_edge.profiling.report import (
    ENGINE,
    boundary_of,
    check_comparable,
    read_profile,
    write_profile,
)
from gft_edge.profiling.samples import percentile_ms, samples_needed
from gft_edge.profiling.schema import profile_schema
from gft_edge.profiling.verdict import verdicts
from tests.support.paths import ROOT

SCHEMA = ROOT / "docs" / "profile.schema.json"
QUICK = ("--duration", "0.2", "--min-samples", "70", "--warmup-ms", "10")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos(micro_data: Path) -> Path:
    return micro_data / "test"


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, micro_bundles: dict[str, Path], photos: Path
) -> tuple[Result, Path]:
    """Both micro bundles profiled together: what was printed, and the JSON."""
    file = tmp_path_factory.mktemp("profile") / "both.json"
    bundles = (micro_bundles["onnx"], micro_bundles["openvino"])
    return run("profile", *bundles, "--images", photos, "--json", file, *QUICK), file


@pytest.fixture(scope="module")
def data(measured: tuple[Result, Path]) -> dict[str, Any]:
    result, file = measured
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.fixture
def altered(data: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """The JSON again, after a change."""

    def write(change: Callable[[dict[str, Any]], object], name: str = "altered.json") -> Path:
        content = copy.deepcopy(data)
        change(content)
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


# What is in it.


def test_the_json_is_valid_against_its_published_schema(data: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema)


def test_the_published_schema_is_that_of_the_code() -> None:
    # python -m gft_edge.profiling.schema > docs/profile.schema.json
    assert json.loads(SCHEMA.read_text()) == profile_schema()


@pytest.mark.parametrize("field", ["machine", "before", "after", "settings"])
def test_a_report_without_its_machine_is_none(
    field: str, altered: Callable[..., Path], data: dict[str, Any]
) -> None:
    path = altered(lambda content: content.pop(field))
    with pytest.raises(UsageError, match=f"lacks the field '{field}'"):
        read_profile(path)
    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate(json.loads(path.read_text()), profile_schema())


def test_every_number_derives_from_the_raw_samples(data: dict[str, Any]) -> None:
    for report in data["reports"]:
        for boundary in report["boundaries"].values():
            samples_ms = boundary["samples_ms"]
            assert len(samples_ms) >= 70
            assert sum(samples_ms) >= 200
            assert boundary["p50_ms"] == percentile_ms(samples_ms, 50)
            assert boundary["p90_ms"] == percentile_ms(samples_ms, 90)
            assert boundary["mean_ms"] == pytest.approx(statistics.mean(samples_ms))
            assert boundary["cv"] == pytest.approx(
                statistics.stdev(samples_ms) / statistics.mean(samples_ms)
            )
            assert boundary["images_per_s"] == pytest.approx(1000 / boundary["mean_ms"])
            assert len(boundary["window_p50_ms"]) == 3
            assert sum(boundary["turns"]) == len(samples_ms)


def test_a_percentile_without_its_samples_is_withheld() -> None:
    few = boundary_of(ENGINE, [[1.0] * 300, [1.0] * 361], [99.0], 1, 1)
    assert few.p99_ms is None
    assert few.percentiles_ms == {"p99_ms": None}
    enough = boundary_of(ENGINE, [[1.0] * 300, [1.0] * 362], [99.0], 1, 1)
    assert enough.p99_ms == 1.0


def test_the_parts_of_end_to_end_sum_to_its_mean(data: dict[str, Any]) -> None:
    for report in data["reports"]:
        boundary = report["boundaries"]["end_to_end"]
        assert sum(boundary["split_ms"].values()) == pytest.approx(boundary["mean_ms"])
        assert boundary["split_ms"]["decode_ms"] > 0
        assert boundary["split_ms"]["host_to_device_ms"] == 0
        assert report["boundaries"]["engine"]["split_ms"] is None


def test_ratios_are_to_the_first_bundle(data: dict[str, Any]) -> None:
    first, second = data["reports"]
    assert first["ratio_to_first"] == 1.0
    assert second["ratio_to_first"] == second["boundaries"]["engine"]["ratio_to_first"]
    low, high = second["boundaries"]["engine"]["ratio_interval"]
    assert low <= second["ratio_to_first"] <= high


def test_the_fingerprint_travels_with_the_numbers(
    data: dict[str, Any], micro_bundles: dict[str, Path]
) -> None:
    assert data["machine"]["cpu"]
    assert data["after"]["at_s"] > data["before"]["at_s"]
    for report, target in zip(data["reports"], ("onnx", "openvino"), strict=True):
        bundle = read_bundle(micro_bundles[target])
        assert report["digest"] == bundle.manifest.seal
        assert report["engine"].startswith(
            {"onnx": "onnxruntime ", "openvino": "openvino "}[target]
        )
        assert report["files_mb"] == size_bytes(bundle) / 2**20
        assert report["flags"]
        assert report["load_ms"] > report["first_ms"] > 0
        assert report["peak_rss_mb"] > 20
        assert report["device_memory_mb"] is None
    assert data["inputs"]["kind"] == "encoded images"


def test_energy_is_never_zero_where_nothing_can_be_read(data: dict[str, Any]) -> None:
    for report in data["reports"]:
        energy = report["energy"]
        if energy["available"]:
            assert energy["gross_mj_per_image"] > 0
        else:
            assert energy["why"]
            assert energy["gross_mj_per_image"] is None


def test_what_is_printed_names_boundaries_and_verdict(measured: tuple[Result, Path]) -> None:
    printed = measured[0].stdout
    for words in ("engine", "end to end", "withheld", "time / first", "not available: "):
        assert words in printed
    stable = json.loads(measured[1].read_text())["stable"]
    assert ("UNSTABLE: do not decide on these numbers" in printed) != stable
    assert printed.rstrip().endswith(f"written: {measured[1]}")


def test_golden_frames_are_measured_where_no_images_are_given(
    micro_bundles: dict[str, Path],
) -> None:
    result = run("profile", micro_bundles["openvino"], "--json", "-", *QUICK)
    content = json.loads(result.stdout)
    assert content["inputs"]["kind"] == "golden frames"
    assert content["inputs"]["count"] == 8


# Whether it can be relied on.


def test_unrest_flips_the_verdict() -> None:
    calm = [[1.0, 1.01, 1.0, 0.99] * 5] * 9
    assert boundary_of(ENGINE, calm, [], 1, 1).stable
    noisy = [*calm[:5], [1.5] * 20, *calm[6:]]
    assert not boundary_of(ENGINE, noisy, [], 1, 1).stable
    drifting = [[1 + turn / 60] * 20 for turn in range(9)]
    drifted = boundary_of(ENGINE, drifting, [], 1, 1)
    assert drifted.spread > 0.09
    assert not drifted.stable


def test_a_clock_that_went_backwards_is_no_stable_measurement() -> None:
    calm = [[1.0] * 20] * 9
    assert boundary_of(ENGINE, calm, [], 1, 1).stable
    assert not boundary_of(ENGINE, calm, [], 1, 1, lost=1).stable


def test_a_steady_load_of_others_is_no_stable_measurement(
    measured: tuple[Result, Path], altered: Callable[..., Path]
) -> None:
    """It slows every call alike, and no scatter shows it."""

    def steady(content: dict[str, Any], other_cores: float | None) -> None:
        content.update(other_cores=other_cores)
        content["machine"].update(cores=4)
        for report in content["reports"]:
            for boundary in report["boundaries"].values():
                boundary.update(samples_ms=[1.0] * len(boundary["samples_ms"]), lost=0)

    assert read_profile(altered(lambda content: steady(content, 0.1))).stable
    assert read_profile(altered(lambda content: steady(content, None))).stable
    assert not read_profile(altered(lambda content: steady(content, 1.0))).stable


def test_two_turns_are_too_few_to_be_called_stable() -> None:
    assert not boundary_of(ENGINE, [[1.0] * 700] * 2, [], 1, 1).stable


def test_an_interrupted_profile_has_the_samples_so_far(micro_bundles: dict[str, Path]) -> None:
    def interrupt(text: str, done: int, total: int) -> None:
        if text == "measure":
            raise KeyboardInterrupt

    request = ProfileRequest((micro_bundles["onnx"],), duration_s=600, warmup_ms=10)
    found = profile(request, interrupt)
    assert not found.complete
    assert len(found.reports[0].boundaries.engine.turns) == 1
    assert not found.stable


# Requests in flight.


def test_throughput_is_images_a_second_of_requests_in_flight(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "throughput.json"
    bundle = micro_bundles["openvino"]
    result = run("profile", bundle, "--hint", "throughput", "--json", file, *QUICK)
    assert result.exit_code == 0, result.output
    found = read_profile(file)
    (report,) = found.reports
    assert report.boundaries.end_to_end is None
    engine = report.boundaries.engine
    assert "PERFORMANCE_HINT=THROUGHPUT" in report.flags
    assert engine.images_per_s > 0
    assert len(engine.samples_ms) >= 70
    # Read back it is not derived from latencies that overlap.
    assert engine.images_per_s == json.loads(file.read_text())["reports"][0]["boundaries"][
        "engine"]["images_per_s"]  # fmt: skip


def test_throughput_is_refused_where_the_engine_has_no_such_mode(
    micro_bundles: dict[str, Path],
) -> None:
    result = run("profile", micro_bundles["onnx"], "--hint", "throughput", *QUICK)
    assert result.exit_code == 2
    assert "hint throughput is OpenVINO's: leave it out for onnx" in result.stderr


SLOW_PROFILE = """
import signal, sys
from pathlib import Path
from gft_edge.profiling.profile import ProfileRequest, profile

# A shell starts what runs in its background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
step = sys.argv[2]

def progress(text, done, total):
    if text == step and done < total:
        print("under way", flush=True)

duration_s = 600 if step == "measure" else 0.1
found = profile(
    ProfileRequest((Path(sys.argv[1]),), duration_s=duration_s, warmup_ms=1, min_samples=1, layers=True),
    progress,
)
print(found.complete, len(found.reports[0].boundaries.engine.samples_ms) > 0, found.reports[0].layers)
"""


@pytest.mark.parametrize("step", ["measure", "layers"])
def test_a_real_interrupt_gives_what_was_measured(
    step: str, micro_bundles: dict[str, Path]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_PROFILE, str(micro_bundles["openvino"]), step],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        # To the whole group, as a terminal sends it: the worker is not to die of it.
        os.killpg(process.pid, signal.SIGINT)
        out = process.stdout.read()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "False True None"


def test_selection_is_judged_against_a_dense_network_of_the_same_precision(
    measured: tuple[Result, Path], altered: Callable[..., Path]
) -> None:
    def against(content: dict[str, Any], precision: str) -> None:
        content["reports"][1].update(role="baseline", target="onnx", precision=precision)

    alike = read_profile(altered(lambda content: against(content, "fp32")))
    assert any(": selection against " in line for line in verdicts(alike))
    other = read_profile(altered(lambda content: against(content, "int8")))
    assert any("their ratio says nothing of selection" in line for line in verdicts(other))
    assert not any("pays" in line for line in verdicts(other))


# Earlier profiles.


def test_a_profile_reads_back_as_it_was_written(
    measured: tuple[Result, Path], tmp_path: Path, data: dict[str, Any]
) -> None:
    found = read_profile(measured[1])
    write_profile(found, tmp_path / "again.json")
    assert read_profile(tmp_path / "again.json") == found
    assert to_json(found)["machine"] == data["machine"]


def test_a_number_that_was_improved_by_hand_is_derived_again(
    measured: tuple[Result, Path], altered: Callable[..., Path]
) -> None:
    def improve(content: dict[str, Any]) -> None:
        content["stable"] = True
        boundary = content["reports"][1]["boundaries"]["engine"]
        boundary.update(p50_ms=0.001, stable=True, ratio_to_first=0.1, spread=0.0)

    assert read_profile(altered(improve)) == read_profile(measured[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.update(turns=[1]), "turns do not count"),
        (lambda b: b.update(samples_ms=[], turns=[]), "turns do not count"),
        (lambda b: b["samples_ms"].__setitem__(0, -1.0), "hold what is no time"),
        (lambda b: b["samples_ms"].__setitem__(0, math.nan), "hold what is no time"),
        (lambda b: b.update(inputs=0), "hold what is no time"),
        (lambda b: b["turns_s"].__setitem__(0, 0.0), "turns_s are no times"),
        (lambda b: b.pop("cv"), "lacks the field 'cv'"),
    ],
)
def test_a_damaged_profile_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, altered: Callable[..., Path]
) -> None:
    path = altered(lambda content: change(content["reports"][0]["boundaries"]["engine"]))
    with pytest.raises(UsageError, match=words):
        read_profile(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "is no profile of schema version 1"), ("[1", "is no profile"), ("[]", "is no profile")],
)
def test_what_is_no_profile_is_refused(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    result = run("profile", "--load", path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("percentile", [0, 100, math.nan])
def test_a_profile_of_an_impossible_percentile_is_refused(
    percentile: float, altered: Callable[..., Path]
) -> None:
    path = altered(lambda content: content["settings"].update(percentiles=[percentile]))
    with pytest.raises(UsageError, match=r"give numbers over 0 and up to 99\.99"):
        read_profile(path)


def test_earlier_profiles_are_compared(
    measured: tuple[Result, Path], altered: Callable[..., Path]
) -> None:
    def slower(content: dict[str, Any]) -> None:
        for report in content["reports"]:
            for boundary in report["boundaries"].values():
                boundary["samples_ms"] = [2 * sample for sample in boundary["samples_ms"]]

    result = run("profile", "--load", measured[1], altered(slower))
    assert result.exit_code == 0, result.output
    assert "Measured apart: a drift of the machine is in these ratios" in result.stdout
    assert "2.000" in result.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["settings"].update(batch=4), "differ in batch (1; 4)"),
        (lambda c: c["settings"].update(hint="throughput"), "differ in hint (latency; throughput)"),
        (lambda c: c["inputs"].update(digest="0" * 64), "differ in inputs"),
        (lambda c: c["inputs"].update(kind="golden frames"), "differ in inputs"),
        (
            lambda c: [r["boundaries"].update(end_to_end=None) for r in c["reports"]],
            "differ in boundaries",
        ),
    ],
)
def test_profiles_of_different_things_are_not_compared(
    change: Callable[[dict[str, Any]], object],
    words: str,
    measured: tuple[Result, Path],
    altered: Callable[..., Path],
) -> None:
    result = run("profile", "--load", measured[1], altered(change))
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_profiles_of_different_machines_are_compared(
    measured: tuple[Result, Path], altered: Callable[..., Path]
) -> None:
    other = altered(lambda content: content["machine"].update(board="NVIDIA Jetson Orin Nano"))
    check_comparable({"a": read_profile(measured[1]), "b": read_profile(other)})
    assert "NVIDIA Jetson Orin Nano" in run("profile", "--load", measured[1], other).stdout


# What cannot be measured.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--duration", "0"), "--duration is 0: give seconds over 0"),
        (("--duration", "nan"), "--duration is nan: give seconds over 0"),
        (("--duration", "inf"), "--duration is inf: give seconds over 0"),
        (("--warmup-ms", "-1"), "--warmup-ms is -1: give 0 or more"),
        (("--min-samples", "0"), "--min-samples is 0: give 1 or more"),
        (("--percentiles", "50,100"), "--percentiles has 100: give numbers over 0 and up to 99.99"),
        (("--percentiles", "0"), "--percentiles has 0"),
        (("--percentiles", "nan"), "--percentiles has nan"),
        (("--percentiles", "p50"), "--percentiles p50 is no list of numbers: write 50,90,99"),
        (("--batch", "4"), "takes 1 images a call and --batch is 4"),
        (("--threads", "4096"), "threads is 4096: give 1 to"),
        (("--backend", "tpu"), "there is no target 'tpu'"),
        (("--backend", "fake"), "the fake backend computes nothing that could be timed"),
        (("--layers", "--hint", "throughput"), "layers are timed one inference at a time"),
        (("--load", "--layers"), "--load measures nothing: leave --layers out"),
        (("--images", "nowhere"), "nowhere: no such folder of images"),
        (("--baseline", "resnet51"), "--baseline resnet51 is neither a bundle nor a network"),
        (("--json", "nowhere/a.json"), "nowhere/a.json cannot be written"),
        (("--baseline-out", "kept"), "--baseline-out keeps an exported baseline"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    arguments: tuple[str, ...], words: str, micro_bundles: dict[str, Path]
) -> None:
    result = run("profile", micro_bundles["onnx"], *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert words in errors[0]


def test_a_folder_without_images_is_refused(micro_bundles: dict[str, Path], tmp_path: Path) -> None:
    result = run("profile", micro_bundles["onnx"], "--images", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} holds no image" in result.stderr


def test_an_unreadable_frame_is_named(
    micro_bundles: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    source = next(photos.rglob("*.*"))
    (tmp_path / f"half{source.suffix}").write_bytes(source.read_bytes()[:60])
    result = run("profile", micro_bundles["onnx"], "--images", tmp_path)
    assert result.exit_code == 2
    assert f"half{source.suffix}: " in result.stderr


def test_a_bundle_whose_engine_cannot_run_here_is_named(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(micro_bundles["onnx"], tmp_path / "bundle")
    result = run("profile", tmp_path / "bundle", "--backend", "tensorrt", *QUICK)
    assert result.exit_code == 2
    assert f"Error: {tmp_path / 'bundle'}: " in result.stderr
    assert "Traceback" not in result.stderr


def test_images_are_spread_over_the_folder(
    micro_bundles: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    # The first half of the folder is one photograph, the second another.
    first, second = sorted(path for path in photos.rglob("*.*"))[:2]
    for number in range(MOST_IMAGES + 8):
        source = first if number < MOST_IMAGES // 2 + 4 else second
        shutil.copy(source, tmp_path / f"{number:03}{source.suffix}")
    request = ProfileRequest(
        (micro_bundles["onnx"],), images=tmp_path, duration_s=0.01, warmup_ms=1, min_samples=1
    )
    found = profile(request).inputs
    assert found.count == MOST_IMAGES
    halves = hashlib.sha256()
    for source in (first, second):
        halves.update(source.read_bytes() * (MOST_IMAGES // 2))
    assert found.digest == halves.hexdigest()


def test_bundles_are_a_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="profile which bundle"):
        profile(ProfileRequest(()))


# Where the time goes.


def test_layers_are_told_by_part_in_a_run_of_their_own(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "layers.json"
    result = run("profile", micro_bundles["openvino"], "--layers", "--json", file, *QUICK)
    assert result.exit_code == 0, result.output
    found = read_profile(file).reports[0].layers
    assert found is not None
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    for part in found.parts:
        assert part.name in result.stdout
    assert "instrumentation costs" in result.stdout
    assert "attention " in result.stdout


def test_a_page_and_a_picture_are_written(
    measured: tuple[Result, Path], micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "layers.svg"
    bundles = (micro_bundles["onnx"], micro_bundles["openvino"])
    result = run(
        "profile", *bundles, "--layers", "--picture", picture, "--html", page, *QUICK
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    drawing = ElementTree.fromstring(picture.read_text())
    shown = {"".join(node.itertext()) for node in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {str(bundle) for bundle in bundles} <= shown
    assert "Where the time goes" in page.read_text()
    assert run("profile", "--load", measured[1], "--html", page).exit_code == 0


def test_json_on_stdout_leaves_out_no_file(measured: tuple[Result, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("profile", "--load", measured[1], "--json", "-", "--html", page)
    assert json.loads(result.stdout)["schema_version"] == 1
    assert page.is_file()


def test_a_percentile_asks_for_its_samples_unless_told_otherwise(
    micro_bundles: dict[str, Path],
) -> None:
    request = ProfileRequest((micro_bundles["onnx"],), duration_s=0.01, warmup_ms=1)
    median = profile(dataclasses.replace(request, percentiles=(50.0,)))
    assert median.settings.min_samples == 662
    found = profile(dataclasses.replace(request, percentiles=(99.5,)))
    assert found.settings.min_samples == samples_needed(99.5) > 662
    assert found.reports[0].boundaries.engine.percentiles_ms["p99.5_ms"] is not None


def test_a_picture_of_no_layers_is_refused(
    micro_bundles: dict[str, Path], measured: tuple[Result, Path], tmp_path: Path
) -> None:
    picture = tmp_path / "layers.svg"
    result = run("profile", micro_bundles["onnx"], "--picture", picture)
    assert result.exit_code == 2
    assert "--picture draws layers: give --layers too" in result.stderr
    assert not picture.exists()
