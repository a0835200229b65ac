"""Where in the network the layers of a graph, or of what an engine made of it, lie."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Operators that hand a tensor on and compute nothing, as ONNX and the engines call them.
_MOVES = frozenset(
    {"CONCAT", "CONCATENATION", "FLATTEN", "GATHER", "IDENTITY", "REFORMAT", "REORDER", "RESHAPE",
     "SHUFFLE", "SLICE", "SPLIT", "SQUEEZE", "STRIDEDSLICE", "TRANSPOSE", "UNSQUEEZE",
     "VARIADICSPLIT"}
)  # fmt: skip

_BEFORE_BLOCKS = frozenset({"patch_embed", "pos_drop", "patch_drop", "norm_pre"})


@dataclass(frozen=True)
class Layer:
    """One layer of a graph, or of what an engine made of it.

    `kind` is its operator, `kernel` what computes it: an exec type of OpenVINO, a provider of ONNX
    Runtime, a tactic of TensorRT, "" where none is told. `nodes` are those of the exported graph in
    it, as far as the engine remembers them; `reads` and `writes` are the tensors between layers.
    """

    name: str
    kind: str
    precision: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    kernel: str = ""


def group_of(nodes: Iterable[str], known: Mapping[str, str] | None = None) -> str:
    """The group that most of the original nodes are in, "" where none tells. `known` goes first.

    A group is `patch embedding`, `block N`, `GALA layer N`, `selection N` (its score, TopK and
    gathers; 1 is TransFG's choice of parts), `head` or, in a backbone of other parts, the name of
    one: `layer1`, `stages.0`. ONNX nodes, and what becomes of them, are named after the module they
    are in.
    """
    groups = Counter((known or {}).get(node) or _named_group(node) for node in nodes)
    del groups[""]
    return groups.most_common(1)[0][0] if groups else ""


def groups_by_flow(layers: Sequence[Layer]) -> list[str]:
    """The group of each layer, `other` where nothing tells; layers stand behind what they read.

    Functions outside any module leave no name in a graph, and engines add layers of their own. Such
    a layer belongs:
    1. where its data comes from, the latest group of the network if from several;
    2. for a gather, to the selection that made its index, with all that only moves tensors before
       it (case 4) and behind it, to the concatenation that ends the move. What comes out belongs
       where the gathered data came from;
    3. reading constants alone, the dequantization of a weight, to the layer that reads it;
    4. moving tensors for unnamed layers of one selection alone, to that selection.
    """
    named = [group_of(layer.nodes) for layer in layers]
    groups = _groups_forward(layers, named)
    readers: dict[str, list[int]] = defaultdict(list)
    for number, layer in enumerate(layers):
        for name in layer.reads:
            readers[name].append(number)
    for number in reversed(range(len(layers))):
        behind = [reader for name in layers[number].writes for reader in readers[name]]
        if not behind or named[number]:
            continue
        reader_groups = {groups[reader] for reader in behind}
        alone = len(reader_groups) == 1 and not any(named[reader] for reader in behind)
        if not groups[number] or (
            alone and _moves(layers[number]) and _is_selection(groups[behind[0]])
        ):
            groups[number] = groups[behind[0]]
    return [group or "other" for group in groups]


def _groups_forward(layers: Sequence[Layer], named: Sequence[str]) -> list[str]:
    """Cases 1 and 2, "" where no data comes in."""
    home: dict[str, str] = {}  # where the data of a tensor belongs
    moved: dict[str, str] = {}  # tensors between a gather and its concatenation -> the selection
    order: dict[str, int] = {}
    groups = []
    for layer, name in zip(layers, named, strict=True):
        owners = sorted({home[read] for read in layer.reads if read in home}, key=order.__getitem__)
        data = [group for group in owners if not _is_selection(group)]
        selections = [group for group in owners if _is_selection(group)]
        selections += [moved[read] for read in layer.reads if read in moved]
        group = belongs = name or (owners[-1] if owners else "")
        if not name and data and selections and _moves(layer):
            group, belongs = selections[-1], data[-1]
            if not layer.kind.upper().startswith("CONCAT"):
                moved.update((written, group) for written in layer.writes)
        if belongs:
            order.setdefault(belongs, len(order))
            home.update((written, belongs) for written in layer.writes)
        groups.append(group)
    return groups


def _moves(layer: Layer) -> bool:
    return layer.kind.upper() in _MOVES


def _is_selection(group: str) -> bool:
    return group.startswith("selection")


def _named_group(node: str) -> str:
    module = re.match(r"(backbone\.blocks|layers|selections)\.(\d+)\b", node)
    if module:
        number = int(module[2])
        return {
            "backbone.blocks": f"block {number}",
            "layers": f"GALA layer {number + 1}",
            "selections": f"selection {number + 1}",
        }[module[1]]
    if node.startswith("parts/"):
        return "selection 1"
    # OpenVINO names the layer that writes an output after the output alone.
    if node == "logits" or re.match(r"backbone\.(norm/|fc_norm|head)", node):
        return "head"
    part = re.match(r"backbone\.(\w+)(?:\.(\w+))?", node)
    if not part:
        return ""
    if part[1] in _BEFORE_BLOCKS:
        return "patch embedding"
    # A container alone tells nothing: its members are the parts.
    inside = part[2] and (part[2].isdigit() or part[1] == "features")
    return f"{part[1]}.{part[2]}" if inside and not part[1][-1].isdigit() else part[1]
