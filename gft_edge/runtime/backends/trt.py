"""TensorRT: a strongly typed ONNX graph as the artifact, and the engines built from it as sessions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gft_edge.bundle.manifest import Artifact
from gft_edge.errors import GftEdgeError, UsageError
from gft_edge.nvidia.cuda import open_cuda
from gft_edge.nvidia.engines import engine_for, host_of, serves
from gft_edge.nvidia.layers import engine_layers
from gft_edge.nvidia.library import builder_library, installed, not_installed, parse
from gft_edge.runtime.backends import (
    BuildRequest,
    InTurn,
    LayerRun,
    LayerTime,
    OpenRequest,
    copied,
    samples_in_turn,
    warmed_up,
)
from gft_edge.runtime.trt_session import TrtSession

TARGET = "tensorrt"
PRECISIONS = ("fp32", "fp16", "int8")


def missing() -> str | None:
    """The install line, or why no engine runs here; its graph is still written and read."""
    libraries = installed()
    if not libraries:
        return not_installed()
    try:
        gpu = open_cuda().gpu()
    except GftEdgeError as error:
        return f"{version()} reads and builds graphs here, and no engine runs: {error}"
    if not any(serves(library, gpu) for library in libraries):
        return f"{version()} has no engines for the compute capability {gpu.compute_capability} of {gpu.name}"
    return None


def unsupported(precision: str, device: str | None = None) -> str | None:
    """Nothing: the graph is written here and computed on the device."""
    return None


def runtime_precision(precision: str) -> str:
    """The graph says it, node by node."""
    return "typed"


def version() -> str:
    """The versions of every library that is here."""
    return ", ".join(library.name for library in installed()) or "absent"


def build(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """Copy the ONNX file, after NVIDIA's parser has read it where one works.

    The engine is another step, on the machine that runs it: gft_edge.nvidia.build. Raises
    PipelineError with the parser's first error.
    """
    try:
        library = builder_library()
    except UsageError:
        pass
    else:
        parse(library, graph.read_bytes(), graph)
    return copied(graph, folder, request)


def open_session(path: Path, request: OpenRequest) -> TrtSession:
    """Load the engine of the graph at `path` that fits this machine.

    Raises UsageError without driver, GPU or fitting engine, BundleError for an altered engine,
    FailedError when memory runs out.
    """
    folder = path.parent
    if request.score_outputs:
        raise UsageError("engines of TensorRT return kept patches and no scores")
    try:
        cuda = open_cuda()
    except UsageError as error:
        raise UsageError(
            f"{error}. ONNX Runtime runs the graph on a CPU: --backend onnx"
        ) from error
    outputs = ("logits", *request.kept_outputs)
    engine, library = engine_for(
        folder, request.engines, request.graph_sha256, outputs, installed(), host_of(cuda)
    )
    return TrtSession(folder, engine, library, cuda, request)


def layer_times(
    path: Path, request: OpenRequest, images: npt.NDArray[Any], runs: int, in_turn: InTurn
) -> LayerRun:
    """Time layers by its profiler, between whose layers the GPU waits. Raises as `open_session`.

    A replayed CUDA graph reports no layers: every inference is launched anew.
    """
    session = open_session(path, dataclasses.replace(request, cuda_graph=False))
    try:
        times_ms = session.time_layers()
        warmed_up(lambda: session.run(images))
        times_ms.clear()
        samples_ms = samples_in_turn(lambda: session.run(images), runs, in_turn)
        information = session.layer_information()
    finally:
        session.close()
    return LayerRun(_layer_times(information, times_ms, runs), samples_ms)


def _layer_times(information: str, times_ms: dict[str, float], runs: int) -> tuple[LayerTime, ...]:
    """The engine's layers as its inspector tells them, then those that its profiler alone does."""
    layers = engine_layers(information)
    unknown = times_ms.keys() - {layer.name for layer in layers}
    layers += engine_layers(json.dumps({"Layers": sorted(unknown)}))
    return tuple(
        LayerTime(
            layer.name, layer.kind, layer.precision, layer.nodes, layer.reads, layer.writes,
            layer.kernel, times_ms.get(layer.name, 0.0) / runs,
        )
        for layer in layers
    )  # fmt: skip
