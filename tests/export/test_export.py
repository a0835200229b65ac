"""Export: static graphs that keep what PyTorch keeps, gates that fail, bundles that survive a failure."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import GalaMode, InputSpec, Score
from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.errors import (
    GateError,
    MissingDependencyError,
    PipelineError,
    SpecError,
    UsageError,
)
from gft_edge.export import pipeline as pipeline_module
from gft_edge.export import request as request_module
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.export.pipeline import export
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.model.checkpoint import load_run
from gft_edge.model.gft import build_gft
from gft_edge.runtime.classifier import Classifier
from tests.support import pictures
from tests.support.bundles import keep_the_worst
from tests.support.files import contents
from tests.support.networks import (
    WIDE_LABELS,
    export_run,
    micro_spec,
    wide_network,
)
from tests.support.refusals import refusal_of

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Smooth random pictures, so that neighbouring patches differ clearly."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures.write_smooth(folder, WIDE_LABELS, 5)
    return draw_image_set(read_split(folder, "val"), 12, seed=0)


def check_bundle(bundle: Bundle) -> None:
    """Check that every step decided and kept as PyTorch did, and that the lineage is a chain."""
    manifest = bundle.manifest
    names = [report.step for report in manifest.reports]
    assert names == ["onnx_from_torch", "simplify", f"build for {manifest.target}"]
    for report in manifest.reports:
        assert report.verdict == "pass"
        assert report.top1_agreement == 1.0
        assert report.kept_overlap == (1.0,) * len(manifest.model.stages)
        assert report.images == 12
    for parent, child in itertools.pairwise((*manifest.lineage, manifest.artifact)):
        assert child.parent_sha256 == parent.sha256


@pytest.mark.parametrize(
    ("target", "gala", "stages", "score", "given"),
    [
        ("openvino", "block", "0:20,1:15,2:10", "gala", InputSpec("float32", 5)),
        pytest.param("onnx", "block", "0:20,1:15,2:10", "class", InputSpec("float32", 1), marks=slow),
        pytest.param("onnx", "layer", "4:20,4:15,4:10", "random", InputSpec("uint8", 5), marks=slow),
        pytest.param("openvino", "block", "none", "gala", InputSpec("uint8", 1), marks=slow),
    ],
)  # fmt: skip
def test_every_configuration_exports_and_keeps_what_pytorch_keeps(
    target: str, gala: GalaMode, stages: str, score: Score, given: InputSpec,
    images: ImageSet, tmp_path: Path,
) -> None:  # fmt: skip
    spec, model = wide_network(stages, gala, score)
    # The counts of the training are nothing to be told.
    request = ExportRequest(target, input=given, stages=spec.stages)
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    check_bundle(bundle)
    assert bundle.manifest.rescheduled is None


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_both_targets_keep_what_pytorch_keeps(target: str, micro_bundles: dict[str, Path]) -> None:
    check_bundle(read_bundle(micro_bundles[target]))
    assert read_bundle(micro_bundles[target]).manifest.rescheduled is None


def test_an_onnx_bundle_runs_on_openvino_too(
    micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    photos = sorted((micro_data / "test").rglob("*.png"))
    answers = []
    for backend in ("onnx", "openvino"):
        with Classifier.load(micro_bundles["onnx"], backend) as classifier:
            answers.append(classifier.logits(list(map(str, photos))))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)


@slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_two_exports_of_one_run_are_equal_byte_for_byte(
    target: str,
    micro_bundles: dict[str, Path],
    micro_run: Path,
    micro_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline_module, "onnx_from_torch", onnx_from_torch)  # converted anew
    export_run(micro_run, micro_data, tmp_path / "again", ExportRequest(target))
    first, again = contents(micro_bundles[target]), contents(tmp_path / "again")
    assert {"manifest.json", "labels.txt", "golden/golden.npz"} < set(again)
    for name in again:
        assert first[name] == again[name], f"{name} differs between two exports"


def test_a_selection_that_selects_nothing_is_refused_with_the_reason(
    tmp_path: Path, images: ImageSet
) -> None:
    fresh = micro_spec(WIDE_LABELS, "4:20", 48)
    whole, model = wide_network("0:20,1:20")
    for given, spec, words in (
        (build_gft(fresh), fresh, ("stage 1", "inert")),
        (model, whole, ("stage 2", "all 20 patches")),
    ):
        work = partial(export, given, spec, images, ExportRequest("onnx"), tmp_path / "bundle")
        refusal_of(GateError, work, *words)
        assert not (tmp_path / "bundle").exists()


Exporting = Callable[[], Bundle]


@pytest.fixture
def standing(
    micro_bundles: dict[str, Path], micro_run: Path, micro_data: Path, tmp_path: Path
) -> tuple[Path, Exporting]:
    """A bundle, the only thing in its folder, and a function that exports into it anew."""
    bundle = Path(shutil.copytree(micro_bundles["onnx"], tmp_path / "bundle"))
    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), 12, seed=0)
    return bundle, lambda: export(model, spec, images, ExportRequest("onnx"), bundle)


def check_stands(bundle: Path, before: dict[str, bytes]) -> None:
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_graph_that_decides_otherwise_fails_its_gate_and_replaces_nothing(
    standing: tuple[Path, Exporting], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, exporting = standing
    before = contents(bundle)
    import onnxsim

    honest = onnxsim.simplify

    def damaging(*given: Any, **options: Any) -> tuple[onnx.ModelProto, bool]:
        model, sound = honest(*given, **options)
        keep_the_worst(model)
        return model, sound

    monkeypatch.setattr(onnxsim, "simplify", damaging)
    refusal_of(GateError, exporting, "'simplify'", "stage 1 keeps 0.")
    check_stands(bundle, before)


def test_a_failing_step_names_itself_and_what_ran_before_and_leaves_the_old_bundle(
    standing: tuple[Path, Exporting], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, exporting = standing
    before = contents(bundle)
    failures = [RuntimeError("no such operator\nand a long story"), KeyboardInterrupt()]

    def failing(*_: Any, **__: Any) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(pipeline_module, "onnx_from_torch", failing)
    line = refusal_of(PipelineError, exporting, "'onnx_from_torch'", "reference in PyTorch")
    assert line.endswith("no such operator")
    with pytest.raises(KeyboardInterrupt):
        exporting()
    check_stands(bundle, before)


@slow
def test_without_onnxsim_it_says_so_and_goes_on_in_an_older_opset(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model = wide_network()
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    said: list[str] = []
    request = ExportRequest("onnx", opset=19)
    bundle = export(model, spec, images, request, tmp_path / "bundle", say=said.append)
    assert len(bundle.manifest.reports) == 2
    assert any("onnxsim is not installed here" in text for text in said)
    assert opset_of(bundle) == 19


@slow
def test_no_simplify_leaves_onnxsim_out_in_the_oldest_opset(
    tmp_path: Path, images: ImageSet
) -> None:
    spec, model = wide_network()
    request = ExportRequest("onnx", opset=18, simplify=False)
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    assert "simplify" not in [report.step for report in bundle.manifest.reports]
    graph = onnx.load(bundle.artifact_path).graph
    assert Counter(node.op_type for node in graph.node)["TopK"] == 3
    assert opset_of(bundle) == 18


def opset_of(bundle: Bundle) -> int:
    model = onnx.load(bundle.artifact_path)
    return int(max(entry.version for entry in model.opset_import if not entry.domain))


@slow
def test_compressed_weights_are_half_the_size_and_still_computed_in_f32(
    tmp_path: Path, images: ImageSet
) -> None:
    # One patch to drop: what FP16 weights may move stays within the bound on a dozen images.
    spec, model = wide_network("0:35")
    for name, compress in (("plain", False), ("compressed", True)):
        request = ExportRequest("openvino", compress_weights=compress)
        export(model, spec, images, request, tmp_path / name)
    sizes = [(tmp_path / n / "model.bin").stat().st_size for n in ("plain", "compressed")]
    assert sizes[1] < 0.55 * sizes[0]
    manifest = read_bundle(tmp_path / "compressed").manifest
    assert manifest.artifact.precision == "fp32-fp16-weights"
    assert manifest.runtime_precision == "f32"


def calibrated(
    target: str, precision: str, method: str = "minmax", opset: int = 20
) -> ExportRequest:
    """Return a request that is refused before its calibration images are read."""
    calibration = CalibrationRequest(ImageSet((), 0, "0", ()), method)
    return ExportRequest(target, precision, opset=opset, calibration=calibration)


EVERY_PRECISION = "fp32, fp16, int8"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ExportRequest("tensorflow"), ("'tensorflow'", "onnx, openvino")),
        (ExportRequest("onnx", "int4"), ("int4", "onnx", EVERY_PRECISION)),
        (ExportRequest("onnx", "bf16"), ("bf16", "onnx", EVERY_PRECISION)),
        (ExportRequest("onnx", compress_weights=True), ("--target openvino",)),
        (ExportRequest("onnx", input=InputSpec("uint8", 0)), ("--batch", "0")),
        (ExportRequest("onnx", max_drop=float("nan")), ("--max-drop is nan",)),
        (ExportRequest("onnx", max_drop=-1), ("--max-drop is -1",)),
        (ExportRequest("onnx", opset=25), ("--opset 25", "18", "20")),
        (ExportRequest("onnx", "fp16", opset=18), ("fp16", "--opset 20")),
        (calibrated("onnx", "int8", opset=19), ("int8", "--opset 20")),
        (ExportRequest("onnx", "int8"), ("--calibration-data",)),
        (calibrated("onnx", "fp16"), ("--calibration-data", "int8")),
        (calibrated("onnx", "int8", "magic"), ("magic", "minmax, percentile, entropy, mse")),
        # NNCF would have to estimate it.
        (calibrated("openvino", "int8", "entropy"), ("entropy", "minmax, percentile, mse")),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_met_is_refused(
    request_: ExportRequest, words: tuple[str, ...], tmp_path: Path, images: ImageSet
) -> None:
    spec, model = wide_network()
    work = partial(export, model, spec, images, request_, tmp_path / "bundle")
    refusal_of(UsageError, work, *words)


def test_int8_for_openvino_without_nncf_gives_the_install_line(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        request_module, "find_spec", lambda name: None if name == "nncf" else real(name)
    )
    spec, model = wide_network()
    request = calibrated("openvino", "int8")
    work = partial(export, model, spec, images, request, tmp_path / "bundle")
    refusal_of(MissingDependencyError, work, "NNCF", "gft-edge[export]")


def test_a_class_that_no_line_can_hold_is_refused_before_the_work(
    images: ImageSet, tmp_path: Path
) -> None:
    spec, model = wide_network()
    for label in ("cherry\ntree", "tree\u2028", "caf\udce9"):
        named = dataclasses.replace(spec, labels=("ash", "birch", label))
        work = partial(export, model, named, images, ExportRequest("onnx"), tmp_path / "bundle")
        refusal_of(SpecError, work, repr(label))
    assert not list(tmp_path.iterdir())
