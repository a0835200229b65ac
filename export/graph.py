"""Edits of an ONNX graph in memory: each returns a new graph and leaves the one it was given alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import onnx

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import PipelineError


def has_simplifier() -> bool:
    """Return whether onnxsim is installed."""
    try:
        import onnxsim  # noqa: F401
    except ImportError:
        return False
    return True


def simplify(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify by onnxsim; names of inputs and outputs stay.

    Raises PipelineError when onnxsim cannot vouch for its own result.
    """
    import onnxsim

    simplified, sound = onnxsim.simplify(
        graph,
        # As Gemm a linear layer needs a Reshape on either side, 98 of them in a 12-block network,
        # and engines no longer see the MatMul-Add they fuse.
        skipped_optimizers=[
            "fuse_matmul_add_bias_into_gemm",
            "fuse_matmul_add_bias_into_gemm_batched",
        ],
    )
    if not sound:
        raise PipelineError("onnxsim's own check failed: export with --no-simplify")
    return simplified


def finish(
    graph: onnx.ModelProto, metadata: Mapping[str, str], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """Make the deployable graph: `logits` alone as output, `outputs` still names inside, metadata."""
    finished = _copy(graph)
    logits = [value for value in finished.graph.output if value.name not in outputs]
    del finished.graph.output[:]
    finished.graph.output.extend(logits)
    onnx.helper.set_model_props(finished, dict(metadata))
    return finished


def kept_names(spec: ModelSpec) -> tuple[str, ...]:
    """Return what onnx_from_torch calls the kept patches, (B,K) int64, one a stage."""
    return tuple(f"kept_{number}" for number in range(1, len(spec.stages) + 1))


def score_names(spec: ModelSpec) -> tuple[str, ...]:
    """Return what name_scores calls the tensors that TopK ranks, (B,N) float32, one a stage."""
    return tuple(f"score_{number}" for number in range(1, len(spec.stages) + 1))


def attention_names(spec: ModelSpec) -> tuple[str, ...]:
    """Return what name_scores calls Eq. 1 of each stage, (B,H,N) float32; a `gala` network has it."""
    if spec.score != "gala":
        return ()
    return tuple(f"attention_{number}" for number in range(1, len(spec.stages) + 1))


def name_scores(graph: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Rename what each stage ranks by and its Eq. 1: neither nodes nor outputs change.

    Engines keep tensors' names, so that a session may return these after any quantization. Raises
    PipelineError where a score is not computed as model/gala.py has it.
    """
    named = _copy(graph)
    made_by = {name: node for node in named.graph.node for name in node.output}
    stages = [node for node in named.graph.node if node.op_type == "TopK"]
    renamed = {node.input[0]: name for node, name in zip(stages, score_names(spec), strict=True)}
    for stage, name in zip(stages, attention_names(spec), strict=False):
        renamed[_gradient_input(stage.input[0], made_by)] = name
    for node in named.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
    for value in named.graph.value_info:
        value.name = renamed.get(value.name, value.name)
    return named


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    return copied


def _gradient_input(score: str, made_by: dict[str, onnx.NodeProto]) -> str:
    """Find the tensor whose gradient (Eq. 2) a score is smoothed from: its Abs reads slices of it."""
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
