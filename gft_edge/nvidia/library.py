"""TensorRT's libraries, and the few names in which their versions differ."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle.manifest import Flavor
from gft_edge.errors import MissingDependencyError, PipelineError, UsageError
from gft_edge.nvidia.log import LogReader
from gft_edge.nvidia.system import l4t

MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

Version = tuple[int, ...]

# What is not the same call from TensorRT 10.3 to 11.4 and in TensorRT-RTX: the first version of
# each library that has a name, None where it has none or the call does nothing. All other names
# that this package uses are in each (tests/nvidia/test_library.py reads them in the bindings of each).
# RTX compiles at load, so it times nothing and caches no timings; its engines are portable by
# themselves (docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html).
SINCE: dict[str, dict[Flavor, Version | None]] = {
    "create_timing_cache": {"tensorrt": (10, 3), "tensorrt-rtx": None},
    "VERSION_COMPATIBLE": {"tensorrt": (10, 3), "tensorrt-rtx": None},
    "AMPERE_PLUS": {"tensorrt": (10, 3), "tensorrt-rtx": None},
    "SAME_COMPUTE_CAPABILITY": {"tensorrt": (10, 9), "tensorrt-rtx": None},
    "REQUIRE_USER_ALLOCATION": {"tensorrt": None, "tensorrt-rtx": (1, 2)},
}

# STRONGLY_TYPED is 1 in 10.3 and 0 in 11: values change, so every constant is taken by its name.


@dataclass(frozen=True)
class Library:
    """One installed TensorRT."""

    module: Any
    flavor: Flavor

    @property
    def version(self) -> str:
        """What the library calls its version: 10.3.0."""
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        """The flavor and the version, for people."""
        return f"{self.flavor} {self.version}"

    def has(self, name: str) -> bool:
        """Whether a name of SINCE is in this version."""
        first = SINCE[name][self.flavor]
        return first is not None and version_of(self.version) >= first

    def log(self) -> LogReader:
        """What the library logs from here on."""
        return LogReader(self.module)

    def builder(self, log: LogReader) -> Any:
        """A Builder, or UsageError: but for TensorRT-RTX building needs a GPU."""
        try:
            return self.module.Builder(log.sink)
        # pybind raises TypeError where the constructor gives no object.
        except (TypeError, RuntimeError) as error:
            raise UsageError(
                f"{self.name} builds only where an NVIDIA GPU answers: {log.first_error(error)}"
            ) from error

    def runtime(self, log: LogReader) -> Any:
        """A Runtime, or UsageError where the driver does not let it start."""
        try:
            return self.module.Runtime(log.sink)
        except (TypeError, RuntimeError) as error:
            raise UsageError(
                f"{self.name} does not start: {log.first_error(error)}. "
                "Update the NVIDIA driver, or install the TensorRT of its CUDA version"
            ) from error


def installed(flavor: Flavor | None = None) -> list[Library]:
    """The libraries that import here, TensorRT before TensorRT-RTX."""
    found = []
    for name in [flavor] if flavor else MODULES:
        try:
            module = importlib.import_module(MODULES[name])
        # OSError: bindings without the library they bind.
        except (ImportError, OSError):
            continue
        # A package without its libraries imports as an empty one.
        if hasattr(module, "Builder"):
            found.append(Library(module, name))
    return found


def builder_library(
    flavor: Flavor | None = None, unfit: Callable[[Library], str | None] = lambda library: None
) -> Library:
    """The first installed library that can parse and build here; `unfit` says why one may not.

    Raises UsageError why none can.
    """
    reasons = []
    for library in installed(flavor):
        try:
            if reason := unfit(library):
                raise UsageError(f"{library.name}: {reason}")
            library.builder(library.log())
        except UsageError as error:
            reasons.append(str(error))
        else:
            return library
    raise UsageError("; ".join(reasons) or not_installed(flavor))


def not_installed(flavor: Flavor | None = None) -> str:
    """Where no library is: the line that installs one."""
    if flavor == "tensorrt-rtx":
        return "TensorRT-RTX is not installed here: pip install tensorrt-rtx"
    if l4t():
        # Its packages serve the system's Python alone, and no wheel on an index serves a Jetson.
        return (
            "TensorRT is not seen by this Python: on a Jetson it is the system's: sudo apt install "
            "nvidia-jetpack, and python3 -m venv --system-site-packages for a venv (docs/jetson.md)"
        )
    return str(MissingDependencyError("TensorRT", "tensorrt"))


def version_of(text: str) -> Version:
    """10.13.3.9.post1 -> (10, 13, 3, 9)."""
    return tuple(map(int, itertools.takewhile(str.isdigit, text.split("."))))


def out_of_memory(reason: str) -> bool:
    """Whether a line of the log says that memory ran out."""
    return any(word in reason.lower() for word in ("out of memory", "outofmemory", "memalloc"))


def parse(library: Library, graph: bytes, source: Path) -> tuple[Any, Any, LogReader]:
    """A strongly typed network of an ONNX model, its builder and what they log.

    `source` names the model in errors. Raises PipelineError in one line: the node, the parser's
    reason, and what to do.
    Every TensorRT from 10.0 on has strongly typed networks; 11 has no other
    (docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/).
    """
    log = library.log()
    builder = library.builder(log)
    flag = library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = library.module.OnnxParser(network, log.sink)
    with warnings.catch_warnings():
        # Each parser warns of what a later version will drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        parsed = parser.parse(graph)
    if not parsed:
        raise PipelineError(_refusal(library, parser, source))
    # An empty file parses: every field of an ONNX model is optional.
    if not network.num_outputs:
        raise PipelineError(f"TensorRT's parser finds no output in {source}")
    return network, builder, log


def _refusal(library: Library, parser: Any, source: Path) -> str:
    error = parser.get_error(0)
    # No node where the file itself cannot be read.
    what = f"node {error.node_name()!r}" if error.node_name() else str(source)
    # The cause stands on the second line; what follows is how it was found.
    reason = ": ".join(error.desc().splitlines()[:2])
    return f"TensorRT's parser refuses {what}: {reason} ({library.name}). {_advice(reason)}"


def _advice(reason: str) -> str:
    # TensorRT 10.3 parses opsets up to 20; a newer operator names itself as unknown.
    if "not found" in reason or "No importer" in reason or "opset" in reason.lower():
        return "Export with --opset 20, or update TensorRT"
    if "parse" in reason.lower() and "model" in reason.lower():
        return "Copy the bundle again, or export it anew"
    return "Export the bundle anew with this version of gft-edge, or report the node"
