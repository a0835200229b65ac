"""Names for the tensors that an explanation reads inside a finished graph: scores and Eq. 1."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import onnx

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import PipelineError


def score_names(spec: ModelSpec) -> tuple[str, ...]:
    """What name_scores calls the tensors that TopK ranks, (B,N) float32, one a stage."""
    return tuple(f"score_{number}" for number in range(1, len(spec.stages) + 1))


def attention_names(spec: ModelSpec) -> tuple[str, ...]:
    """What name_scores calls Eq. 1 of each stage, (B,H,N) float32; none where the score is not `gala`."""
    if spec.score != "gala":
        return ()
    return tuple(f"attention_{number}" for number in range(1, len(spec.stages) + 1))


def name_scores(path: Path, spec: ModelSpec) -> None:
    """Rename, in place, what each stage ranks by and its Eq. 1: neither nodes nor outputs change.

    Engines keep tensors' names, so that a session may return these after any quantization. Raises
    PipelineError where a score is not computed as model/gala.py has it.
    """
    model = onnx.load(path)
    made_by = {name: node for node in model.graph.node for name in node.output}
    stages = [node for node in model.graph.node if node.op_type == "TopK"]
    renamed = {node.input[0]: name for node, name in zip(stages, score_names(spec), strict=True)}
    for stage, name in zip(stages, attention_names(spec), strict=False):
        renamed[_gradient_input(stage.input[0], made_by)] = name
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)
    onnx.save(model, path)


def _gradient_input(score: str, made_by: dict[str, onnx.NodeProto]) -> str:
    """The tensor whose gradient (Eq. 2) a score is smoothed from: its Abs reads slices of it."""
    gradient = _nearest("Abs", score, made_by)
    return str(_nearest("Slice", gradient.input[0], made_by).input[0])


def _nearest(operator: str, name: str, made_by: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    queue, seen = deque([name]), {name}
    while queue:
        node = made_by.get(queue.popleft())
        if node is None:
            continue
        if node.op_type == operator:
            return node
        queue += [given for given in node.input if given not in seen]
        seen.update(node.input)
    raise PipelineError(f"no {operator} is found above {name!r}: the score is not GALA's")
