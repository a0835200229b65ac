"""INT8 as explicit QDQ nodes in an ONNX graph, the form that TensorRT and ONNX Runtime both obey."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx

from gft_edge.errors import MissingDependencyError, PipelineError

# Activations of these stay in high precision: residual sums, LayerNormalization, GELU and softmax
# read what they write. Quantized residual sums are what makes a ViT in INT8 collapse.
WEIGHTED = ("MatMul", "Gemm", "Conv")


def quantize_onnx(
    source: Path,
    path: Path,
    peaks: Mapping[str, float],
    layers: Collection[str],
    pixels_centred: bool,
) -> None:
    """Write `source`, FP32 or FP16, with `layers` in INT8 to `path`.

    Symmetric S8 with zero points 0: weights by output channel, what a layer reads by tensor, 127
    standing for its entry in `peaks`; biases and all outputs stay as they were. With
    `pixels_centred` the patch embedding reads pixels / 128 - 1 and gets scale 1/128, without loss.
    Raises PipelineError for a graph that is quantized already or lacks a layer.
    """
    try:
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorData
    except ImportError as error:
        raise MissingDependencyError("ONNX Runtime", "export") from error
    model = onnx.load(source)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise PipelineError("the graph is quantized already: start from an FP32 or FP16 export")
    nodes = weighted_nodes(model)
    missing = sorted(set(layers) - set(nodes))
    if missing:
        raise PipelineError(f"the graph has no layer {missing[0]}")
    model = onnx.shape_inference.infer_shapes(model)
    dtype = _dtype(model)
    ranges = {}
    for name in layers:
        peak = 127 / 128 if pixels_centred and nodes[name].op_type == "Conv" else peaks[name]
        bound = np.asarray(max(peak, 127 * float(np.finfo(dtype).tiny)), dtype=dtype)
        ranges[nodes[name].input[0]] = TensorData(lowest=-bound, highest=bound)
    logging.getLogger().setLevel(logging.ERROR)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
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
    quantizer.quantize_model()
    onnx.save(quantizer.model.model, path)


def weighted_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Layer name -> the node that multiplies by its weight; attention's products have no layer."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name.rpartition("/")[0]: node
        for node in model.graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights
    }


def _dtype(model: onnx.ModelProto) -> type[np.floating]:
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    (node, *_) = weighted_nodes(model).values()
    return np.float16 if weights[node.input[1]] == onnx.TensorProto.FLOAT16 else np.float32
