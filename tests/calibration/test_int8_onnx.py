"""INT8 graphs of small networks: what is quantized, by which scales, and that nothing else is."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.layers import quantizable_layers
from tests.calibration.graphs import (
    EMBEDDING,
    Exported,
    Graph,
    Pixels,
    cosine,
    logits_of,
    quantized,
)


@pytest.fixture(scope="session")
def all_int8(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return quantized(exported, tmp_path_factory.mktemp("int8"))


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
