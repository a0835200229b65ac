"""Bundles for TensorRT: written where no engine runs, checked by ONNX Runtime, refused with what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gft_edge.bundle.store import read_bundle, sha256_of
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.errors import UsageError
from gft_edge.export import contents as contents_room
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.verify import golden_tolerance, verify
from gft_edge.model.checkpoint import load_run
from gft_edge.nvidia import library as library_room
from gft_edge.nvidia.library import builder_library, parse
from gft_edge.runtime.backends import BuildRequest, trt
from gft_edge.runtime.classifier import Classifier
from tests.support.cli import refusal, run, run_json
from tests.support.networks import export_run
from tests.support.refusals import refusal_of

slow = pytest.mark.slow


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without either rtx."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


BUILD = BuildRequest("fp16", False, {}, "0" * 64)


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_the_install_line_is_given() -> None:
    expected = "TensorRT is not installed here: pip install 'gft-edge[tensorrt]'"
    assert trt.missing() == expected
    assert trt.version() == "absent"
    shown = run_json("doctor")["engines"]["tensorrt"]
    assert shown == {"version": None, "missing": expected, "precisions": {}, "devices": []}


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_on_a_jetson_the_systems_packages_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library_room, "l4t", lambda: "R36.4.3")
    reason = str(trt.missing())
    assert "sudo apt install nvidia-jetpack" in reason
    assert "python3 -m venv --system-site-packages" in reason
    assert "pip install" not in reason


def test_with_tensorrt_doctor_says_what_it_is_for(
    rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert trt.version() == f"tensorrt-rtx {rtx.__version__}"
    reason = trt.missing()
    if reason is None:
        pytest.skip("a GPU answers here: engines run")
    assert reason.startswith(f"{trt.version()} reads and builds graphs here, and no engine runs: ")
    monkeypatch.setenv("COLUMNS", "300")
    assert "and no engine runs" in run("doctor").stdout


def test_any_machine_may_write_a_graph_in_any_of_its_precisions() -> None:
    for precision in trt.PRECISIONS:
        assert trt.unsupported(precision) is None
        assert trt.runtime_precision(precision) == "typed"


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_a_graph_is_copied_unread(tmp_path: Path) -> None:
    graph = tmp_path / "scratch.onnx"
    graph.write_bytes(b"any bytes")
    folder = tmp_path / "bundle"
    folder.mkdir()
    artifact = trt.build(graph, folder, BUILD)
    assert (folder / "model.onnx").read_bytes() == graph.read_bytes()
    assert (artifact.path, artifact.precision) == ("model.onnx", "fp16")
    assert (artifact.sha256, artifact.parent_sha256) == (sha256_of(graph), "0" * 64)


@slow
def test_an_installed_tensorrt_that_cannot_parse_here_is_not_said_to_have_parsed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_run: Path, micro_data: Path
) -> None:
    """The desktop library imports without a GPU, and has no parser there."""

    def refuses(flavor: str | None = None) -> None:
        raise UsageError("tensorrt 10.16.1 builds only where an NVIDIA GPU answers")

    monkeypatch.setattr(contents_room, "builder_library", refuses)
    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=8, seed=0)
    said: list[str] = []
    request = ExportRequest("trt")
    bundle = export(model, spec, images, request, tmp_path / "bundle", say=said.append)
    assert [text for text in said if "the graph has not been read by its parser" in text]
    assert bundle.manifest.tools["tensorrt parser"] == "absent"


def test_importing_the_backend_imports_no_tensorrt() -> None:
    code = (
        "import sys, gft_edge.runtime.backends.trt\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('tensorrt')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.fixture(scope="module", params=["fp32", pytest.param("fp16", marks=slow)])
def bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, trt_bundle: Path
) -> Path:
    """The micro run exported for TensorRT; in FP16 the calm one, which holds its bounds."""
    if request.param == "fp32":
        return trt_bundle
    run_folder = request.getfixturevalue("calm_run")
    data = request.getfixturevalue("micro_pictures")
    out = tmp_path_factory.mktemp("tensorrt") / "fp16"
    return export_run(
        run_folder, data, out, ExportRequest("tensorrt", "fp16", fidelity="strict"), "val", 48
    )


def test_a_bundle_for_tensorrt_is_verified_by_onnx_runtime(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert (manifest.target, manifest.runtime_precision) == ("tensorrt", "typed")
    assert [report.step for report in manifest.reports] == [
        "onnx_from_torch", "simplify", "build for tensorrt",
    ]  # fmt: skip
    assert {report.verdict for report in manifest.reports} == {"pass"}
    report = verify(bundle, backend="onnx")
    assert (report.verdict, report.failures) == ("pass", ())
    assert report.golden is not None
    assert len(report.golden.kept_overlap) == 3


def test_the_golden_check_has_the_bounds_of_verify(bundle: Path) -> None:
    bound = golden_tolerance(read_bundle(bundle).manifest, 8)
    script = (bundle / "golden" / "check.sh").read_text(encoding="utf-8")
    assert f"\nagreement_bound={bound.top1_agreement:g}\n" in script
    assert f"\ncosine_bound={bound.cosine:g}\n" in script


def test_without_a_backend_a_bundle_for_tensorrt_names_the_one_to_give(bundle: Path) -> None:
    assert "--backend onnx" in refusal("verify", bundle)


def test_threads_are_refused_where_the_gpu_computes(bundle: Path) -> None:
    refusal_of(UsageError, lambda: Classifier.load(bundle, threads=1), "threads", "tensorrt")


def test_the_artifact_of_a_bundle_parses_in_its_precision(bundle: Path, rtx: Any) -> None:
    path = read_bundle(bundle).artifact_path
    network, _, _ = parse(builder_library("tensorrt-rtx"), path.read_bytes(), path)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == rtx.LayerType.MATRIX_MULTIPLY]
    dtype = {"fp32": rtx.float32, "fp16": rtx.float16}[read_bundle(bundle).manifest.precision]
    assert {layer.get_output(0).dtype for layer in products} == {dtype}
    ranking = [layer for layer in layers if layer.type == rtx.LayerType.TOPK]
    assert {layer.get_input(0).dtype for layer in ranking} == {rtx.float32}
    assert [layer.get_output(0).shape[1] for layer in ranking] == [48, 32, 16]


def test_inspect_shows_a_bundle_for_tensorrt(bundle: Path) -> None:
    content = run_json("inspect", bundle)
    assert content["target"] == "tensorrt"
    shown = run("inspect", bundle)
    assert shown.exit_code == 0
    assert "gft-edge build" in shown.stdout
