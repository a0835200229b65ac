"""A profile says what was measured, on which machine, how sure it is, and refuses what it cannot say."""

from __future__ import annotations

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

import jsonschema
import pytest

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import read_bundle, size_bytes
from gft_edge.errors import UsageError
from gft_edge.profiling.profile import MOST_IMAGES, ProfileRequest, profile
from gft_edge.profiling.report import ENGINE, Profile, boundary_of
from gft_edge.profiling.report_file import read_profile, write_profile
from gft_edge.profiling.samples import percentile_ms, samples_needed
from gft_edge.profiling.schema import profile_schema
from gft_edge.profiling.verdict import verdicts
from tests.support.cli import refusal, refused, run
from tests.support.paths import ROOT
from tests.support.refusals import refusal_of

SCHEMA = ROOT / "docs" / "profile.schema.json"
QUICK = ("--duration", 0.05, "--min-samples", 20, "--warmup-ms", 10)

Change = Callable[[dict[str, Any]], object]


# What is in it.


def test_the_json_is_valid_against_the_published_schema(profile_data: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    # python -m gft_edge.profiling.schema > docs/profile.schema.json
    assert schema == profile_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(profile_data, schema)


@pytest.mark.parametrize("field", ["machine", "before", "after", "settings"])
def test_a_report_without_its_machine_is_none(field: str, altered: Callable[..., Path]) -> None:
    path = altered(lambda content: content.pop(field))
    refusal_of(UsageError, lambda: read_profile(path), field)
    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate(json.loads(path.read_text()), profile_schema())


def test_every_number_derives_from_the_raw_samples(profile_data: dict[str, Any]) -> None:
    for report in profile_data["reports"]:
        for boundary in report["boundaries"].values():
            samples_ms = boundary["samples_ms"]
            assert len(samples_ms) >= 20
            assert sum(samples_ms) >= 300
            told = boundary["percentiles_ms"]
            assert told == {f"p{p}_ms": percentile_ms(samples_ms, p) for p in (50, 90, 95, 99)}
            assert [boundary[name] for name in ("p50_ms", "p90_ms", "p99_ms")] == [
                told[name] for name in ("p50_ms", "p90_ms", "p99_ms")
            ]
            assert boundary["mean_ms"] == pytest.approx(statistics.mean(samples_ms))
            assert boundary["cv"] == pytest.approx(
                statistics.stdev(samples_ms) / statistics.mean(samples_ms)
            )
            assert boundary["images_per_s"] == pytest.approx(1000 / boundary["mean_ms"])
            assert len(boundary["window_p50_ms"]) == 3
            assert sum(boundary["turns"]) == len(samples_ms)


def test_the_parts_of_end_to_end_sum_to_its_mean(profile_data: dict[str, Any]) -> None:
    for report in profile_data["reports"]:
        boundary = report["boundaries"]["end_to_end"]
        assert sum(boundary["split_ms"].values()) == pytest.approx(boundary["mean_ms"])
        assert boundary["split_ms"]["decode_ms"] > 0
        assert boundary["split_ms"]["host_to_device_ms"] == 0
        assert report["boundaries"]["engine"]["split_ms"] is None


def test_ratios_are_to_the_first_bundle(profile_data: dict[str, Any]) -> None:
    first, second = profile_data["reports"]
    assert first["ratio_to_first"] == 1.0
    assert second["ratio_to_first"] == second["boundaries"]["engine"]["ratio_to_first"]
    low, high = second["boundaries"]["engine"]["ratio_interval"]
    assert low <= second["ratio_to_first"] <= high


def test_the_fingerprint_travels_with_the_numbers(
    profile_data: dict[str, Any], micro_bundles: dict[str, Path]
) -> None:
    assert profile_data["machine"]["cpu"]
    assert profile_data["after"]["at_s"] > profile_data["before"]["at_s"]
    for report, target in zip(profile_data["reports"], ("onnx", "openvino"), strict=True):
        bundle = read_bundle(micro_bundles[target])
        assert report["digest"] == bundle.manifest.seal
        assert report["engine"].startswith(
            {"onnx": "onnxruntime ", "openvino": "openvino "}[target]
        )
        assert report["files_mb"] == size_bytes(bundle) / 2**20
        assert report["flags"]
        assert min(report["load_ms"], report["first_ms"]) > 0
        assert report["peak_rss_mb"] > 20
        assert report["device_memory_mb"] is None
    assert profile_data["inputs"]["kind"] == "encoded images"


def test_energy_is_never_zero_where_nothing_can_be_read(profile_data: dict[str, Any]) -> None:
    for report in profile_data["reports"]:
        energy = report["energy"]
        if energy["available"]:
            assert energy["gross_mj_per_image"] > 0
        else:
            assert energy["why"]
            assert energy["gross_mj_per_image"] is None


def test_what_is_printed_names_boundaries_and_verdict(
    profile_file: Path, profile_data: dict[str, Any]
) -> None:
    printed = profile_file.with_suffix(".txt").read_text()
    for words in ("engine", "end to end", "time / first", "not available: "):
        assert words in printed
    assert ("UNSTABLE: do not decide on these numbers" in printed) != profile_data["stable"]
    assert printed.rstrip().endswith(
        f"written: {profile_file}\nnext: gft-edge report {profile_file}"
    )


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
    # A clock that went backwards, and turns that are too few.
    assert not boundary_of(ENGINE, calm, [], 1, 1, lost=1).stable
    assert not boundary_of(ENGINE, [[1.0] * 700] * 2, [], 1, 1).stable


def test_a_steady_load_of_others_is_no_stable_measurement(altered: Callable[..., Path]) -> None:
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


def first_turn(request: ProfileRequest) -> Profile:
    """Profile until the first turn of each boundary is over, and then interrupt."""

    def interrupt(text: str, done: int, total: int) -> None:
        if text == "measure":
            raise KeyboardInterrupt

    return profile(dataclasses.replace(request, duration_s=600, warmup_ms=10), interrupt)


def test_an_interrupted_profile_has_the_samples_so_far_and_says_how_many_it_wanted(
    micro_bundles: dict[str, Path],
) -> None:
    found = first_turn(ProfileRequest((micro_bundles["onnx"],), percentiles=(99.5,)))
    assert not found.complete
    assert len(found.reports[0].boundaries.engine.turns) == 1
    assert not found.stable
    assert found.settings.min_samples == samples_needed(99.5) > 662


# Requests in flight.


def test_throughput_is_images_a_second_of_requests_in_flight(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    file, bundle = tmp_path / "throughput.json", micro_bundles["openvino"]
    result = run("profile", bundle, "--hint", "throughput", "--out", file, *QUICK)
    assert result.exit_code == 0, result.output
    found = read_profile(file)
    # Where no images are given.
    assert (found.inputs.kind, found.inputs.count) == ("golden frames", 8)
    (report,) = found.reports
    assert report.boundaries.end_to_end is None
    engine = report.boundaries.engine
    assert "PERFORMANCE_HINT=THROUGHPUT" in report.flags
    assert engine.images_per_s > 0
    assert len(engine.samples_ms) >= 20
    # Read back it is not derived from latencies that overlap.
    (written,) = json.loads(file.read_text())["reports"]
    assert engine.images_per_s == written["boundaries"]["engine"]["images_per_s"]


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


@pytest.mark.slow  # processes of their own
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
    altered: Callable[..., Path],
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
    profile_file: Path, tmp_path: Path, profile_data: dict[str, Any]
) -> None:
    found = read_profile(profile_file)
    write_profile(found, tmp_path / "again.json")
    assert read_profile(tmp_path / "again.json") == found
    assert to_json(found)["machine"] == profile_data["machine"]


def test_a_number_that_was_improved_by_hand_is_derived_again(
    profile_file: Path, altered: Callable[..., Path]
) -> None:
    def improve(content: dict[str, Any]) -> None:
        content["stable"] = True
        boundary = content["reports"][1]["boundaries"]["engine"]
        boundary.update(p50_ms=0.001, stable=True, ratio_to_first=0.1, spread=0.0)

    assert read_profile(altered(improve)) == read_profile(profile_file)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda b: b.update(turns=[1]), "turns"),
        (lambda b: b.update(samples_ms=[], turns=[]), "turns"),
        (lambda b: b["samples_ms"].__setitem__(0, -1.0), "samples_ms"),
        (lambda b: b["samples_ms"].__setitem__(0, math.nan), "samples_ms"),
        (lambda b: b.update(inputs=0), "samples_ms"),
        (lambda b: b["turns_s"].__setitem__(0, 0.0), "turns_s"),
        (lambda b: b.pop("cv"), "'cv'"),
    ],
)
def test_a_damaged_profile_is_refused(
    change: Change, field: str, altered: Callable[..., Path]
) -> None:
    path = altered(lambda content: change(content["reports"][0]["boundaries"]["engine"]))
    refusal_of(UsageError, lambda: read_profile(path), field)


@pytest.mark.parametrize("percentile", [0, 100, math.nan])
def test_a_profile_of_an_impossible_percentile_is_refused(
    percentile: float, altered: Callable[..., Path]
) -> None:
    path = altered(lambda content: content["settings"].update(percentiles=[percentile]))
    refusal_of(UsageError, lambda: read_profile(path), "99.99")


# What cannot be measured.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--duration", "0"), "--duration is 0"),
        (("--duration", "nan"), "--duration is nan"),
        (("--duration", "inf"), "--duration is inf"),
        (("--warmup-ms", "-1"), "--warmup-ms is -1"),
        (("--min-samples", "0"), "--min-samples is 0"),
        (("--percentiles", "50,100"), "--percentiles has 100"),
        (("--percentiles", "p50"), "--percentiles p50"),
        (("--batch", "4"), "--batch is 4"),
        (("--threads", "4096"), "--threads is 4096"),
        (("--backend", "tpu"), "tpu"),
        (("--layers", "--hint", "throughput"), "--hint"),
        (("--hint", "throughput"), "throughput"),
        (("--photos", "nowhere"), "nowhere"),
        (("--baseline", "resnet51"), "--baseline resnet51"),
        (("--out", "nowhere/a.json"), "nowhere/a.json"),
        (("--baseline-out", "kept"), "--baseline-out"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    arguments: tuple[str, ...],
    words: str,
    micro_bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("profile", micro_bundles["onnx"], *arguments), words)
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_measured_are_named(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ("profile", micro_bundles["onnx"], "--photos", tmp_path)
    refused(run(*arguments), str(tmp_path))
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(run(*arguments), "half.png")


def test_a_bundle_whose_engine_cannot_run_here_is_named(micro_bundles: dict[str, Path]) -> None:
    bundle = micro_bundles["onnx"]
    assert refusal("profile", bundle, "--backend", "tensorrt", *QUICK).startswith(f"{bundle}: ")


def test_images_are_spread_over_the_folder(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    # The first half of the folder is one photograph, the second another.
    first, second = sorted(micro_data.rglob("*.png"))[:2]
    for number in range(MOST_IMAGES + 8):
        source = first if number < MOST_IMAGES // 2 + 4 else second
        shutil.copy(source, tmp_path / f"{number:03}{source.suffix}")
    request = ProfileRequest((micro_bundles["onnx"],), images=tmp_path, percentiles=(50.0,))
    profiled = first_turn(request)
    assert profiled.settings.min_samples == 662, "those of a p99"
    found = profiled.inputs
    assert found.count == MOST_IMAGES
    halves = hashlib.sha256()
    for source in (first, second):
        halves.update(source.read_bytes() * (MOST_IMAGES // 2))
    assert found.digest == halves.hexdigest()


def test_bundles_are_a_request() -> None:
    refusal_of(UsageError, lambda: profile(ProfileRequest(())), "bundle")


# Where the time goes.


@pytest.mark.slow
def test_layers_are_told_by_part_in_a_run_of_their_own_and_drawn(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "layers.json"
    result = run("profile", micro_bundles["openvino"], "--layers", "--out", file, *QUICK)
    assert result.exit_code == 0, result.output
    found = read_profile(file).reports[0].layers
    assert found is not None
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    for part in found.parts:
        assert part.name in result.stdout
    assert "instrumentation costs" in result.stdout
    assert "attention " in result.stdout
    assert run("report", file).exit_code == 0
    assert "Where the time goes" in file.with_suffix(".html").read_text()
