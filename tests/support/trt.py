"""TensorRT sessions over a GPU's doubles: engines in a bundle, and what its graph computes."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Engine, EngineSettings
from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.store import read_bundle, sha256_of, write_manifest
from gft_edge.nvidia.build import with_engine
from gft_edge.nvidia.engines import engine_of, host_of
from gft_edge.nvidia.library import Library
from tests.support.bundles import session_of

if TYPE_CHECKING:
    from tests.support.fake_tensorrt import FakeTensorrt

# These describe an error, and are not called without one.
DESCRIBING = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError"}

Pixels = npt.NDArray[np.uint8]
Runs = list[npt.NDArray[Any]]

_references: dict[tuple[str, bool], Any] = {}


def assert_released(machine: FakeTensorrt) -> None:
    """Check that nothing is left of any session."""
    if machine.cudart.live or machine.live:
        gc.collect()  # half a second where PyTorch is loaded
    assert machine.cudart.live == {}
    assert machine.live == {}
    assert machine.cudart.free_bytes == machine.cudart.total_bytes


def add_engine(
    machine: FakeTensorrt,
    folder: Path,
    explain: bool = False,
    model: bytes | None = None,
    plan: bytes | None = None,
    **changes: Any,
) -> Engine:
    """Record an engine of the machine, computing the bundle's graph unless told otherwise."""
    manifest = read_bundle(folder).manifest
    kept = manifest.kept_outputs if explain else ()
    graph = (folder / manifest.artifact.path).read_bytes() + b"".join(map(graph_output, kept))
    settings = changes.get("settings", EngineSettings())
    path = f"engines/here/{'explain' if explain else 'model'}.engine"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    portable = settings.version_compatible
    (folder / path).write_bytes(machine.plan_of(model or graph, portable) if plan is None else plan)
    engine = engine_of(
        Library(machine.module, "tensorrt"),
        dataclasses.replace(host_of(machine.cudart.cuda()), driver=None, l4t=None),
        settings,
        path=path,
        sha256=sha256_of(folder / path),
        graph_sha256=manifest.artifact.sha256,
        outputs=("logits", *kept),
        flags=("STRONGLY_TYPED",),
        timing_cache=None,
        build_seconds=1.0,
    )
    engine = dataclasses.replace(engine, **changes)
    write_manifest(folder, with_engine(read_bundle(folder), engine))
    return engine


def pictures(batch: int = 1, seed: int = 0) -> Pixels:
    """Return blots at 64 px, no two seeds alike."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def expected_of(folder: Path, images: Pixels, explain: bool = True) -> Runs:
    """Return what ONNX Runtime gives for the same graph; each graph is opened once."""
    bundle = read_bundle(folder)
    key = bundle.manifest.artifact.sha256, explain
    if key not in _references:
        _references[key] = session_of(bundle, explain, "onnx", threads=1)
    outputs: Runs = _references[key].run(images)
    return outputs


def assert_same(outputs: Runs, expected: Runs) -> None:
    """Check that outputs are equal bit for bit, and in type too."""
    assert [output.dtype for output in outputs] == [output.dtype for output in expected]
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, wanted)


def calls_of(machine: FakeTensorrt, work: Callable[[], object]) -> list[str]:
    """Return the names of the calls that a piece of work makes."""
    machine.cudart.calls.clear()
    work()
    return [name for name, _ in machine.cudart.calls if name != "set_tensor_address"]
