"""What a graph must look like to build on every target: static, a constant K, nothing dynamic inside."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.errors import PipelineError

if TYPE_CHECKING:
    import onnx

# Control flow, data-dependent shapes, and scatters that engines refuse or run slowly.
FORBIDDEN = frozenset(
    {"If", "Loop", "Scan", "NonZero", "ScatterND", "ScatterElements", "Compress", "Unique"}
)

# Of an FP16 graph: the input to FP16, the logits to FP32, and what each score reads to FP32.
HALF_CASTS = 2


def check_structure(model: onnx.ModelProto, spec: ModelSpec, casts: int | None) -> None:
    """Raise PipelineError naming the first thing that some target would refuse.

    Valid ONNX, one TopK a stage with the stage's K as a constant of shape [1], no dynamic dimension, no
    FORBIDDEN operator, and exactly `casts` Cast nodes, where it is known how many there should be.
    """
    import onnx

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


def structure_checked(manifest: Manifest, path: Path) -> str | None:
    """Check the graph of a bundle; return why it was not checked where this machine cannot read it.

    Raises PipelineError as check_structure.
    """
    if path.suffix != ".onnx":
        return f"checked at export, onnx does not read {path.name}"
    try:
        import onnx
    except ImportError as error:
        return f"{error.name} is not installed here"
    half = manifest.precision == "fp16" or (
        manifest.target == "tensorrt" and manifest.quantization is not None
    )
    casts = expected_casts(manifest.model, manifest.input, half)
    check_structure(onnx.load(path), manifest.model, casts)
    return None


def expected_casts(spec: ModelSpec, given: InputSpec, half: bool) -> int | None:
    """Count the Casts of a sound graph: of uint8 pixels, and of FP16 to the FP32 of logits and scores.

    None where the network is timm's own, which may cast wherever it likes, and for the parts of
    TransFG, which read each block's attention as FP32.
    """
    if spec.family != "gft" and (half or spec.family == "timm"):
        return None
    if not half:
        return int(given.dtype == "uint8")
    # For q and k of each stage's attention; a random order touches q alone.
    return HALF_CASTS + len(spec.stages) * (1 if SCORES[spec.score].attention is None else 2)


def top_k_constant(node: onnx.NodeProto, graph: onnx.GraphProto) -> int | None:
    """Return K of a TopK node, or None when it is not a constant of shape [1]."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.name == node.input[1]:
            return _single(numpy_helper.to_array(tensor))
    for other in graph.node:
        if other.op_type == "Constant" and other.output[0] == node.input[1]:
            return _single(numpy_helper.to_array(other.attribute[0].t))
    return None


def _single(values: np.ndarray) -> int | None:
    return int(values[0]) if values.shape == (1,) else None
