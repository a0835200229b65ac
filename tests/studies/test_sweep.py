"""A sweep: which keep counts it tries, what it finds, keeps and refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gft_edge.bundle.specs import Stage
from gft_edge.bundle.store import read_bundle, sha256_of, write_manifest
from gft_edge.cli import main
from gft_edge.cli.sweep_command import _next
from gft_edge.datasets import read_split
from gft_edge.errors import GateError
from gft_edge.export.structure import top_k_constant
from gft_edge.export.verify import torch_outputs
from gft_edge.model.checkpoint import load_run
from gft_edge.model.cost import cost_of
from gft_edge.model.schedule import at_stages, stages_from_keep
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.preprocess import open_rgb, resize_and_crop
from gft_edge.studies import evaluation
from gft_edge.studies import sweep as sweep_module
from gft_edge.studies.figures import draw_sweep
from gft_edge.studies.keep_counts import scaled
from gft_edge.studies.latency import Conditions, Latency
from gft_edge.studies.sweep_results import Point, Sweep, conditions, to_csv
from gft_edge.training.loop import network_logits


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def refusal(*arguments: object) -> str:
    """The one line of a wrong use."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def width_px(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.width


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


def test_every_point_is_pytorchs_accuracy_at_its_counts(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    given = (micro_run, "--data", micro_data, "--no-latency", "--out", tmp_path / "out")
    content = run_json(*given, "--keep", "20,10,5", "--keep", "75%,auto:8,auto:8")
    spec, model = load_run(micro_run)
    split = read_split(micro_data, "test", spec.labels)
    pixels = np.stack([resize_and_crop(open_rgb(p), spec.preprocessing) for p in split.paths])
    names = [point["name"] for point in content["points"]]
    assert names == ["48,32,16", "20,10,5", "48,31,15", "dense"]
    right: dict[str, Any] = {}
    for point in content["points"]:
        counts = "64,64,64" if point["name"] == "dense" else point["name"]
        _, network = at_stages(spec, model, stages_from_keep(counts, spec, model))
        logits = torch_outputs(network, pixels, spec.preprocessing).logits
        right[point["name"]] = logits.argmax(axis=1) == np.asarray(split.targets)
        assert point["top1"] == right[point["name"]].mean()
        assert point["gflops"] == cost_of(network).gflops
        ours, trained = right[point["name"]].astype(int), right["48,32,16"].astype(int)
        assert point["difference"] == pytest.approx((ours - trained).mean())
        assert point["standard_error"] == pytest.approx((ours - trained).std() / 12**0.5)
        assert point["gained"] - point["lost"] == (ours - trained).sum()
    assert content["measured"] is None
    lines = [*csv.DictReader((tmp_path / "out" / "sweep.csv").read_text().splitlines())]
    assert [line["keep"] for line in lines] == names
    assert [float(line["top1"]) for line in lines] == [p["top1"] for p in content["points"]]
    assert width_px(tmp_path / "out" / "sweep.png") > 400


def test_counts_are_chosen_on_val_and_left_test_to_be_reported(
    calm_run: Path, micro_pictures: Path, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    given = ("--no-latency", "--keep", "20,10,5", "--out")
    shown = run(calm_run, "--data", micro_pictures, *given, tmp_path / "a")
    assert "evaluating on val\n" in shown.stderr
    assert "on val (48 images)" in shown.stdout
    assert "chosen on these val images, which flatter them: report them on" in shown.stdout
    shown = run(micro_run, "--data", micro_data, *given, tmp_path / "b")
    assert "evaluating on test, there is no val split" in shown.stderr


@pytest.fixture
def own_run(micro_run: Path, tmp_path: Path) -> Path:
    """A copy that keeps no evaluation yet."""
    ignored = shutil.ignore_patterns("evaluation")
    return Path(shutil.copytree(micro_run, tmp_path / "run", ignore=ignored))


def test_the_trained_counts_are_the_runs_own_evaluation(own_run: Path, micro_data: Path) -> None:
    given = (own_run, "--data", micro_data, "--no-latency", "--keep", "20,10,5")
    found = run_json(*given)["points"][0]
    metrics = json.loads((own_run / "evaluation" / "test.json").read_text())["metrics"]
    assert found["top1"] == metrics["top1"]
    assert not (own_run / "sweep" / "points" / "test" / "48-32-16.json").exists()
    # Taken over from whatever evaluated the run.
    shutil.rmtree(own_run / "sweep")
    again = run(*given)
    assert again.exit_code == 0, again.stderr
    assert "48,32,16 (1 of 3): as evaluated before" in again.stderr


def test_an_interrupted_sweep_goes_on_and_computes_nothing_twice(
    own_run: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (own_run, "--data", micro_data, "--no-latency", "--out", tmp_path / "out")
    real, calls = network_logits, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    for module in (sweep_module, evaluation):
        monkeypatch.setattr(module, "network_logits", interrupted)
    stopped = run(*given, "--grid", "3")
    assert stopped.exit_code == 1
    assert "interrupted: what is done is kept" in stopped.stderr
    assert not (tmp_path / "out" / "sweep.csv").exists()
    resumed = run(*given, "--grid", "3")
    assert resumed.exit_code == 0, resumed.stderr
    # 48,32,16 64,43,21 | 40,27,13 16,11,5 dense.
    assert resumed.stderr.count("as evaluated before") == 2
    assert calls == 3 + 3
    assert run_json(*given, "--grid", "3")["points"]
    assert calls == 6
    assert run(*given, "--grid", "3", "--fresh").exit_code == 0
    assert calls == 6 + 5


def test_other_weights_or_images_are_evaluated_anew(
    own_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(micro_data, tmp_path / "data"))
    given = (own_run, "--data", data, "--no-latency", "--keep", "20,10,5")
    assert run(*given).exit_code == 0
    assert (own_run / "sweep" / "sweep.csv").is_file()
    next((data / "test").rglob("*.png")).unlink()
    again = run(*given)
    assert again.exit_code == 0
    assert "as evaluated before" not in again.stderr
    assert "on test (11 images)" in again.stdout
    (own_run / "sweep" / "points" / "test" / "dense.json").write_text("{")
    assert run(*given).stderr.count("as evaluated before") == 2


def test_latencies_are_of_bundles_with_these_constants_and_kept(
    micro_run: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = (
        micro_run, "--data", micro_data, "--out", out, "--target", "onnx", "--duration", 0.2,
        "--keep", "48,32,16",
    )  # fmt: skip
    content = run_json(*given)
    points = content["points"]
    assert [point["name"] for point in points] == ["48,32,16", "dense"]
    assert points[0]["latency"]["ratio"] == 1
    assert all(point["latency"]["p50_ms"] > 0 for point in points)
    assert content["measured"]["batch"] == 1
    import onnx

    for name, counts in (("48-32-16", [48, 32, 16]), ("dense", [64, 64, 64])):
        graph = onnx.load(out / "bundles" / "onnx-fp32" / name / "model.onnx").graph
        found = [top_k_constant(n, graph) for n in graph.node if n.op_type == "TopK"]
        assert found == counts
    # On a busy machine it would rightly be measured anew.
    kept = json.loads((out / "latency.json").read_text())
    kept["conditions"]["stable"] = True
    (out / "latency.json").write_text(json.dumps(kept))
    monkeypatch.setattr(sweep_module, "export", None)
    monkeypatch.setattr(sweep_module, "measure", None)
    shown = run(*given)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stderr.count("exported already") == 2
    assert "latencies: as measured before" in shown.stderr
    assert "onnx fp32 ms" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith(
        f"next: gft-edge export {micro_run} --target onnx"
    )


def test_a_bundle_whose_engine_was_not_built_is_given_one(
    micro_run: Path, micro_data: Path, micro_bundles: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked_for: list[str] = []

    def exported(*arguments: Any) -> None:
        manifest = read_bundle(shutil.copytree(micro_bundles["onnx"], arguments[4])).manifest
        weights = dataclasses.replace(manifest.lineage[0], sha256=sha256_of(arguments[7]))
        lineage = (weights, *manifest.lineage)
        write_manifest(arguments[4], dataclasses.replace(manifest, lineage=lineage))

    def build(folder: Path, **_: Any) -> None:
        asked_for.append(folder.name)
        if len(asked_for) == 1:
            raise KeyboardInterrupt

    def measured(places: Any, *_: Any) -> Any:
        rows = {n: (Latency("tensorrt", "fp32", "b", 1.0, 1.0),) for n, _, _ in places}
        return rows, FOUND.measured

    monkeypatch.setattr(backend_for("tensorrt"), "missing", lambda: None)
    monkeypatch.setattr(sweep_module, "export", exported)
    monkeypatch.setattr(sweep_module, "build_engine", build)
    monkeypatch.setattr(sweep_module, "measure", measured)
    given = (
        micro_run, "--data", micro_data, "--out", tmp_path / "out", "--target", "tensorrt",
        "--keep", "48,32,16",
    )  # fmt: skip
    assert run(*given).exit_code == 1
    resumed = run(*given)
    assert resumed.exit_code == 0, resumed.stderr
    assert "48,32,16 (1 of 2): exported already" in resumed.stderr
    assert asked_for == ["48-32-16", "48-32-16", "dense"]


def test_a_point_that_misses_its_bounds_has_no_latency(
    micro_run: Path, micro_data: Path, micro_bundles: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    exported: list[str] = []

    def refusing(*arguments: Any) -> None:
        exported.append(arguments[4].name)
        if arguments[3].stages is not None:
            raise GateError("stage 'x' differs from PyTorch", "Nothing was written")
        shutil.copytree(micro_bundles["onnx"], arguments[4], dirs_exist_ok=True)

    def measured(places: Any, *_: Any) -> Any:
        assert len(places) == 1
        return {0: (Latency("onnx", "fp32", "bundle", 1.0, 1.0),)}, FOUND.measured

    monkeypatch.setattr(sweep_module, "export", refusing)
    monkeypatch.setattr(sweep_module, "measure", measured)
    given = (
        micro_run, "--data", micro_data, "--out", tmp_path / "out", "--target", "onnx",
        "--duration", 0.2, "--keep", "20,10,5",
    )  # fmt: skip
    content = run_json(*given)
    assert exported == ["48-32-16", "20-10-5", "dense"]
    assert [point["reason"] for point in content["points"]] == [
        None, "stage 'x' differs from PyTorch", "stage 'x' differs from PyTorch",
    ]  # fmt: skip
    assert [point["front"] for point in content["points"]] == [True, False, False]
    # What missed a bound is known, for as long as nothing that decides it has changed.
    exported.clear()
    assert run_json(*given)["points"] == content["points"]
    assert exported == ["48-32-16"]
    exported.clear()
    assert run_json(*given, "--images", 8)["points"] == content["points"]
    assert exported == ["48-32-16", "20-10-5", "dense"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "20,10"], "--keep 20,10 has 2 counts for 3 stages"),
        (["--keep", "20,10,5", "--keep", "20,21,5"], "stage 2 (2:21) keeps 21 patches and 20 are"),
        (["--keep", "65,10,5"], "stage 1 (1:65) keeps 65 patches and 64 are left there"),
        (["--keep", "x,10,5"], "'x' is no keep count"),
        (["--keep", "20,10,5", "--grid", "4"], "give one of the two"),
        (["--grid", "1"], "Invalid value for '--grid'"),
        (["--target", "coreml"], "no target 'coreml'"),
        (["--target", "onnx", "--precision", "bf16"], "not available for onnx"),
        (["--target", "onnx", "--duration", "0"], "--duration is 0"),
        (["--no-latency", "--target", "onnx"], "--target is for latencies: leave it out"),
        (["--no-latency", "--split", "val"], "has no val/ folder"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(
    options: list[str],
    message: str,
    micro_run: Path,
    micro_data: Path,
    tmp_path: Path,
) -> None:
    given = (micro_run, "--data", micro_data, "--out", tmp_path / "out", *options)
    if "--grid" in message:
        assert message in run(*given).stderr
    else:
        assert message in refusal(*given)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_something_else_are_left_alone(
    micro_run: Path, micro_data: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "bundles").mkdir()
    given = ("--data", micro_data, "--no-latency")
    error = refusal(micro_run, *given, "--fresh", "--out", tmp_path)
    assert f"{tmp_path} exists and is no sweep: choose another --out" in error
    assert (tmp_path / "bundles").is_dir()
    (tmp_path / "file").touch()
    assert "is a file: give" in refusal(micro_run, *given, "--out", tmp_path / "file")
    assert "is a bundle: give the run" in refusal(micro_bundles["onnx"], *given)
    assert "no such run" in refusal(tmp_path / "absent", *given)


def test_a_network_without_stages_has_nothing_to_sweep(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(micro_run, tmp_path / "run"))
    spec = json.loads((own / "model.json").read_text())
    (own / "model.json").write_text(json.dumps({**spec, "family": "timm", "stages": []}))
    from gft_edge.model.checkpoint import save_network
    from gft_edge.model.networks import build_network
    from gft_edge.model.variants import spec_from_name

    plain = spec_from_name("resnet18", tuple(spec["labels"]), image_size_px=64)
    save_network(own, build_network(plain), plain)
    error = refusal(own, "--data", micro_data, "--no-latency")
    assert "resnet18 selects no patches: there are no keep counts to sweep" in error


def point(name: str, top1: float, p50_ms: float | None, **changes: Any) -> Point:
    latency = None if p50_ms is None else Latency("onnx", "fp32", name, p50_ms, p50_ms / 10)
    keep = () if name == "dense" else tuple(map(int, name.split(",")))
    return dataclasses.replace(
        Point(name, "other", keep, top1, 0.0, 0.0, 0, 0, p50_ms or 1.0, latency, None), **changes
    )


FOUND = Sweep(
    "runs/$a", "gft_tiny", 196, "0", "test", "1", 100, "onnx", "fp32",
    Conditions("AMD EPYC", 1, False, ("busy",)),
    (
        point("147,98,49", 0.9, 10.0, role="trained"),
        point("100,60,30", 0.9, 8.0),
        point("60,40,20", 0.8, 8.0),
        point("40,30,10", 0.7, 5.0),
        point("20,10,5", 0.6, None, reason="missed"),
        point("dense", 0.95, 13.0, role="dense"),
    ),
)  # fmt: skip


def test_on_the_front_is_what_nothing_beats() -> None:
    front = [p.name for p in FOUND.with_front().points if p.front]
    assert front == ["100,60,30", "40,30,10", "dense"]
    same = dataclasses.replace(FOUND, points=(point("9", 0.9, 8.0), point("8", 0.9, 8.0)))
    assert [p.front for p in same.with_front().points] == [True, True]
    assert [p.name for p in FOUND.with_front().exportable()] == ["100,60,30", "40,30,10"]
    dense = dataclasses.replace(FOUND, points=(point("dense", 0.9, 8.0),))
    assert dense.with_front().exportable() == []
    # Without latencies by GFLOPs, which all have.
    untimed = dataclasses.replace(FOUND, measured=None).with_front()
    assert [p.name for p in untimed.points if p.front] == [
        "100,60,30", "40,30,10", "20,10,5", "dense",
    ]  # fmt: skip


def test_the_next_line_exports_what_was_timed() -> None:
    good = point("100,60,30", 0.9, 8.0, front=True)
    found = dataclasses.replace(FOUND, points=(good,))
    images = Path("my images")
    assert _next(Path("run"), found, images, None, None, None) == (
        "gft-edge export run --target onnx --keep 100,60,30 --out BUNDLE"
    )
    int8 = dataclasses.replace(found, precision="int8", target="tensorrt")
    assert _next(Path("run"), int8, images, Path("coco"), "coco", "first") == (
        "gft-edge export run --target tensorrt --precision int8 --calibration-data 'my images' "
        "--data coco --dataset coco --coco-category first --keep 100,60,30 --out BUNDLE"
    )
    # With layers of its own the dense network has stages that keep all.
    whole = dataclasses.replace(good, name="dense", role="dense", keep=(196, 196, 196))
    found = dataclasses.replace(found, points=(whole,))
    assert "--keep 196,196,196" in _next(Path("run"), found, images, None, None, None)
    untimed = dataclasses.replace(found, precision=None, target=None, measured=None)
    assert "--precision" not in _next(Path("run"), untimed, images, None, None, None)


def test_a_sweep_that_is_not_to_be_trusted_says_so(tmp_path: Path) -> None:
    notes = conditions(FOUND)
    assert any(
        "UNSTABLE: do not decide on these latencies. Likely cause: busy." in n for n in notes
    )
    assert "20,10,5 has no latency: missed" in notes
    assert "+- one standard error over images, of this one training" in notes[0]
    assert next(csv.DictReader(to_csv(FOUND).splitlines()))["stable"] == "False"
    draw_sweep(FOUND.with_front(), tmp_path / "sweep.png")
    assert width_px(tmp_path / "sweep.png") > 400
