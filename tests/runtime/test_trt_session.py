"""A TensorRT session gives what ONNX Runtime gives, by the calls that it should make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gft_edge.errors import CudaError, FailedError, UsageError
from gft_edge.runtime.classifier import Classifier
from tests.support.bundles import session_of
from tests.support.refusals import refusal_of
from tests.support.trt import (
    add_engine,
    assert_released,
    assert_same,
    calls_of,
    expected_of,
    pictures,
)

if TYPE_CHECKING:
    from tests.support.fake_tensorrt import FakeTensorrt

BATCHES = (1, 3)
SIZE_PX = 64

# What comes out.


@pytest.mark.parametrize(("batch", "explain"), [(1, True), (3, True), (1, False)])
@pytest.mark.parametrize("integrated", [False, True])
def test_every_way_to_run_gives_what_onnx_runtime_gives(
    machine: FakeTensorrt,
    opened: Callable[..., Any],
    bundle_of: Callable[[int], Path],
    batch: int,
    explain: bool,
    integrated: bool,
) -> None:
    """Plainly and replaying a CUDA graph, whole and split, with and without kept patches."""
    machine.cudart.integrated = integrated
    sessions = [opened(batch, explain, cuda_graph) for cuda_graph in (False, True)]
    seen = set()
    for seed in range(3):
        images = pictures(batch, seed)
        expected = expected_of(bundle_of(batch), images, explain)
        assert [output.shape for output in expected] == [
            (batch, 4), *([(batch, 48), (batch, 32), (batch, 16)] if explain else []),
        ]  # fmt: skip
        for session in sessions:
            assert_same(session.run(images), expected)
            outputs, split = session.run_split(images)
            assert_same(outputs, expected)
            assert min(split.host_to_device_ms, split.device_to_host_ms) >= 0
            assert split.compute_ms > 0
        seen.add(expected[0].tobytes())
    assert len(seen) == 3
    assert machine.cudart.live["event"] == 0


def test_outputs_stay_as_they_were_after_further_runs(opened: Callable[..., Any]) -> None:
    session = opened()
    first = session.run(pictures(seed=0))
    copies = [output.copy() for output in first]
    session.run(pictures(seed=1))
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


# How it gets there.


def test_images_go_in_the_engine_runs_and_outputs_come_back(
    machine: FakeTensorrt, opened: Callable[..., Any]
) -> None:
    session = opened(3)
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
    machine: FakeTensorrt, opened: Callable[..., Any]
) -> None:
    session = opened(cuda_graph=True)
    first = calls_of(machine, lambda: session.run(pictures()))
    waiting = ["cudaStreamSynchronize"]
    assert first == ["cudaSetDevice", *COPY_IN, *CAPTURING, *COPIES_OUT, *waiting]
    for _ in range(3):
        again = calls_of(machine, lambda: session.run(pictures()))
        assert again == ["cudaSetDevice", *COPY_IN, "cudaGraphLaunch", *COPIES_OUT, *waiting]
    assert machine.cudart.live["executable"] == 1
    assert machine.cudart.live["graph"] == 0


def test_a_capture_that_fails_leaks_nothing_and_the_next_run_tries_again(
    machine: FakeTensorrt, bundle: Path, opened: Callable[..., Any]
) -> None:
    session = opened(cuda_graph=True)
    resting = machine.cudart.live
    for name, code in (
        ("cudaStreamBeginCapture", 900),
        ("cudaStreamEndCapture", 901),
        ("cudaGraphInstantiate", 2),
    ):
        machine.cudart.fail(name, code)
        for _ in range(3):
            refusal_of(CudaError, lambda: session.run(pictures()), name)
            assert machine.cudart.live == resting
        machine.cudart.fail(name, 0)
    machine.refuse_in_capture = "Error Code 1: a loop that no capture takes"
    refusal_of(FailedError, lambda: session.run(pictures()), machine.refuse_in_capture)
    assert machine.cudart.live == resting
    machine.refuse_in_capture = None
    assert_same(session.run(pictures(seed=5)), expected_of(bundle, pictures(seed=5)))
    assert calls_of(machine, lambda: session.run(pictures())).count("cudaGraphLaunch") == 1


# Several sessions and several threads.


def test_sessions_take_turns_and_threads_get_their_own_outputs(
    opened: Callable[..., Any], bundle_of: Callable[[int], Path]
) -> None:
    """One session launches, the other replays a graph; four threads share the two."""
    sessions = {batch: opened(batch, cuda_graph=batch == 3) for batch in BATCHES}
    expected = {
        (batch, seed): expected_of(bundle_of(batch), pictures(batch, seed))
        for seed in range(5)
        for batch in BATCHES
    }
    for (batch, seed), wanted in expected.items():
        assert_same(sessions[batch].run(pictures(batch, seed)), wanted)

    def work(number: int) -> None:
        batch = BATCHES[number % 2]
        for turn in range(20):
            seed = (turn + number) % 5
            outputs = sessions[batch].run(pictures(batch, seed))
            assert_same(outputs, expected[batch, seed])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    sessions[1].close()
    assert_same(sessions[3].run(pictures(3, 4)), expected[3, 4])


def test_closing_waits_for_a_run_in_another_thread(
    machine: FakeTensorrt, bundle: Path, opened: Callable[..., Any]
) -> None:
    session = opened(explain=False)
    expected = expected_of(bundle, pictures(), explain=False)
    # On any machine the session is closed long before the last.
    most = 100_000

    def work(_: int) -> int:
        for turn in range(most):
            try:
                outputs = session.run(pictures())
            except UsageError:
                return turn
            assert_same(outputs, expected)
        return most

    with ThreadPoolExecutor(3) as pool:
        turns = pool.map(work, range(3))
        session.run(pictures())
        session.close()
        assert max(turns) < most
    assert_released(machine)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_many_runs_take_no_more_than_one(
    machine: FakeTensorrt, opened: Callable[..., Any], cuda_graph: bool
) -> None:
    session = opened(explain=False, cuda_graph=cuda_graph)
    session.run(pictures())
    live, free, lines = machine.cudart.live, machine.cudart.free_bytes, len(session._log.lines)
    for _ in range(100):
        session.run(pictures())
    assert (machine.cudart.live, machine.cudart.free_bytes) == (live, free)
    assert len(session._log.lines) <= lines
