"""Which engine of a bundle a session loads, and what commands make of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from shlex import quote
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.specs import Progress, Say
from gft_edge.bundle.store import read_bundle
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.errors import BundleError, UsageError
from gft_edge.explanation.subject import BundleSubject
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.verify import verify
from gft_edge.model.checkpoint import load_run
from gft_edge.nvidia.engines import read_engine
from gft_edge.profiling.layers import layer_profile, part_names
from gft_edge.profiling.worker import LoadedBundle
from gft_edge.runtime.backends import trt
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.opening import bundle_request
from gft_edge.studies import auto
from gft_edge.studies.bench import ThisMachine
from tests.support.bundles import session_of
from tests.support.cli import run, run_json
from tests.support.fake_tensorrt import LAYER_MS
from tests.support.refusals import refusal_of
from tests.support.trt import add_engine, assert_same, expected_of, pictures

if TYPE_CHECKING:
    from tests.support.fake_tensorrt import FakeTensorrt


def other_model(bundle: Path) -> bytes:
    """Return the bundle's graph with a bias that decides otherwise."""
    model = onnx.load(read_bundle(bundle).artifact_path)
    bias = next(value for value in model.graph.initializer if list(value.dims) == [4])
    bias.raw_data = np.array([9, -9, 9, -9], np.float32).tobytes()
    return bytes(model.SerializeToString())


# Verify.


def test_verify_compares_kept_patches_where_an_engine_returns_them(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    add_engine(machine, bundle, explain=True)
    report = verify(bundle)
    assert (report.verdict, report.failures, report.skipped) == ("pass", (), ())
    assert report.golden is not None
    assert report.golden.kept_overlap == (1.0, 1.0, 1.0)


def test_verify_fails_when_the_engine_that_predicts_is_another_than_the_one_that_explains(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle, explain=True)
    (skipped,) = verify(bundle).skipped
    assert skipped.startswith("the engine that predicts: ")
    add_engine(machine, bundle, model=other_model(bundle))
    report = verify(bundle)
    assert (report.verdict, report.skipped) == ("fail", ())
    assert report.golden is not None
    assert report.golden.verdict == "pass"
    assert all("the engine that predicts" in failure for failure in report.failures)


def test_verify_says_that_kept_patches_were_not_checked_and_how_they_can_be(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    report = run_json("verify", bundle)
    assert report["verdict"] == "pass"
    assert report["golden"]["kept_overlap"] == []
    (skipped,) = report["skipped"]
    assert skipped.startswith("kept patches: ")
    assert f"gft-edge build {quote(str(bundle))} --explain" in skipped
    result = run("verify", bundle)
    assert result.exit_code == 0
    assert "skipped: kept patches" in result.output


def test_verify_fails_an_engine_that_computes_something_else(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle, model=other_model(bundle))
    result = run("verify", bundle)
    assert result.exit_code == 1
    assert "golden outputs:" in result.output


# Which engines are loaded at all.


@pytest.mark.parametrize(
    ("damage", "explain"), [("altered", False), ("altered", True), ("missing", True)]
)
def test_a_damaged_engine_never_reaches_tensorrt(
    machine: FakeTensorrt, bundle: Path, damage: str, explain: bool
) -> None:
    path = bundle / add_engine(machine, bundle, explain).path
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    command = f"gft-edge build {quote(str(bundle))}{' --explain' if explain else ''}"
    refusal_of(BundleError, lambda: session_of(bundle, explain), str(path), command)
    assert run("verify", bundle).exit_code == 1
    assert machine.plans == []


def test_the_bytes_that_are_loaded_are_those_that_were_hashed(
    machine: FakeTensorrt, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes while it is read twice is not hashed as one and loaded as the other."""
    path = bundle / add_engine(machine, bundle).path
    plan, opened = path.read_bytes(), io.open

    def altering(file: Any, *arguments: Any, **named: Any) -> Any:
        stream = opened(file, *arguments, **named)
        if file == path:
            path.unlink()
            with opened(path, "w") as other:
                other.write("another engine")
        return stream

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", altering)
        session = session_of(bundle, kept=False)
    session.close()
    assert machine.plans == [plan]


def test_an_engine_for_another_machine_never_reaches_tensorrt(
    machine: FakeTensorrt, bundle: Path
) -> None:
    for changes, word in (
        ({"gpu": "Other GPU"}, "Other GPU"),
        ({"compute_capabilities": ("8.6",)}, "8.6"),
        ({"version": "10.3.0.26"}, "10.3.0.26"),
        ({"graph_sha256": "0" * 64}, "another graph"),
        ({"platform": "linux-other"}, "linux-other"),
        ({"flavor": "tensorrt-rtx", "version": "1.7"}, "tensorrt-rtx 1.7"),
    ):
        add_engine(machine, bundle, **changes)
        command = f"gft-edge build {quote(str(bundle))}"
        refusal_of(UsageError, lambda: session_of(bundle, kept=False), word, command)
    assert machine.plans == []


def test_only_a_version_compatible_engine_may_bring_its_own_code(
    machine: FakeTensorrt, bundle: Path
) -> None:
    portable = EngineSettings(version_compatible=True)
    add_engine(machine, bundle, settings=portable, version="10.0.1")
    session = session_of(bundle, kept=False)
    assert_same(session.run(pictures()), expected_of(bundle, pictures(), explain=False))
    session.close()
    # The same plan, recorded as an ordinary one.
    graph = read_bundle(bundle).artifact_path.read_bytes()
    add_engine(machine, bundle, plan=machine.plan_of(graph, portable=True))
    refusal_of(BundleError, lambda: session_of(bundle, kept=False), "engine host code")
    assert machine.host_code_allowed == [True, False]


@pytest.mark.slow
def test_the_fastest_precision_is_found_among_engines(
    machine: FakeTensorrt,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    calm_run: Path,
    micro_pictures: Path,
) -> None:
    """Each candidate gets its engine before it is timed."""
    built = []

    class Board(ThisMachine):
        def build(self, bundle: Path, explain: bool, progress: Progress, say: Say) -> None:
            built.append(add_engine(machine, bundle))

    def engine_reports(bundles: list[Path], *_: Any) -> Any:
        """Each is measured in another process, which no stand-in reaches: here it is loaded."""
        reports = []
        for folder, p50_ms in zip(bundles, (2.0, 1.0), strict=True):
            with Classifier.load(folder) as classifier:
                assert "STRONGLY_TYPED" in classifier.session.flags()
            engine = SimpleNamespace(p50_ms=p50_ms)
            reports.append(SimpleNamespace(boundaries=SimpleNamespace(engine=engine)))
        return SimpleNamespace(reports=reports)

    monkeypatch.setattr(auto, "engine_reports", engine_reports)
    spec, model = load_run(calm_run)
    images = draw_image_set(read_split(micro_pictures, "val", spec.labels), count=24, seed=0)
    bundle = auto.export_fastest(
        model,
        spec,
        images,
        ExportRequest("trt", fidelity="strict"),
        tmp_path / "auto",
        bench=Board(),
    )
    assert len(built) == 2
    assert [candidate.precision for candidate in bundle.manifest.candidates] == list(trt.PRECISIONS)
    timed = {c.precision: c.median_ms for c in bundle.manifest.candidates if c.median_ms}
    assert timed == {"fp32": 2.0, "fp16": 1.0}
    assert bundle.manifest.precision == "fp16"
    assert [engine.path for engine in bundle.manifest.engines] == ["engines/here/model.engine"]
    assert read_engine(bundle.folder, bundle.manifest.engines[0])


# Where its time goes.


def test_a_profile_takes_the_engines_time_from_its_events(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    subject = LoadedBundle(str(bundle), cuda_graph=True)
    assert "cuda_graph=True" in subject.opened["flags"]
    engine = subject.turn("engine", 0.001, 0)["parts"]
    assert all(len(parts) == 1 and parts[0] > 0 for parts in engine)
    end_to_end = subject.turn("end_to_end", 0.001, 0)["parts"]
    for decode, _, to_device, compute, to_host, _ in end_to_end:
        assert min(decode, to_device, compute, to_host) > 0
    del subject


def test_layers_are_timed_by_the_profiler_and_told_by_the_inspector(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    opened = read_bundle(bundle)
    engine, request = bundle_request(opened, None, None, cuda_graph=True)
    machine.cudart.calls.clear()
    timed = engine.layer_times(opened.artifact_path, request, pictures(), 3, list)
    # A replayed graph reports no layers.
    assert "cudaStreamBeginCapture" not in {name for name, _ in machine.cudart.calls}
    assert len(timed.samples_ms) == 3
    breakdown = layer_profile(bundle, runs=3)
    assert breakdown.engine == "tensorrt 10.3.0"
    parts = {part.name: part for part in breakdown.parts}
    assert set(parts) == set(part_names(read_bundle(bundle).manifest.model)) - {"other"}
    # The stand-in reports every layer with the same time.
    for part in breakdown.parts:
        assert part.mean_ms == pytest.approx(part.layers * LAYER_MS)
    assert sum(part.share for part in breakdown.parts) == pytest.approx(1)
    assert {one.precision for one in breakdown.top} == {"fp32"}
    assert all(one.kernel.startswith("fake_") for one in breakdown.top)


def test_a_layer_that_the_profiler_alone_knows_is_timed_too() -> None:
    information = json.dumps({"Layers": [{"Name": "backbone.head/Gemm", "LayerType": "gemm"}]})
    times_ms = {"backbone.head/Gemm": 4.0, "backbone.blocks.0/Add": 2.0}
    known, alone = trt._layer_times(information, times_ms, 2)
    assert (known.nodes, known.mean_ms) == (("backbone.head/Gemm",), 2.0)
    assert (alone.nodes, alone.precision, alone.mean_ms) == (
        ("backbone.blocks.0/Add",), "unknown", 1.0,
    )  # fmt: skip


def test_an_explanation_shows_the_kept_patches_alone_and_says_what_builds_their_engine(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    subject = BundleSubject(read_bundle(bundle))
    kept, scores = subject.unavailable
    assert kept.startswith("kept patches: ")
    assert "gft-edge build" in kept
    assert "--backend onnx" in scores
    assert subject.see(pictures()).kept == ()
    subject.close()
    add_engine(machine, bundle, explain=True)
    subject = BundleSubject(read_bundle(bundle))
    assert subject.unavailable == (scores,)
    seen = subject.see(pictures())
    assert_same([seen.logits, *seen.kept], expected_of(bundle, pictures()))
    assert seen.importance == ()
    assert seen.difference.max() == 0
    subject.close()


def test_an_engine_is_not_asked_for_scores(machine: FakeTensorrt, bundle: Path) -> None:
    opened = read_bundle(bundle)
    scores = opened.manifest.score_outputs
    engine, request = bundle_request(opened, None, None, score_outputs=scores)
    refusal_of(UsageError, lambda: engine.open_session(opened.artifact_path, request), "scores")
