"""ONNX Runtime on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gft_edge.backends import (
    BuildRequest,
    OpenRequest,
    Split,
    check_images,
    check_signature,
    ordered_outputs,
    run_on_host,
)
from gft_edge.bundle import sha256_of
from gft_edge.errors import BundleError, MissingDependencyError, UsageError
from gft_edge.onnx_bytes import graph_output
from gft_edge.specs import Artifact

TARGET = "onnx"
PRECISIONS = ("fp32", "fp16", "int8")


def missing() -> str | None:
    """The install line when onnxruntime is not here."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return str(MissingDependencyError("ONNX Runtime", "onnx"))
    return None


def unsupported(precision: str) -> str | None:
    """Nothing: what the CPU has no kernel for, ONNX Runtime computes in FP32."""
    return None


def runtime_precision(precision: str) -> str:
    """The graph says it, node by node."""
    return "f32" if precision == "fp32" else "typed"


def version() -> str:
    """Of onnxruntime."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def build(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """ONNX Runtime loads the ONNX file itself: build copies it."""
    path = folder / "model.onnx"
    shutil.copyfile(graph, path)
    return Artifact(path.name, "onnx", request.precision, sha256_of(path), request.parent_sha256)


def open_session(path: Path, request: OpenRequest) -> OrtSession:
    """Raises BundleError when ONNX Runtime refuses the file or its input is not as requested."""
    if missing():
        raise MissingDependencyError("ONNX Runtime", "onnx")
    return OrtSession(path, request)


class OrtSession:
    """One InferenceSession; its `run` may be called from several threads."""

    def __init__(self, path: Path, request: OpenRequest):
        import onnxruntime

        if path.suffix != ".onnx":
            raise UsageError(f"ONNX Runtime runs bundles of --target onnx, not {path.name}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if request.threads is not None:
            options.intra_op_num_threads = request.threads
        model = path.read_bytes() + b"".join(map(graph_output, request.kept_outputs))
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        # onnxruntime raises its own classes, which share only Exception.
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"ONNX Runtime cannot load {path}: {reason}") from error
        shapes = [
            tuple(v.shape) for v in (*self._session.get_inputs(), self._session.get_outputs()[0])
        ]
        check_signature(path, request, *shapes)
        self._shape = request.input_shape
        self._outputs = ["logits", *request.kept_outputs]

    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See Session."""
        check_images(images, self._shape)
        return ordered_outputs(self._session.run(self._outputs, {"images": images}))

    def run_split(self, images: npt.NDArray[Any]) -> tuple[list[npt.NDArray[Any]], Split]:
        """See Session."""
        return run_on_host(self.run, images)

    def flags(self) -> tuple[str, ...]:
        """See Session; 0 threads are one a core."""
        options = self._session.get_session_options()
        return (
            f"providers={','.join(self._session.get_providers())}",
            f"intra_op_num_threads={options.intra_op_num_threads}",
        )

    def close(self) -> None:
        """Drop the engine."""
        del self._session
