"""Every engine keeps the same contract, and all give the same numbers for the same network."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.store import read_bundle
from gft_edge.errors import BundleError, UsageError
from gft_edge.runtime.backends import ALIASES, OpenRequest, Session, backend_for, backends, ov
from gft_edge.runtime.golden import read_golden
from tests.support.bundles import session_of
from tests.support.refusals import refusal_of

ENGINES = sorted(backends())


@pytest.fixture(scope="module")
def sessions(micro_bundles: dict[str, Path]) -> dict[str, Session]:
    """One open session of each target, for tests that do not close it."""
    return {target: session_of(folder, threads=1) for target, folder in micro_bundles.items()}


@pytest.fixture
def pixels(micro_bundles: dict[str, Path]) -> npt.NDArray[np.uint8]:
    """The golden images, uint8 (8,64,64,3)."""
    return read_golden(read_bundle(micro_bundles["onnx"]))[0]


def test_an_engine_is_found_by_its_file_and_answers_to_its_other_names() -> None:
    assert {"onnx", "openvino", "tensorrt"} <= set(ENGINES)
    for alias, target in ALIASES.items():
        assert backend_for(alias) is backend_for(target)
    assert {"ort", "ov", "trt"} <= set(ALIASES)
    refusal_of(UsageError, lambda: backend_for("tpu"), "'tpu'", "onnx, openvino, tensorrt")


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_engine_that_is_here_says_its_version(target: str) -> None:
    backend = backend_for(target)
    assert backend.missing() is None
    assert any(character.isdigit() for character in backend.version())
    assert "fp32" in backend.PRECISIONS
    assert backend.runtime_precision("fp32") in ("f32", "typed")


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_session_returns_logits_and_then_the_kept_patches_of_each_stage(
    target: str, sessions: dict[str, Session], pixels: npt.NDArray[np.uint8]
) -> None:
    logits, *kept = sessions[target].run(pixels[:1])
    assert logits.shape == (1, 4)
    assert logits.dtype == np.float32
    assert [stage.shape for stage in kept] == [(1, 48), (1, 32), (1, 16)]
    for stage, before in zip(kept, (64, 48, 32), strict=True):
        assert stage.dtype == np.int64
        assert (np.diff(stage) > 0).all(), "kept patches stay in grid order"
        assert stage.min() >= 0
        assert stage.max() < before


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_without_kept_outputs_a_session_returns_the_logits_alone(
    target: str,
    micro_bundles: dict[str, Path],
    sessions: dict[str, Session],
    pixels: npt.NDArray[np.uint8],
) -> None:
    (logits,) = session_of(micro_bundles[target], kept=False, threads=1).run(pixels[:1])
    np.testing.assert_allclose(logits, sessions[target].run(pixels[:1])[0], atol=1e-5)


def test_the_engines_agree_with_each_other(
    sessions: dict[str, Session], pixels: npt.NDArray[np.uint8]
) -> None:
    decisions = set()
    for image in pixels[:, None]:
        ours, theirs = sessions["onnx"].run(image), sessions["openvino"].run(image)
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_array_equal(a, b)
        decisions.add(int(ours[0].argmax()))
    assert len(decisions) > 1, "images that all look alike would agree under any error"


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (1, 32, 32, 3), (1, 3, 64, 64), (64, 64, 3)])
def test_images_of_another_shape_are_refused(
    target: str, shape: tuple[int, ...], sessions: dict[str, Session]
) -> None:
    word = "batch of 2" if shape[0] == 2 else str(shape)
    refusal_of(UsageError, lambda: sessions[target].run(np.zeros(shape, np.uint8)), word)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_closed_session_runs_no_more(
    target: str, micro_bundles: dict[str, Path], pixels: npt.NDArray[np.uint8]
) -> None:
    session = session_of(micro_bundles[target])
    session.close()
    for work in (
        partial(session.run, pixels[:1]),
        lambda: list(session.run_many(pixels[:2, None])),
        session.flags,
    ):
        refusal_of(UsageError, work, "closed")
    session.close()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("content", [b"", b"not a model\nat all", b"\x08\x07" * 50, None])
def test_a_file_that_is_no_model_is_refused_in_one_line(
    target: str, content: bytes | None, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """None stands for a truncated one."""
    bundle = read_bundle(shutil.copytree(micro_bundles[target], tmp_path / "bundle"))
    path = bundle.artifact_path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    refusal_of(BundleError, lambda: session_of(bundle), str(path))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    target: str, micro_bundles: dict[str, Path]
) -> None:
    path = read_bundle(micro_bundles[target]).artifact_path
    for request, *words in (
        (OpenRequest((1, 64, 64, 3), 4, "f32", 1, ("kept_9",)), str(path)),
        (OpenRequest((1, 96, 96, 3), 4, "f32", 1), "(1, 64, 64, 3)", "(1, 96, 96, 3)"),
        (OpenRequest((1, 64, 64, 3), 3, "f32", 1), "4 classes"),
    ):
        opening = partial(backend_for(target).open_session, path, request)
        refusal_of(BundleError, opening, *words)


def test_openvino_computes_in_f32_whatever_the_machine_offers(
    sessions: dict[str, Session],
) -> None:
    import openvino

    compiled: Any = cast(ov.OpenVinoSession, sessions["openvino"])._open().compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    executed = {
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul", "Softmax")
    }
    assert executed == {"f32"}


# Each length needs one byte more to write down: under 128, and over 16 383.
@pytest.mark.parametrize("length", [1, 6, 100, 130, 20_000])
def test_the_appended_bytes_are_those_the_onnx_package_writes(length: int) -> None:
    import onnx

    name = "k" * length
    value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
    expected = onnx.ModelProto(graph=onnx.GraphProto(output=[value])).SerializeToString()
    assert graph_output(name) == expected


def throughput_session(folder: Path) -> ov.OpenVinoSession:
    """Open two requests at once, where this machine has two cores."""
    session = session_of(folder, threads=min(os.cpu_count() or 1, 2), hint="throughput")
    return cast(ov.OpenVinoSession, session)


@pytest.fixture(scope="module")
def throughput(micro_bundles: dict[str, Path]) -> ov.OpenVinoSession:
    """One such session, for tests that do not close it."""
    return throughput_session(micro_bundles["openvino"])


def taken(images: npt.NDArray[np.uint8], log: list[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Batches of one; `log` gets the number of each when it is taken."""
    for number in range(len(images)):
        log.append(number)
        yield images[number : number + 1]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_many_batches_give_in_their_order_what_each_gives_alone(
    target: str, sessions: dict[str, Session], pixels: npt.NDArray[np.uint8]
) -> None:
    session = sessions[target]
    assert list(session.run_many([])) == []
    finished = list(session.run_many(taken(pixels, [])))
    assert len(finished) == len(pixels)
    for image, one in zip(pixels[:, None], finished, strict=True):
        assert one.latency_ms > 0
        for ours, alone in zip(one.outputs, session.run(image), strict=True):
            np.testing.assert_array_equal(ours, alone)


def test_several_batches_run_at_once_and_none_is_taken_before_the_engine_has_room(
    throughput: ov.OpenVinoSession, pixels: npt.NDArray[np.uint8]
) -> None:
    at_once = throughput._open().compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    assert at_once > 1 or os.cpu_count() == 1
    log: list[int] = []
    finished = throughput.run_many(taken(np.concatenate([pixels] * 8), log))
    assert log == []
    for number, _ in enumerate(itertools.islice(finished, 12)):
        # A request that is held up does not hold up the others at once.
        assert number < len(log) <= number + 4 * at_once + 1


def test_results_stay_what_they_were_when_their_request_runs_again(
    throughput: ov.OpenVinoSession, pixels: npt.NDArray[np.uint8]
) -> None:
    results = throughput.run_many(taken(np.concatenate([pixels] * 4), []))
    first = next(results).outputs
    copies = [output.copy() for output in first]
    list(results)
    for output, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_a_batch_array_may_be_filled_anew_while_its_image_runs(
    throughput: ov.OpenVinoSession, pixels: npt.NDArray[np.uint8]
) -> None:
    def one_buffer() -> Iterator[npt.NDArray[np.uint8]]:
        buffer = np.empty_like(pixels[:1])
        for image in pixels:
            buffer[0] = image
            yield buffer
            buffer[:] = 0

    for image, one in zip(pixels[:, None], throughput.run_many(one_buffer()), strict=True):
        np.testing.assert_allclose(one.outputs[0], throughput.run(image)[0], atol=1e-5)


def test_many_batches_left_midway_leave_nothing_running(
    micro_bundles: dict[str, Path], pixels: npt.NDArray[np.uint8]
) -> None:
    session = throughput_session(micro_bundles["openvino"])
    expected = session.run(pixels[7:])[0]

    def dropped() -> None:
        results = session.run_many(taken(pixels, []))
        next(results)

    def consume() -> None:
        for _ in session.run_many(taken(pixels, [])):
            raise KeyError

    def failing_consumer() -> None:
        with pytest.raises(KeyError):
            consume()

    def failing_producer() -> None:
        def batches() -> Iterator[npt.NDArray[np.uint8]]:
            yield from pixels[:4, None]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(session.run_many(batches()))

    def wrong_shape() -> None:
        wrong = session.run_many([*pixels[:4, None], pixels[:2]])
        refusal_of(UsageError, lambda: list(wrong), "batch of 2")

    for leave in (dropped, failing_consumer, failing_producer, wrong_shape):
        leave()
        (queue,) = session._open().idle_queues
        assert all(request.wait_for(0) for request in queue)
        again = list(session.run_many(taken(pixels, [])))
        np.testing.assert_allclose(again[7].outputs[0], expected, atol=1e-5)
    session.close()


def test_two_iterators_of_one_session_do_not_mix(
    throughput: ov.OpenVinoSession, pixels: npt.NDArray[np.uint8]
) -> None:
    forward, backward = (
        throughput.run_many(taken(order, [])) for order in (pixels, pixels[::-1].copy())
    )
    pairs = list(zip(forward, backward, strict=True))
    for (ours, _), (_, theirs) in zip(pairs, reversed(pairs), strict=True):
        np.testing.assert_allclose(ours.outputs[0], theirs.outputs[0], atol=1e-5)


def test_a_session_closed_under_an_iterator_runs_no_more(
    micro_bundles: dict[str, Path], pixels: npt.NDArray[np.uint8]
) -> None:
    session = throughput_session(micro_bundles["openvino"])
    results = session.run_many(taken(pixels, []))
    next(results)
    session.close()
    refusal_of(UsageError, lambda: list(results), "closed")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are looked at on Linux alone")
@pytest.mark.parametrize("target", ENGINES)
def test_sessions_that_go_in_the_order_they_came_leave_signals_to_be_handled(
    target: str, micro_bundles: dict[str, Path]
) -> None:
    """OpenVINO's own bookkeeping left the stack of signal handlers unmapped, and a Ctrl-C a crash."""
    if target not in micro_bundles:
        pytest.skip(f"no session of {target} opens on this machine")
    code = """
import signal, subprocess, sys
from gft_edge.runtime.classifier import Classifier
signal.signal(signal.SIGCHLD, lambda *given: print("handled", flush=True))
first, second = (Classifier.load(sys.argv[1], cache_dir=None) for _ in range(2))
first.close()
del first
second.close()
del second
subprocess.run([sys.executable, "-c", ""])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, micro_bundles[target]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("handled\n")
