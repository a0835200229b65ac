"""Engines: one engine is one file here, found by its file name.

A backend module is a Backend: it offers what that class lists, as its own functions and constants.
Vendor libraries are imported inside these functions, so that every module imports everywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Artifact, Engine
from gft_edge.bundle.placement import Layer
from gft_edge.bundle.store import sha256_of
from gft_edge.errors import BundleError, MissingDependencyError, UsageError

ALIASES = {
    "ort": "onnx",
    "onnxruntime": "onnx",
    "ov": "openvino",
    "ir": "openvino",
    "trt": "tensorrt",
    "engine": "tensorrt",
}

# Engines' names of types -> the project's.
_TYPES = {
    "f32": "fp32", "float": "fp32", "f16": "fp16", "float16": "fp16", "bfloat16": "bf16",
    "i8": "int8", "u8": "uint8", "i32": "int32", "i64": "int64", "boolean": "bool",
}  # fmt: skip


Hint = Literal["latency", "throughput"]
Spin = Literal["always", "in_runs", "never"]


@dataclass(frozen=True)
class BuildRequest:
    """How to compile. `metadata` goes into the artifact where its format has room for it."""

    precision: str
    compress_weights: bool
    metadata: dict[str, str]
    parent_sha256: str


@dataclass(frozen=True)
class OpenRequest:
    """How to load. `kept_outputs` are tensors inside the graph to return after the logits, and
    `score_outputs` those of floats to return after these.

    `engines` are those built from the graph of `graph_sha256`, where the target has any;
    `cuda_graph` records their launches once and replays them. `hint` says what OpenVINO is to favour,
    `device` where it computes (None on the CPU), and `cache_dir` where it keeps compiled models; `files`
    are the artifact's, each with its sha256.
    `spin` says when ONNX Runtime's threads wait awake: "in_runs" leaves the cores to another session
    between runs, "never" to other threads during a run too.
    """

    input_shape: tuple[int, ...]
    classes: int
    runtime_precision: str
    threads: int | None = None
    kept_outputs: tuple[str, ...] = ()
    score_outputs: tuple[str, ...] = ()
    graph_sha256: str = ""
    engines: tuple[Engine, ...] = ()
    cuda_graph: bool = False
    hint: Hint = "latency"
    device: str | None = None
    spin: Spin = "always"
    cache_dir: Path | None = None
    files: tuple[tuple[Path, str], ...] = ()

    @property
    def inner_outputs(self) -> tuple[str, ...]:
        """Every tensor inside the graph to return, in order."""
        return (*self.kept_outputs, *self.score_outputs)


@dataclass(frozen=True)
class CallTimes:
    """Where the time of one run went.

    On a GPU by CUDA events on the run's stream; where memory is shared the two copies are next to
    nothing: there are none. An engine on the CPU only computes.
    """

    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float


@dataclass(frozen=True)
class LayerTime(Layer):
    """One layer as its engine runs it, and its mean time an inference: 0 ms for what is done in place."""

    mean_ms: float = 0.0


@dataclass(frozen=True)
class LayerRun:
    """An instrumented session's layers in order, and the wall time of each of its inferences."""

    layers: tuple[LayerTime, ...]
    samples_ms: tuple[float, ...]


InTurn = Callable[[], object]


@dataclass(frozen=True)
class Finished:
    """One of several runs: what `run` returns, and the time from its start to its completion."""

    outputs: list[npt.NDArray[Any]]
    latency_ms: float


class Session(ABC):
    """A loaded artifact, usable from several threads at once.

    `half_on` names the processors that compute in f16 what the export was judged in f32.
    """

    half_on: tuple[str, ...] = ()

    @abstractmethod
    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Logits (B,classes) float32, one (B,K) int64 array a kept output, one float32 a score."""

    def run_split(self, images: npt.NDArray[Any]) -> tuple[list[npt.NDArray[Any]], CallTimes]:
        """As `run`, with the time that each part took; without a device all of it is computing."""
        started = time.perf_counter()
        outputs = self.run(images)
        return outputs, CallTimes(0.0, (time.perf_counter() - started) * 1000, 0.0)

    def run_many(self, batches: Iterable[npt.NDArray[Any]]) -> Iterator[Finished]:
        """Run each batch, in their order, with as many at once as the engine was opened for.

        A batch is taken when the engine has room for it. An iterator that is closed, dropped or left
        by an exception leaves nothing running.
        """
        for images in batches:
            started = time.perf_counter()
            outputs = self.run(images)
            yield Finished(outputs, (time.perf_counter() - started) * 1000)

    @abstractmethod
    def flags(self) -> tuple[str, ...]:
        """What the engine was told that decides its speed, as NAME=VALUE."""

    @abstractmethod
    def close(self) -> None:
        """Release the engine. Further runs raise."""


class Backend(Protocol):
    """What every module in this folder offers."""

    TARGET: str  # the `--target` it serves
    PRECISIONS: tuple[str, ...]  # the `--precision`s it is exported in

    def missing(self) -> str | None:
        """What this machine lacks to run it, or None."""

    def unsupported(self, precision: str, device: str | None = None) -> str | None:
        """Why this machine, or a device of its, cannot compute in it, or None."""

    def runtime_precision(self, precision: str) -> str:
        """What its engine is told to compute in."""

    def version(self) -> str:
        """The version of the engine."""

    def build(self, graph: Path, folder: Path, request: BuildRequest) -> Artifact:
        """Compile an ONNX file, or its own form, into `folder`."""

    def open_session(self, path: Path, request: OpenRequest) -> Session:
        """Load an artifact."""

    def layer_times(
        self, path: Path, request: OpenRequest, images: npt.NDArray[Any], runs: int, in_turn: InTurn
    ) -> LayerRun:
        """Load it instrumented and time its layers in `runs` inferences, `in_turn` called before each."""


def backends() -> dict[str, Backend]:
    """Every engine by target."""
    modules = [
        cast(Backend, importlib.import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    ]
    return {module.TARGET: module for module in modules}


def backend_for(target: str) -> Backend:
    """The engine of a target or one of its aliases. Raises UsageError listing those there are."""
    known = backends()
    backend = known.get(ALIASES.get(target, target))
    if backend is None:
        raise UsageError(f"there is no target {target!r}: choose from {', '.join(known)}")
    return backend


def vendor_library(module: str, package: str, extra: str) -> Any:
    """Import an engine's library. Raises MissingDependencyError with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependencyError(package, extra) from None


def why_missing(load: Callable[[], object]) -> str | None:
    """Say why a library does not load, or None."""
    try:
        load()
    except MissingDependencyError as error:
        return str(error)
    return None


def copied(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """`build` of an engine that loads the ONNX file itself."""
    path = folder / "model.onnx"
    shutil.copyfile(graph, path)
    return Artifact(path.name, "onnx", request.precision, sha256_of(path), request.parent_sha256)


def closed() -> UsageError:
    """What a run of a session raises that was closed."""
    return UsageError("this session is closed: load the bundle again")


def check_images(images: npt.NDArray[Any], expected: tuple[int, ...]) -> None:
    """Raise UsageError for a batch of another shape: engines word it in paragraphs, or not at all."""
    if images.shape[1:] == expected[1:] and images.shape[0] > expected[0]:
        raise UsageError(
            f"a batch of {images.shape[0]} is over the static batch of {expected[0]}: "
            f"give {expected[0]} at a time, or export with --batch {images.shape[0]}"
        )
    if images.shape != expected:
        raise UsageError(f"images are {images.shape}, expected {expected}")


def check_signature(
    path: Path | str, request: OpenRequest, given: tuple[int, ...], logits: tuple[int, ...]
) -> None:
    """Raise BundleError when a graph's input or logits are not those the manifest speaks of."""
    if given != request.input_shape:
        raise BundleError(f"{path} takes {given}, the manifest says {request.input_shape}")
    if logits[-1] != request.classes:
        raise BundleError(
            f"{path} gives {logits[-1]} classes, the manifest says {request.classes}: export it anew"
        )


def ordered_outputs(outputs: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Logits and scores as float32 and kept indices as int64, whatever the engine computed in."""
    return [
        output.astype(np.int64 if output.dtype.kind in "iu" else np.float32, copy=False)
        for output in outputs
    ]


def warmed_up(run: Callable[[], object], warm_up_ms: float = 200) -> int:
    """Repeat a call until it is warm, and say how often that was."""
    until = time.perf_counter() + warm_up_ms / 1000
    count = 0
    while count < 3 or time.perf_counter() < until:
        run()
        count += 1
    return count


def samples_in_turn(run: Callable[[], object], runs: int, in_turn: InTurn) -> tuple[float, ...]:
    """Wall times of a call in milliseconds; `in_turn` is called before each and not counted."""
    samples_ms = []
    for _ in range(runs):
        in_turn()
        started = time.perf_counter()
        run()
        samples_ms.append((time.perf_counter() - started) * 1000)
    return tuple(samples_ms)


def precision_of(kind: str, types: Iterable[str]) -> str:
    """The precision a layer computes in; `types` are an engine's names, what it writes before all else.

    A matrix product that reads or writes 8 bit integers is INT8.
    """
    names = [_TYPES.get(name.lower(), name.lower()) for name in types]
    if _is_product(kind) and {"int8", "uint8"}.intersection(names):
        return "int8"
    return names[0] if names else "unknown"


def integer_layers(layers: Iterable[Layer]) -> int:
    """Count the matrix products and convolutions that an engine computes in integers."""
    return sum(layer.precision == "int8" and _is_product(layer.kind) for layer in layers)


def _is_product(kind: str) -> bool:
    # What only converts, such as a Convert or a Conv's reorder, is none.
    named = ("MatMul", "Gemm", "Conv", "FullyConnected")
    return any(operator in kind for operator in named) and "Convert" not in kind
