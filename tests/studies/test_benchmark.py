"""The benchmark: everything that runs here in one table, resumed after an interrupt, failures listed."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.store import read_manifest
from gft_edge.cli import main
from gft_edge.errors import BundleError, UsageError
from gft_edge.profiling.report import read_profile
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.benchmark import BenchmarkRequest, benchmark
from gft_edge.studies.benchmark_table import COLUMNS
from gft_edge.studies.grid import grid
from gft_edge.studies.images import calibration_images
from gft_edge.studies.memory import MARKER_FILE, Owner, claimed, read_kept
from gft_edge.studies.results import Accuracy, Benchmark, Row, best_rows

FILES = {"benchmark.csv", "benchmark.json", "benchmark.md", "benchmark.html", "profile.json"}
QUICK = ("--targets", "onnx,openvino", "--precisions", "fp32,fp16",
         "--duration", 0.1, "--warmup-ms", 10, "--min-samples", 12)  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["benchmark", *map(str, arguments)])


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 or "Usage" in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


@dataclass(frozen=True)
class Made:
    """A benchmark that was interrupted before OpenVINO's turn, and what the command made of it then."""

    out: Path
    exported_at: int
    content: dict[str, Any]
    remarks: str

    def row(self, target: str, precision: str) -> dict[str, Any]:
        rows = self.content["rows"]
        found = [r for r in rows if (r["target"], r["precision"]) == (target, precision)]
        assert len(found) == 1
        row: dict[str, Any] = found[0]
        return row


@pytest.fixture(scope="module")
def made(micro_run: Path, micro_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("benchmark") / "out"

    def interrupt(text: str) -> None:
        if text.startswith("openvino fp32"):
            raise KeyboardInterrupt

    request = BenchmarkRequest(micro_run, DataSource(micro_data), out, precisions=("fp32", "fp16"))
    with pytest.raises(KeyboardInterrupt):
        benchmark(request, say=interrupt)
    exported_at = (out / "bundles/onnx-fp32/manifest.json").stat().st_mtime_ns
    result = run(micro_run, "--data", micro_data, "--out", out, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    return Made(out, exported_at, json.loads(result.stdout), result.stderr)


def test_an_interrupted_benchmark_goes_on_where_it_was(made: Made) -> None:
    assert "onnx fp32 (1 of 4): exported already" in made.remarks
    assert "onnx fp16 (2 of 4): failed before, the same" in made.remarks
    assert "openvino fp32 (3 of 4): exporting" in made.remarks
    now = (made.out / "bundles/onnx-fp32/manifest.json").stat().st_mtime_ns
    assert now == made.exported_at
    assert made.row("onnx", "fp32")["digest"] == read_manifest(made.out / "bundles/onnx-fp32").seal


def test_each_row_is_done_or_says_why_not(made: Made) -> None:
    for target in ("onnx", "openvino"):
        row = made.row(target, "fp32")
        assert row["status"] == "done"
        assert row["reason"] is None
        assert row["build_s"] > 0
        assert row["files_mb"] > 0
        accuracy = row["accuracy"]
        assert accuracy["top1"] == accuracy["reference_top1"] == made.content["reference_top1"]
        assert accuracy["top1_drop"] == 0
        assert accuracy["top1_agreement"] == 1
        assert accuracy["kept_overlap"] == [1, 1, 1]
        assert row["measured"]["engine_p50_ms"] > 0
        assert row["measured"]["end_to_end_p99_ms"] is None
    failed = made.row("onnx", "fp16")
    assert failed["status"] == "failed"
    assert "differs from PyTorch on 12 images: logit cosine" in failed["reason"]
    assert failed["measured"] is failed["bundle"] is failed["accuracy"] is None
    reason = backend_for("openvino").unsupported("fp16")
    if reason is not None:
        assert made.row("openvino", "fp16")["status"] == "absent"
        assert made.row("openvino", "fp16")["reason"] == reason


def test_the_best_rows_are_the_least_of_their_column(made: Made) -> None:
    best = {found["goal"]: found["row"] for found in made.content["best"]}
    done = {f"{row['target']} {row['precision']}": row for row in made.content["rows"]
            if row["status"] == "done"}  # fmt: skip
    fastest = min(done, key=lambda name: done[name]["measured"]["end_to_end_p50_ms"])
    assert best["fastest"] == best["most accurate"] == fastest
    assert best["smallest"] == min(done, key=lambda name: done[name]["files_mb"])
    assert "least energy" in best or done[fastest]["measured"]["energy_why"]


def test_the_json_is_a_benchmark_and_keeps_what_was_printed(made: Made) -> None:
    saved = json.loads((made.out / "benchmark.json").read_text())
    assert saved == made.content
    assert to_json(from_json(Benchmark, saved, "benchmark.json")) == saved
    assert saved["machine"]["cpu"]


def test_the_csv_has_a_line_a_row(made: Made) -> None:
    with (made.out / "benchmark.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["target"], line["precision"], line["status"]) for line in lines] == [
        (row["target"], row["precision"], row["status"]) for row in made.content["rows"]
    ]
    first, row = lines[0], made.content["rows"][0]
    assert float(first["engine_p50_ms"]) == row["measured"]["engine_p50_ms"]
    assert [float(first[f"kept_overlap_{n}"]) for n in (1, 2, 3)] == [1, 1, 1]
    assert lines[1]["engine_p50_ms"] == ""
    assert lines[1]["reason"] == made.row("onnx", "fp16")["reason"]


def test_the_markdown_is_one_table_with_the_failures_below(made: Made) -> None:
    text = (made.out / "benchmark.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    done = [row for row in made.content["rows"] if row["status"] == "done"]
    assert len(rows) == 2 + len(done)
    assert {row.count("|") for row in rows} == {len(COLUMNS) + 1}
    assert "**" in rows[2]
    assert "- failed: onnx fp16: stage" in text


def test_the_page_and_the_profile_have_every_bundle_measured(made: Made) -> None:
    page = (made.out / "benchmark.html").read_text()
    for words in ("onnx fp32", "openvino fp32", "failed: onnx fp16", "Accuracy against latency"):
        assert words in page
    profile = read_profile(made.out / "profile.json")
    assert [report.digest for report in profile.reports] == [
        row["digest"] for row in made.content["rows"] if row["status"] == "done"
    ]


def test_a_second_call_measures_anew_and_prints_one_table(
    made: Made, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(made.out, out)
    result = run(micro_run, "--data", micro_data, "--out", out, *QUICK, "--targets", "onnx")
    assert result.exit_code == 0, result.stderr
    assert "onnx fp32 (1 of 2): exported already" in result.stderr
    assert "exporting" not in result.stderr
    assert "accuracy" not in result.stderr
    assert "onnx fp32 │ 0.6 * │" in result.stdout
    assert "failed: onnx fp16: stage" in result.stdout
    assert f"next: gft-edge predict {out}/bundles/onnx-fp32 PHOTO" in result.stdout
    visible = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert visible == {*FILES, "bundles"}
    again = json.loads((out / "benchmark.json").read_text())
    assert again["rows"][0]["measured"] != made.content["rows"][0]["measured"]
    assert again["rows"][0]["accuracy"] == made.content["rows"][0]["accuracy"]


def test_a_state_that_a_crash_left_half_written_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "onnx-fp32.json").write_text('{"request": "')
    assert read_kept(tmp_path / "onnx-fp32") is None


def test_an_interrupt_says_how_to_go_on(
    made: Made, micro_run: Path, micro_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gft_edge.cli import benchmark_command

    heard: list[str] = []

    def interrupted_once(text: str) -> None:
        heard.append(text)
        if text.startswith("measuring"):
            raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_command, "say", interrupted_once)
    result = run(micro_run, "--data", micro_data, "--out", made.out, *QUICK)
    assert result.exit_code == 1
    assert heard[-1] == f"interrupted: what is done is kept in {made.out}, the same command goes on"


def test_other_weights_and_other_images_are_never_mixed_in(
    made: Made, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(micro_data, fewer)
    next((fewer / "test" / "apple").iterdir()).unlink()
    result = run(micro_run, "--data", fewer, "--out", made.out, *QUICK)
    assert_refused(result, "is a benchmark on other images: choose another --out", "--force")
    other = tmp_path / "other"
    shutil.copytree(made.out, other)
    marker = json.loads((other / MARKER_FILE).read_text())
    (other / MARKER_FILE).write_text(json.dumps({**marker, "weights_sha256": "0" * 64}))
    result = run(micro_run, "--data", micro_data, "--out", other, *QUICK)
    assert_refused(result, "is the benchmark of other weights")
    owner = Owner("1", "2")
    with claimed(other, owner, force=True):
        assert sorted(path.name for path in other.iterdir()) == [MARKER_FILE, ".lock", "bundles"]
        assert list((other / "bundles").iterdir()) == []
        with (
            pytest.raises(BundleError, match="is being written by another gft-edge"),
            claimed(other, owner, force=True),
        ):
            pass
    (other / "bundles" / ".onnx-fp32.partial-x").mkdir()
    with claimed(other, owner, force=False):
        assert list((other / "bundles").iterdir()) == []


def test_a_folder_that_holds_something_else_is_left_alone(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for flags in ((), ("--force",)):
        result = run(micro_run, "--data", micro_data, "--out", tmp_path, *QUICK, *flags)
        assert_refused(result, "exists and is no benchmark: choose another --out")
    result = run(micro_run, "--data", micro_data, "--out", tmp_path / "thesis.txt", *QUICK)
    assert_refused(result, "is a file: give --out a folder")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--targets", "openvin"), "there is no target 'openvin', did you mean openvino?"),
        (("--targets", "coreml"), "there is no target 'coreml': choose from onnx, openvino"),
        (("--precisions", "fp61"), "there is no precision 'fp61', did you mean fp16?"),
        (("--targets", "onnx", "--precisions", "bf16"), "--precisions bf16 is not available for"),
        (("--precisions", ""), "--precisions is empty"),
        (("--split", "dev"), "has no dev/ folder (found: test)"),
        (("--duration", 0), "--duration is 0: give seconds over 0"),
        (("--images", 0), "--images is 0: give 1 or more"),
        (("--limit", 0), "--limit is 0: give 1 or more"),
        (("--percentiles", "half"), "--percentiles half is no list of numbers"),
        (("--calibration-data", "nowhere"), "nowhere: no such calibration folder"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_a_line(
    micro_run: Path, micro_data: Path, tmp_path: Path, changes: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "out"
    assert_refused(run(micro_run, "--data", micro_data, "--out", out, *changes), words)
    assert not out.exists()


def test_what_is_no_run_is_refused(
    made: Made, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    bundle = made.out / "bundles/onnx-fp32"
    result = run(bundle, "--data", micro_data, *out)
    assert_refused(result, "is a bundle: give the run that it was exported from")
    assert_refused(run(tmp_path / "none", "--data", micro_data, *out), "none is no run")
    assert_refused(run(micro_run, "--data", tmp_path / "none", *out), "no such data folder")
    (tmp_path / "empty" / "test" / "apple").mkdir(parents=True)
    assert_refused(run(micro_run, "--data", tmp_path / "empty", *out), "holds no image")


def test_a_target_without_its_engine_is_a_row_with_the_reason() -> None:
    reason = backend_for("tensorrt").missing()
    if reason is None:
        pytest.skip("an engine of TensorRT runs here")
    cells = grid(("onnx", "trt"), ("fp32", "int8"), "nothing to calibrate on")
    assert [(cell.name, cell.absent) for cell in cells] == [
        ("onnx fp32", None),
        ("onnx int8", "nothing to calibrate on"),
        ("tensorrt fp32", reason),
        ("tensorrt int8", reason),
    ]
    with pytest.raises(UsageError, match=r"nothing that was asked for runs here\. tensorrt: "):
        grid(("tensorrt",), None, None)


def test_int8_is_calibrated_on_train_where_there_is_one(
    micro_data: Path, micro_pictures: Path
) -> None:
    labels = tuple(sorted(path.name for path in (micro_pictures / "train").iterdir()))
    drawn = calibration_images(None, DataSource(micro_pictures), labels, print)
    assert not isinstance(drawn, str)
    assert all(f"{micro_pictures}/train/" in path for path in drawn.paths)
    reason = calibration_images(None, DataSource(micro_data), labels, print)
    assert isinstance(reason, str)
    assert "has no train/ to calibrate on: give --calibration-data FOLDER" in reason


def row(precision: str, top1: float, files_mb: float, missed: tuple[str, ...] = ()) -> Row:
    accuracy = Accuracy(top1, 0.9, 0.9 - top1, 1.0, (), missed, ())
    return Row("onnx", precision, "done", files_mb=files_mb, accuracy=accuracy)


def test_a_row_out_of_bounds_is_best_at_nothing() -> None:
    rows = [row("fp32", 0.9, 20), row("fp16", 0.9, 10), row("int8", 0.95, 5, ("top-1 falls",))]
    best = {found.goal: found for found in best_rows(rows, 100, None)}
    assert set(best) == {"most accurate", "smallest"}
    assert best["smallest"].row == "onnx fp16"
    assert best["smallest"].value == "10.0 MiB"
    assert best["most accurate"].row == "onnx fp32"
    assert best["most accurate"].value == "90.00 % top-1"
    assert best["most accurate"].note == "as good: onnx fp16"


def test_a_lead_of_one_image_is_said_to_be_one() -> None:
    best = best_rows([row("fp32", 0.90, 20), row("fp16", 0.91, 10)], 100, None)
    assert best[0].row == "onnx fp16"
    assert best[0].note == "1 of 100 images more than onnx fp32"
