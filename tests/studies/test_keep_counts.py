"""Keep counts: which ones a benchmark tries, what it finds at each, keeps and refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.specs import Stage
from gft_edge.bundle.store import read_manifest
from gft_edge.datasets import read_split
from gft_edge.fidelity.compare import MAX_DROP
from gft_edge.fidelity.structure import top_k_constant
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.cost import cost_of
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.reference import torch_outputs
from gft_edge.model.schedule import at_stages, stages_from_keep
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.preprocess import open_rgb, resize_and_crop
from gft_edge.studies import evaluation, keep_counts
from gft_edge.studies.benchmark_table import benchmark_table
from gft_edge.studies.keep_counts import scaled
from gft_edge.studies.results import Benchmark
from gft_edge.studies.variants import AtCounts, KeepCounts, Variant, with_front
from gft_edge.training.logits import network_logits
from tests.support.cli import refused, run, run_json
from tests.support.studies import MISSED, Shortcut

Given = tuple[object, ...]


def test_the_grid_goes_from_all_patches_at_the_first_stage_to_a_quarter(micro_run: Path) -> None:
    spec, _ = load_run(micro_run)
    grid = [[stage.keep for stage in stages] for stages in scaled(spec, 4)]
    assert grid == [[64, 43, 21], [48, 32, 16], [32, 21, 11], [16, 11, 5]]
    wide = dataclasses.replace(
        spec, stages=(Stage(3, 143), Stage(6, 95), Stage(9, 47)), patch_grid=(14, 14)
    )
    assert [stages[0].keep for stages in scaled(wide, 6)] == [196, 167, 137, 108, 78, 49]
    # Few enough that a stage would have a single patch to choose from.
    few = dataclasses.replace(spec, stages=(Stage(1, 40), Stage(2, 3), Stage(3, 1)))
    assert [s.keep for s in scaled(few, 2)[-1]] == [16, 2, 1]


def names(content: dict[str, Any]) -> list[str]:
    """Return the keep counts of the rows."""
    return [
        "dense" if row["keep"]["role"] == "dense"
        else ",".join(str(stage["keep"]) for stage in row["keep"]["stages"])
        for row in content["rows"]
    ]  # fmt: skip


def test_every_row_is_pytorchs_accuracy_at_its_counts(
    given: Given, out: Path, micro_run: Path, micro_data: Path
) -> None:
    given = (*given, "--no-latency", "--keep", "20,10,5", "--keep", "75%,auto:8,auto:8")
    content = run_json(*given)
    spec, model = load_run(micro_run)
    split = read_split(micro_data, "test", spec.labels)
    pixels = np.stack([resize_and_crop(open_rgb(p), spec.preprocessing) for p in split.paths])
    assert names(content) == ["48,32,16", "20,10,5", "48,31,15", "dense"]
    trained: Any = None
    for name, row in zip(names(content), content["rows"], strict=True):
        counts = "64,64,64" if name == "dense" else name
        _, network = at_stages(spec, model, stages_from_keep(counts, spec, model))
        logits = torch_outputs(network, pixels, spec.preprocessing).logits
        right = (logits.argmax(axis=1) == np.asarray(split.targets)).astype(int)
        found = row["at_counts"]
        assert found["top1"] == right.mean()
        assert found["gflops"] == cost_of(network).gflops
        if trained is None:
            trained = right
            assert found["difference"] is None
            continue
        estimate = found["difference"]
        assert estimate["mean"] == pytest.approx((right - trained).mean())
        error = (right - trained).std(ddof=1) / 12**0.5
        assert estimate["standard_error"] == pytest.approx(error)
        # The table's t of eleven degrees of freedom.
        assert estimate["high"] == pytest.approx(estimate["mean"] + 2.201 * error, abs=1e-3)
        assert found["gained"] - found["lost"] == (right - trained).sum()
    # The next line exports what saves most of those that lose nothing, or the trained counts.
    front = [row for row in content["rows"] if row["front"]]
    held = [
        row for row in front if row["at_counts"]["top1"] >= content["reference_top1"] - MAX_DROP
    ]
    cheapest = min(held or front, key=lambda row: row["at_counts"]["gflops"])
    option = (
        f" --keep {names({'rows': [cheapest]})[0]}" if cheapest["keep"]["role"] == "other" else ""
    )
    target = "onnx" if backend_for("openvino").missing() else "openvino"
    assert run(*given).stdout.splitlines()[-1] == (
        f"next: gft-edge export {micro_run} --target {target} --data {micro_data}{option} "
        "--out BUNDLE"
    )
    with (out / "benchmark.csv").open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert [line["keep"] for line in lines] == names(content)
    assert [float(line["top1"]) for line in lines] == [
        row["at_counts"]["top1"] for row in content["rows"]
    ]


def test_counts_are_chosen_on_val_and_leave_test_to_be_reported(
    given: Given, micro_pictures: Path
) -> None:
    shown = run(*given, "--data", micro_pictures, "--no-latency", "--keep", "20,10,5")
    assert "judging on val" in shown.stderr
    assert "on val, 48 images, not retrained" in shown.stdout
    assert "chosen on these val images" in shown.stdout


def test_an_interrupted_evaluation_goes_on_and_computes_nothing_twice(
    gft: Path, micro_data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("benchmark", gft, "--data", micro_data, "--no-latency", "--out", out, "--grid", 2)
    calls = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return network_logits(*arguments)

    for module in (keep_counts, evaluation):
        monkeypatch.setattr(module, "network_logits", interrupted)
    stopped = run(*given)
    assert stopped.exit_code == 1
    assert str(out) in stopped.stderr
    assert not (out / "benchmark.csv").exists()
    resumed = run(*given)
    assert resumed.exit_code == 0, resumed.stderr
    # 48,32,16 64,43,21 | 16,11,5 dense.
    assert resumed.stderr.count("as evaluated before") == 2
    assert calls == 3 + 2
    # The trained counts are the run's own evaluation, of whichever command.
    trained = run_json("evaluate", gft, "--data", micro_data)
    assert run_json(*given)["rows"][0]["at_counts"]["top1"] == trained["top1"]
    assert calls == 5
    assert run(*given, "--fresh").exit_code == 0
    assert calls == 5 + 4
    # Half a file is no evaluation.
    (out / "memory" / "test-dense.json").write_text("{")
    assert run(*given).stderr.count("as evaluated before") == 3
    # Neither is one of other images.
    data = Path(shutil.copytree(micro_data, tmp_path / "data"))
    next((data / "test").rglob("*.png")).unlink()
    fewer = run(*given, "--data", data)
    assert "as evaluated before" not in fewer.stderr
    assert "on test, 11 images" in fewer.stdout


@pytest.mark.slow
def test_bundles_have_the_counts_as_constants(given: Given, out: Path) -> None:
    import onnx

    content = run_json(
        *given, "--targets", "onnx", "--keep", "48,32,16",
        "--duration", 0.2, "--min-samples", 12, "--no-layers",
    )  # fmt: skip
    assert names(content) == ["48,32,16", "dense"]
    assert content["rows"][0]["measured"]["ratio_to_first"] == 1
    for row, counts in zip(content["rows"], ([48, 32, 16], [64, 64, 64]), strict=True):
        assert row["accuracy"]["top1"] == row["at_counts"]["top1"]
        assert row["digest"] == read_manifest(out / row["bundle"]).seal
        assert row["measured"]["engine_p50_ms"] > 0
        assert row["measured"]["end_to_end_p99_ms"] is None
        graph = onnx.load(out / row["bundle"] / "model.onnx").graph
        assert [top_k_constant(n, graph) for n in graph.node if n.op_type == "TopK"] == counts


def test_one_engine_in_fp32_is_timed_and_the_trained_bundle_is_that_of_no_counts(
    given: Given, out: Path, shortcut: Shortcut
) -> None:
    here = "onnx" if backend_for("openvino").missing() else "openvino"
    run(*given, "--targets", here, "--precisions", "fp32")
    shortcut.stable = False
    shown = run(*given, "--keep", "20,10,5")
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.count("exported already") == 1
    assert shortcut.exported == [f"{here}-fp32", f"{here}-fp32-20-10-5", f"{here}-fp32-dense"]
    assert shortcut.measured[1:] == [shortcut.exported]
    assert shown.stdout.splitlines()[-1].startswith("next: gft-edge predict ")
    # What the numbers are of stands below them.
    content = json.loads((out / "benchmark.json").read_text())
    table = benchmark_table(from_json(Benchmark, content, "benchmark.json"))
    assert {"ratio", "front", "GFLOPs", "gained / lost"} <= {*table.columns}
    notes = "\n".join(table.notes)
    for words in ("UNSTABLE", "busy", "95 % interval over images, of this one training"):
        assert words in notes


def test_counts_that_miss_their_bounds_have_no_latency_and_are_not_tried_again(
    given: Given, shortcut: Shortcut
) -> None:
    shortcut.refuses = lambda asked: asked.stages is not None
    given = (*given, "--targets", "onnx", "--keep", "20,10,5")
    content = run_json(*given)
    assert shortcut.exported == ["onnx-fp32", "onnx-fp32-20-10-5", "onnx-fp32-dense"]
    assert [row["reason"] for row in content["rows"]] == [None, MISSED, MISSED]
    assert [row["front"] for row in content["rows"]] == [True, False, False]
    assert content["rows"][1]["at_counts"]["top1"] >= 0
    assert run_json(*given)["rows"] == content["rows"]
    assert len(shortcut.exported) == 3
    # For as long as nothing that decides it has changed: here the images of the verification.
    assert run_json(*given, "--images", 8)["rows"][1:] == content["rows"][1:]
    assert len(shortcut.exported) == 6


def test_a_bundle_whose_engine_was_not_built_is_given_one(
    given: Given, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[tuple[str, bool]] = []

    def build(folder: Path, explain: bool, **_: Any) -> None:
        asked_for.append((folder.name, explain))
        if len(asked_for) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(backend_for("tensorrt"), "missing", lambda: None)
    monkeypatch.setattr("gft_edge.studies.bench.build_engine", build)
    shortcut.bundles = {**shortcut.bundles, "tensorrt": shortcut.bundles["onnx"]}
    given = (*given, "--targets", "tensorrt", "--keep", "48,32,16")
    assert run(*given).exit_code == 1
    resumed = run(*given)
    assert resumed.exit_code == 0, resumed.stderr
    assert "tensorrt fp32 48,32,16 (1 of 2): exported already" in resumed.stderr
    trained, dense = "tensorrt-fp32", "tensorrt-fp32-dense"
    # The second engine returns the kept patches, which are compared.
    assert asked_for == [
        *[(trained, False), (trained, True)] * 2, (dense, False), (dense, True),
    ]  # fmt: skip


def test_a_network_without_stages_has_no_keep_counts(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    plain = spec_from_name("resnet18", load_run(micro_run)[0].labels, image_size_px=64)
    (tmp_path / "run").mkdir()
    save_network(tmp_path / "run", build_network(plain), plain)
    given = ("--data", micro_data, "--no-latency", "--grid", 3)
    refused(run("benchmark", tmp_path / "run", *given), "resnet18", "--grid")


def counted(name: str, top1: float, gflops: float) -> Variant:
    stages = (
        () if name == "dense" else tuple(Stage(n, int(k)) for n, k in enumerate(name.split(",")))
    )
    at_counts = AtCounts(gflops, top1, None, 0, 0)
    role: Any = "dense" if name == "dense" else "other"
    return Variant("pytorch", "fp32", KeepCounts(role, stages), at_counts=at_counts)


def test_on_the_front_is_what_nothing_beats() -> None:
    rows = [
        counted("147,98,49", 0.9, 10.0), counted("100,60,30", 0.9, 8.0),
        counted("60,40,20", 0.8, 8.0), counted("40,30,10", 0.7, 5.0),
        counted("20,10,5", 0.6, 1.0).failed("missed"), counted("dense", 0.95, 13.0),
    ]  # fmt: skip
    assert [row.keep.name for row in with_front(rows) if row.front and row.keep] == [
        "100,60,30", "40,30,10", "dense",
    ]  # fmt: skip
    equal = with_front([counted("9", 0.9, 8.0), counted("8", 0.9, 8.0)])
    assert [row.front for row in equal] == [True, True]
