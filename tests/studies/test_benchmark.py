"""The benchmark: everything that runs here in one table, resumed after an interrupt, failures listed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.store import read_bundle, read_manifest, write_manifest
from gft_edge.profiling.report_file import read_profile
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.benchmark_table import benchmark_table
from gft_edge.studies.memory import MARKER_FILE, RESULT_FILES
from gft_edge.studies.results import Benchmark
from tests.support.cli import refusal, refused, run, run_json
from tests.support.studies import MISSED, Shortcut

BOTH = ("--targets", "onnx,openvino", "--precisions", "fp32,fp16")
ONE = ("--targets", "onnx", "--precisions", "fp32")
Given = tuple[object, ...]


@pytest.fixture(scope="session")
def content(micro_benchmark: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((micro_benchmark / "benchmark.json").read_text())
    return found


def row_of(content: dict[str, Any], target: str, precision: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = content["rows"]
    (found,) = [row for row in rows if (row["target"], row["precision"]) == (target, precision)]
    return found


def test_each_variant_is_done_or_says_why_not(content: dict[str, Any]) -> None:
    for target in ("onnx", "openvino"):
        row = row_of(content, target, "fp32")
        assert (row["status"], row["reason"], row["keep"]) == ("done", None, None)
        assert row["files_mb"] > 0
        accuracy = row["accuracy"]
        assert accuracy["top1"] == accuracy["reference_top1"] == content["reference_top1"]
        assert accuracy["top1_drop"] == 0
        assert accuracy["top1_agreement"] == 1
        assert accuracy["kept_overlap"] == [1, 1, 1]
        assert row["measured"]["engine_p50_ms"] > 0
    failed = row_of(content, "onnx", "fp16")
    assert (failed["status"], failed["reason"]) == ("failed", MISSED)
    assert failed["measured"] is failed["bundle"] is failed["accuracy"] is None
    reason = backend_for("openvino").unsupported("fp16")
    if reason is not None:
        found = row_of(content, "openvino", "fp16")
        assert (found["status"], found["reason"]) == ("absent", reason)


def test_the_best_rows_are_the_least_of_their_column(content: dict[str, Any]) -> None:
    best = {found["goal"]: found["row"] for found in content["best"]}
    done = {f"{row['target']} {row['precision']}": row for row in content["rows"]
            if row["status"] == "done"}  # fmt: skip
    fastest = min(done, key=lambda name: done[name]["measured"]["end_to_end_p50_ms"])
    assert best["fastest"] == best["most accurate"] == fastest
    assert best["smallest"] == min(done, key=lambda name: done[name]["files_mb"])
    assert "least energy" in best or done[fastest]["measured"]["energy_why"]
    # Equally accurate: on the front is the fastest alone.
    front = [name for name, row in done.items() if row["front"]]
    assert front == [min(done, key=lambda name: done[name]["measured"]["engine_p50_ms"])]


def test_the_json_is_a_benchmark_and_the_csv_has_a_line_a_variant(
    micro_benchmark: Path, content: dict[str, Any]
) -> None:
    assert to_json(from_json(Benchmark, content, "benchmark.json")) == content
    with (micro_benchmark / "benchmark.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["target"], line["precision"], line["status"]) for line in lines] == [
        (row["target"], row["precision"], row["status"]) for row in content["rows"]
    ]
    first, row = lines[0], content["rows"][0]
    assert float(first["engine_p50_ms"]) == row["measured"]["engine_p50_ms"]
    assert [float(first[f"kept_overlap_{n}"]) for n in (1, 2, 3)] == [1, 1, 1]
    assert lines[1]["engine_p50_ms"] == ""
    assert lines[1]["reason"] == MISSED


def test_what_is_printed_is_the_table_with_what_is_missing_below(
    micro_benchmark: Path, content: dict[str, Any]
) -> None:
    printed = (micro_benchmark / ".printed.txt").read_text()
    table = benchmark_table(from_json(Benchmark, content, "benchmark.json"))
    assert len(table.rows) == 2
    # Keep counts are no subject of this benchmark.
    assert not {"ratio", "front", "GFLOPs", "gained / lost"} & {*table.columns}
    for words in ("onnx fp32", " * │", f"failed: onnx fp16: {MISSED}", "judging on test"):
        assert words in printed
    fastest = next(best["row"] for best in content["best"] if best["goal"] == "fastest")
    bundle = micro_benchmark / "bundles" / fastest.replace(" ", "-")
    assert f"next: gft-edge predict {bundle} PHOTO" in printed


def test_the_page_and_the_profile_have_every_bundle_measured(
    micro_benchmark: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    page_file = tmp_path / "page.html"
    assert run("report", micro_benchmark, "--html", page_file).exit_code == 0
    page = page_file.read_text()
    for words in ("onnx fp32", "openvino fp32", "failed: onnx fp16", "Accuracy against cost"):
        assert words in page
    profile = read_profile(micro_benchmark / "profile.json")
    assert [report.digest for report in profile.reports] == [
        row["digest"] for row in content["rows"] if row["status"] == "done"
    ]


def test_what_is_remembered_is_neither_exported_nor_judged_nor_measured_again(
    given: Given, out: Path, shortcut: Shortcut
) -> None:
    given = (*given, *BOTH)
    shortcut.stable = False
    first = run_json(*given)
    assert (first["stable"], first["causes"]) == (False, ["busy"])
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {
        *RESULT_FILES, "bundles", "memory",
    }  # fmt: skip
    # Latencies that were not stable are measured again.
    shortcut.stable = True
    again = run(*given)
    assert again.stderr.count("exported already") == 2
    assert "failed before, the same" in again.stderr
    assert "accuracy on" not in again.stderr
    assert "measuring in turn: onnx fp32, openvino fp32" in again.stderr
    assert "as measured before" in run(*given).stderr
    assert len(shortcut.exported) == len({*shortcut.exported})
    assert len(shortcut.measured) == 2
    # A bundle that was altered is exported again, and measured with the others.
    folder = out / "bundles/onnx-fp32"
    manifest = read_manifest(folder)
    write_manifest(folder, manifest)
    (folder / "labels.txt").write_text("a\n")
    altered = run(*given)
    assert "onnx fp32 (1 of 4): exporting anew" in altered.stderr
    assert read_bundle(folder).manifest == manifest
    # And everything with --fresh, what failed included.
    count = len(shortcut.exported)
    assert run(*given, "--fresh").exit_code == 0
    assert sorted(shortcut.exported[count:]) == sorted({*shortcut.exported})


def test_a_bundle_whose_engine_dies_costs_the_others_nothing(
    given: Given, out: Path, shortcut: Shortcut
) -> None:
    shortcut.dies = "onnx-fp32"
    content = run_json(*given, *BOTH)
    assert shortcut.measured == [["onnx-fp32", "openvino-fp32"], ["openvino-fp32"]]
    row = row_of(content, "onnx", "fp32")
    assert row["status"] == "failed"
    assert "the process that measures it ended" in row["reason"]
    assert row_of(content, "openvino", "fp32")["measured"]["engine_p50_ms"] > 0
    # Nothing at all measured is a failure.
    assert run(*given, *ONE).exit_code == 1
    assert not (out / "profile.json").exists()


def test_a_failure_of_the_disk_is_no_failure_of_a_variant(
    given: Given, out: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gft_edge.studies.study.export", full)
    assert "No space left" in refusal(*given, *ONE, exit_code=1)
    assert list(out.glob("memory/*")) == []


def test_an_interrupt_says_how_to_go_on(
    given: Given, out: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gft_edge.studies.bench.profile", interrupted)
    result = run(*given, *ONE)
    assert result.exit_code == 1
    assert f"is kept in {out}, the same command goes on" in result.stderr
    shortcut.use(monkeypatch)
    assert run(*given, *ONE).exit_code == 0
    assert shortcut.exported == ["onnx-fp32"]


def test_other_images_are_judged_anew_and_other_weights_refused(
    given: Given, out: Path, micro_data: Path, tmp_path: Path, shortcut: Shortcut
) -> None:
    fewer = Path(shutil.copytree(micro_data, tmp_path / "fewer"))
    given = (*given, *ONE, "--data", fewer)
    assert run_json(*given)["images"] == 12
    next((fewer / "test" / "apple").iterdir()).unlink()
    content = run_json(*given)
    assert content["images"] == 11
    right = 11 * content["rows"][0]["accuracy"]["top1"]
    assert right == pytest.approx(round(right))
    assert shortcut.exported == ["onnx-fp32"] * 2
    (out / MARKER_FILE).write_text("0" * 64)
    assert "--fresh" in refusal(*given)
    assert run(*given, "--fresh").exit_code == 0


def test_a_folder_that_holds_something_else_is_left_alone(given: Given, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for flags in ((), ("--fresh",)):
        line = refusal(*given, "--out", tmp_path, *flags)
        assert line.startswith(str(tmp_path))
        assert "--out" in line
    assert "thesis.txt" in refusal(*given, "--out", tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--targets", "openvin"), ("'openvin'", "onnx, openvino")),
        (("--targets", "coreml"), ("'coreml'", "onnx, openvino")),
        (("--precisions", "fp61"), ("'fp61'", "fp16")),
        (("--targets", "onnx", "--precisions", "bf16"), ("--precisions bf16", "onnx")),
        (("--precisions", ""), ("--precisions",)),
        (("--split", "dev"), ("dev/", "test")),
        (("--split", "../run"), ("--split ../run",)),
        (("--duration", 0), ("--duration is 0",)),
        (("--images", 0), ("--images is 0",)),
        (("--limit", 0), ("--limit is 0",)),
        (("--percentiles", "half"), ("--percentiles half",)),
        (("--calibration-data", "nowhere"), ("nowhere",)),
        (("--calibration-data", "x", "--precisions", "fp32"), ("--calibration-data",)),
        (("--no-latency",), ("--no-latency", "--keep", "--grid")),
        (("--keep", "20,10"), ("--keep 20,10", "3 stages")),
        (("--keep", "20,10,5", "--keep", "20,21,5"), ("2:21", "20")),
        (("--keep", "65,10,5"), ("1:65", "64")),
        (("--keep", "x,10,5"), ("'x'",)),
        (("--keep", "20,10,5", "--grid", "4"), ("--keep", "--grid")),
        (("--grid", "1"), ("--grid",)),
        (("--keep", "20,10,5", "--targets", "coreml"), ("'coreml'",)),
        (("--keep", "20,10,5", "--limit", 4), ("--limit", "--keep")),
        (("--keep", "20,10,5", "--no-latency", "--targets", "onnx"), ("--targets",)),
        (("--keep", "20,10,5", "--no-latency", "--duration", 1), ("--duration", "--no-latency")),
        (("--keep", "20,10,5", "--no-latency", "--split", "val"), ("val/",)),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_any_work(
    given: Given, out: Path, changes: tuple[object, ...], words: tuple[str, ...]
) -> None:
    refused(run(*given, *changes), *words)
    assert not out.exists()


def test_what_is_no_run_is_refused(
    micro_run: Path, micro_data: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    def line(subject: Path, data: Path = micro_data) -> str:
        return refusal("benchmark", subject, "--data", data, "--out", tmp_path / "out")

    assert str(micro_bundles["onnx"]) in line(micro_bundles["onnx"])
    assert str(tmp_path / "none") in line(tmp_path / "none")
    assert str(tmp_path / "none") in line(micro_run, tmp_path / "none")
    (tmp_path / "empty" / "test" / "apple").mkdir(parents=True)
    assert str(tmp_path / "empty") in line(micro_run, tmp_path / "empty")


def test_processes_launched_together_do_not_benchmark(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "gft-edge benchmark" in refusal(*given)
