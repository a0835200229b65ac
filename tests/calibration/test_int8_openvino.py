"""INT8 by NNCF for OpenVINO: the asked layers and no other, by every method."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import openvino
import pytest

from gft_edge.calibration.int8_openvino import METHODS, quantize_openvino
from gft_edge.errors import PipelineError
from gft_edge.export.graph import finish, kept_names
from gft_edge.runtime.signal_stack import _Stack
from tests.calibration.graphs import (
    UNKNOWN,
    Exported,
    Pixels,
    cosine,
    logits_of,
    quantized,
)
from tests.support.refusals import refusal_of

HIGH = ("backbone.blocks.0.mlp.fc2", "layers.1.attn.qkv")


@pytest.fixture(scope="session")
def for_openvino(in_fp32: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`logits` alone as output, two images at a time; kept_1 and kept_2 are tensors inside."""
    path = tmp_path_factory.mktemp("openvino") / "float.onnx"
    onnx.save(finish(onnx.load(in_fp32.path), {}, kept_names(in_fp32.spec)), path)
    return path


@pytest.fixture(scope="session")
def some_int8(
    for_openvino: Path, in_fp32: Exported, pixels: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> openvino.Model:
    """All layers but HIGH in INT8."""
    path = tmp_path_factory.mktemp("openvino") / "int8.xml"
    layers = [name for name in in_fp32.layers if name not in HIGH]
    before = signal_stack()
    quantize_openvino(for_openvino, path, pixels[:8], 2, layers, None)
    assert signal_stack() == before, "the next Ctrl-C would be a crash"
    return openvino.Core().read_model(path)


def signal_stack() -> tuple[int | None, int]:
    """Where this thread's signal handlers run, and the size there."""
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.ss_sp, stack.ss_size


def producers(node: openvino.Node) -> list[openvino.Node]:
    return [value.get_source_output().get_node() for value in node.inputs()]


def layer_of(node: openvino.Node) -> str:
    return str(node.get_friendly_name()).removesuffix("/WithoutBiases").rpartition("/")[0]


# What NNCF may move a FakeQuantize above, since it changes no value.
MOVES = ("Transpose", "Reshape")


@pytest.mark.slow
def test_openvino_quantizes_the_asked_layers_and_no_other(
    some_int8: openvino.Model, in_fp32: Exported
) -> None:
    reached, found = set(), set()
    for operation in some_int8.get_ordered_ops():
        if operation.get_type_name() == "FakeQuantize":
            readers = [operation]
            while any(reader.get_type_name() in ("FakeQuantize", *MOVES) for reader in readers):
                readers = [
                    value.get_node()
                    for reader in readers
                    for value in reader.output(0).get_target_inputs()
                ]
            for reader in readers:
                assert reader.get_type_name() in ("MatMul", "Convolution"), reader
                reached.add(layer_of(reader))
        if operation.get_type_name() in ("MatMul", "Convolution"):
            weight = producers(operation)[1]
            names = {weight.get_friendly_name(), *map(str, producers(weight))}
            if any("fq_weights" in name for name in names):
                found.add(layer_of(operation))
    assert reached == found == set(in_fp32.layers) - set(HIGH)


@pytest.mark.slow
def test_openvino_computes_the_scores_in_high_precision(
    some_int8: openvino.Model, in_fp32: Exported
) -> None:
    top_ks = [op for op in some_int8.get_ordered_ops() if op.get_type_name() == "TopK"]
    assert len(top_ks) == 2
    for top_k in top_ks:
        waiting, reached, seen = [producers(top_k)[0]], set(), set()
        while waiting:
            node = waiting.pop()
            if node.get_friendly_name() in seen:
                continue
            seen.add(node.get_friendly_name())
            assert node.get_type_name() != "FakeQuantize"
            if layer_of(node) in in_fp32.layers:
                reached.add(layer_of(node))
                continue
            waiting += producers(node)
        assert len(reached) == 1
        assert reached.pop().endswith("attn.qkv")


@pytest.mark.slow
def test_openvino_keeps_the_kept_patches_and_the_batch(some_int8: openvino.Model) -> None:
    names = {
        name
        for operation in some_int8.get_ordered_ops()
        for value in operation.outputs()
        for name in value.get_names()
    }
    assert {"images", "logits", "kept_1", "kept_2"} <= names
    assert [list(value.get_shape()) for value in some_int8.inputs] == [[2, 48, 48, 3]]
    assert [list(value.get_shape()) for value in some_int8.outputs] == [[2, 3]]


def in_openvino(model: openvino.Model, pixels: Pixels) -> npt.NDArray[np.float32]:
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", exact)
    parts = [compiled(pixels[start : start + 2])[0] for start in range(0, len(pixels), 2)]
    return np.concatenate(parts)


@pytest.mark.slow
def test_openvino_in_int8_answers_nearly_as_the_float_graph(
    some_int8: openvino.Model, for_openvino: Path, pixels: Pixels
) -> None:
    ours, theirs = logits_of(for_openvino, pixels, 2), in_openvino(some_int8, pixels)
    assert cosine(ours, theirs) > 0.9
    assert np.abs(ours - theirs).max() > 1e-4, "nothing was rounded"


@pytest.mark.slow
def test_openvino_names_what_cannot_be_quantized(in_fp32: Exported, tmp_path: Path) -> None:
    def work(source: Path, layers: list[str]) -> None:
        quantize_openvino(source, tmp_path / "x", np.zeros(0, np.uint8), 1, layers, None)

    quantized(in_fp32, tmp_path, in_fp32.layers[:2])
    again = functools.partial(work, tmp_path / "int8.onnx", in_fp32.layers)
    refusal_of(PipelineError, again, "quantized already", "FP32")
    refusal_of(PipelineError, lambda: work(in_fp32.path, [*in_fp32.layers, UNKNOWN]), UNKNOWN)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "smooth_quant", "images"),
    # The last has fewer images than a batch.
    [("minmax", 0.95, 4), ("percentile", None, 4), ("mse", 0.5, 4), ("minmax", None, 1)],
)
def test_every_method_and_smoothing_runs_in_openvino(
    method: str, smooth_quant: float | None, images: int, for_openvino: Path, in_fp32: Exported,
    pixels: Pixels, tmp_path: Path,
) -> None:  # fmt: skip
    assert method in METHODS
    path, layers = tmp_path / "int8.xml", in_fp32.layers[:5]
    quantize_openvino(for_openvino, path, pixels[:images], 2, layers, smooth_quant, method)
    model = openvino.Core().read_model(path)
    kinds = [operation.get_type_name() for operation in model.get_ordered_ops()]
    assert kinds.count("FakeQuantize") == 5
    # Strong smoothing on four images, and one image: less close than the whole.
    assert cosine(logits_of(for_openvino, pixels, 2), in_openvino(model, pixels)) > 0.8
