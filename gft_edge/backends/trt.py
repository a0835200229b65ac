"""TensorRT: a strongly typed ONNX graph, read by its parser where one is; engines are built from it."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from gft_edge.backends import BuildRequest, OpenRequest, Session
from gft_edge.bundle import sha256_of
from gft_edge.errors import MissingDependencyError, PipelineError, UsageError
from gft_edge.specs import Artifact

TARGET = "tensorrt"
PRECISIONS = ("fp32", "fp16", "int8")

# Nearly the same Python interface; the one for RTX GPUs parses and builds without a GPU, where the
# other has no builder.
_LIBRARIES = ("tensorrt_rtx", "tensorrt")


def missing() -> str | None:
    """The install line, or where TensorRT is here, that it only reads graphs."""
    if _library() is None:
        return str(MissingDependencyError("TensorRT", "tensorrt"))
    return f"{version()} reads graphs at export and runs none: --backend onnx runs them"


def unsupported(precision: str) -> str | None:
    """Nothing: the graph is written here and computed on the device."""
    return None


def runtime_precision(precision: str) -> str:
    """The graph says it, node by node."""
    return "typed"


def version() -> str:
    """Of the library that is here."""
    library = _library()
    return f"{library.__name__} {library.__version__}" if library else "absent"


def build(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """Copy the ONNX file, after NVIDIA's parser has read it where a TensorRT library is installed.

    Raises PipelineError with the parser's first error.
    """
    library = _library()
    if library is not None:
        parse(library, graph)
    path = folder / "model.onnx"
    shutil.copyfile(graph, path)
    return Artifact(path.name, "onnx", request.precision, sha256_of(path), request.parent_sha256)


def parse(library: Any, graph: Path) -> tuple[Any, Any]:
    """A strongly typed network and its builder, from an ONNX file. Raises PipelineError in one line.

    Every TensorRT from 10.0 on has strongly typed networks; 11 has no other
    (docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/).
    """
    logger = library.Logger(library.Logger.ERROR)
    builder = library.Builder(logger)
    # The flag is 1 in 10.3 and 0 in 11: only its name is stable.
    strongly_typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        error = parser.get_error(0)
        # No node where the file itself cannot be read.
        what = f"node {error.node_name()!r}" if error.node_name() else graph
        # The cause stands on the second line; what follows is how it was found.
        reason = ": ".join(error.desc().splitlines()[:2])
        raise PipelineError(f"TensorRT's parser refuses {what}: {reason}")
    # An empty file parses: every field of an ONNX model is optional.
    if not network.num_outputs:
        raise PipelineError(f"TensorRT's parser finds no output in {graph}")
    return network, builder


def open_session(path: Path, request: OpenRequest) -> Session:
    """Raises UsageError: this bundle holds no engine."""
    raise UsageError(
        f"{path.parent} holds a graph for TensorRT and no engine yet: ONNX Runtime runs the graph "
        "with --backend onnx"
    )


def _library() -> Any:
    """The first that is installed and can parse here."""
    for name in _LIBRARIES:
        try:
            library: Any = importlib.import_module(name)
            library.Builder(library.Logger(library.Logger.ERROR))
        # TypeError: the desktop library has no builder where there is no GPU.
        except (ImportError, TypeError, RuntimeError):
            continue
        return library
    return None
