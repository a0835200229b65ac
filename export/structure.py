"""What a graph must look like to build on every target: static, a constant K, nothing dynamic inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.errors import PipelineError

# Control flow, data-dependent shapes, and scatters that engines refuse or run slowly.
FORBIDDEN = frozenset(
    {"If", "Loop", "Scan", "NonZero", "ScatterND", "ScatterElements", "Compress", "Unique"}
)

# Of an FP16 graph: the input to FP16, the logits to FP32, and what each score reads to FP32.
HALF_CASTS = 2


def check_structure(path: Path, spec: ModelSpec, casts: int | None) -> None:
    """Raise PipelineError naming the first thing that some target would refuse.

    Valid ONNX, one TopK a stage with the stage's K as a constant of shape [1], no dynamic dimension, no
    FORBIDDEN operator, and exactly `casts` Cast nodes, where it is known how many there should be.
    """
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PipelineError(f"the graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    graph = model.graph
    counts = Counter(node.op_type for node in graph.node)
    found = sorted(FORBIDDEN & set(counts))
    if found:
        raise PipelineError(f"the graph holds {', '.join(found)}, which static engines refuse")
    kept = [top_k_constant(node, graph) for node in graph.node if node.op_type == "TopK"]
    expected = [stage.keep for stage in spec.stages]
    if kept != expected:
        raise PipelineError(f"TopK keeps {kept} in the graph, the model says {expected}")
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            raise PipelineError(f"{value.name} has a dynamic dimension")
    if casts is not None and counts["Cast"] != casts:
        raise PipelineError(f"the graph holds {counts['Cast']} Cast nodes, expected {casts}")


def expected_casts(spec: ModelSpec, given: InputSpec, half: bool) -> int | None:
    """Cast nodes of a graph: pixels enter as uint8; FP16 leaves as FP32, and scores read it as FP32.

    None where the network is timm's own, which may cast wherever it likes, and for the parts of
    TransFG, which read each block's attention as FP32.
    """
    if spec.family != "gft" and (half or spec.family == "timm"):
        return None
    if half:
        return HALF_CASTS + _casts_of_scores(spec)
    return int(given.dtype == "uint8")


def _casts_of_scores(spec: ModelSpec) -> int:
    """One for q and one for k of each stage's attention; a random order touches q alone."""
    rule = SCORES[spec.score]
    return len(spec.stages) * (1 if rule.attention is None else 2)


def top_k_constant(node: onnx.NodeProto, graph: onnx.GraphProto) -> int | None:
    """K of a TopK node, or None when it is not a constant of shape [1]."""
    for tensor in graph.initializer:
        if tensor.name == node.input[1]:
            return _single(numpy_helper.to_array(tensor))
    for other in graph.node:
        if other.op_type == "Constant" and other.output[0] == node.input[1]:
            return _single(numpy_helper.to_array(other.attribute[0].t))
    return None


def _single(values: np.ndarray) -> int | None:
    return int(values[0]) if values.shape == (1,) else None


def finish(source: Path, path: Path, metadata: Mapping[str, str], outputs: tuple[str, ...]) -> None:
    """Write the deployable graph: `logits` alone as output, `outputs` still names inside, metadata."""
    model = onnx.load(source)
    logits = [value for value in model.graph.output if value.name not in outputs]
    del model.graph.output[:]
    model.graph.output.extend(logits)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
