"""INT8 graphs of small networks: what is quantized, by which scales, and that nothing else is."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper

from gft_edge.bundle.specs import GalaMode, InputSpec, ModelSpec, Score
from gft_edge.calibration.int8_onnx import quantize_onnx, weighted_nodes
from gft_edge.calibration.int8_openvino import METHODS, quantize_openvino
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.errors import PipelineError
from gft_edge.export.fp16 import half
from gft_edge.export.graph import finish, kept_names, simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.model.gft import GFT
from gft_edge.runtime.preprocess import batch_from_pixels
from gft_edge.runtime.signal_stack import _Stack
from tests.support.networks import wide_network
from tests.support.pictures import smooth_pixels
from tests.support.refusals import refusal_of

EMBEDDING = "backbone.patch_embed.proj"
FC1 = "backbone.blocks.1.mlp.fc1"
TINIEST = float(np.finfo(np.float16).tiny)

Pixels = npt.NDArray[np.uint8]

# Name -> stages, GALA mode, score, whether it is in FP16, batch.
CONFIGURATIONS: dict[str, tuple[str, GalaMode, Score, bool, int]] = {
    "fp32": ("1:20,2:10", "layer", "gala", False, 2),
    "fp16": ("0:20", "block", "class", True, 1),
}


@dataclasses.dataclass
class Exported:
    """A float graph, simplified, and what its layers read."""

    path: Path
    spec: ModelSpec
    model: GFT
    peaks: dict[str, float]
    dtype: Any
    batch: int

    @property
    def layers(self) -> list[str]:
        return list(self.peaks)


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    return smooth_pixels(16, 48)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, pixels: Pixels) -> dict[str, Exported]:
    """The float graphs of both configurations, of networks of two blocks."""
    found = {}
    for name, (stages, gala, score, halved, batch) in CONFIGURATIONS.items():
        folder = tmp_path_factory.mktemp(name)
        spec, model = wide_network(stages, gala, score, bias_spread=1 / 8, depth=2)
        network = half(model) if halved else model
        graph = onnx_from_torch(network, spec, InputSpec("uint8", batch), 20, centred=True)
        onnx.save(simplify(graph), folder / "float.onnx")
        normalised = torch.from_numpy(batch_from_pixels(pixels, spec.preprocessing, "float32"))
        peaks = activation_peaks(model, [normalised])
        dtype = np.float16 if halved else np.float32
        found[name] = Exported(folder / "float.onnx", spec, model, peaks, dtype, batch)
    return found


@pytest.fixture(scope="session", params=CONFIGURATIONS)
def exported(request: pytest.FixtureRequest, exports: dict[str, Exported]) -> Exported:
    return exports[request.param]


@pytest.fixture(scope="session")
def in_fp16(exports: dict[str, Exported]) -> Exported:
    return exports["fp16"]


@pytest.fixture(scope="session")
def in_fp32(exports: dict[str, Exported]) -> Exported:
    return exports["fp32"]


class Graph:
    """An ONNX graph by what writes each tensor."""

    def __init__(self, path: Path):
        self.model = onnx.load(path)
        onnx.checker.check_model(self.model, full_check=True)
        self.nodes = list(self.model.graph.node)
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer
        }
        self.writers = {name: node for node in self.nodes for name in node.output}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def dequantizer(self, node: onnx.NodeProto, number: int) -> onnx.NodeProto | None:
        """The DequantizeLinear that writes an input of a node, if one does."""
        writer = self.writers.get(node.input[number])
        return writer if writer is not None and writer.op_type == "DequantizeLinear" else None

    def read_by(self, node: onnx.NodeProto | None) -> list[npt.NDArray[Any]]:
        """The constants that a node reads, in order."""
        assert node is not None
        return [self.constants[name] for name in node.input if name in self.constants]

    def layer_nodes(self) -> dict[str, onnx.NodeProto]:
        """Layer -> its node: weights are constants, plain or dequantized."""
        found = {}
        for node in self.of("MatMul", "Gemm", "Conv"):
            writer = self.dequantizer(node, 1)
            if (node.input[1] if writer is None else writer.input[0]) in self.constants:
                found[node.name.rpartition("/")[0]] = node
        return found

    def quantized_layers(self) -> set[str]:
        return {name for name, node in self.layer_nodes().items() if self.dequantizer(node, 1)}


def quantized(
    exported: Exported, folder: Path, layers: Collection[str] | None = None, **changes: float
) -> Graph:
    chosen = exported.layers if layers is None else layers
    graph = onnx.load(exported.path)
    made = quantize_onnx(graph, {**exported.peaks, **changes}, chosen, EMBEDDING)
    onnx.save(made, folder / "int8.onnx")
    return Graph(folder / "int8.onnx")


@pytest.fixture(scope="session")
def all_int8(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return quantized(exported, tmp_path_factory.mktemp("int8"))


def test_every_layer_of_the_network_is_a_node_of_the_graph(exported: Exported) -> None:
    found = weighted_nodes(onnx.load(exported.path))
    assert set(found) - {"backbone.head"} == set(quantizable_layers(exported.model))


def test_the_asked_layers_are_quantized_and_no_other(
    exported: Exported, all_int8: Graph, tmp_path: Path
) -> None:
    assert all_int8.quantized_layers() == set(exported.layers)
    some = exported.layers[::3]
    graph = quantized(exported, tmp_path, some)
    assert graph.quantized_layers() == set(some)
    assert len(graph.of("QuantizeLinear")) == len(some)
    assert len(graph.of("DequantizeLinear")) == 2 * len(some)


def test_weights_are_int8_by_output_channel(exported: Exported, all_int8: Graph) -> None:
    nodes = all_int8.layer_nodes()
    for name, layer in quantizable_layers(exported.model).items():
        dequantize = all_int8.dequantizer(nodes[name], 1)
        assert dequantize is not None
        weight, scale, zero = all_int8.read_by(dequantize)
        axis = next(entry.i for entry in dequantize.attribute if entry.name == "axis")
        assert axis == (0 if nodes[name].op_type == "Conv" else 1)
        assert weight.dtype == zero.dtype == np.int8
        assert scale.shape == zero.shape == (layer.weight.shape[0],) == (weight.shape[axis],)
        # The largest of each channel is 127: no range is wasted.
        others = tuple(number for number in range(weight.ndim) if number != axis)
        assert np.abs(weight.astype(int)).max(axis=others).tolist() == [127] * len(scale)
        if name != EMBEDDING:
            exact = layer.weight.detach().numpy().T
            assert np.abs(weight * scale.astype(np.float32) - exact).max() <= scale.max() * 0.6


def test_scales_are_positive_in_the_graphs_own_dtype_and_zero_points_are_zero(
    exported: Exported, all_int8: Graph
) -> None:
    nodes = all_int8.of("QuantizeLinear", "DequantizeLinear")
    assert len(nodes) == 3 * len(exported.layers)
    for node in nodes:
        scale, zero = (all_int8.constants[name] for name in node.input[1:])
        assert scale.dtype == exported.dtype
        assert (scale >= np.finfo(exported.dtype).tiny).all()
        assert np.isfinite(scale).all()
        assert zero.dtype == np.int8
        assert not zero.any()


def test_what_a_layer_reads_is_scaled_by_its_peak(exported: Exported, all_int8: Graph) -> None:
    nodes = all_int8.layer_nodes()
    for name in exported.layers:
        dequantize = all_int8.dequantizer(nodes[name], 0)
        assert dequantize is not None
        quantize = all_int8.writers[dequantize.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert quantize.input[1] == dequantize.input[1]
        peak = 127 / 128 if name == EMBEDDING else exported.peaks[name]
        scale = float(all_int8.constants[quantize.input[1]])
        assert scale == pytest.approx(peak / 127, rel=1e-3)


def test_biases_residual_sums_and_outputs_stay_in_high_precision(
    exported: Exported, all_int8: Graph
) -> None:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in all_int8.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    read_by_layers = set()
    for quantize in all_int8.of("QuantizeLinear"):
        # Residual sums and products are written by these: they go on as they are.
        writer = all_int8.writers[quantize.input[0]]
        assert writer.op_type not in ("Add", "MatMul", "Gemm", "Conv", "Softmax")
        (dequantize,) = readers[quantize.output[0]]
        (layer,) = readers[dequantize.output[0]]
        read_by_layers.add(layer.name.rpartition("/")[0])
    assert read_by_layers == set(exported.layers)
    for dequantize in all_int8.of("DequantizeLinear"):
        constant = all_int8.constants.get(dequantize.input[0])
        if constant is not None:
            assert constant.dtype == np.int8, "an int32 bias"
            assert constant.ndim >= 2
        for reader in readers[dequantize.output[0]]:
            assert reader.op_type in ("MatMul", "Conv")
    for value in all_int8.model.graph.output:
        writer = all_int8.writers[value.name]
        assert writer.op_type not in ("QuantizeLinear", "DequantizeLinear")


def test_the_scores_are_computed_in_high_precision_from_the_projection_to_the_top_k(
    exported: Exported, all_int8: Graph
) -> None:
    layers = {node.name for node in all_int8.layer_nodes().values()}
    top_ks = all_int8.of("TopK")
    assert len(top_ks) == len(exported.spec.stages)
    for top_k in top_ks:
        reached, waiting, seen = set(), [top_k.input[0]], set()
        while waiting:
            node = all_int8.writers.get(waiting.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            if node.name in layers:
                reached.add(node.name.rpartition("/")[0])
                continue
            assert node.op_type not in ("QuantizeLinear", "DequantizeLinear"), node.name
            waiting += node.input
        assert len(reached) == 1
        assert reached.pop().endswith("attn.qkv")


def test_the_products_of_attention_are_not_quantized(exported: Exported, all_int8: Graph) -> None:
    layers = {node.name for node in all_int8.layer_nodes().values()}
    products = [node for node in all_int8.of("MatMul") if node.name not in layers]
    assert len(products) == 2 * sum(name.endswith("attn.qkv") for name in exported.layers)
    for product in products:
        assert all_int8.dequantizer(product, 0) is all_int8.dequantizer(product, 1) is None


def test_every_grey_level_survives_the_patch_embeddings_int8(
    exported: Exported, all_int8: Graph
) -> None:
    dequantize = all_int8.dequantizer(all_int8.layer_nodes()[EMBEDDING], 0)
    scale, zero = all_int8.read_by(dequantize)
    assert scale == 1 / 128
    assert zero == 0
    read = (np.arange(256) / 128 - 1).astype(exported.dtype)
    levels = np.clip(np.rint(read / scale), -128, 127).astype(np.int8)
    assert len(set(levels.tolist())) == 256
    np.testing.assert_array_equal(levels.astype(exported.dtype) * scale, read)


def logits_of(path: Path, pixels: Pixels, batch: int) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = [
        session.run(["logits"], {"images": pixels[start : start + batch]})[0]
        for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(answers)


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Mean over images, of logits centred over them: what tells one image from another."""
    a, b = a - a.mean(axis=0), b - a.mean(axis=0)
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def test_the_int8_graph_answers_nearly_as_the_float_graph(
    exported: Exported, all_int8: Graph, pixels: Pixels, tmp_path: Path
) -> None:
    onnx.save(all_int8.model, tmp_path / "int8.onnx")
    ours = logits_of(exported.path, pixels, exported.batch)
    theirs = logits_of(tmp_path / "int8.onnx", pixels, exported.batch)
    assert theirs.dtype == np.float32
    assert cosine(ours, theirs) > 0.9
    assert np.abs(ours - theirs).max() > 1e-4, "nothing was rounded"


def test_a_graph_of_normalised_input_is_scaled_by_what_it_reads(
    in_fp16: Exported, tmp_path: Path
) -> None:
    made = quantize_onnx(onnx.load(in_fp16.path), in_fp16.peaks, [EMBEDDING], None)
    onnx.save(made, tmp_path / "int8.onnx")
    graph = Graph(tmp_path / "int8.onnx")
    (quantize,) = graph.of("QuantizeLinear")
    scale = float(graph.constants[quantize.input[1]])
    assert scale == pytest.approx(in_fp16.peaks[EMBEDDING] / 127, rel=1e-3)


def test_quantizing_is_the_same_each_time_holds_weights_once_and_leaves_logging_alone(
    in_fp32: Exported, tmp_path: Path
) -> None:
    level = logging.getLogger().level
    written = []
    for _ in range(2):
        quantized(in_fp32, tmp_path)
        written.append((tmp_path / "int8.onnx").read_bytes())
    assert written[0] == written[1]
    assert len(written[0]) < 0.45 * in_fp32.path.stat().st_size
    assert logging.getLogger().level == level


def test_half_casts_the_network_and_not_what_its_stages_rank_by() -> None:
    _, model = wide_network("0:20", depth=2)
    # No FP16 number.
    model.selections[0].kernel.data = torch.tensor([0.1, 0.7001, 0.2])
    halved = half(model)
    assert halved.backbone.blocks[0].mlp.fc1.weight.dtype == torch.float16
    assert torch.equal(halved.selections[0].kernel, model.selections[0].kernel)
    assert model.backbone.blocks[0].mlp.fc1.weight.dtype == torch.float32
    model.backbone.blocks[1].mlp.fc2.weight.data[0, 0] = 7e4
    refusal_of(PipelineError, lambda: half(model), "blocks.1.mlp.fc2.weight", "70000", "65504")


def test_what_cannot_be_quantized_is_named(in_fp32: Exported, tmp_path: Path) -> None:
    out, unknown = tmp_path / "x", "backbone.blocks.7.mlp.fc1"

    def onnx_int8(source: Path, layers: list[str]) -> None:
        quantize_onnx(onnx.load(source), in_fp32.peaks, layers, EMBEDDING)

    def openvino_int8(source: Path, layers: list[str]) -> None:
        quantize_openvino(source, out, np.zeros(0, np.uint8), 1, layers, None)

    quantized(in_fp32, tmp_path, in_fp32.layers[:2])
    for work in (onnx_int8, openvino_int8):
        again = functools.partial(work, tmp_path / "int8.onnx", in_fp32.layers)
        refusal_of(PipelineError, again, "quantized already", "FP32")
        more = functools.partial(work, in_fp32.path, [*in_fp32.layers, unknown])
        refusal_of(PipelineError, more, unknown)
    # ONNX Runtime would take an empty list for every node of the graph.
    refusal_of(PipelineError, lambda: onnx_int8(in_fp32.path, []), "no layer")
    assert not out.exists()


def with_channel(exported: Exported, value: float, folder: Path) -> Exported:
    """The graph with weights of `value` in one output channel of FC1."""
    model = onnx.load(exported.path)
    name = weighted_nodes(model)[FC1].input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 17] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "float.onnx")
    return dataclasses.replace(exported, path=folder / "float.onnx")


def test_an_output_channel_too_small_for_fp16_scales_is_refused_by_its_layers_name(
    in_fp16: Exported, tmp_path: Path
) -> None:
    """ONNX Runtime would write a scale of 1 in place of 8e-6, and the channel would be 0."""
    small = with_channel(in_fp16, 1e-3, tmp_path)
    refusal_of(
        PipelineError, lambda: quantized(small, tmp_path),
        f"layer {FC1}", "0.001", "0.0078", "6.6e+04", f"--keep-high-precision {FC1}",
    )  # fmt: skip
    others = [name for name in small.layers if name != FC1]
    assert quantized(small, tmp_path, others).quantized_layers() == set(others)


@pytest.mark.parametrize("value", [0.0, 127 * TINIEST])
def test_a_channel_of_zeros_and_the_smallest_that_fits_are_kept(
    value: float, in_fp16: Exported, tmp_path: Path
) -> None:
    graph = quantized(with_channel(in_fp16, value, tmp_path), tmp_path, [FC1])
    weight, scale, _ = graph.read_by(graph.dequantizer(graph.layer_nodes()[FC1], 1))
    assert (weight[:, 17] * scale[17].astype(np.float64)).tolist() == [value] * 48


@pytest.mark.parametrize("peak", [1e-3, 0.99 * 127 * TINIEST, 7e4, float("nan")])
def test_a_peak_that_fp16_cannot_scale_is_refused_by_its_layers_name(
    peak: float, in_fp16: Exported, tmp_path: Path
) -> None:
    refusal_of(
        PipelineError, lambda: quantized(in_fp16, tmp_path, None, **{FC1: peak}),
        f"layer {FC1}", f"--keep-high-precision {FC1}",
    )  # fmt: skip


@pytest.mark.parametrize("peak", [127 * TINIEST, 127.01 * TINIEST, 65504.0])
def test_the_ends_of_what_fp16_can_scale_are_scaled(
    peak: float, in_fp16: Exported, tmp_path: Path
) -> None:
    graph = quantized(in_fp16, tmp_path, [FC1], **{FC1: peak})
    (quantize,) = graph.of("QuantizeLinear")
    assert float(graph.constants[quantize.input[1]]) == pytest.approx(peak / 127, rel=1e-3)


def test_fp32_scales_what_fp16_cannot(in_fp32: Exported, tmp_path: Path) -> None:
    graph = quantized(with_channel(in_fp32, 1e-3, tmp_path), tmp_path, [FC1])
    _, scale, _ = graph.read_by(graph.dequantizer(graph.layer_nodes()[FC1], 1))
    assert scale[17] == pytest.approx(1e-3 / 127)


# OpenVINO.

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


def test_openvino_in_int8_answers_nearly_as_the_float_graph(
    some_int8: openvino.Model, for_openvino: Path, pixels: Pixels
) -> None:
    ours, theirs = logits_of(for_openvino, pixels, 2), in_openvino(some_int8, pixels)
    assert cosine(ours, theirs) > 0.9
    assert np.abs(ours - theirs).max() > 1e-4, "nothing was rounded"


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
