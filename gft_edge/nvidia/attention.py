"""Whether an attention can become one kernel, or did.

What TensorRT asks of one: docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/
transformers-fused-attention.html, and github.com/NVIDIA/TensorRT/issues/2981 for the list.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.nvidia.layers import FOREIGN_NODE, FUSED_ATTENTION, Layer

Fusion = Literal["fusable", "not fusable", "fused", "not fused", "unknown"]
Readers = Mapping[str, Sequence[Layer]]


@dataclass(frozen=True)
class Attention:
    """One attention: whether it is one kernel, or might be, and why not.

    `nodes` are the ONNX nodes of its softmax, Q K^T and product with V, as far as they were found.
    """

    group: str
    verdict: Fusion
    reason: str
    nodes: tuple[str, ...]


def attention_in_network(layers: Sequence[Layer]) -> tuple[Attention, ...]:
    """Every block's and GALA layer's attention, in order: `fusable` or why not.

    `fusable` says that nothing known forbids it; TensorRT may still decide against it.
    """
    makers = {name: layer for layer in layers for name in layer.writes}
    readers: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        for name in layer.reads:
            readers[name].append(layer)
    # A selection that scores by class attention has a softmax too, and is no attention.
    found = {
        layer.group: _pattern(layer, makers, readers)
        for layer in layers
        if layer.kind == "SOFTMAX" and layer.group.startswith(("block", "GALA"))
    }
    for layer in layers:
        if layer.group.startswith(("block", "GALA")) and layer.group not in found:
            found[layer.group] = Attention(layer.group, "not fusable", "it has no softmax", ())
    return tuple(found.values())


def _pattern(softmax: Layer, makers: Mapping[str, Layer], readers: Readers) -> Attention:
    """Product, scale, softmax, product: the only shape that is fused."""

    def verdict(reason: str, *products: Layer) -> Attention:
        nodes = tuple(node for layer in (softmax, *products) for node in layer.nodes)
        return Attention(softmax.group, "not fusable" if reason else "fusable", reason, nodes)

    def shared(name: str, what: str) -> str:
        names = " and ".join(layer.name for layer in readers[name])
        return f"{what} is read by {names}" if len(readers[name]) > 1 else ""

    scores = softmax.reads[0]
    reason = shared(scores, "Q K^T")
    while scores in makers and makers[scores].kind == "ELEMENTWISE":
        scores = next((name for name in makers[scores].reads if name in makers), "")
        reason = reason or shared(scores, "Q K^T")
    first = makers.get(scores)
    if first is None or first.kind != "MATRIX_MULTIPLY":
        what = f"{first.name} ({first.kind})" if first else "no layer"
        return verdict(f"its softmax reads {what} and not a matrix product")
    weights = softmax.writes[0]
    reason = reason or shared(weights, "its softmax")
    while readers[weights] and readers[weights][0].kind in ("QUANTIZE", "DEQUANTIZE"):
        weights = readers[weights][0].writes[0]
    second = next((layer for layer in readers[weights] if layer.kind == "MATRIX_MULTIPLY"), None)
    if second is None:
        return verdict(reason or "no matrix product reads its softmax", first)
    return verdict(reason or _unfit(first, second, readers), first, second)


def _unfit(first: Layer, second: Layer, readers: Readers) -> str:
    """Why no kernel takes these two products, "" if one may."""
    size, tokens = second.shape[-1], max(first.shape[-2:])
    precisions = {first.precision, second.precision}
    if precisions == {"int8"}:
        written = second.writes[0]
        while readers[written] and readers[written][0].kind == "SHUFFLE":
            written = readers[written][0].writes[0]
        if size not in (16, 32, 64):
            return f"head size {size} is not 16, 32 or 64, as INT8 asks"
        if tokens > 512:
            return f"{tokens} tokens are more than the 512 that INT8 takes"
        if not any(layer.kind == "QUANTIZE" for layer in readers[written]):
            return "no Q/DQ stands behind its second product, as INT8 asks"
        return ""
    if "int8" in precisions:
        return "only one of its two products is quantized"
    if not precisions <= {"fp16", "bf16"}:
        computed = " and ".join(sorted(precisions)).upper()
        return f"it computes in {computed}, and fused kernels in FP16, BF16 or INT8"
    if size % 8 or not 16 <= size <= 256:
        return f"head size {size} is no multiple of 8 from 16 to 256"
    return ""


def attention_in_engine(
    asked: Sequence[Attention], layers: Sequence[Layer]
) -> tuple[Attention, ...]:
    """What an engine made of each attention of the network that it was built from."""
    return tuple(_made_of(one, layers, len(asked)) for one in asked)


def _made_of(asked: Attention, layers: Sequence[Layer], expected: int) -> Attention:
    nodes = set(asked.nodes)
    holding = [layer for layer in layers if nodes.intersection(layer.nodes)]
    fused = sum(layer.kind == FUSED_ATTENTION for layer in layers)
    if any(layer.kind == FUSED_ATTENTION or nodes <= set(layer.nodes) for layer in holding):
        return dataclasses.replace(asked, verdict="fused", reason="")
    if holding:
        reason = asked.reason or "its network allows it, and TensorRT chose other kernels"
        return dataclasses.replace(asked, verdict="not fused", reason=reason)
    # A kernel without metadata does not say whose attention it is.
    if fused == expected:
        return dataclasses.replace(asked, verdict="fused", reason="")
    hidden = any(layer.kind == FOREIGN_NODE for layer in layers)
    reason = "a ForeignNode hides it" if hidden else f"{fused} fused kernels for {expected} of them"
    return dataclasses.replace(asked, verdict="unknown", reason=reason)
