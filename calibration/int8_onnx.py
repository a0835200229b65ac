"""INT8 as explicit QDQ nodes in an ONNX graph, the form that TensorRT and ONNX Runtime both obey."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from gft_edge.errors import MissingDependencyError, PipelineError

# What these write stays in high precision: residual sums, LayerNormalization, GELU and softmax
# read it. Quantized residual sums are what makes a ViT in INT8 collapse.
WEIGHTED = ("MatMul", "Gemm", "Conv")


def quantize_onnx(
    graph: onnx.ModelProto,
    peaks: Mapping[str, float],
    layers: Collection[str],
    pixel_layer: str | None,
    half_range: bool = False,
) -> onnx.ModelProto:
    """Return a graph, FP32 or FP16, with `layers` in INT8.

    Symmetric S8 with zero points 0: weights by output channel, what a layer reads by tensor, 127
    standing for its entry in `peaks`; biases and all outputs stay as they were. `pixel_layer`, where
    there is one, reads pixels / 128 - 1 and gets scale 1/128, without loss. With `half_range` weights
    reach 64 in place of 127: an x86 CPU without VNNI adds two products in 16 bits, which saturate.
    Raises PipelineError for a graph that is quantized already or lacks a layer, and for a layer whose
    ranges are none that the graph's dtype can scale.
    """
    try:
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorData
    except ImportError as error:
        raise MissingDependencyError("ONNX Runtime", "export") from error
    if not layers:
        # ONNX Runtime reads an empty list as all nodes.
        raise PipelineError("no layer is left to quantize: keep fewer in high precision")
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        raise PipelineError("the graph is quantized already: start from an FP32 or FP16 export")
    # A copy, which alone is altered.
    model = onnx.shape_inference.infer_shapes(graph)
    nodes = weighted_nodes(model)
    missing = sorted(set(layers) - set(nodes))
    if missing:
        raise PipelineError(f"the graph has no layer {missing[0]}")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    halved = weights[next(iter(nodes.values())).input[1]].data_type == onnx.TensorProto.FLOAT16
    dtype: type[np.floating] = np.float16 if halved else np.float32
    ranges = {}
    for name in layers:
        peak = 127 / 128 if name == pixel_layer else peaks[name]
        _check_ranges(name, peak, nodes[name], weights[nodes[name].input[1]])
        bound = np.asarray(peak, dtype=dtype)
        ranges[nodes[name].input[0]] = TensorData(lowest=-bound, highest=bound)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=half_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[nodes[name].name for name in layers],
        nodes_to_exclude=[],
        op_types_to_quantize=list(WEIGHTED),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
        },
    )
    # It warns through the root logger, whose level is the caller's.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantizer.quantize_model()
    finally:
        root.setLevel(level)
    _return_plain_inputs(quantizer.model.model.graph, {nodes[name].name for name in layers})
    # It appends the new nodes at the end; ONNX wants a writer before its readers.
    quantizer.model.topological_sort()
    return quantizer.model.model


def _return_plain_inputs(graph: onnx.GraphProto, quantized: Collection[str]) -> None:
    """Give every node but the `quantized` (by name) what it read before.

    ONNX Runtime makes all readers of a tensor read its dequantized form: the residual sum beside a
    convolution of a ResNet, and a convolution that is to stay in high precision.
    """
    writers = {output: node for node in graph.node for output in node.output}
    plain = {
        node.output[0]: writers[node.input[0]].input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in writers
    }
    for node in graph.node:
        if node.name not in quantized and node.op_type != "DequantizeLinear":
            node.input[:] = [plain.get(name, name) for name in node.input]


def weighted_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Layer name -> the node that multiplies by its weight; attention's products have no layer."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name.rpartition("/")[0]: node
        for node in model.graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights
    }


def _check_ranges(name: str, peak: float, node: onnx.NodeProto, weight: onnx.TensorProto) -> None:
    """Raise PipelineError where a scale would be no normal number of the weight's dtype.

    ONNX Runtime writes 1 in its place, and all that it scales becomes 0.
    """
    values = np.abs(numpy_helper.to_array(weight))
    limits = np.finfo(values.dtype)
    least, most = 127 * float(limits.tiny), float(limits.max)
    outputs = values.max(axis=_input_axes(node)).astype(np.float64)
    for what, largest in (
        ("what it reads", peak),
        # A channel of zeros stays one under any scale.
        *(("the weights of an output channel", float(channel)) for channel in outputs[outputs > 0]),
    ):
        if not least <= largest <= most:
            raise PipelineError(
                f"layer {name}: {what} reach {largest:.2g}, and INT8 scales in {limits.dtype} serve "
                f"{least:.2g} to {most:.2g}: keep it in high precision with "
                f"--keep-high-precision {name}"
            )


def _input_axes(node: onnx.NodeProto) -> int | tuple[int, ...]:
    """The axes of its weight that are not the output channel."""
    if node.op_type == "Conv":
        return (1, 2, 3)
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 1 if transposed else 0
