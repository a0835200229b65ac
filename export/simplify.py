"""onnxsim simplification, which an export can do without."""

from __future__ import annotations

from pathlib import Path

import onnx

from gft_edge.errors import PipelineError


def has_simplifier() -> bool:
    """Whether onnxsim is installed."""
    try:
        import onnxsim  # noqa: F401
    except ImportError:
        return False
    return True


def simplify(source: Path, path: Path) -> None:
    """Write a simplified `source` to `path`; names of inputs and outputs stay.

    Raises PipelineError when onnxsim cannot vouch for its own result.
    """
    import onnxsim

    model, sound = onnxsim.simplify(
        onnx.load(source),
        # As Gemm a linear layer needs a Reshape on either side, 98 of them in a 12-block network,
        # and engines no longer see the MatMul-Add they fuse.
        skipped_optimizers=[
            "fuse_matmul_add_bias_into_gemm",
            "fuse_matmul_add_bias_into_gemm_batched",
        ],
    )
    if not sound:
        raise PipelineError("onnxsim's own check failed: export with --no-simplify")
    onnx.save(model, path)
