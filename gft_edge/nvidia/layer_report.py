"""What TensorRT made of a graph: layers and precisions by stage, attention, and what to warn of."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.bundle.placement import group_of
from gft_edge.bundle.specs import ModelSpec
from gft_edge.nvidia.attention import Attention, attention_in_engine, attention_in_network
from gft_edge.nvidia.layers import CONVERSIONS, PRODUCTS, UNKNOWN, Layer

Source = Literal["parsed network", "engine"]


@dataclass(frozen=True)
class StageLayers:
    """What lies before the first selection (`base`), or from one selection (`stage N`) to the next.

    `precisions` counts layers, conversions left out. `reformat` is None in a parsed network: layouts
    are chosen when an engine is built.
    """

    stage: str
    groups: tuple[str, ...]
    precisions: Mapping[str, int]
    top_k: int
    gather: int
    cast: int
    reformat: int | None


@dataclass(frozen=True)
class LayerReport:
    """A network or an engine. Layers are counted without conversions.

    `products` counts matrix products and convolutions by precision. A parsed network says nothing of
    fusion yet, only whether an attention is fusable.
    """

    source: Source
    int8_layers: int
    fp16_layers: int
    products: Mapping[str, int]
    stages: tuple[StageLayers, ...]
    attention: tuple[Attention, ...]
    warnings: tuple[str, ...]
    layers: tuple[Layer, ...]


def report_of(
    layers: Sequence[Layer], spec: ModelSpec, source: Source, asked: Sequence[Layer] = ()
) -> LayerReport:
    """Count, find attention and warn.

    `asked` are the layers of the network that an engine was built from: the engine alone tells
    neither what was quantized nor which block an unnamed ONNX node lies in.
    """
    if source == "parsed network":
        attention = attention_in_network(layers)
        warnings = _half_quantized(layers)
    else:
        groups = {node: layer.group for layer in asked for node in layer.nodes}
        layers = [
            dataclasses.replace(layer, group=group_of(layer.nodes, groups) or "other")
            for layer in layers
        ]
        attention = attention_in_engine(attention_in_network(asked), layers)
        warnings = [*_half_quantized(asked), *_fallen_back(asked, layers), *_untold(layers)]
    precisions = _precisions(layers)
    return LayerReport(
        source,
        precisions.get("int8", 0),
        precisions.get("fp16", 0),
        _precisions([layer for layer in layers if layer.kind in PRODUCTS]),
        _stages(layers, spec, source),
        attention,
        (*warnings, *_unfused(attention)),
        tuple(layers),
    )


def _precisions(layers: Sequence[Layer]) -> Mapping[str, int]:
    counts = Counter(layer.precision for layer in layers if layer.kind not in CONVERSIONS)
    return {name: counts[name] for name in sorted(counts, key=_in_order)}


def _in_order(precision: str) -> tuple[bool, str]:
    """Those that work is done in, then those of indices and masks."""
    return precision not in ("int8", "fp8", "fp16", "bf16", "fp32"), precision


def _stages(layers: Sequence[Layer], spec: ModelSpec, source: Source) -> tuple[StageLayers, ...]:
    members: dict[str, list[Layer]] = {"base": []}
    members.update((f"stage {number + 1}", []) for number in range(len(spec.stages)))
    for layer in layers:
        members.setdefault(_stage_of(layer.group, spec), []).append(layer)
    return tuple(_stage(name, inside, source) for name, inside in members.items())


def _stage_of(group: str, spec: ModelSpec) -> str:
    """A stage goes from its selection, before block `position` or inside it, to the next one's."""
    kind, _, number = group.rpartition(" ")
    if kind == "block":
        reached = sum(stage.position <= int(number) for stage in spec.stages)
    elif kind in ("selection", "GALA layer"):
        reached = int(number)
    elif group == "other":
        return group
    else:
        reached = len(spec.stages) if group == "head" else 0
    return f"stage {reached}" if reached and spec.stages else "base"


def _stage(name: str, layers: Sequence[Layer], source: Source) -> StageLayers:
    kinds = Counter(layer.kind for layer in layers)
    return StageLayers(
        name,
        # Weights are dequantized first of all, in no order that helps.
        tuple(dict.fromkeys(layer.group for layer in layers if layer.kind != "DEQUANTIZE")),
        _precisions(layers),
        kinds["TOPK"],
        kinds["GATHER"],
        kinds["CAST"],
        kinds["REFORMAT"] if source == "engine" else None,
    )


def _half_quantized(layers: Sequence[Layer]) -> list[str]:
    """Products of a network that read one quantized input: they compute in what the other one is."""
    dequantized = {layer.writes[0] for layer in layers if layer.kind == "DEQUANTIZE"}
    return [
        f"{layer.name} falls back to {layer.precision}: only one of its two inputs has Q/DQ"
        for layer in layers
        if layer.kind in PRODUCTS and len(dequantized.intersection(layer.reads[:2])) == 1
    ]


def _fallen_back(asked: Sequence[Layer], layers: Sequence[Layer]) -> list[str]:
    """Products that are INT8 in the network, and in no layer of its engine that holds them."""
    made: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        if layer.kind in PRODUCTS and layer.precision != UNKNOWN:
            for node in layer.nodes:
                made[node].add(layer.precision)
    quantized = [layer for layer in asked if layer.kind in PRODUCTS and layer.precision == "int8"]
    return [
        f"{layer.name} falls back to {' and '.join(sorted(made[node]))}: its network quantizes it, "
        "and TensorRT chose another kernel"
        for layer in quantized
        for node in layer.nodes
        if made[node] and "int8" not in made[node]
    ]


def _untold(layers: Sequence[Layer]) -> list[str]:
    if any(layer.precision != UNKNOWN for layer in layers):
        return []
    return ["the engine tells no precisions: build it with detailed profiling verbosity"]


def _unfused(attention: Sequence[Attention]) -> list[str]:
    """One warning a reason."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in attention:
        if one.verdict in ("not fusable", "not fused"):
            groups[one.verdict, one.reason].append(one.group)
    warnings = []
    for (verdict, reason), names in groups.items():
        where = "anywhere" if len(names) == len(attention) else f"in {', '.join(names)}"
        warnings.append(f"attention is {verdict} {where}: {reason}")
    return warnings
