"""The layers of a parsed network or an engine: precision, and where in the GFT each one lies."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gft_edge.bundle import placement
from gft_edge.bundle.placement import group_of, groups_by_flow
from gft_edge.errors import PipelineError

PRODUCTS = frozenset({"MATRIX_MULTIPLY", "CONVOLUTION"})
# They change a tensor's type or layout and compute nothing.
CONVERSIONS = frozenset({"CAST", "QUANTIZE", "DEQUANTIZE", "REFORMAT"})
# No LayerTypes: an engine's kernel for a whole attention, and the box that an engine without details
# shows in place of what Myelin, its fusing compiler, made.
FUSED_ATTENTION, FOREIGN_NODE = "FUSED_ATTENTION", "FOREIGN_NODE"
UNKNOWN = "unknown"

_OPERATORS = {"MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Conv": "CONVOLUTION",
              "TopK": "TOPK", "Gather": "GATHER"}  # fmt: skip
# An engine's layers that carry the names of products which they only feed or finish.
_NO_PRODUCT = frozenset({"KGEN", "SHUFFLE", "CONSTANT", "NOOP"})
# [ONNX Layer: name] or [ONNX Layer: name | what else the parser of that version knows]
_NODE = re.compile(r"\[ONNX Layer: (.+?)(?: \||\])")
_TYPE = re.compile(r"\b(u?int8|half|fp16|bfloat16|bf16|float|fp32|fp8|int32|int64|bool)\b", re.I)
_TYPES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Layer(placement.Layer):
    """One layer of a parsed network or of an engine.

    `kind` is a LayerType's name, or an engine's own in capitals. `precision` is what the layer
    writes, but `int8` of a product that reads INT8. `group` is `patch embedding`, `block N`,
    `GALA layer N`, `selection N` (its score, TopK and gathers), `head` or `other`. A network's layers
    alone know the shape of the first tensor written.
    """

    group: str = ""
    shape: tuple[int, ...] = ()


def network_layers(network: Any) -> tuple[Layer, ...]:
    """The layers that a parsed INetworkDefinition has for ONNX nodes, in order.

    A product is INT8 where both of its inputs come from a DequantizeLinear. Left out are constants
    and what the parser adds for itself (shape arithmetic, broadcasts, index casts): most of all
    layers, without an ONNX node, and folded away by the builder.
    """
    passed: dict[str, str] = {}  # what a left-out layer writes -> what it reads
    dequantized: set[str] = set()
    layers = []
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        inputs = [layer.get_input(n) for n in range(layer.num_inputs)]
        outputs = [layer.get_output(n) for n in range(layer.num_outputs)]
        reads = tuple(passed.get(one.name, one.name) for one in inputs if one is not None)
        writes = tuple(one.name for one in outputs)
        nodes, kind = tuple(_NODE.findall(layer.metadata)), str(layer.type.name)
        if kind == "CONSTANT" or not nodes:
            passed.update((name, reads[0]) for name in writes if reads)
            continue
        if kind == "DEQUANTIZE":
            dequantized.update(writes)
        quantized = kind in PRODUCTS and len(dequantized.intersection(reads[:2])) == 2
        precision = "int8" if quantized else _precision(outputs[0].dtype.name)
        shape = tuple(outputs[0].shape)
        layers.append(Layer(layer.name, kind, precision, nodes, reads, writes, shape=shape))
    return tuple(
        dataclasses.replace(layer, group=group)
        for layer, group in zip(layers, groups_by_flow(layers), strict=True)
    )


def engine_layers(information: str) -> tuple[Layer, ...]:
    """The layers of an engine, from its inspector's JSON of TensorRT 10 or 11.

    An engine built without detailed profiling verbosity gives names alone: precisions are unknown.
    docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html shows both; since
    11 a tensor's type stands apart from its format. Raises PipelineError when it is something else.
    """
    try:
        return tuple(_engine_layer(entry) for entry in json.loads(information)["Layers"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PipelineError(
            f"TensorRT's engine inspector gave no list of layers ({type(error).__name__}): "
            "ask it for LayerInformationFormat.JSON"
        ) from error


def _engine_layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        entry = {"Name": entry}
    name = str(entry["Name"])
    kind, nodes = _engine_kind(name, entry)
    given, written = (
        [_tensor_precision(tensor) for tensor in entry.get(side, ())]
        for side in ("Inputs", "Outputs")
    )
    precision = next(iter(written), UNKNOWN)
    if kind in PRODUCTS and "int8" in given:
        precision = "int8"
    reads, writes = (
        tuple(str(tensor.get("Name", "")) for tensor in entry.get(side, ()))
        for side in ("Inputs", "Outputs")
    )
    group, kernel = group_of(nodes) or "other", str(entry.get("TacticName") or "")
    return Layer(name, kind, precision, nodes, reads, writes, kernel, group)


def _engine_kind(name: str, entry: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """What an engine's layer is, and the ONNX nodes in it: it may be made of many."""
    made = str(entry.get("LayerType", UNKNOWN)).upper()
    if made == "MYELIN" or "ForeignNode[" in name:
        return FOREIGN_NODE, ()
    # Without metadata the nodes are in the name, behind which Myelin numbers its kernels.
    nodes = tuple(_NODE.findall(entry.get("Metadata") or "")) or tuple(
        re.sub(r"_myl\d+(_\d+)?$", "", part) for part in name.split(" + ")
    )
    if "mha" in f"{name} {entry.get('TacticName', '')}".lower():
        return FUSED_ATTENTION, nodes
    if made == "REFORMAT" or name.startswith("Reformatting CopyNode"):
        return "REFORMAT", nodes
    # backbone.head/Gemm -> Gemm, MatMul_2 -> MatMul
    operators = {re.sub(r"_\d+$", "", node.rpartition("/")[2]) for node in nodes}
    if operators == {"Cast"}:
        return "CAST", nodes
    if all(operator.lower().endswith("quantizelinear") for operator in operators):
        return "QUANTIZE", nodes
    kinds = [kind for operator, kind in _OPERATORS.items() if operator in operators]
    if made in _NO_PRODUCT:
        kinds = [kind for kind in kinds if kind not in PRODUCTS]
    return (kinds[0] if kinds else made), nodes


def _tensor_precision(tensor: Mapping[str, Any]) -> str:
    fields = {name.lower(): str(value) for name, value in tensor.items()}
    texts = (fields.get(name, "") for name in ("datatype", "format/datatype", "format"))
    return next((_precision(match[0]) for match in map(_TYPE.search, texts) if match), UNKNOWN)


def _precision(data_type: str) -> str:
    return _TYPES.get(data_type.lower(), data_type.lower())
