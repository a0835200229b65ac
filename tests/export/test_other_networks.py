"""Networks that are no GFT go the whole way: trained, exported, judged, timed and quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from gft_edge.bundle.specs import InputSpec
from gft_edge.bundle.store import read_bundle
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.datasets import read_split
from gft_edge.export.graph import simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.export.pipeline import export
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.model.checkpoint import load_run
from gft_edge.profiling.layers import layer_profile
from gft_edge.runtime.classifier import Classifier
from gft_edge.training.logits import network_logits
from gft_edge.training.loop import train
from gft_edge.training.recipes import Recipe
from gft_edge.training.run_folder import RunConfig
from tests.support.cli import refusal, run_json
from tests.support.cli import run as command
from tests.support.networks import export_run, noise, seeded, small_spec
from tests.support.pictures import MICRO_LABELS

SLOW = pytest.mark.slow
NETWORKS = [
    "test_resnet",
    *(pytest.param(n, marks=SLOW) for n in ("test_convnext", "transfg_tiny")),
]


@pytest.fixture(scope="module", params=NETWORKS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, micro_pictures: Path
) -> Path:
    """A run folder of one epoch on the pictures."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    recipe = Recipe(epochs=1, batch_size=8, lr=2e-3, augmentation="none", warmup=0.0)
    config = RunConfig(str(micro_pictures), recipe, False, 0, "cpu")
    train(folder, small_spec(request.param), config, None)
    return folder


@pytest.fixture(scope="module", params=["onnx", pytest.param("openvino", marks=SLOW)])
def bundle(request: pytest.FixtureRequest, run: Path, micro_pictures: Path) -> Path:
    """A bundle of the run, verified on the pictures of val/."""
    out = run.parent / request.param
    return export_run(run, micro_pictures, out, ExportRequest(request.param), "val", count=24)


def test_a_bundle_answers_as_pytorch_does(bundle: Path, run: Path, micro_pictures: Path) -> None:
    spec, model = load_run(run)
    manifest = read_bundle(bundle).manifest
    assert manifest.model == spec
    assert manifest.reports[-1].verdict == "pass"
    logits = network_logits(model, spec, read_split(micro_pictures, "test", spec.labels))
    with Classifier.load(bundle) as classifier:
        found = [classifier.predict(p)[0].index for p in read_split(micro_pictures, "test").paths]
    assert found == logits.argmax(axis=1).tolist()


def test_the_commands_take_such_a_bundle(bundle: Path, run: Path, micro_pictures: Path) -> None:
    data = ("--data", micro_pictures)
    verify = ("verify", bundle, *data, "--reference", run)
    assert "near the border" not in command(*verify).stdout
    assert "--pictures" in refusal(*verify, "--pictures", run.parent / "pictures")
    compared = run_json(*verify)
    assert compared["verdict"] == "pass"
    assert compared["top1_agreement"] == 1
    for figure in ("kept_overlap", "patches_lost", "lost_near_border"):
        assert compared[figure] == []
    assert run_json("evaluate", run, *data)["top1"] == run_json("evaluate", bundle, *data)["top1"]
    shown = command("inspect", bundle).stdout
    parts = "transfg" in str(run)
    assert ("chooses parts before its last block" in shown) == parts
    assert ("selects no patches" in shown) == (not parts)
    assert "parameters" in command("inspect", run).stdout


def test_its_time_is_told_by_the_parts_it_has(bundle: Path) -> None:
    found = layer_profile(bundle, runs=2)
    names = [part.name for part in found.parts]
    family = read_bundle(bundle).manifest.model
    if family.name == "test_resnet":
        assert {"layer1", "layer2", "layer3", "layer4"} <= set(names)
        assert found.attention == ()
    if family.name == "test_convnext":
        assert {"stem.0", "stages.0", "head"} <= set(names)
    if family.family == "transfg":
        assert names[:4] == ["patch embedding", "base blocks", "part selection", "head"]
    assert sum(part.share for part in found.parts) == pytest.approx(1)


@SLOW
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_convolutions_are_quantized_and_named(
    target: str, tmp_path: Path, micro_pictures: Path
) -> None:
    spec = small_spec("test_resnet")
    model = seeded(spec)
    images = draw_image_set(read_split(micro_pictures, "val", MICRO_LABELS), 24, 0)
    calibration = draw_image_set(read_split(micro_pictures, "train", MICRO_LABELS), 32, 0)
    high = ("backbone.layer2.0.conv1",)
    request = ExportRequest(
        target,
        "int8",
        calibration=CalibrationRequest(calibration, keep_high_precision=high),
        judged=False,
    )
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    quantization = bundle.manifest.quantization
    assert quantization is not None
    assert quantization.int8_layers == len(quantizable_layers(model)) - 1
    assert quantization.high_precision == high
    report = bundle.manifest.reports[-1]
    assert report.cosine > 0.99
    assert report.max_abs > 1e-6  # something was rounded


@SLOW
def test_only_the_chosen_convolutions_read_int8() -> None:
    """What they read is read by residual sums too, and by convolutions on the way past them."""
    spec = small_spec("resnet18")
    model = seeded(spec)
    graph = simplify(onnx_from_torch(model, spec, InputSpec("uint8", 1), 20, centred=True))
    peaks = activation_peaks(model, [noise(2, 3, 64, 64)])
    all_but_one = [name for name in peaks if name != "backbone.layer2.0.downsample.0"]
    for layers in (["backbone.layer2.0.conv1"], ["backbone.layer2.1.conv1"], all_but_one):
        found = quantize_onnx(graph, peaks, layers, None)
        onnx.checker.check_model(found, full_check=True)
        dequantized = {
            name for n in found.graph.node if n.op_type == "DequantizeLinear" for name in n.output
        }
        readers = [n for n in found.graph.node if dequantized & set(n.input)]
        assert {n.name.rpartition("/")[0] for n in readers} == set(layers)
        assert {n.op_type for n in readers} == {"Conv"}
        assert all(set(n.input[:2]) <= dequantized for n in readers)
        session = onnxruntime.InferenceSession(
            found.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(["logits"], {"images": np.zeros((1, 64, 64, 3), np.uint8)})
        assert np.isfinite(logits).all()


@SLOW
def test_fp16_holds_and_standardises_no_weights(tmp_path: Path, micro_pictures: Path) -> None:
    for name in ("test_resnet", "transfg_tiny"):
        spec = small_spec(name)
        images = draw_image_set(read_split(micro_pictures, "val", MICRO_LABELS), 8, 0)
        request = ExportRequest("onnx", "fp16", judged=False)
        bundle = export(seeded(spec), spec, images, request, tmp_path / name)
        assert bundle.manifest.reports[-1].cosine > 0.999
