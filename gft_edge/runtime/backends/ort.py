"""ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt

from gft_edge.bundle.manifest import Artifact
from gft_edge.bundle.onnx_bytes import FLOAT, GraphNode, graph_nodes, graph_output
from gft_edge.errors import BundleError, UsageError
from gft_edge.runtime.backends import (
    BuildRequest,
    InTurn,
    LayerRun,
    LayerTime,
    OpenRequest,
    Session,
    check_images,
    check_signature,
    closed,
    copied,
    ordered_outputs,
    precision_of,
    samples_in_turn,
    vendor_library,
    warmed_up,
    why_missing,
)

TARGET = "onnx"
PRECISIONS = ("fp32", "fp16", "int8")

_OPTIMIZED_FILE = "optimized.onnx"
_TIMED = "_kernel_time"  # behind a node's name in the profiler's events


def _library() -> Any:
    return vendor_library("onnxruntime", "ONNX Runtime", "onnx")


def missing() -> str | None:
    """The install line when onnxruntime is not here."""
    return why_missing(_library)


def unsupported(precision: str, device: str | None = None) -> str | None:
    """Nothing: what the CPU has no kernel for, ONNX Runtime computes in FP32."""
    return None


def runtime_precision(precision: str) -> str:
    """The graph says it, node by node."""
    return "f32" if precision == "fp32" else "typed"


def version() -> str:
    """The version of onnxruntime."""
    return f"onnxruntime {_library().__version__}"


def build(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """ONNX Runtime loads the ONNX file itself: build copies it."""
    return copied(graph, folder, request)


def open_session(path: Path, request: OpenRequest) -> OrtSession:
    """Raises BundleError when ONNX Runtime refuses the file or its input is not as requested."""
    return OrtSession(_content(path), str(path), request)


def open_graph(graph: bytes, request: OpenRequest) -> OrtSession:
    """Open a graph that is in memory. Raises as `open_session`."""
    return OrtSession(graph, "the graph", request)


def _content(path: Path) -> bytes:
    if path.suffix != ".onnx":
        raise UsageError(f"ONNX Runtime runs bundles of --target onnx, not {path.name}")
    return path.read_bytes()


def layer_times(
    path: Path, request: OpenRequest, images: npt.NDArray[Any], runs: int, in_turn: InTurn
) -> LayerRun:
    """Time layers by its profiler, which does not name kernels. Raises as `open_session`."""
    content = _content(path)
    with TemporaryDirectory() as folder:
        session = OrtSession(content, str(path), request, Path(folder))
        warmed_up(lambda: session.run(images))
        samples_ms = samples_in_turn(lambda: session.run(images), runs, in_turn)
        events = json.loads(Path(session._open().end_profiling()).read_bytes())
        session.close()
        graph = (Path(folder) / _OPTIMIZED_FILE).read_bytes()
    return LayerRun(_layers(graph, events, runs), samples_ms)


def _layers(graph: bytes, events: list[dict[str, Any]], runs: int) -> tuple[LayerTime, ...]:
    """The nodes of the graph that ONNX Runtime made, with their time in the last `runs` inferences."""
    timed = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_TIMED):
            timed[event["name"].removesuffix(_TIMED)].append(event)
    nodes = graph_nodes(graph)
    named = {node.name for node in nodes}
    # What it makes of a function (Softmax and Gelu in FP16) has no name in the graph and a made up
    # one in the events: they are in the same order.
    unnamed = defaultdict(list)
    for name, inferences in timed.items():
        if name not in named:
            unnamed[inferences[0]["args"]["op_name"]].append(name)
    layers = []
    for node in nodes:
        if not node.name and unnamed[node.operator]:
            node = dataclasses.replace(node, name=unnamed[node.operator].pop(0))
        layers.append(_layer(node, timed[node.name][-runs:]))
    left = ((name, operator) for operator, names in unnamed.items() for name in names)
    layers += [_layer(GraphNode(*one, (), ()), timed[one[0]][-runs:]) for one in left]
    return tuple(layers)


def _layer(node: GraphNode, events: list[dict[str, Any]]) -> LayerTime:
    """The time of a node: one without events was folded away and takes none."""
    said = events[-1]["args"] if events else {}
    types = [
        name
        for side in ("output", "input")
        for t in said.get(f"{side}_type_shape", ())
        for name in t
    ]
    return LayerTime(
        name=node.name,
        kind=node.operator,
        kernel="",
        precision=precision_of(node.operator, types),
        nodes=(node.name,),
        reads=node.reads,
        writes=node.writes,
        mean_ms=sum(event["dur"] for event in events) / max(len(events), 1) / 1000,
    )


class OrtSession(Session):
    """One InferenceSession; its `run` may be called from several threads.

    With `profile`, a folder, it times its nodes and writes the graph that it runs there.
    """

    def __init__(self, graph: bytes, name: str, request: OpenRequest, profile: Path | None = None):
        onnxruntime = _library()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if request.spin == "in_runs":
            options.add_session_config_entry("session.force_spinning_stop", "1")
        elif request.spin == "never":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if request.threads is not None:
            options.intra_op_num_threads = request.threads
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "times")
            options.optimized_model_filepath = str(profile / _OPTIMIZED_FILE)
        model = graph + b"".join(
            [graph_output(inner) for inner in request.kept_outputs]
            + [graph_output(inner, FLOAT) for inner in request.score_outputs]
        )
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        # onnxruntime raises its own classes, which share only Exception.
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"ONNX Runtime cannot load {name}: {reason}") from error
        shapes = [tuple(v.shape) for v in (*session.get_inputs(), session.get_outputs()[0])]
        check_signature(name, request, *shapes)
        self._session: Any = session
        self._shape = request.input_shape
        self._outputs = ["logits", *request.inner_outputs]

    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See Session."""
        check_images(images, self._shape)
        session = self._open()
        return ordered_outputs(session.run(self._outputs, {"images": images}))

    def flags(self) -> tuple[str, ...]:
        """See Session; 0 threads are one a core."""
        session = self._open()
        options = session.get_session_options()
        return (
            f"providers={','.join(session.get_providers())}",
            f"intra_op_num_threads={options.intra_op_num_threads}",
        )

    def close(self) -> None:
        """Drop the engine; a run that has begun in another thread ends first."""
        self._session = None

    def _open(self) -> Any:
        session = self._session
        if session is None:
            raise closed()
        return session
