"""onnxsim simplification, which an export can do without."""

from __future__ import annotations

from pathlib import Path

import onnx

from gft_edge.errors import PipelineError


def simplifier() -> str | None:
    """onnxsim's version, or None where it is not installed."""
    try:
        import onnxsim
    except ImportError:
        return None
    return f"onnxsim {onnxsim.__version__}"


def simplify(source: Path, path: Path) -> None:
    """Write a simplified `source` to `path`; names of inputs and outputs stay.

    Raises PipelineError when onnxsim cannot vouch for its own result.
    """
    import onnxsim

    model, sound = onnxsim.simplify(
        onnx.load(source),
        # As Gemm a linear layer needs a Reshape on either side, 98 of them in a 12-block network,
        # and engines no longer see the MatMul-Add they fuse.
        skipped_optimizers=["fuse_matmul_add_bias_into_gemm"],
    )
    if not sound:
        raise PipelineError("onnxsim's own check failed: export with --no-simplify")
    onnx.save(model, path)
