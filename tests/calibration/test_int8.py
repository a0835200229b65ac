"""INT8 graphs of small networks: what is quantized, by which scales, and that nothing else is."""

from __future__ import annotations

import ctypes
import dataclasses
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
from PIL import Image

from gft_edge.bundle.specs import GalaMode, InputSpec, ModelSpec, Score
from gft_edge.calibration.int8_onnx import quantize_onnx, weighted_nodes
from gft_edge.calibration.int8_openvino import METHODS, quantize_openvino
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.errors import PipelineError
from gft_edge.export.fp16 import half
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.export.simplify import simplify
from gft_edge.export.structure import finish
from gft_edge.model.gft import GFT, build_gft
from gft_edge.model.variants import spec_from_name
from gft_edge.runtime.preprocess import batch_from_pixels
from gft_edge.runtime.signal_stack import _Stack

LABELS = ("ash", "birch", "cherry tree")
EMBEDDING = "backbone.patch_embed.proj"
TINIEST = float(np.finfo(np.float16).tiny)

Pixels = npt.NDArray[np.uint8]


def network(stages: str, gala: GalaMode, score: Score) -> tuple[ModelSpec, GFT]:
    """Two blocks of wide random weights."""
    selects = stages != "none"
    spec = spec_from_name(
        "vit_tiny_patch16_224",
        LABELS,
        image_size_px=48,
        stages=stages,
        gala=gala if selects else None,
        score=score if selects else None,
        backbone_args={"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "selections" in name or "pos_embed" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / 6 if parameter.ndim > 1 else parameter.data + noise / 8
    return spec, model.eval()


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    """Smooth random pictures, (16,48,48,3)."""
    generator = np.random.default_rng(0)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize(
                    (48, 48), Image.Resampling.BICUBIC
                )
            )
            for _ in range(16)
        ]
    )


@dataclasses.dataclass
class Exported:
    """A float graph, simplified, and what its layers read."""

    path: Path
    spec: ModelSpec
    model: GFT
    peaks: dict[str, float]
    dtype: Any

    @property
    def layers(self) -> list[str]:
        return list(self.peaks)


CONFIGURATIONS: dict[str, tuple[str, GalaMode, Score, bool]] = {
    "fp32": ("0:20", "block", "gala", False),
    "fp16": ("1:20,2:10", "layer", "gala", True),
    "fp16 class score": ("0:20", "block", "class", True),
}


@pytest.fixture(scope="session", params=CONFIGURATIONS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pixels: Pixels
) -> Exported:
    return export(CONFIGURATIONS[request.param], tmp_path_factory.mktemp("graph"), pixels)


@pytest.fixture(scope="session")
def in_fp16(tmp_path_factory: pytest.TempPathFactory, pixels: Pixels) -> Exported:
    return export(("none", "block", "gala", True), tmp_path_factory.mktemp("graph"), pixels)


@pytest.fixture(scope="session")
def in_fp32(tmp_path_factory: pytest.TempPathFactory, pixels: Pixels) -> Exported:
    return export(("none", "block", "gala", False), tmp_path_factory.mktemp("graph"), pixels)


def export(
    configuration: tuple[str, GalaMode, Score, bool], folder: Path, pixels: Pixels
) -> Exported:
    stages, gala, score, halved = configuration
    spec, model = network(stages, gala, score)
    typed = half(model) if halved else model
    onnx_from_torch(typed, spec, InputSpec("uint8", 1), 20, folder / "exported.onnx", centred=True)
    simplify(folder / "exported.onnx", folder / "float.onnx")
    normalised = torch.from_numpy(batch_from_pixels(pixels, spec.preprocessing, "float32"))
    peaks = activation_peaks(model, [normalised])
    dtype = np.float16 if halved else np.float32
    return Exported(folder / "float.onnx", spec, model, peaks, dtype)


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

    def source(self, node: onnx.NodeProto, number: int) -> onnx.NodeProto | None:
        return self.writers.get(node.input[number])

    def layer_nodes(self) -> dict[str, onnx.NodeProto]:
        """Layer -> its node: weights are constants, plain or dequantized."""
        found = {}
        for node in self.of("MatMul", "Gemm", "Conv"):
            writer = self.source(node, 1)
            dequantized = writer is not None and writer.op_type == "DequantizeLinear"
            if node.input[1] in self.constants or (
                dequantized and writer is not None and writer.input[0] in self.constants
            ):
                found[node.name.rpartition("/")[0]] = node
        return found

    def quantized_layers(self) -> set[str]:
        return {
            name
            for name, node in self.layer_nodes().items()
            if (writer := self.source(node, 1)) and writer.op_type == "DequantizeLinear"
        }


def quantized(
    exported: Exported, folder: Path, layers: Collection[str] | None = None, **changes: float
) -> Graph:
    chosen = exported.layers if layers is None else layers
    quantize_onnx(
        exported.path, folder / "int8.onnx", {**exported.peaks, **changes}, chosen, EMBEDDING
    )
    return Graph(folder / "int8.onnx")


@pytest.fixture(scope="session")
def all_int8(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return quantized(exported, tmp_path_factory.mktemp("int8"))


def test_every_layer_of_the_network_is_a_node_of_the_graph(exported: Exported) -> None:
    found = weighted_nodes(onnx.load(exported.path))
    assert set(found) - {"backbone.head"} == set(quantizable_layers(exported.model))


def test_the_asked_layers_are_quantized_and_no_other(exported: Exported, tmp_path: Path) -> None:
    assert quantized(exported, tmp_path).quantized_layers() == set(exported.layers)
    some = exported.layers[::3]
    graph = quantized(exported, tmp_path, some)
    assert graph.quantized_layers() == set(some)
    assert len(graph.of("QuantizeLinear")) == len(some)
    assert len(graph.of("DequantizeLinear")) == 2 * len(some)


def test_weights_are_int8_by_output_channel(exported: Exported, all_int8: Graph) -> None:
    layers = quantizable_layers(exported.model)
    for name, node in all_int8.layer_nodes().items():
        if name not in layers:
            continue
        dequantize = all_int8.source(node, 1)
        assert dequantize is not None
        weight, scale, zero = (all_int8.constants[tensor] for tensor in dequantize.input)
        axis = next(entry.i for entry in dequantize.attribute if entry.name == "axis")
        assert axis == (0 if node.op_type == "Conv" else 1)
        assert weight.dtype == zero.dtype == np.int8
        assert scale.shape == zero.shape == (layers[name].weight.shape[0],)
        assert scale.shape == (weight.shape[axis],)
        # The largest of each channel is 127: no range is wasted.
        others = tuple(number for number in range(weight.ndim) if number != axis)
        assert np.abs(weight.astype(int)).max(axis=others).tolist() == [127] * len(scale)
        if name != EMBEDDING:
            exact = layers[name].weight.detach().numpy().T
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
        dequantize = all_int8.source(nodes[name], 0)
        assert dequantize is not None
        assert dequantize.op_type == "DequantizeLinear"
        quantize = all_int8.source(dequantize, 0)
        assert quantize is not None
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
        writer = all_int8.source(quantize, 0)
        assert writer is not None
        # Residual sums and products are written by these: they go on as they are.
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
    outputs = {value.name for value in all_int8.model.graph.output}
    for name in outputs:
        assert all_int8.writers[name].op_type not in ("QuantizeLinear", "DequantizeLinear")


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
        for number in (0, 1):
            writer = all_int8.source(product, number)
            assert writer is not None
            assert writer.op_type != "DequantizeLinear"


def test_every_grey_level_survives_the_patch_embeddings_int8(
    exported: Exported, all_int8: Graph
) -> None:
    dequantize = all_int8.source(all_int8.layer_nodes()[EMBEDDING], 0)
    assert dequantize is not None
    scale, zero = (all_int8.constants[name] for name in dequantize.input[1:])
    assert scale == 1 / 128
    assert zero == 0
    read = (np.arange(256) / 128 - 1).astype(exported.dtype)
    levels = np.clip(np.rint(read / scale), -128, 127).astype(np.int8)
    assert len(set(levels.tolist())) == 256
    np.testing.assert_array_equal(levels.astype(exported.dtype) * scale, read)


def logits_of(path: Path, pixels: Pixels, batch: int = 1) -> npt.NDArray[np.float32]:
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
    ours, theirs = (logits_of(path, pixels) for path in (exported.path, tmp_path / "int8.onnx"))
    assert theirs.dtype == np.float32
    assert cosine(ours, theirs) > 0.9
    assert np.abs(ours - theirs).max() > 1e-4, "nothing was rounded"


def test_a_graph_of_normalised_input_is_scaled_by_what_it_reads(
    in_fp16: Exported, tmp_path: Path
) -> None:
    quantize_onnx(in_fp16.path, tmp_path / "int8.onnx", in_fp16.peaks, [EMBEDDING], None)
    graph = Graph(tmp_path / "int8.onnx")
    (quantize,) = graph.of("QuantizeLinear")
    scale = float(graph.constants[quantize.input[1]])
    assert scale == pytest.approx(in_fp16.peaks[EMBEDDING] / 127, rel=1e-3)


def test_quantizing_is_the_same_each_time_and_leaves_logging_alone(
    in_fp16: Exported, tmp_path: Path
) -> None:
    level = logging.getLogger().level
    quantized(in_fp16, tmp_path)
    first = (tmp_path / "int8.onnx").read_bytes()
    quantized(in_fp16, tmp_path)
    assert (tmp_path / "int8.onnx").read_bytes() == first
    assert logging.getLogger().level == level


def test_a_quantized_graph_holds_its_weights_once(in_fp32: Exported, tmp_path: Path) -> None:
    quantized(in_fp32, tmp_path)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.45 * in_fp32.path.stat().st_size


def test_half_casts_the_network_and_not_what_its_stages_rank_by() -> None:
    _, model = network("0:20", "block", "gala")
    # No FP16 number.
    model.selections[0].kernel.data = torch.tensor([0.1, 0.7001, 0.2])
    halved = half(model)
    assert halved.backbone.blocks[0].mlp.fc1.weight.dtype == torch.float16
    assert torch.equal(halved.selections[0].kernel, model.selections[0].kernel)
    assert model.backbone.blocks[0].mlp.fc1.weight.dtype == torch.float32
    model.backbone.blocks[1].mlp.fc2.weight.data[0, 0] = 7e4
    message = r"tensor backbone\.blocks\.1\.mlp\.fc2\.weight reaches 70000, FP16 ends at 65504"
    with pytest.raises(PipelineError, match=message):
        half(model)


def test_a_quantized_graph_is_refused(in_fp16: Exported, tmp_path: Path) -> None:
    quantized(in_fp16, tmp_path)
    with pytest.raises(PipelineError, match="quantized already: start from an FP32 or FP16 export"):
        quantize_onnx(
            tmp_path / "int8.onnx", tmp_path / "x.onnx", in_fp16.peaks, in_fp16.layers, EMBEDDING
        )
    assert not (tmp_path / "x.onnx").exists()


def test_a_layer_that_the_graph_lacks_is_named(in_fp16: Exported, tmp_path: Path) -> None:
    layers = [*in_fp16.layers, "backbone.blocks.7.mlp.fc1"]
    with pytest.raises(
        PipelineError, match=r"the graph has no layer backbone\.blocks\.7\.mlp\.fc1"
    ):
        quantized(in_fp16, tmp_path, layers)


def test_no_layers_at_all_are_refused(in_fp16: Exported, tmp_path: Path) -> None:
    """ONNX Runtime would take an empty list for every node of the graph."""
    with pytest.raises(PipelineError, match="no layer is left to quantize"):
        quantized(in_fp16, tmp_path, [])


FC1 = "backbone.blocks.1.mlp.fc1"


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
    message = (
        rf"layer {FC1}: the weights of an output channel reach 0\.001, and INT8 scales in float16 "
        rf"serve 0\.0078 to 6\.6e\+04: keep it in high precision with --keep-high-precision {FC1}"
    )
    with pytest.raises(PipelineError, match=message):
        quantized(small, tmp_path)
    others = [name for name in small.layers if name != FC1]
    assert quantized(small, tmp_path, others).quantized_layers() == set(others)


@pytest.mark.parametrize("value", [0.0, 127 * TINIEST])
def test_a_channel_of_zeros_and_the_smallest_that_fits_are_kept(
    value: float, in_fp16: Exported, tmp_path: Path
) -> None:
    graph = quantized(with_channel(in_fp16, value, tmp_path), tmp_path)
    dequantize = graph.source(graph.layer_nodes()[FC1], 1)
    assert dequantize is not None
    weight, scale, _ = (graph.constants[name] for name in dequantize.input)
    assert (weight[:, 17] * scale[17].astype(np.float64)).tolist() == [value] * 48


@pytest.mark.parametrize("peak", [1e-3, 0.99 * 127 * TINIEST, 7e4, float("nan")])
def test_a_peak_that_fp16_cannot_scale_is_refused_by_its_layers_name(
    peak: float, in_fp16: Exported, tmp_path: Path
) -> None:
    message = rf"layer {FC1}: what it reads reach.*--keep-high-precision {FC1}"
    with pytest.raises(PipelineError, match=message):
        quantized(in_fp16, tmp_path, None, **{FC1: peak})


@pytest.mark.parametrize("peak", [127 * TINIEST, 127.01 * TINIEST, 65504.0])
def test_the_ends_of_what_fp16_can_scale_are_scaled(
    peak: float, in_fp16: Exported, tmp_path: Path
) -> None:
    graph = quantized(in_fp16, tmp_path, [FC1], **{FC1: peak})
    (quantize,) = graph.of("QuantizeLinear")
    assert float(graph.constants[quantize.input[1]]) == pytest.approx(peak / 127, rel=1e-3)


def test_fp32_scales_what_fp16_cannot(in_fp32: Exported, tmp_path: Path) -> None:
    graph = quantized(with_channel(in_fp32, 1e-3, tmp_path), tmp_path, [FC1])
    dequantize = graph.source(graph.layer_nodes()[FC1], 1)
    assert dequantize is not None
    assert graph.constants[dequantize.input[1]][17] == pytest.approx(1e-3 / 127)


@pytest.fixture(scope="session")
def for_openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`logits` alone as output, two images at a time; kept_1 and kept_2 are tensors inside."""
    folder = tmp_path_factory.mktemp("openvino")
    spec, model = network("1:20,2:10", "layer", "gala")
    kept = onnx_from_torch(model, spec, InputSpec("uint8", 2), 20, folder / "exported.onnx")
    simplify(folder / "exported.onnx", folder / "simplified.onnx")
    finish(folder / "simplified.onnx", folder / "float.onnx", {}, kept)
    return folder / "float.onnx"


def openvino_layers() -> list[str]:
    return list(quantizable_layers(network("1:20,2:10", "layer", "gala")[1]))


HIGH = ("backbone.blocks.0.mlp.fc2", "layers.1.attn.qkv")


@pytest.fixture(scope="session")
def some_int8(
    for_openvino: Path, pixels: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> openvino.Model:
    """All layers but HIGH in INT8."""
    path = tmp_path_factory.mktemp("openvino") / "int8.xml"
    layers = [name for name in openvino_layers() if name not in HIGH]
    quantize_openvino(for_openvino, path, pixels[:8], 2, layers, None)
    return openvino.Core().read_model(path)


def producers(node: openvino.Node) -> list[openvino.Node]:
    return [value.get_source_output().get_node() for value in node.inputs()]


def layer_of(node: openvino.Node) -> str:
    return str(node.get_friendly_name()).removesuffix("/WithoutBiases").rpartition("/")[0]


# What NNCF may move a FakeQuantize above, since it changes no value.
MOVES = ("Transpose", "Reshape")


def test_openvino_quantizes_the_asked_layers_and_no_other(some_int8: openvino.Model) -> None:
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
    expected = set(openvino_layers()) - set(HIGH)
    assert reached == expected
    assert found == expected


def test_openvino_computes_the_scores_in_high_precision(some_int8: openvino.Model) -> None:
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
            if layer_of(node) in openvino_layers():
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


def signal_stack() -> tuple[int | None, int]:
    """Where this thread's signal handlers run, and the size there."""
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.ss_sp, stack.ss_size


@pytest.mark.parametrize(
    ("method", "smooth_quant"), [("minmax", 0.95), ("percentile", None), ("mse", 0.5)]
)
def test_every_method_and_smoothing_runs_in_openvino(
    method: str, smooth_quant: float | None, for_openvino: Path, pixels: Pixels, tmp_path: Path
) -> None:
    assert method in METHODS
    before = signal_stack()
    layers = openvino_layers()[:5]
    quantize_openvino(
        for_openvino, tmp_path / "int8.xml", pixels[:4], 2, layers, smooth_quant, method
    )
    model = openvino.Core().read_model(tmp_path / "int8.xml")
    assert signal_stack() == before, "the next Ctrl-C would be a crash"
    kinds = [operation.get_type_name() for operation in model.get_ordered_ops()]
    assert kinds.count("FakeQuantize") == 5
    # Strong smoothing on four images: less close than without.
    assert cosine(logits_of(for_openvino, pixels, 2), in_openvino(model, pixels)) > 0.8


def test_fewer_images_than_a_batch_still_calibrate(
    for_openvino: Path, pixels: Pixels, tmp_path: Path
) -> None:
    layers = ["backbone.blocks.0.mlp.fc1"]
    quantize_openvino(for_openvino, tmp_path / "int8.xml", pixels[:1], 2, layers, None)
    model = openvino.Core().read_model(tmp_path / "int8.xml")
    assert [op.get_type_name() for op in model.get_ordered_ops()].count("FakeQuantize") == 1


def test_openvino_refuses_a_quantized_graph(in_fp32: Exported, tmp_path: Path) -> None:
    quantized(in_fp32, tmp_path)
    with pytest.raises(PipelineError, match="quantized already: start from an FP32 export"):
        quantize_openvino(
            tmp_path / "int8.onnx", tmp_path / "x.xml", np.zeros(0), 1, in_fp32.layers, None
        )
    assert not (tmp_path / "x.xml").exists()
