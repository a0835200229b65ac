"""The form of a QDQ graph in which ONNX Runtime computes every quantized layer in integers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def with_integer_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of quantize_onnx in FP32, rewritten for ONNX Runtime's default session.

    It computes the same. The optimizer of that session matches whole patterns, and whatever it does
    not match it computes in FP32, after dequantizing all weights at every call:
    1. A MatMul loses its pattern to MatMulAddFusion, which wants a one-dimensional bias: ours becomes
       (1,1,C), and the product a MatMulIntegerToFloat.
    2. A Gemm is matched when its bias is quantized too: INT32, by the product of both scales.
    3. A convolution whose patches do not overlap becomes a MatMul with one row a patch.
    4. Any other becomes a ConvInteger and its scale, as QLinearConv would round what it writes.
    Source: onnxruntime/core/optimizer/matmul_add_fusion.cc and qdq_transformer/selectors_actions.
    """
    given = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    for node in list(given.graph):
        if not _is_quantized(node):
            continue
        if node.op_type == "MatMul":
            _widen_bias(node)
        elif node.op_type == "Gemm":
            _quantize_bias(node)
        elif node.op_type == "Conv" and _takes_patches(node):
            _multiply_patches(node)
        elif node.op_type == "Conv":
            _convolve_integers(node)
    RemoveUnusedNodesPass()(given)
    return ir.to_proto(given)


def _is_quantized(node: ir.Node) -> bool:
    """Whether what it multiplies, both, is dequantized just before."""
    writers = [value.producer() for value in node.inputs[:2] if value is not None]
    return len(writers) == 2 and all(
        writer is not None and writer.op_type == "DequantizeLinear" for writer in writers
    )


def _widen_bias(node: ir.Node) -> None:
    for reader, place in node.outputs[0].uses():
        bias = reader.inputs[1 - place] if reader.op_type == "Add" else None
        if bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 1:
            # Of a tensor with fewer axes it would add one to what the layer writes.
            if len(_shape(node.outputs[0])) < 3:
                continue
            wide = bias.const_value.numpy().reshape(1, 1, -1)
            reader.replace_input_with(1 - place, _constant(node, "bias", wide))


def _quantize_bias(node: ir.Node) -> None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return
    scale = _scale(node, 0) * _scale(node, 1)
    bias = np.round(_array(node.inputs[2]) / scale).astype(np.int32)
    dequantized = _added(
        node,
        "DequantizeLinear",
        [_constant(node, "bias", bias), _constant(node, "bias_scale", scale)],
        axis=0,
    )
    node.replace_input_with(2, dequantized)


def _takes_patches(node: ir.Node) -> bool:
    """Whether a convolution tiles its input with more than pixels: no overlap, no border, one group."""
    shape, attributes = _shape(node.inputs[0]), node.attributes
    kernel = list(_array(_writer(node.inputs[1]).inputs[0]).shape[2:])
    return (
        len(shape) == 4
        and max(kernel) > 1
        and attributes.get_int("group", 1) == 1
        and not any(attributes.get_ints("pads", []))
        and list(attributes.get_ints("strides", [1, 1])) == kernel
        and list(attributes.get_ints("dilations", [1, 1])) == [1, 1]
        and all(side % step == 0 for side, step in zip(shape[2:], kernel, strict=True))
    )


def _multiply_patches(node: ir.Node) -> None:
    """Write (B,C,H,W) as rows (B,N,C*P*P) in FP32, so that QuantizeLinear still stands before its layer."""
    batch, channels, height, width = _shape(node.inputs[0])
    weight = _writer(node.inputs[1])
    kernel = _array(weight.inputs[0])
    written, _, *patch = kernel.shape
    rows, columns = height // patch[0], width // patch[1]
    quantize = _writer(_writer(node.inputs[0]).inputs[0])
    tiles = (batch, channels, rows, patch[0], columns, patch[1])
    flat_shape = (batch, rows * columns, channels * patch[0] * patch[1])
    read = _reshaped(node, quantize.inputs[0], tiles, quantize)
    read = _added(node, "Transpose", [read], quantize, perm=(0, 2, 4, 1, 3, 5))
    quantize.replace_input_with(0, _reshaped(node, read, flat_shape, quantize))
    for value in (*quantize.outputs, node.inputs[0]):
        assert value is not None
        value.shape = ir.Shape(flat_shape)
    flat = np.ascontiguousarray(kernel.reshape(written, -1).T)
    scale, zero = weight.inputs[1:]
    factor = _added(
        node, "DequantizeLinear", [_constant(node, "weight", flat), scale, zero], axis=1
    )
    product = _added(node, "MatMul", [node.inputs[0], factor])
    if len(node.inputs) > 2:
        bias = _array(node.inputs[2]).reshape(1, 1, -1)
        product = _added(node, "Add", [product, _constant(node, "bias", bias)])
    product = _added(node, "Transpose", [product], perm=(0, 2, 1))
    _replace(node, _reshaped(node, product, (batch, written, rows, columns)))


def _convolve_integers(node: ir.Node) -> None:
    weight = _writer(node.inputs[1])
    value, scale, *_ = _writer(_writer(node.inputs[0]).inputs[0]).inputs
    # UINT8 both: ONNX Runtime 1.23, the last for Python 3.10, has no other ConvInteger.
    zero = _constant(node, "zero", np.asarray(128, np.uint8))
    kernel = (_array(weight.inputs[0]).astype(np.int16) + 128).astype(np.uint8)
    read = _added(node, "QuantizeLinear", [value, scale, zero])
    inputs = [read, _constant(node, "weight", kernel), zero, zero]
    attributes: dict[str, Any] = dict(node.attributes)
    product = _added(node, "ConvInteger", inputs, **attributes)
    scale = _constant(node, "scale", _scale(node, 0) * _scale(node, 1))
    product = _added(node, "DequantizeLinear", [product, scale], axis=1)
    if len(node.inputs) > 2:
        bias = _array(node.inputs[2]).reshape(1, -1, 1, 1)
        product = _added(node, "Add", [product, _constant(node, "bias", bias)])
    _replace(node, product)


def _added(
    layer: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    before: ir.Node | None = None,
    **attributes: Any,
) -> ir.Value:
    """Insert a node of a layer, before the layer's own node or another one; return what it writes."""
    node = ir.node(operator, inputs, attributes, name=_name(layer, operator))
    _graph(layer).insert_before(before or layer, node)
    (value,) = node.outputs
    value.name = node.name
    return value


def _reshaped(
    layer: ir.Node, value: ir.Value | None, shape: Sequence[int], before: ir.Node | None = None
) -> ir.Value:
    sizes = _constant(layer, "shape", np.asarray(shape, np.int64))
    return _added(layer, "Reshape", [value, sizes], before)


def _constant(layer: ir.Node, what: str, array: npt.NDArray[Any]) -> ir.Value:
    name = _name(layer, what)
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    _graph(layer).register_initializer(value)
    return value


def _replace(node: ir.Node, value: ir.Value) -> None:
    written, name = node.outputs[0], node.outputs[0].name
    written.replace_all_uses_with(value)
    written.name, value.name = None, name
    _graph(node).remove(node, safe=True)


def _name(layer: ir.Node, what: str) -> str:
    """Return a new name behind the layer's own, by which engines' layers are told apart."""
    place, graph = (layer.name or "").rpartition("/")[0], _graph(layer)
    taken = {node.name for node in graph} | set(graph.initializers)
    names = (f"{place}/{what}{'' if number == 1 else f'_{number}'}" for number in count(1))
    return next(name for name in names if name not in taken)


def _writer(value: ir.Value | None) -> ir.Node:
    writer = None if value is None else value.producer()
    assert writer is not None, "what a quantized layer reads is written by a node"
    return writer


def _array(value: ir.Value | None) -> npt.NDArray[Any]:
    assert value is not None
    assert value.const_value is not None, "weights and scales are constants"
    return value.const_value.numpy()


def _scale(node: ir.Node, place: int) -> npt.NDArray[Any]:
    return _array(_writer(node.inputs[place]).inputs[1])


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Its sizes, none where they are not known."""
    return value.shape.numpy() if value is not None and value.shape is not None else ()


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
