"""The TensorRT session, over engines that ONNX Runtime computes in a fake CUDA runtime's memory."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner

from gft_edge.backends import backend_for, trt
from gft_edge.bundle import read_bundle, sha256_of, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.classifier import Classifier, open_request
from gft_edge.cli import main
from gft_edge.errors import CudaError, FailedError, GftEdgeError, UsageError
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.image_folder import read_split
from gft_edge.model.checkpoint import load_run
from gft_edge.nvidia.build import with_engine
from gft_edge.nvidia.engines import host_of
from gft_edge.nvidia.library import Library
from gft_edge.onnx_bytes import graph_output
from gft_edge.specs import Engine, EngineRecipe, InputSpec
from gft_edge.verification import verify

if TYPE_CHECKING:
    from tests.fake_cudart import FakeCudart
    from tests.fake_tensorrt import FakeTensorrt

BATCHES = (1, 3)
SIZE_PX = 64
DESCRIBING = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError"}

Pixels = npt.NDArray[np.uint8]
Runs = list[npt.NDArray[Any]]


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path
) -> dict[int, Path]:
    """Batch -> the bundle for TensorRT that the micro run exports to. Copy one before altering it."""
    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=12, seed=0)
    folder = tmp_path_factory.mktemp("exported")
    for batch in BATCHES:
        request = ExportRequest("trt", input=InputSpec("uint8", batch))
        export(model, spec, images, request, folder / str(batch))
    return {batch: folder / str(batch) for batch in BATCHES}


@pytest.fixture
def bundle_of(exported: dict[int, Path], tmp_path: Path) -> Callable[[int], Path]:
    """A copy of a bundle, without engines."""

    def copy(batch: int) -> Path:
        folder = tmp_path / f"bundle {batch}"
        if not folder.exists():
            shutil.copytree(exported[batch], folder)
        return folder

    return copy


@pytest.fixture
def bundle(bundle_of: Callable[[int], Path]) -> Path:
    """One image at a time, without engines."""
    return bundle_of(1)


@pytest.fixture
def machine(
    monkeypatch: pytest.MonkeyPatch, fake_cudart: FakeCudart, fake_tensorrt: FakeTensorrt
) -> Iterator[FakeTensorrt]:
    """A GPU with its own memory and TensorRT 10.3.0. Everything is released at the end."""
    fake_cudart.integrated = False
    library = Library(fake_tensorrt.module, "tensorrt")
    monkeypatch.setattr(trt, "open_cuda", fake_cudart.cuda)
    monkeypatch.setattr(trt, "installed", lambda: [library])
    yield fake_tensorrt
    assert_released(fake_tensorrt)


def assert_released(machine: FakeTensorrt) -> None:
    """Nothing is left of any session."""
    gc.collect()
    assert machine.cudart.live == {}
    assert machine.live == {}
    assert machine.cudart.free_bytes == machine.cudart.total_bytes


def add_engine(
    machine: FakeTensorrt,
    folder: Path,
    explain: bool = False,
    model: bytes | None = None,
    plan: bytes | None = None,
    **changes: Any,
) -> Engine:
    """Record an engine of the machine, computing the bundle's graph unless told otherwise."""
    manifest = read_bundle(folder).manifest
    host = host_of(machine.cudart.cuda())
    assert host.gpu is not None
    kept = manifest.kept_outputs if explain else ()
    graph = (folder / manifest.artifact.path).read_bytes() + b"".join(map(graph_output, kept))
    recipe = changes.get("recipe", EngineRecipe())
    path = f"engines/here/{'explain' if explain else 'model'}.engine"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    portable = recipe.version_compatible
    (folder / path).write_bytes(machine.plan_of(model or graph, portable) if plan is None else plan)
    engine = Engine(
        path=path,
        sha256=sha256_of(folder / path),
        graph_sha256=manifest.artifact.sha256,
        outputs=("logits", *kept),
        recipe=recipe,
        flavor="tensorrt",
        version=machine.module.__version__,
        platform=host.platform,
        gpu=host.gpu.name,
        compute_capabilities=(host.gpu.compute_capability,),
        cuda=host.cuda,
        driver=None,
        l4t=None,
        timing_cache=None,
        build_seconds=1.0,
    )
    engine = dataclasses.replace(engine, **changes)
    write_manifest(folder, with_engine(manifest, engine))
    return engine


def session_of(
    folder: Path, explain: bool = True, cuda_graph: bool = False, backend: str = "tensorrt"
) -> Any:
    """As Classifier.load opens it."""
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    kept = manifest.kept_outputs if explain else ()
    request = open_request(manifest.model, manifest.input, "typed", kept, threads=1)
    request = dataclasses.replace(
        request,
        graph_sha256=manifest.artifact.sha256,
        engines=manifest.engines,
        cuda_graph=cuda_graph,
    )
    return backend_for(backend).open_session(bundle.artifact_path, request)


def pictures(batch: int = 1, seed: int = 0) -> Pixels:
    """Blots, no two seeds alike."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def expected_of(folder: Path, images: Pixels, explain: bool = True) -> Runs:
    """What ONNX Runtime gives for the same graph."""
    session = session_of(folder, explain, backend="onnx")
    try:
        outputs: Runs = session.run(images)
        return outputs
    finally:
        session.close()


def assert_same(outputs: Runs, expected: Runs) -> None:
    """Bit for bit, in type too."""
    assert [output.dtype for output in outputs] == [output.dtype for output in expected]
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, wanted)


def calls_of(machine: FakeTensorrt, work: Callable[[], object]) -> list[str]:
    """The names of the calls that a piece of work makes."""
    machine.cudart.calls.clear()
    work()
    return [name for name, _ in machine.cudart.calls]


def refusal(work: Callable[[], object], kind: type[GftEdgeError] = GftEdgeError) -> str:
    """The one line in which something is refused."""
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What comes out.


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("integrated", [False, True])
def test_logits_and_kept_patches_are_those_of_onnx_runtime(
    machine: FakeTensorrt,
    bundle_of: Callable[[int], Path],
    batch: int,
    explain: bool,
    integrated: bool,
) -> None:
    machine.cudart.integrated = integrated
    folder = bundle_of(batch)
    add_engine(machine, folder, explain)
    session = session_of(folder, explain)
    reference = session_of(folder, explain, backend="onnx")
    seen = set()
    for seed in range(5):
        images = pictures(batch, seed)
        outputs = session.run(images)
        assert_same(outputs, reference.run(images))
        assert [output.shape for output in outputs] == [
            (batch, 4), *([(batch, 48), (batch, 32), (batch, 16)] if explain else []),
        ]  # fmt: skip
        seen.add(outputs[0].tobytes())
    assert len(seen) == 5
    session.close()


def test_outputs_stay_as_they_were_after_further_runs(machine: FakeTensorrt, bundle: Path) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle)
    first = session.run(pictures(seed=0))
    copies = [output.copy() for output in first]
    session.run(pictures(seed=1))
    session.close()
    assert_same(first, copies)


def test_a_classifier_predicts_what_onnx_runtime_predicts(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path], micro_data: Path
) -> None:
    folder = bundle_of(3)
    add_engine(machine, folder)
    # Five images in batches of three: the last is padded.
    paths = sorted(micro_data.rglob("*.png"))[:5]
    with (
        Classifier.load(folder) as classifier,
        Classifier.load(folder, "onnx", threads=1) as reference,
        Classifier.load(folder, "trt", cuda_graph=True) as replaying,
    ):
        assert classifier.predict(paths) == reference.predict(paths)
        assert classifier.predict(paths[0]) == reference.predict(paths[0])
        assert replaying.predict(paths) == reference.predict(paths)


def test_verify_compares_kept_patches_where_an_engine_returns_them(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    add_engine(machine, bundle, explain=True)
    report = verify(bundle)
    assert (report.verdict, report.failures, report.skipped) == ("pass", (), ())
    assert report.golden is not None
    assert report.golden.kept_overlap == (1.0, 1.0, 1.0)


def test_verify_says_that_kept_patches_were_not_checked_and_how_they_can_be(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    result = CliRunner().invoke(main, ["verify", str(bundle), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verdict"] == "pass"
    assert report["golden"]["kept_overlap"] == []
    (skipped,) = report["skipped"]
    assert skipped == (
        f"kept patches: {bundle} holds no engine that returns the kept patches yet: "
        f"gft-edge build {bundle} --explain makes one on the machine that runs it"
    )
    result = CliRunner().invoke(main, ["verify", str(bundle)], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    assert "skipped: kept patches" in result.output


def test_verify_fails_an_engine_that_computes_something_else(
    machine: FakeTensorrt, bundle: Path
) -> None:
    model = onnx.load(read_bundle(bundle).artifact_path)
    bias = next(value for value in model.graph.initializer if list(value.dims) == [4])
    bias.raw_data = np.array([9, -9, 9, -9], np.float32).tobytes()
    add_engine(machine, bundle, model=model.SerializeToString())
    result = CliRunner().invoke(main, ["verify", str(bundle)])
    assert result.exit_code == 1
    assert "golden outputs:" in result.output


# How it gets there.


def test_images_go_in_the_engine_runs_and_outputs_come_back(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path]
) -> None:
    add_engine(machine, bundle_of(3), explain=True)
    session = session_of(bundle_of(3))
    names = calls_of(machine, lambda: session.run(pictures(3)))
    assert names == [
        "cudaSetDevice",
        "cudaMemcpyAsync",
        "execute_async_v3",
        *["cudaMemcpyAsync"] * 4,
        "cudaStreamSynchronize",
    ]
    copies = [inputs for name, inputs in machine.cudart.calls if name == "cudaMemcpyAsync"]
    # A byte a colour goes in; float32 logits and int64 indices come out.
    assert [(size, kind) for _, _, size, kind, _ in copies] == [
        (3 * SIZE_PX * SIZE_PX * 3, 1),
        (3 * 4 * 4, 2),
        *[(3 * keep * 8, 2) for keep in (48, 32, 16)],
    ]
    session.close()


def test_where_memory_is_shared_nothing_is_copied(machine: FakeTensorrt, bundle: Path) -> None:
    machine.cudart.integrated = True
    add_engine(machine, bundle, explain=True)
    opened: list[Any] = []
    names = Counter(calls_of(machine, lambda: opened.append(session_of(bundle))))
    assert (names["cudaMalloc"], names["cudaHostGetDevicePointer"]) == (0, 5)
    assert machine.cudart.live == {"mapped": 5, "stream": 1}
    (session,) = opened
    assert calls_of(machine, lambda: session.run(pictures())) == [
        "cudaSetDevice",
        "execute_async_v3",
        "cudaStreamSynchronize",
    ]
    session.close()


@pytest.mark.parametrize("integrated", [False, True])
def test_a_split_run_gives_the_same_outputs_and_three_times(
    machine: FakeTensorrt, bundle: Path, integrated: bool
) -> None:
    machine.cudart.integrated = integrated
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle)
    images = pictures(seed=3)
    machine.cudart.calls.clear()
    outputs, split = session.run_split(images)
    assert_same(outputs, expected_of(bundle, images))
    assert min(split.host_to_device_ms, split.device_to_host_ms) >= 0
    assert split.compute_ms > 0
    names = Counter(name for name, _ in machine.cudart.calls)
    assert names["cudaEventCreate"] == names["cudaEventRecord"] == names["cudaEventDestroy"] == 4
    assert machine.cudart.live["event"] == 0
    session.close()


# CUDA graphs.

COPY_IN, COPIES_OUT = ["cudaMemcpyAsync"], ["cudaMemcpyAsync"] * 4
CAPTURING = [
    "execute_async_v3",
    "cudaStreamSynchronize",
    "cudaStreamBeginCapture",
    "execute_async_v3",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphDestroy",
]


def test_a_cuda_graph_is_captured_after_a_plain_run_and_then_replayed(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle, cuda_graph=True)
    first = calls_of(machine, lambda: session.run(pictures()))
    waiting = ["cudaStreamSynchronize"]
    assert first == ["cudaSetDevice", *COPY_IN, *CAPTURING, *COPIES_OUT, *waiting]
    for _ in range(3):
        again = calls_of(machine, lambda: session.run(pictures()))
        assert again == ["cudaSetDevice", *COPY_IN, "cudaGraphLaunch", *COPIES_OUT, *waiting]
    assert machine.cudart.live["executable"] == 1
    assert machine.cudart.live["graph"] == 0
    session.close()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("integrated", [False, True])
def test_a_replayed_graph_gives_what_a_plain_launch_gives(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path], batch: int, integrated: bool
) -> None:
    machine.cudart.integrated = integrated
    add_engine(machine, bundle_of(batch), explain=True)
    plain, replaying = session_of(bundle_of(batch)), session_of(bundle_of(batch), cuda_graph=True)
    for seed in range(5):
        images = pictures(batch, seed)
        assert_same(replaying.run(images), plain.run(images))
        assert_same(replaying.run_split(images)[0], plain.run(images))
    plain.close()
    replaying.close()


def test_another_backend_refuses_a_cuda_graph(bundle: Path) -> None:
    text = refusal(lambda: Classifier.load(bundle, "onnx", cuda_graph=True), UsageError)
    assert text == "cuda_graph is TensorRT's: leave it out for onnx"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("cudaStreamBeginCapture", 900),
        ("cudaStreamEndCapture", 901),
        ("cudaGraphInstantiate", 2),
    ],
)
def test_a_capture_that_fails_leaks_nothing_and_the_next_run_tries_again(
    machine: FakeTensorrt, bundle: Path, name: str, code: int
) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle, cuda_graph=True)
    resting = machine.cudart.live
    machine.cudart.fail(name, code)
    for _ in range(3):
        assert refusal(lambda: session.run(pictures()), CudaError).startswith(f"{name} failed: ")
        assert machine.cudart.live == resting
    machine.cudart.fail(name, 0)
    assert_same(session.run(pictures(seed=5)), expected_of(bundle, pictures(seed=5)))
    assert calls_of(machine, lambda: session.run(pictures())).count("cudaGraphLaunch") == 1
    session.close()


def test_an_engine_that_cannot_be_captured_ends_the_capture(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle, cuda_graph=True)
    resting = machine.cudart.live
    machine.refuse_in_capture = "Error Code 1: a loop that no capture takes"
    text = refusal(lambda: session.run(pictures()), FailedError)
    assert text == "TensorRT did not run: Error Code 1: a loop that no capture takes"
    assert machine.cudart.live == resting
    machine.refuse_in_capture = None
    assert_same(session.run(pictures(seed=2)), expected_of(bundle, pictures(seed=2)))
    session.close()
