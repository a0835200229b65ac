"""Exports under FP32 through the command line: held to their bounds, recorded, or refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
from click.testing import CliRunner, Result
from PIL import Image

from gft_edge.bundle.store import read_bundle
from gft_edge.cli import main
from gft_edge.fidelity.compare import TOLERANCES

MICRO_LABELS = ("apple", "brown bread", "café", "dill")


@pytest.fixture(scope="module")
def data(micro_pictures: Path) -> Path:
    """Its name here."""
    return micro_pictures


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def export(run_folder: Path, data: Path, out: Path, *options: object) -> Result:
    return run("export", run_folder, "--data", data, "--out", out, *options)


def quantized(run_folder: Path, data: Path, out: Path, target: str, *options: object) -> Result:
    return export(
        run_folder, data, out, "--target", target, "--precision", "int8",
        "--calibration-data", data, "--subset-size", 40, *options,
    )  # fmt: skip


def refusal(result: Result, exit_code: int = 2) -> str:
    """The one line of an error."""
    assert result.exit_code == exit_code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stdout == ""
    return line


@pytest.fixture(scope="module")
def int8_bundles(
    tmp_path_factory: pytest.TempPathFactory, calm_run: Path, data: Path
) -> dict[str, Path]:
    """Target -> its INT8 bundle; OpenVINO's ranges by least squares."""
    folder = tmp_path_factory.mktemp("int8")
    for target in ("onnx", "openvino", "tensorrt"):
        method = "mse" if target == "openvino" else "minmax"
        result = quantized(calm_run, data, folder / target, target, "--calibration-method", method)
        assert result.exit_code == 0, result.stderr
    return {target: folder / target for target in ("onnx", "openvino", "tensorrt")}


@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt"])
def test_int8_holds_its_bounds_and_says_what_it_left_alone(
    target: str, int8_bundles: dict[str, Path]
) -> None:
    manifest = read_bundle(int8_bundles[target]).manifest
    quantization = manifest.quantization
    assert quantization is not None
    assert quantization.calibrated_on.count == 40
    # 16 in four blocks, six in three GALA layers, the patch embedding.
    assert quantization.int8_layers + len(quantization.high_precision) == 23
    assert quantization.int8_layers > 0
    assert 0 < quantization.int8_macs <= 1
    last = manifest.reports[-1]
    assert last.verdict == "pass"
    assert last.step == f"build for {target}"
    for overlap, bound in zip(last.kept_overlap, (0.985, 0.95, 0.88), strict=True):
        assert overlap >= bound
    assert last.accuracy is not None
    assert last.reference_accuracy is not None
    assert last.accuracy >= last.reference_accuracy - 0.01
    assert len(last.lost_near_border) == len(last.patches_lost) == 3
    assert "int8" in [report.step for report in manifest.reports]


def test_int8_for_tensorrt_is_typed_fp16_elsewhere_and_for_onnx_fp32(
    int8_bundles: dict[str, Path],
) -> None:
    types = {}
    for target in ("onnx", "tensorrt"):
        graph = onnx.load(int8_bundles[target] / "model.onnx").graph
        types[target] = {
            tensor.data_type for tensor in graph.initializer if tensor.name.endswith("pos_embed")
        }
        quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        quantization = read_bundle(int8_bundles[target]).manifest.quantization
        assert quantization is not None
        assert len(quantizers) == quantization.int8_layers
    assert types == {"onnx": {onnx.TensorProto.FLOAT}, "tensorrt": {onnx.TensorProto.FLOAT16}}


def test_int8_bundles_verify_where_they_were_made(int8_bundles: dict[str, Path]) -> None:
    for target, folder in int8_bundles.items():
        backend = ["--backend", "onnx"] if target == "tensorrt" else []
        verified = run("verify", folder, *backend)
        assert verified.exit_code == 0, f"{target}: {verified.stdout}"


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_fp16_bundles_verify_and_keep_the_ranking(
    target: str, tmp_path: Path, calm_run: Path, data: Path
) -> None:
    out = tmp_path / "bundle"
    result = export(calm_run, data, out, "--target", target, "--precision", "fp16")
    assert result.exit_code == 0, result.stderr
    last = read_bundle(out).manifest.reports[-1]
    assert last.kept_overlap[0] >= 0.995
    backend = ["--backend", "onnx"] if target == "tensorrt" else []
    verified = run("verify", out, *backend)
    assert verified.exit_code == 0, verified.stdout + verified.stderr
    following = "build" if target == "tensorrt" else "verify"
    assert f"next: gft-edge {following} {out}\n" in result.stdout


def test_a_weight_beyond_fp16_is_named(tmp_path: Path, calm_run: Path, data: Path) -> None:
    def large(weights: dict[str, Any]) -> None:
        weights["backbone.head.weight"][0] = 7e4

    altered = _altered(calm_run, tmp_path, large)
    line = refusal(
        export(altered, data, tmp_path / "out", "--target", "onnx", "--precision", "fp16"), 1
    )
    assert "tensor backbone.head.weight reaches 70000, FP16 ends at 65504" in line
    assert not (tmp_path / "out").exists()


def test_an_outlier_channel_does_not_reach_the_device(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    """One channel a thousand times the others takes all of a tensor's INT8 range, in FP32 unseen."""

    def outlier(weights: dict[str, Any]) -> None:
        block = "backbone.blocks.1"
        weights[f"{block}.norm2.weight"][7] *= 1000
        weights[f"{block}.norm2.bias"][7] *= 1000
        weights[f"{block}.mlp.fc1.weight"][:, 7] /= 1000

    altered = _altered(calm_run, tmp_path, outlier)
    ranked = json.loads(run("sensitivity", altered, "--data", data, "--json").stdout)
    result = quantized(altered, data, tmp_path / "out", "onnx")
    assert result.exit_code == 0, result.stderr
    manifest = read_bundle(tmp_path / "out").manifest
    assert manifest.reports[-1].verdict == "pass"
    assert manifest.quantization is not None
    # Either smoothing has levelled the channel, or the layer that reads it stayed out.
    high = "backbone.blocks.1.mlp.fc1" in manifest.quantization.high_precision
    assert high or manifest.quantization.smooth_quant is not None
    assert len(ranked["layers"]) == 23


def test_a_network_that_calls_everything_the_same_has_no_low_precision(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    def constant(weights: dict[str, Any]) -> None:
        weights["backbone.head.bias"][2] += 1e4

    altered = _altered(calm_run, tmp_path, constant)
    line = refusal(quantized(altered, data, tmp_path / "out", "onnx"), 1)
    assert "the FP32 network calls all 48 images 'café'" in line
    assert not (tmp_path / "out").exists()


def test_int8_that_cannot_hold_its_bounds_exits_1_and_leaves_the_bundle_that_stood_there(
    tmp_path: Path, calm_run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    assert export(calm_run, data, out, "--target", "onnx").exit_code == 0
    before = (out / "manifest.json").read_bytes()
    # More than all of the patches: what no graph keeps.
    bound = dataclasses.replace(TOLERANCES["int8"], kept_overlap=(1.1,))
    monkeypatch.setitem(TOLERANCES, "int8", bound)
    line = refusal(quantized(calm_run, data, out, "onnx"), 1)
    assert "INT8 does not hold its bounds with 22 of 23 layers in high precision (tried: 0:" in line
    assert (out / "manifest.json").read_bytes() == before


def test_auto_keeps_the_fastest_that_holds_and_says_why(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    out = tmp_path / "bundle"
    result = export(
        calm_run, data, out, "--target", "onnx", "--precision", "auto",
        "--calibration-data", data, "--subset-size", 40,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    manifest = read_bundle(out).manifest
    assert [c.precision for c in manifest.candidates] == ["fp32", "fp16", "int8"]
    (kept,) = [c for c in manifest.candidates if c.reason.startswith("kept")]
    assert kept.precision == manifest.precision
    assert kept.median_ms is not None
    for candidate in manifest.candidates:
        assert candidate.reason in result.stderr
        assert candidate.median_ms is not None
        if candidate.precision == "fp32":
            assert candidate.median_ms >= kept.median_ms
    assert "Precisions tried" in run("inspect", out).stdout
    assert run("verify", out).exit_code == 0


def test_auto_without_calibration_images_leaves_int8_out(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    out = tmp_path / "bundle"
    result = export(calm_run, data, out, "--target", "openvino", "--precision", "auto")
    assert result.exit_code == 0, result.stderr
    candidates = read_bundle(out).manifest.candidates
    assert [c.precision for c in candidates] == ["fp32", "fp16", "bf16", "int8"]
    assert candidates[-1].median_ms is None
    assert "--calibration-data" in candidates[-1].reason


def test_auto_needs_an_engine_to_time(tmp_path: Path, calm_run: Path, data: Path) -> None:
    line = refusal(export(calm_run, data, tmp_path / "x", "--target", "trt", "--precision", "auto"))
    assert "tensorrt has no engine on this machine: choose one of fp32, fp16, int8" in line


def test_inspect_shows_what_is_in_int8(int8_bundles: dict[str, Path]) -> None:
    shown = run("inspect", int8_bundles["openvino"])
    assert shown.exit_code == 0
    for words in ("INT8", "mse", "40 images, seed 0", "smooth-quant"):
        assert words in shown.stdout
    content = json.loads(run("inspect", int8_bundles["openvino"], "--json").stdout)
    assert content["quantization"]["method"] == "mse"
    assert content["reports"][-1]["reference_accuracy"] is not None


def test_a_layer_named_by_the_user_is_left_alone(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    name = "backbone.blocks.3.mlp.fc2"
    result = quantized(calm_run, data, tmp_path / "b", "onnx", "--keep-high-precision", name)
    assert result.exit_code == 0, result.stderr
    manifest = read_bundle(tmp_path / "b").manifest
    assert manifest.quantization is not None
    assert manifest.quantization.high_precision[0] == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], "needs --calibration-data FOLDER of real images"),
        (["--precision", "bf16"], "not available for onnx: choose from fp32, fp16, int8"),
        (["--precision", "int4"], "not available for onnx: choose from fp32, fp16, int8"),
        (["--precision", "fp16", "--calibration-data", "DATA"], "is for --precision int8"),
        (["--max-drop", "-1"], "--max-drop is -1: give a fraction from 0 up to 1"),
        (["--max-drop", "nan"], "--max-drop is nan: give a fraction from 0 up to 1"),
        (["--int8", "--calibration-data", "nowhere"], "nowhere: no such calibration folder"),
        (["--int8", "--calibration-data", "DATA", "--subset-size", "31"], "give 32 or more"),
        (["--int8", "--calibration-data", "DATA/test"], "of the run's test split"),
        (["--int8", "--calibration-data", "DATA", "--calibration-method", "magic"],
         "choose from minmax, percentile, entropy, mse"),
        (["--int8", "--calibration-data", "DATA", "--opset", "19"], "int8 needs --opset 20"),
        (["--half", "--opset", "18"], "fp16 needs --opset 20"),
        (["--int8", "--calibration-data", "DATA", "--keep-high-precision", "blocks.0.mlp.fc1"],
         "did you mean backbone.blocks.0.mlp.fc1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    options: list[str], words: str, tmp_path: Path, calm_run: Path, data: Path
) -> None:
    given = [option.replace("DATA", str(data)) for option in options]
    line = refusal(export(calm_run, data, tmp_path / "out", "--target", "onnx", *given))
    assert words in line
    assert not (tmp_path / "out").exists()


def test_entropy_is_refused_where_nncf_would_have_to_estimate_it(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    line = refusal(
        quantized(calm_run, data, tmp_path / "x", "openvino", "--calibration-method", "entropy")
    )
    assert "choose from minmax, percentile, mse" in line


def test_int8_for_openvino_without_nncf_gives_the_install_line(
    tmp_path: Path, calm_run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "gft_edge.export.recipe.find_spec", lambda name: None if name == "nncf" else real(name)
    )
    line = refusal(quantized(calm_run, data, tmp_path / "x", "openvino"))
    assert line == "Error: NNCF is not installed here: pip install 'gft-edge[export]'"


def test_a_bundle_is_not_exported_again(tmp_path: Path, micro_bundles: dict[str, Path]) -> None:
    line = refusal(
        run("export", micro_bundles["onnx"], "--target", "onnx", "--out", tmp_path / "x")
    )
    assert "is a bundle, exported already: give the run it was made from" in line


def test_an_unreadable_calibration_image_is_named(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data / "train", copy)
    for path in (copy / MICRO_LABELS[0]).iterdir():
        path.write_bytes(b"no image")
    result = export(
        calm_run, data, tmp_path / "x", "--target", "onnx", "--precision", "int8",
        "--calibration-data", copy,
    )  # fmt: skip
    assert "not an image Pillow can read" in refusal(result)


def test_nan_weights_are_named_before_anything_is_quantized(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    def broken(weights: dict[str, Any]) -> None:
        weights["backbone.blocks.0.mlp.fc1.weight"][0, 0] = float("nan")

    altered = _altered(calm_run, tmp_path, broken)
    line = refusal(quantized(altered, data, tmp_path / "x", "onnx"))
    assert "tensor backbone.blocks.0.mlp.fc1.weight holds NaN" in line


def test_sensitivity_ranks_every_layer_and_ends_with_the_line_for_export(
    tmp_path: Path, calm_run: Path, data: Path
) -> None:
    picture = tmp_path / "ranking.png"
    result = run("sensitivity", calm_run, "--data", data, "--images", 8, "--out", picture)
    assert result.exit_code == 0, result.stderr
    assert "backbone.patch_embed.proj" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(
        f"next: gft-edge export {calm_run} --target tensorrt --precision int8 "
        f"--calibration-data {data} --out BUNDLE --keep-high-precision "
    )
    with Image.open(picture) as image:
        assert image.width > 500
        assert np.asarray(image.convert("L")).std() > 5
    content = json.loads(
        run("sensitivity", calm_run, "--data", data, "--images", 8, "--json").stdout
    )
    assert len(content["layers"]) == 23
    per_work = [row["damage"] / row["macs"] for row in content["layers"]]
    assert per_work == sorted(per_work, reverse=True)
    assert ",".join(content["keep_high_precision"]) in last


def test_sensitivity_refuses_a_picture_that_is_none(calm_run: Path, data: Path) -> None:
    line = refusal(run("sensitivity", calm_run, "--data", data, "--out", "ranking.doc"))
    assert "ranking.doc is no .png file" in line


def _altered(run_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    copy = tmp_path / "altered"
    shutil.copytree(run_folder, copy)
    path = copy / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)
    return copy
