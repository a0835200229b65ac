"""Exports under FP32 through the command line: held to their bounds, recorded, or refused."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
from click.testing import Result
from PIL import Image

from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.store import read_bundle
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.fidelity.compare import TOLERANCES
from gft_edge.model.checkpoint import load_run
from gft_edge.profiling.machine import this_machine, without_dot_products
from tests.calibration.graphs import Graph
from tests.support.bundles import sign
from tests.support.cli import refused, run, run_json
from tests.support.pictures import MICRO_LABELS

slow = pytest.mark.slow

Weights = dict[str, Any]
Export = Callable[..., Result]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def export(micro_pictures: Path, out: Path) -> Export:
    """Export a run into `out`, verified on the smooth pictures."""

    def work(run_folder: Path, target: str, precision: str, *options: object) -> Result:
        return run(
            "export", run_folder, "--data", micro_pictures, "--out", out, "--target", target,
            "--precision", precision, *options,
        )  # fmt: skip

    return work


@pytest.fixture
def calibrated(micro_pictures: Path) -> tuple[object, ...]:
    """The options that calibrate on the smooth pictures."""
    return ("--calibration-data", micro_pictures, "--subset-size", 40)


@pytest.fixture(scope="module")
def int8_bundle(
    tmp_path_factory: pytest.TempPathFactory, calm_run: Path, micro_pictures: Path
) -> Callable[[str], Path]:
    """Makes the INT8 bundle of the calm run for a target, once; OpenVINO's ranges by least squares."""
    folder = tmp_path_factory.mktemp("int8")

    @functools.cache
    def bundle(target: str) -> Path:
        method = "mse" if target == "openvino" else "minmax"
        run_json(
            "export", calm_run, "--data", micro_pictures, "--out", folder / target,
            "--target", target, "--precision", "int8", "--calibration-data", micro_pictures,
            "--subset-size", 40, "--calibration-method", method,
        )  # fmt: skip
        return folder / target

    return bundle


def exported(result: Result, out: Path) -> Manifest:
    assert result.exit_code == 0, result.stderr
    return read_bundle(out).manifest


def altered(run_folder: Path, folder: Path, change: Callable[[Weights], None]) -> Path:
    """Copy a run into `folder` with changed weights."""
    copy = Path(shutil.copytree(run_folder, folder / "altered"))
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, copy / "model.safetensors")
    return copy


@slow
@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt"])
def test_int8_holds_its_bounds_verifies_and_says_what_it_left_alone(
    target: str, int8_bundle: Callable[[str], Path]
) -> None:
    manifest = read_bundle(int8_bundle(target)).manifest
    quantization = manifest.quantization
    assert quantization is not None
    assert quantization.calibrated_on.count == 40
    # 16 in four blocks, six in three GALA layers, the patch embedding.
    assert (quantization.int8_layers, quantization.high_precision) == (23, ())
    assert quantization.int8_macs == pytest.approx(1)
    assert quantization.weights_range == ("full" if target == "tensorrt" else "half")
    last = manifest.reports[-1]
    assert last.verdict == "pass"
    assert last.noise_floor is not None
    assert last.noise_floor.change == "jpeg75"
    for lost, floor in zip(last.patches_lost, last.noise_floor.patches_lost, strict=True):
        assert lost <= floor
    assert last.accuracy is not None
    assert last.reference_accuracy is not None
    assert last.accuracy >= last.reference_accuracy - 0.01
    assert len(last.lost_near_border) == len(last.patches_lost) == 3
    assert [report.step for report in manifest.reports][-2:] == ["int8", f"build for {target}"]
    if target == "onnx":
        assert Graph(int8_bundle(target) / "model.onnx").of_one_processor() == []
    backend = ["--backend", "onnx"] if target == "tensorrt" else []
    found = run_json("verify", int8_bundle(target), *backend)
    assert found["verdict"] == "pass"
    if target != "tensorrt":
        slow_here = without_dot_products(this_machine())
        assert (found["integer_layers"], found["warnings"]) == (
            23,
            [slow_here] if slow_here else [],
        )


@slow
def test_layers_that_the_engine_computes_in_floats_are_a_warning(
    int8_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    """With biases of one dimension, ONNX Runtime makes a Gemm of floats of each layer that has one."""
    bundle = Path(shutil.copytree(int8_bundle("onnx"), tmp_path / "bundle"))
    model = onnx.load(bundle / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.dims[:2] == [1, 1] and len(tensor.dims) == 3 and "bias" in tensor.name:
            tensor.dims[:] = tensor.dims[2:]
    del model.graph.value_info[:]
    onnx.save(model, bundle / "model.onnx")
    sign(bundle, "model.onnx")
    result = run("verify", bundle)
    assert result.exit_code == 0, result.stderr
    found = run_json("verify", bundle)["integer_layers"]
    assert found < 23
    assert f"{23 - found} of 23 INT8 layers in FP32" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--fidelity", "lax"), ("--fidelity lax", "photo, strict, off")),
     (("--images", 63), ("63 images", "--images 64", "--fidelity strict")),
     (("--fidelity", "off", "--max-drop", 0.1), ("--max-drop", "--fidelity off"))],
)  # fmt: skip
def test_a_rule_there_is_not_and_what_cannot_be_judged_are_refused(
    options: tuple[object, ...], words: tuple[str, ...], export: Export, out: Path, calm_run: Path
) -> None:
    refused(export(calm_run, "onnx", "fp16", *options), *words, exit_code=2)
    assert not out.exists()


@pytest.mark.parametrize("option", ["--max-drop 0.1", "--fidelity photo", "--require-resolved"])
def test_what_is_for_a_lower_precision_is_refused_in_fp32(
    option: str, export: Export, calm_run: Path
) -> None:
    refused(export(calm_run, "onnx", "fp32", *option.split()), option.split()[0], exit_code=2)


@slow
def test_without_a_verdict_any_number_of_images_will_do_and_the_bundle_says_so(
    export: Export, out: Path, calm_run: Path, calibrated: tuple[object, ...]
) -> None:
    result = export(calm_run, "onnx", "int8", *calibrated, "--fidelity", "off", "--images", 2)
    manifest = exported(result, out)
    assert manifest.fidelity == "off"
    assert [report.verdict for report in manifest.reports[-2:]] == ["not judged"] * 2
    assert manifest.reports[-1].images == 2
    assert "not judged" in run("inspect", out).stdout
    # A file that is compared with itself keeps its bounds.
    golden = run_json("verify", out)["golden"]
    assert golden["verdict"] == "pass"


@slow
def test_images_of_train_count_for_patches_and_not_for_the_accuracy(
    int8_bundle: Callable[[str], Path],
) -> None:
    manifest = read_bundle(int8_bundle("onnx")).manifest
    # val has 48; of the 96 in train 40 calibrate.
    assert manifest.verified_on.count == manifest.reports[-1].images == 104
    assert manifest.reports[-1].labelled == 48


@slow
def test_a_drop_that_few_images_cannot_resolve_is_said_and_fails_where_that_is_asked(
    export: Export, out: Path, calm_run: Path
) -> None:
    result = export(calm_run, "onnx", "fp16", "--require-resolved")
    assert result.exit_code == 1
    assert "not resolved" in result.stdout
    assert "--images" in result.stderr
    assert not read_bundle(out).manifest.reports[-1].resolved


@slow
def test_int8_for_tensorrt_is_typed_fp16_elsewhere_and_for_onnx_fp32(
    int8_bundle: Callable[[str], Path],
) -> None:
    types = {}
    for target in ("onnx", "tensorrt"):
        graph = onnx.load(int8_bundle(target) / "model.onnx").graph
        types[target] = {
            tensor.data_type for tensor in graph.initializer if tensor.name.endswith("pos_embed")
        }
        quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        quantization = read_bundle(int8_bundle(target)).manifest.quantization
        assert quantization is not None
        assert len(quantizers) == quantization.int8_layers
    assert types == {"onnx": {onnx.TensorProto.FLOAT}, "tensorrt": {onnx.TensorProto.FLOAT16}}


@slow
def test_inspect_shows_what_is_in_int8(int8_bundle: Callable[[str], Path]) -> None:
    shown = run("inspect", int8_bundle("openvino"))
    assert shown.exit_code == 0
    for words in ("INT8", "mse", "40 images, seed 0", "smooth-quant"):
        assert words in shown.stdout
    content = run_json("inspect", int8_bundle("openvino"))
    assert content["quantization"]["method"] == "mse"
    assert content["reports"][-1]["reference_accuracy"] is not None


@slow
@pytest.mark.parametrize(
    ("target", "following", "backend"),
    [("onnx", "verify", []), ("tensorrt", "build", ["--backend", "onnx"])],
)
def test_fp16_bundles_verify_and_keep_the_ranking(
    target: str, following: str, backend: list[str], export: Export, out: Path, calm_run: Path
) -> None:
    result = export(calm_run, target, "fp16")
    assert exported(result, out).reports[-1].kept_overlap[0] >= 0.995
    assert f"next: gft-edge {following} {out}\n" in result.stdout
    assert run_json("verify", out, *backend)["verdict"] == "pass"


@slow
def test_an_outlier_channel_does_not_reach_the_device(
    export: Export, calibrated: tuple[object, ...], out: Path, calm_run: Path, tmp_path: Path
) -> None:
    """One channel a thousand times the others takes all of a tensor's INT8 range, in FP32 unseen."""

    def outlier(weights: Weights) -> None:
        block = "backbone.blocks.1"
        weights[f"{block}.norm2.weight"][7] *= 1000
        weights[f"{block}.norm2.bias"][7] *= 1000
        weights[f"{block}.mlp.fc1.weight"][:, 7] /= 1000

    given = altered(calm_run, tmp_path, outlier)
    # What the user names is left alone besides.
    named = "backbone.blocks.3.mlp.fc2"
    manifest = exported(
        export(given, "onnx", "int8", *calibrated, "--keep-high-precision", named), out
    )
    assert manifest.reports[-1].verdict == "pass"
    assert manifest.quantization is not None
    assert manifest.quantization.high_precision[0] == named
    # Either smoothing has levelled the channel, or the layer that reads it stayed out.
    high = "backbone.blocks.1.mlp.fc1" in manifest.quantization.high_precision
    assert high or manifest.quantization.smooth_quant is not None


@slow
def test_int8_that_cannot_hold_its_bounds_exits_1_and_leaves_the_bundle_that_stood_there(
    export: Export, calibrated: tuple[object, ...], out: Path, calm_run: Path,
    micro_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(micro_bundles["onnx"], out)
    before = (out / "manifest.json").read_bytes()
    # More than all of the patches: what no graph keeps.
    bound = dataclasses.replace(TOLERANCES["int8"], kept_overlap=(1.1,))
    monkeypatch.setitem(TOLERANCES, "int8", bound)
    result = export(calm_run, "onnx", "int8", *calibrated, "--fidelity", "strict")
    refused(result, "INT8", "22 of 23 layers", "0:", exit_code=1)
    assert (out / "manifest.json").read_bytes() == before


@slow
def test_auto_keeps_the_fastest_that_holds_and_says_why(
    export: Export, calibrated: tuple[object, ...], out: Path, calm_run: Path
) -> None:
    result = export(calm_run, "onnx", "auto", *calibrated)
    manifest = exported(result, out)
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
    assert run_json("verify", out)["verdict"] == "pass"


@slow
def test_auto_without_calibration_images_leaves_int8_out(
    out: Path, calm_run: Path, micro_pictures: Path, tmp_path: Path
) -> None:
    for split in ("val", "train"):
        shutil.copytree(micro_pictures / split, tmp_path / "data" / "val", dirs_exist_ok=True)
    given = ("export", calm_run, "--data", tmp_path / "data", "--target", "openvino", "--out", out)
    result = run(*given, "--precision", "auto")
    assert "int8 is left out" in result.stderr
    candidates = exported(result, out).candidates
    assert [c.precision for c in candidates] == ["fp32", "fp16", "bf16", "int8", "int8-bf16"]
    for candidate in candidates[-2:]:
        assert candidate.median_ms is None


def beyond_fp16(weights: Weights) -> None:
    weights["backbone.head.weight"][0] = 7e4


def constant(weights: Weights) -> None:
    weights["backbone.head.bias"][2] += 1e4


def broken(weights: Weights) -> None:
    weights["backbone.blocks.0.mlp.fc1.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "precision", "exit_code", "words"),
    [
        (beyond_fp16, "fp16", 1, ("tensor backbone.head.weight", "70000", "65504")),
        # A network that calls everything the same has no low precision.
        (constant, "int8", 1, ("all 104 images", "'café'")),
        (broken, "int8", 2, ("tensor backbone.blocks.0.mlp.fc1.weight", "NaN")),
    ],
)
def test_unfit_weights_are_named_before_anything_is_written(
    change: Callable[[Weights], None], precision: str, exit_code: int, words: tuple[str, ...],
    export: Export, calibrated: tuple[object, ...], out: Path, calm_run: Path, tmp_path: Path,
) -> None:  # fmt: skip
    given = altered(calm_run, tmp_path, change)
    options = calibrated if precision == "int8" else ()
    refused(export(given, "onnx", precision, *options), *words, exit_code=exit_code)
    assert not out.exists()


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("trt", "--precision auto", ("tensorrt", "fp32, fp16, int8")),
        ("onnx", "--half --opset 18", ("--precision fp16", "--opset 20")),
        ("onnx", "--int8 --calibration-data nowhere", ("nowhere",)),
        ("onnx", "--int8 --calibration-data DATA --subset-size 31", ("--subset-size 31", "32")),
        ("onnx", "--int8 --calibration-data DATA/test", ("test split",)),
        ("onnx", "--int8 --calibration-data DATA --keep-high-precision blocks.0.mlp.fc1",
         ("backbone.blocks.0.mlp.fc1",)),
        ("onnx", "--int8 --calibration-data DATA --keep-high-precision EVERY",
         ("--keep-high-precision", "23 layers")),
        ("trt", "--int8 --weights-range half", ("--weights-range half", "tensorrt")),
        ("onnx", "--weights-range full", ("--weights-range", "int8")),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    target: str, options: str, words: tuple[str, ...], out: Path, calm_run: Path,
    micro_pictures: Path,
) -> None:  # fmt: skip
    every = ",".join(quantizable_layers(load_run(calm_run)[1]))
    given = options.replace("DATA", str(micro_pictures)).replace("EVERY", every).split()
    result = run(
        "export", calm_run, "--data", micro_pictures, "--out", out, "--target", target, *given
    )
    refused(result, *words)
    assert not out.exists()


def test_a_bundle_is_not_exported_again(out: Path, micro_bundles: dict[str, Path]) -> None:
    bundle = micro_bundles["onnx"]
    refused(run("export", bundle, "--target", "onnx", "--out", out), str(bundle))


def test_an_unreadable_calibration_image_is_named(
    export: Export, calm_run: Path, micro_pictures: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(micro_pictures / "train", tmp_path / "copy"))
    for path in (copy / MICRO_LABELS[0]).iterdir():
        path.write_bytes(b"no image")
    refused(export(calm_run, "onnx", "int8", "--calibration-data", copy), str(copy), ".png")


@slow
def test_sensitivity_ranks_every_layer_and_ends_with_the_line_for_export(
    tmp_path: Path, calm_run: Path, micro_pictures: Path
) -> None:
    picture = tmp_path / "ranking.png"
    given = ("sensitivity", calm_run, "--data", micro_pictures, "--images", 8)
    result = run(*given, "--out", picture)
    assert result.exit_code == 0, result.stderr
    assert "backbone.patch_embed.proj" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(
        f"next: gft-edge export {calm_run} --data {micro_pictures} --target openvino --out BUNDLE "
        "--precision int8"
    )
    assert "--images 8" in result.stderr
    with Image.open(picture) as image:
        assert image.width > 500
        assert np.asarray(image.convert("L")).std() > 5
    content = run_json(*given)
    assert len(content["layers"]) == 23
    per_work = [row["damage"] / row["macs"] for row in content["layers"]]
    assert per_work == sorted(per_work, reverse=True)
    kept = ",".join(content["keep_high_precision"])
    assert last.endswith(f"--precision int8 --keep-high-precision {kept}" if kept else "int8")


def test_sensitivity_refuses_a_picture_that_is_none(calm_run: Path, micro_pictures: Path) -> None:
    given = ("sensitivity", calm_run, "--data", micro_pictures, "--out", "ranking.doc")
    refused(run(*given), "ranking.doc", ".png")
