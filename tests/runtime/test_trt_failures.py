"""What fails in a TensorRT session is told in one line, and nothing that it held is left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.store import read_bundle
from gft_edge.errors import BundleError, CudaError, FailedError, UsageError
from gft_edge.nvidia.cudart import FUNCTIONS
from gft_edge.runtime.classifier import Classifier
from tests.support.bundles import session_of
from tests.support.refusals import refusal_of
from tests.support.trt import (
    DESCRIBING,
    add_engine,
    assert_released,
    assert_same,
    calls_of,
    expected_of,
    pictures,
)

if TYPE_CHECKING:
    from tests.support.fake_tensorrt import FakeTensorrt

OPEN, RUN, SPLIT = "open", "run", "run_split"
# A call that destroys can only tell of an earlier failure, and a version is for messages.
TELLING = {
    name for name in FUNCTIONS if not any(word in name for word in ("Destroy", "Free", "Version"))
} - DESCRIBING
# (scenario, cuda_graph, integrated, lasting): each value of each by default, all combinations slow.
QUICK = {
    (OPEN, False, False, False),
    (RUN, True, False, True),
    (SPLIT, False, True, True),
}
SCENARIOS = [
    pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
    for scenario in (OPEN, RUN, SPLIT)
    for cuda_graph in (False, True)
    for integrated in (False, True)
    for lasting in (False, True)
    if not (scenario == OPEN and cuda_graph)
    for each in [(scenario, cuda_graph, integrated, lasting)]
]


@pytest.mark.parametrize(("scenario", "cuda_graph", "integrated", "lasting"), SCENARIOS)
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
    opened = read_bundle(bundle)
    images = pictures(seed=4)
    expected = expected_of(bundle, images)

    def session_and_work() -> tuple[Any, Callable[[], Any]]:
        if scenario == OPEN:
            return None, lambda: session_of(opened)
        session = session_of(opened, cuda_graph=cuda_graph)
        return session, lambda: getattr(session, scenario)(images)

    def calls_made() -> int:
        session, work = session_and_work()
        start = len(cudart.calls)
        made = work()
        count = len(cudart.calls) - start
        (session or made).close()
        return count

    def attempt(fail_at: int) -> None:
        session, work = session_and_work()
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
        # Left behind, it would be blamed on the next library that asks.
        assert cudart.last_error == 0
        if name in TELLING:
            assert text.startswith(f"{name} failed: cudaErrorLaunchFailure (719)")
            assert "the fake's words for 719" in text
        elif not lasting:
            assert not text
        if session is None and not text:
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
    machine: FakeTensorrt, opened: Callable[..., Any]
) -> None:
    session = opened(cuda_graph=True)
    session.run(pictures())
    for name in FUNCTIONS:
        if name not in DESCRIBING:
            machine.cudart.fail(name, 719)
    refusal_of(CudaError, lambda: session.run(pictures()))
    session.close()
    assert_released(machine)


def test_an_engine_that_does_not_load_is_named_with_the_command_that_builds_it(
    machine: FakeTensorrt, bundle: Path
) -> None:
    engine = add_engine(machine, bundle)
    add_engine(machine, bundle, explain=True)
    reason = "Error Code 1: magicTag does not match"
    machine.refuse("deserialize_cuda_engine", reason)
    line = refusal_of(
        BundleError, lambda: session_of(bundle, kept=False), str(bundle / engine.path), reason
    )
    assert line.endswith(f"gft-edge build {quote(str(bundle))} --fresh")
    line = refusal_of(BundleError, lambda: session_of(bundle))
    assert line.endswith(f"gft-edge build {quote(str(bundle))} --explain --fresh")


@pytest.mark.parametrize("name", ["deserialize_cuda_engine", "create_execution_context"])
def test_an_engine_that_the_gpu_has_no_memory_for_says_how_much_is_free(
    machine: FakeTensorrt, bundle: Path, name: str
) -> None:
    engine = add_engine(machine, bundle)
    words = [str(bundle / engine.path), "40 of 1024 MiB", "out of memory", "--batch"]
    if name == "deserialize_cuda_engine":
        machine.refuse(name, "Error Code 1: Cuda Runtime (out of memory)")
    else:
        words.append("64 MiB")
    machine.cudart.free_bytes = 40 << 20
    refusal_of(FailedError, lambda: session_of(bundle, kept=False), *words)
    machine.cudart.free_bytes = machine.cudart.total_bytes


def test_what_tensorrt_refuses_is_told_with_its_reason(machine: FakeTensorrt, bundle: Path) -> None:
    """No driver of its own, an address that it does not take, and the reason of this very run."""
    add_engine(machine, bundle)

    def opened() -> Any:
        return session_of(bundle, kept=False)

    machine.refuse("Runtime", "CUDA initialization failure with error: 35")
    refusal_of(UsageError, opened, "tensorrt 10.3.0", "CUDA initialization failure")
    machine.refused.clear()
    machine.refuse("set_tensor_address")
    refusal_of(FailedError, opened, "images")
    machine.refused.clear()
    session = opened()
    for reason in ("Error Code 1: first", "Error Code 2: second"):
        machine.refuse("execute_async_v3", reason)
        assert refusal_of(FailedError, lambda: session.run(pictures())).endswith(reason)
        machine.refused.clear()
        session.run(pictures())
    session.close()


def test_an_engine_with_other_tensors_or_another_shape_is_refused(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path]
) -> None:
    bundle = bundle_of(1)
    kept = read_bundle(bundle).manifest.kept_outputs[0]
    graph = read_bundle(bundle).artifact_path.read_bytes()
    other = read_bundle(bundle_of(3)).artifact_path.read_bytes()
    for model, explain, words in (
        (graph + graph_output(kept), False, (f"images, logits, {kept}",)),
        (graph, True, ("images, logits",)),
        (other, False, ("(3, 64, 64, 3)", "(1, 64, 64, 3)")),
    ):
        path = str(bundle / add_engine(machine, bundle, explain, model=model).path)
        opening = functools.partial(session_of, bundle, explain)
        refusal_of(BundleError, opening, path, *words)
    # Refused before TensorRT takes memory to run it.
    assert "create_execution_context" not in [name for name, _ in machine.cudart.calls]


# Wrong input.


def test_images_of_another_shape_or_type_are_refused_in_one_line(
    machine: FakeTensorrt, bundle_of: Callable[[int], Path], opened: Callable[..., Any]
) -> None:
    session = opened(3, explain=False)
    images, wanted = pictures(3), "(3, 64, 64, 3)"
    for wrong, *words in (
        (images.astype(np.float32), "float32", "uint8"),
        (images.view(np.int8), "int8", "uint8"),
        (pictures(4), "batch of 4", "batch of 3", "--batch 4"),
        (images[:2], "(2, 64, 64, 3)", wanted),
        (images[0], "(64, 64, 3)", wanted),
        (images.transpose(0, 3, 1, 2), "(3, 3, 64, 64)", wanted),
        (np.zeros((), np.uint8), "()", wanted),
    ):
        machine.cudart.calls.clear()
        refusal_of(UsageError, functools.partial(session.run, wrong), *words)
        assert machine.cudart.calls == []
        refusal_of(UsageError, functools.partial(session.run_split, wrong))
        assert machine.cudart.live["event"] == 0
    assert_same(session.run(images), expected_of(bundle_of(3), images, explain=False))


def test_images_need_not_be_contiguous(bundle: Path, opened: Callable[..., Any]) -> None:
    session = opened()
    images = pictures(seed=6)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    views = (images[:, ::-1, ::-1], planes.transpose(0, 2, 3, 1), np.asfortranarray(images))
    for view in views:
        assert not view.flags.c_contiguous
        assert_same(session.run(view), expected_of(bundle, np.ascontiguousarray(view)))
    read_only = images.copy()
    read_only.flags.writeable = False
    assert_same(session.run(read_only), expected_of(bundle, images))


# Closing.


def test_a_closed_session_refuses_to_run_and_closes_twice(
    machine: FakeTensorrt, opened: Callable[..., Any]
) -> None:
    session = opened(explain=False)
    session.run(pictures())
    session.close()
    assert calls_of(machine, session.close) == []
    for work in (session.run, session.run_split):
        refusal_of(UsageError, functools.partial(work, pictures()), "closed")
    assert_released(machine)


def test_a_session_that_is_dropped_gives_everything_back(
    machine: FakeTensorrt, bundle: Path
) -> None:
    add_engine(machine, bundle)
    classifier = Classifier.load(bundle, cuda_graph=True)
    classifier.outputs(pictures(2))
    assert machine.cudart.live
    del classifier
    assert_released(machine)


def test_what_uses_something_goes_before_it(
    machine: FakeTensorrt, opened: Callable[..., Any]
) -> None:
    session = opened(explain=False, cuda_graph=True)
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
