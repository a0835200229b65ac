"""The TensorRT session, over engines that ONNX Runtime computes in a fake CUDA runtime's memory."""

from __future__ import annotations

import dataclasses
import functools
import gc
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner

from gft_edge.bundle.manifest import Engine, EngineSettings
from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.specs import InputSpec
from gft_edge.bundle.store import read_bundle, sha256_of, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import BundleError, CudaError, FailedError, GftEdgeError, UsageError
from gft_edge.explanation.subject import BundleSubject
from gft_edge.export import auto
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.fidelity.verify import verify
from gft_edge.model.checkpoint import load_run
from gft_edge.nvidia.build import with_engine
from gft_edge.nvidia.cuda import host_view
from gft_edge.nvidia.cudart import FUNCTIONS
from gft_edge.nvidia.engines import host_of, read_engine
from gft_edge.nvidia.library import Library
from gft_edge.profiling.layers import layer_profile, part_names
from gft_edge.profiling.worker import Subject
from gft_edge.runtime.backends import backend_for, trt
from gft_edge.runtime.classifier import Classifier, open_request

if TYPE_CHECKING:
    from tests.support.fake_cudart import FakeCudart
    from tests.support.fake_tensorrt import FakeTensorrt

BATCHES = (1, 3)
SIZE_PX = 64
LAYER_MS = 0.01  # what the fake's profiler reports of every layer
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
    settings = changes.get("settings", EngineSettings())
    path = f"engines/here/{'explain' if explain else 'model'}.engine"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    portable = settings.version_compatible
    (folder / path).write_bytes(machine.plan_of(model or graph, portable) if plan is None else plan)
    engine = Engine(
        path=path,
        sha256=sha256_of(folder / path),
        graph_sha256=manifest.artifact.sha256,
        outputs=("logits", *kept),
        settings=settings,
        flags=("STRONGLY_TYPED",),
        flavor="tensorrt",
        version=machine.module.__version__,
        platform=host.platform,
        gpu=host.gpu.name,
        multiprocessors=host.gpu.multiprocessors,
        compute_capabilities=(host.gpu.compute_capability,),
        cuda=host.cuda,
        driver=None,
        l4t=None,
        timing_cache=None,
        build_seconds=1.0,
    )
    engine = dataclasses.replace(engine, **changes)
    write_manifest(folder, with_engine(read_bundle(folder), engine))
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
    return [name for name, _ in machine.cudart.calls if name != "set_tensor_address"]


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


def test_verify_fails_when_the_engine_that_predicts_is_another_than_the_one_that_explains(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle, explain=True)
    (skipped,) = verify(bundle).skipped
    assert skipped.startswith(f"the engine that predicts: {bundle} holds no engine yet: ")
    model = onnx.load(read_bundle(bundle).artifact_path)
    bias = next(value for value in model.graph.initializer if list(value.dims) == [4])
    bias.raw_data = np.asarray([9, 0, 0, 0], dtype=np.float32).tobytes()
    add_engine(machine, bundle, model=model.SerializeToString())
    report = verify(bundle)
    assert report.verdict == "fail"
    assert report.skipped == ()
    assert report.golden is not None
    assert report.golden.verdict == "pass"
    assert all(
        failure.startswith("golden outputs of the engine that predicts: ")
        for failure in report.failures
    )


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


# Images that already lie on the GPU.


@contextmanager
def frame_of(machine: FakeTensorrt, images: Pixels) -> Iterator[int]:
    """The address of device memory of the caller's that holds these images."""
    cuda = machine.cudart.cuda()
    address = cuda.device_buffer(images.nbytes)
    host_view(address, images.nbytes)[:] = images.ravel()
    yield address
    cuda.free_device(address)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_images_on_the_gpu_are_read_where_they_lie(
    machine: FakeTensorrt, bundle: Path, integrated: bool, cuda_graph: bool
) -> None:
    machine.cudart.integrated = integrated
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle, cuda_graph=cuda_graph)
    plain = session_of(bundle)
    images = [pictures(seed=seed) for seed in range(4)]
    with frame_of(machine, images[0]) as left, frame_of(machine, images[1]) as right:
        for _ in range(2):
            assert_same(session.run_at(left), plain.run(images[0]))
            assert_same(session.run_at(right), plain.run(images[1]))
            # The session's own images are its own again.
            assert_same(session.run(images[2]), plain.run(images[2]))
            assert_same(session.run_split(images[3])[0], plain.run(images[3]))
        names = calls_of(machine, lambda: session.run_at(right))
        assert names.count("cudaMemcpyAsync") == (0 if integrated else 4)
        assert names[0] == "cudaSetDevice"
        np.testing.assert_array_equal(host_view(right, images[1].nbytes), images[1].ravel())
    session.close()
    plain.close()


def test_a_graph_is_captured_again_for_another_address_alone(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False, cuda_graph=True)

    def captures(work: Callable[[], object]) -> int:
        return calls_of(machine, work).count("cudaStreamBeginCapture")

    with frame_of(machine, pictures()) as left, frame_of(machine, pictures()) as right:
        assert captures(lambda: session.run(pictures())) == 1
        assert captures(lambda: session.run(pictures())) == 0
        assert captures(lambda: session.run_at(left)) == 1
        assert captures(lambda: session.run_at(left)) == 0
        assert captures(lambda: session.run_at(right)) == 1
        assert captures(lambda: session.run(pictures())) == 1
        assert machine.cudart.live["executable"] == 1
    session.close()


@pytest.mark.parametrize("name", ["execute_async_v3", "set_tensor_address"])
def test_after_a_failed_run_at_the_session_reads_its_own_images(
    machine: FakeTensorrt, bundle: Path, name: str
) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle)
    with frame_of(machine, pictures(seed=1)) as address:
        machine.refuse_once(name)
        refusal(lambda: session.run_at(address), FailedError)
        assert_same(session.run(pictures(seed=2)), expected_of(bundle, pictures(seed=2)))
        machine.cudart.fail("cudaStreamSynchronize", 719)
        refusal(lambda: session.run_at(address), CudaError)
        machine.cudart.fail("cudaStreamSynchronize", 0)
    assert_same(session.run(pictures(seed=3)), expected_of(bundle, pictures(seed=3)))
    session.close()


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_no_work_is_left_that_reads_the_callers_images_after_a_failure(
    machine: FakeTensorrt, bundle: Path, name: str
) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle, cuda_graph=True)
    with frame_of(machine, pictures()) as address:
        machine.cudart.fail(name, 900)
        refusal(lambda: session.run_at(address), CudaError)
        machine.cudart.fail(name, 0)
        assert machine.cudart.waiting == 0
    with frame_of(machine, pictures()) as address:
        session.run_at(address)
        machine.cudart.fail_call(len(machine.cudart.calls) + 3, 719)
        refusal(lambda: session.run_at(address), CudaError)
        assert machine.cudart.waiting == 0
    session.close()


# Failures.

OPEN, RUN, SPLIT, AT = "open", "run", "run_split", "run_at"
# A call that destroys can only tell of an earlier failure, and a version is for messages.
TELLING = {
    name for name in FUNCTIONS if not any(word in name for word in ("Destroy", "Free", "Version"))
} - DESCRIBING
SCENARIOS = [
    (scenario, cuda_graph, integrated)
    for scenario in (OPEN, RUN, SPLIT, AT)
    for cuda_graph in (False, True)
    for integrated in (False, True)
    if not (scenario == OPEN and cuda_graph)
]


@pytest.mark.parametrize(("scenario", "cuda_graph", "integrated"), SCENARIOS)
@pytest.mark.parametrize("lasting", [False, True])
def test_a_failure_of_any_call_is_told_and_leaks_nothing(
    machine: FakeTensorrt,
    bundle: Path,
    scenario: str,
    cuda_graph: bool,
    integrated: bool,
    lasting: bool,
) -> None:
    """One call fails, or with `lasting` it and all calls after it, as after a crash on the GPU."""
    cudart = machine.cudart
    cudart.integrated = integrated
    add_engine(machine, bundle, explain=True)
    images = pictures(seed=4)
    expected = expected_of(bundle, images)

    def session_and_work(frame: int) -> tuple[Any, Callable[[], Any]]:
        if scenario == OPEN:
            return None, lambda: session_of(bundle)
        session = session_of(bundle, cuda_graph=cuda_graph)
        given = frame if scenario == AT else images
        return session, lambda: getattr(session, scenario)(given)

    def calls_made() -> int:
        with frame_of(machine, images) as frame:
            session, work = session_and_work(frame)
            start = len(cudart.calls)
            made = work()
            count = len(cudart.calls) - start
            (session or made).close()
        return count

    def attempt(fail_at: int) -> None:
        with frame_of(machine, images) as frame:
            session, work = session_and_work(frame)
            start = len(cudart.calls)
            for index in range(fail_at, fail_at + 200 if lasting else fail_at + 1):
                cudart.fail_call(start + index, 719)
            text = ""
            try:
                made = work()
            except CudaError as error:
                text = str(error)
            name = cudart.calls[start + fail_at][0]
            cudart.forget_failures()
            if name in TELLING:
                assert text.startswith(f"{name} failed: ")
            elif session is None and not text:
                made.close()
            if session is not None:
                assert cudart.live["event"] == 0
                assert_same(session.run(images), expected)
                assert_same(session.run(images), expected)
                session.close()

    for fail_at in range(calls_made()):
        attempt(fail_at)
        assert cudart.live == {}


def test_closing_releases_everything_after_a_crash_on_the_gpu(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle, cuda_graph=True)
    session.run(pictures())
    for name in FUNCTIONS:
        if name not in DESCRIBING:
            machine.cudart.fail(name, 719)
    refusal(lambda: session.run(pictures()), CudaError)
    session.close()
    assert_released(machine)


def test_an_engine_that_does_not_load_is_named_with_the_command_that_builds_it(
    machine: FakeTensorrt, bundle: Path
) -> None:
    engine = add_engine(machine, bundle)
    add_engine(machine, bundle, explain=True)
    machine.refuse("deserialize_cuda_engine", "Error Code 1: magicTag does not match")
    assert refusal(lambda: session_of(bundle, explain=False), BundleError) == (
        f"tensorrt 10.3.0 does not load {bundle / engine.path}: Error Code 1: magicTag does not "
        f"match. Build it again: gft-edge build {bundle} --force"
    )
    text = refusal(lambda: session_of(bundle), BundleError)
    assert text.endswith(f"Build it again: gft-edge build {bundle} --explain --force")


@pytest.mark.parametrize("name", ["deserialize_cuda_engine", "create_execution_context"])
def test_an_engine_that_the_gpu_has_no_memory_for_says_how_much_is_free(
    machine: FakeTensorrt, bundle: Path, name: str
) -> None:
    engine = add_engine(machine, bundle)
    if name == "deserialize_cuda_engine":
        machine.refuse(name, "Error Code 1: Cuda Runtime (out of memory)")
    machine.cudart.free_bytes = 40 << 20
    text = refusal(lambda: session_of(bundle, explain=False), FailedError)
    machine.cudart.free_bytes = machine.cudart.total_bytes
    assert text.startswith(f"no memory on the GPU for {bundle / engine.path}: ")
    if name == "create_execution_context":
        assert "it needs 64 MiB and 40 of 1024 MiB are free" in text
    else:
        assert "40 of 1024 MiB are free" in text
    assert "(Error Code 1: Cuda Runtime (out of memory))" in text
    assert text.endswith("Close other programs, or export with a smaller --batch")


def test_a_tensorrt_that_finds_no_driver_of_its_own_says_so(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    machine.refuse("Runtime", "CUDA initialization failure with error: 35")
    text = refusal(lambda: session_of(bundle, explain=False), UsageError)
    assert text.startswith("tensorrt 10.3.0 does not start: CUDA initialization failure")


def test_a_run_that_tensorrt_refuses_gives_the_reason_of_this_run(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False)
    for reason in ("Error Code 1: first", "Error Code 2: second"):
        machine.refuse("execute_async_v3", reason)
        text = refusal(lambda: session.run(pictures()), FailedError)
        assert text == f"TensorRT did not run: {reason}"
        machine.refused.clear()
        session.run(pictures())
    session.close()


def test_an_address_that_tensorrt_does_not_take_is_named(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    machine.refuse("set_tensor_address")
    text = refusal(lambda: session_of(bundle, explain=False), FailedError)
    assert text.startswith("TensorRT does not take the address of images")


def test_an_engine_with_other_tensors_or_another_shape_is_refused(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path]
) -> None:
    bundle = bundle_of(1)
    manifest = read_bundle(bundle).manifest
    graph = read_bundle(bundle).artifact_path.read_bytes()
    path = (
        bundle
        / add_engine(machine, bundle, model=graph + graph_output(manifest.kept_outputs[0])).path
    )
    kept = manifest.kept_outputs[0]
    assert refusal(lambda: session_of(bundle, explain=False), BundleError) == (
        f"{path} has the tensors images, logits, {kept}: build it again"
    )
    add_engine(machine, bundle, explain=True, model=graph)
    assert "has the tensors images, logits:" in refusal(lambda: session_of(bundle), BundleError)
    other = read_bundle(bundle_of(3)).artifact_path.read_bytes()
    add_engine(machine, bundle, model=other)
    assert refusal(lambda: session_of(bundle, explain=False), BundleError) == (
        f"{path} takes (3, 64, 64, 3), the manifest says (1, 64, 64, 3)"
    )
    # Refused before TensorRT takes memory to run it.
    assert "create_execution_context" not in [name for name, _ in machine.cudart.calls]


# Wrong input.


def test_images_of_another_shape_or_type_are_refused_in_one_line(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path]
) -> None:
    bundle = bundle_of(3)
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False)
    images = pictures(3)
    for message, wrong in {
        "images are float32, the engine takes uint8": images.astype(np.float32),
        "images are int8, the engine takes uint8": images.view(np.int8),
        "a batch of 4 is over the static batch of 3: give 3 at a time, or export with --batch 4": (
            pictures(4)
        ),
        "images are (2, 64, 64, 3), expected (3, 64, 64, 3)": images[:2],
        "images are (64, 64, 3), expected (3, 64, 64, 3)": images[0],
        "images are (3, 3, 64, 64), expected (3, 64, 64, 3)": images.transpose(0, 3, 1, 2),
        "images are (), expected (3, 64, 64, 3)": np.zeros((), np.uint8),
    }.items():
        machine.cudart.calls.clear()
        run = functools.partial(session.run, wrong)
        assert refusal(run, UsageError) == message
        assert machine.cudart.calls == []
        refusal(functools.partial(session.run_split, wrong), UsageError)
        assert machine.cudart.live["event"] == 0
    assert_same(session.run(images), expected_of(bundle, images, explain=False))
    session.close()


def test_images_need_not_be_contiguous(machine: FakeTensorrt, bundle: Path) -> None:
    add_engine(machine, bundle, explain=True)
    session = session_of(bundle)
    images = pictures(seed=6)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    views = (images[:, ::-1, ::-1], planes.transpose(0, 2, 3, 1), np.asfortranarray(images))
    for view in views:
        assert not view.flags.c_contiguous
        assert_same(session.run(view), expected_of(bundle, np.ascontiguousarray(view)))
    read_only = images.copy()
    read_only.flags.writeable = False
    assert_same(session.run(read_only), expected_of(bundle, images))
    session.close()


# Closing, several sessions and several threads.


def test_a_closed_session_refuses_to_run_and_closes_twice(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False)
    session.run(pictures())
    session.close()
    calls = calls_of(machine, session.close)
    assert calls == []
    for work in (
        lambda: session.run(pictures()),
        lambda: session.run_split(pictures()),
        lambda: session.run_at(4096),
    ):
        text = refusal(work, UsageError)
        assert text == "this session is closed: open the bundle again"
    assert_released(machine)


def test_a_session_that_is_dropped_gives_everything_back(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    classifier = Classifier.load(bundle, cuda_graph=True)
    size = classifier.bundle.manifest.model.preprocessing.image_size_px
    classifier.outputs(np.zeros((2, size, size, 3), dtype=np.uint8))
    assert machine.cudart.live
    del classifier
    assert_released(machine)


def test_what_uses_something_goes_before_it(machine: FakeTensorrt, bundle: Path) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False, cuda_graph=True)
    session.run(pictures())
    names = calls_of(machine, session.close)
    order = [name for name in dict.fromkeys(names) if name not in ("~runtime", "~engine")]
    assert order == [
        "cudaSetDevice",
        "cudaGraphExecDestroy",
        "~context",
        "cudaFree",
        "cudaFreeHost",
        "cudaStreamDestroy",
    ]


def test_events_are_made_on_the_sessions_device(machine: FakeTensorrt, bundle: Path) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False)
    names = calls_of(machine, lambda: session.run_split(pictures()))
    assert names[0] == "cudaSetDevice"
    session.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_two_sessions_take_turns(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path], cuda_graph: bool
) -> None:
    for batch in BATCHES:
        add_engine(machine, bundle_of(batch), explain=True)
    sessions = {batch: session_of(bundle_of(batch), cuda_graph=cuda_graph) for batch in BATCHES}
    for seed in range(4):
        for batch, session in sessions.items():
            images = pictures(batch, seed)
            assert_same(session.run(images), expected_of(bundle_of(batch), images))
    sessions[1].close()
    images = pictures(3, 9)
    assert_same(sessions[3].run(images), expected_of(bundle_of(3), images))
    sessions[3].close()


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_threads_get_their_own_outputs(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path], cuda_graph: bool, threads: int
) -> None:
    """Two threads have a session each; four share them."""
    for batch in BATCHES:
        add_engine(machine, bundle_of(batch), explain=True)
    sessions = {batch: session_of(bundle_of(batch), cuda_graph=cuda_graph) for batch in BATCHES}
    expected = {
        (batch, seed): expected_of(bundle_of(batch), pictures(batch, seed))
        for batch in BATCHES
        for seed in range(5)
    }

    def work(number: int) -> None:
        batch = BATCHES[number % 2]
        for turn in range(20):
            seed = (turn + number) % 5
            outputs = sessions[batch].run(pictures(batch, seed))
            assert_same(outputs, expected[batch, seed])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    for session in sessions.values():
        session.close()


def test_closing_waits_for_a_run_in_another_thread(machine: FakeTensorrt, bundle: Path) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False)
    expected = expected_of(bundle, pictures(), explain=False)

    def work(_: int) -> int:
        for turn in range(1000):
            try:
                outputs = session.run(pictures())
            except UsageError:
                return turn
            assert_same(outputs, expected)
        return 1000

    with ThreadPoolExecutor(3) as pool:
        turns = pool.map(work, range(3))
        session.run(pictures())
        session.close()
        assert max(turns) < 1000
    assert_released(machine)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_many_runs_take_no_more_than_one(
    machine: FakeTensorrt, bundle: Path, cuda_graph: bool
) -> None:
    add_engine(machine, bundle)
    session = session_of(bundle, explain=False, cuda_graph=cuda_graph)
    session.run(pictures())
    live, free, lines = machine.cudart.live, machine.cudart.free_bytes, len(session._log.lines)
    for _ in range(200):
        session.run(pictures())
    assert (machine.cudart.live, machine.cudart.free_bytes) == (live, free)
    assert len(session._log.lines) <= lines
    session.close()


# Which engines are loaded at all.


@pytest.mark.parametrize("damage", ["altered", "cut", "empty", "missing"])
@pytest.mark.parametrize("explain", [False, True])
def test_a_damaged_engine_never_reaches_tensorrt(
    machine: FakeTensorrt, bundle: Path, damage: str, explain: bool
) -> None:
    path = bundle / add_engine(machine, bundle, explain).path
    plan = path.read_bytes()
    path.write_bytes(
        {"altered": plan[:-1] + b"\0", "cut": plan[:1000], "empty": b"", "missing": b""}[damage]
    )
    if damage == "missing":
        path.unlink()
    text = refusal(lambda: session_of(bundle, explain), BundleError)
    command = f"gft-edge build {bundle}{' --explain' if explain else ''}"
    assert text == (
        f"{path} is missing: {command} makes it again"
        if damage == "missing"
        else f"{path} is not the engine the manifest describes (sha256 differs) and is not loaded: "
        f"{command} makes it again"
    )
    assert machine.plans == []
    result = CliRunner().invoke(main, ["verify", str(bundle)])
    assert result.exit_code == 1
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
        session = session_of(bundle, explain=False)
    session.close()
    assert machine.plans == [plan]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "Other GPU"}, "was built on Other GPU, this is Fake Orin"),
        (
            {"compute_capabilities": ("8.6",)},
            "was built for compute capability 8.6, this GPU has 8.7",
        ),
        ({"version": "10.3.0.26"}, "was built by tensorrt 10.3.0.26, here is 10.3.0"),
        ({"version": "10.13.0"}, "was built by tensorrt 10.13.0, here is 10.3.0"),
        ({"graph_sha256": "0" * 64}, "was built from another graph"),
        ({"platform": "linux-other"}, "was built on linux-other"),
        (
            {"flavor": "tensorrt-rtx", "version": "1.7"},
            "needs tensorrt-rtx 1.7, which is not installed here",
        ),
    ],
)
def test_an_engine_for_another_machine_never_reaches_tensorrt(
    machine: FakeTensorrt, bundle: Path, changes: dict[str, Any], reason: str
) -> None:
    add_engine(machine, bundle, **changes)
    text = refusal(lambda: session_of(bundle, explain=False), UsageError)
    assert text.startswith(f"no engine of {bundle} fits this machine (")
    assert f": here {reason}. Build one here: gft-edge build {bundle}" in text
    assert machine.plans == []


def test_only_a_version_compatible_engine_may_bring_its_own_code(
    machine: FakeTensorrt, bundle: Path
) -> None:
    portable = EngineSettings(version_compatible=True)
    add_engine(machine, bundle, settings=portable, version="10.0.1")
    session = session_of(bundle, explain=False)
    assert_same(session.run(pictures()), expected_of(bundle, pictures(), explain=False))
    session.close()
    # The same plan, recorded as an ordinary one.
    graph = read_bundle(bundle).artifact_path.read_bytes()
    add_engine(machine, bundle, plan=machine.plan_of(graph, portable=True))
    text = refusal(lambda: session_of(bundle, explain=False), BundleError)
    assert "engine host code is not allowed" in text
    assert machine.host_code_allowed == [True, False]


def test_the_fastest_precision_is_found_among_engines(
    machine: FakeTensorrt,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    calm_run: Path,
    micro_pictures: Path,
) -> None:
    """Each candidate gets its engine before it is timed."""
    built = []

    def build_engine(folder: Path, **_: Any) -> None:
        built.append(add_engine(machine, folder))

    def engine_medians_ms(bundles: dict[str, Path]) -> dict[str, float]:
        """Each is measured in another process, which no stand-in reaches: here it is loaded."""
        for folder in bundles.values():
            with Classifier.load(folder) as classifier:
                assert "STRONGLY_TYPED" in classifier.session.flags()
        return dict(zip(bundles, (2.0, 1.0), strict=True))

    monkeypatch.setattr(auto, "build_engine", build_engine)
    monkeypatch.setattr(auto, "engine_medians_ms", engine_medians_ms)
    spec, model = load_run(calm_run)
    images = draw_image_set(read_split(micro_pictures, "val", spec.labels), count=24, seed=0)
    bundle = auto.export_fastest(model, spec, images, ExportRequest("trt"), tmp_path / "auto")
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
    subject = Subject(
        {
            "bundle": str(bundle),
            "backend": None,
            "threads": None,
            "cuda_graph": True,
            "hint": "latency",
            "images": [],
            "golden": str(bundle),
        }
    )
    assert "cuda_graph=True" in subject.opened()["flags"]
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


def test_layers_are_timed_without_replaying_a_graph(machine: FakeTensorrt, bundle: Path) -> None:
    add_engine(machine, bundle)
    opened = read_bundle(bundle)
    manifest = opened.manifest
    request = dataclasses.replace(
        open_request(manifest.model, manifest.input, "typed"),
        graph_sha256=manifest.artifact.sha256,
        engines=manifest.engines,
        cuda_graph=True,
    )
    machine.cudart.calls.clear()
    run = trt.layer_times(opened.artifact_path, request, pictures(), 3, list)
    assert "cudaStreamBeginCapture" not in {name for name, _ in machine.cudart.calls}
    assert len(run.samples_ms) == 3
    assert [one.mean_ms for one in run.layers] == pytest.approx([LAYER_MS] * len(run.layers))


def test_a_layer_that_the_profiler_alone_knows_is_timed_too() -> None:
    information = json.dumps({"Layers": [{"Name": "backbone.head/Gemm", "LayerType": "gemm"}]})
    times_ms = {"backbone.head/Gemm": 4.0, "backbone.blocks.0/Add": 2.0}
    known, alone = trt._layer_times(information, times_ms, 2)
    assert (known.nodes, known.mean_ms) == (("backbone.head/Gemm",), 2.0)
    assert (alone.nodes, alone.precision, alone.mean_ms) == (
        ("backbone.blocks.0/Add",), "unknown", 1.0,
    )  # fmt: skip


def test_without_a_gpu_no_layer_is_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> Any:
        raise UsageError("no NVIDIA GPU answers")

    monkeypatch.setattr(trt, "open_cuda", no_gpu)
    message = refusal(lambda: layer_profile(bundle, runs=1), UsageError)
    assert message.startswith("no NVIDIA GPU answers. ONNX Runtime runs the graph on a CPU")


def test_an_explanation_shows_the_kept_patches_alone_and_says_what_builds_their_engine(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    subject = BundleSubject(read_bundle(bundle))
    scores = (
        "importance and attention: engines of TensorRT return kept patches alone; --backend onnx "
        "shows the rest"
    )
    assert subject.unavailable[1:] == (scores,)
    assert "kept patches: " in subject.unavailable[0]
    assert "gft-edge build" in subject.unavailable[0]
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
    manifest = opened.manifest
    request = open_request(manifest.model, manifest.input, "typed")
    request = dataclasses.replace(request, score_outputs=manifest.score_outputs)
    with pytest.raises(UsageError, match="engines of TensorRT return kept patches and no scores"):
        trt.open_session(opened.artifact_path, request)
