"""From a bundle's graph to an engine of this machine: checks, build, record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle.locks import locked
from gft_edge.bundle.manifest import Engine, EngineSettings, Manifest
from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.specs import Progress, Say
from gft_edge.bundle.store import (
    Bundle,
    read_bundle,
    read_manifest,
    sha256_of,
    write_manifest,
    write_whole,
)
from gft_edge.errors import BundleError, GftEdgeError, PipelineError, UsageError
from gft_edge.nvidia.cuda import open_cuda
from gft_edge.nvidia.engines import (
    ENGINE_FILE,
    EXPLAIN_FILE,
    FOLDER,
    TIMING_CACHE_FILE,
    Host,
    engine_of,
    fingerprint,
    host_of,
    misfit,
)
from gft_edge.nvidia.library import Library, builder_library, out_of_memory, parse
from gft_edge.nvidia.system import available_bytes
from gft_edge.nvidia.watch import watched

# What a build takes of the host's memory: TensorRT itself, and copies of the graph's weights. By
# benchmarks/engine_build.py with TensorRT-RTX from gft_tiny_edge to gft_base; TensorRT on a GPU adds
# a CUDA context and its workspace.
BASE_BYTES = 350 * 2**20
GRAPH_COPIES = 4.2

# By their names in TensorRT.
_COMPATIBILITY = {"ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class Built:
    """An engine of a bundle.

    `made` is False where a fresh one was there already; `loads_here` whether this machine runs it.
    """

    engine: Engine
    made: bool
    loads_here: bool


@dataclass(frozen=True)
class Plan:
    """What TensorRT made: buffers of bytes, the timings None of a library that times nothing."""

    content: Any
    timings: Any
    flags: tuple[str, ...]
    seconds: float


def build_engine(
    folder: Path,
    settings: EngineSettings | None = None,
    explain: bool = False,
    timing_cache: Path | None = None,
    fresh: bool = False,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
) -> Built:
    """Build the engine of a bundle for this machine, unless a fresh one is there, and record it.

    `settings` are the bundle's own unless given, and without them an engine of any settings is fresh. With
    `explain` the engine also returns the kept patches. `timing_cache` is a file that is read, if it
    exists, and written. An interrupted build leaves the bundle as it was. Raises UsageError where
    nothing can be built here, BundleError when the bundle is damaged, read-only or being written,
    PipelineError with TensorRT's reason.
    """
    bundle = read_bundle(folder)
    if bundle.manifest.target != "tensorrt":
        raise UsageError(
            f"{folder} is a bundle for {bundle.manifest.target}, which loads as it is: "
            "engines are built from bundles of --target tensorrt"
        )
    used = settings or bundle.manifest.engine_settings or EngineSettings()
    check_settings(used, timing_cache)
    library, host = builder_here(used, timing_cache)
    used = dataclasses.replace(used, flavor=library.flavor)
    outputs = ("logits", *bundle.manifest.kept_outputs) if explain else ("logits",)
    name = EXPLAIN_FILE if explain else ENGINE_FILE
    path = f"{FOLDER}/{fingerprint(used, library, host)}/{name}"
    engine = fresh_engine(bundle, path, used if settings else None, outputs, library)
    made = engine is None or fresh
    if engine is None or fresh:
        with locked(folder):
            # Another build may have added its engine before the lock was had.
            bundle = read_bundle(folder)
            cache = timing_cache or (folder / path).with_name(TIMING_CACHE_FILE)
            plan = _plan(bundle, used, library, outputs, cache, progress, say)
            engine = _recorded(bundle, path, used, outputs, plan, library, host)
        if plan.timings is not None and timing_cache is not None:
            # Last, as it may lie on another disk: the engine is recorded if this one is full.
            write_whole(timing_cache, plan.timings)
    graph = bundle.manifest.artifact.sha256
    return Built(engine, made, misfit(engine, graph, library, host) is None)


def _recorded(
    bundle: Bundle,
    path: str,
    settings: EngineSettings,
    outputs: tuple[str, ...],
    plan: Plan,
    library: Library,
    host: Host,
) -> Engine:
    """Write a plan and its timing cache into the bundle, and the engine into its manifest."""
    folder, place = bundle.folder, bundle.folder / path
    if read_manifest(folder) != bundle.manifest:
        # The old manifest would be written over that of an export, which takes no lock.
        raise BundleError(f"{folder} was replaced while its engine was built: build it again")
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, plan.content)
    timing_cache = None
    if plan.timings is not None:
        timing_cache = f"{Path(path).parent}/{TIMING_CACHE_FILE}"
        write_whole(folder / timing_cache, plan.timings)
    engine = engine_of(
        library,
        host,
        settings,
        path=path,
        sha256=sha256_of(place),
        graph_sha256=bundle.manifest.artifact.sha256,
        outputs=outputs,
        flags=plan.flags,
        timing_cache=timing_cache,
        build_seconds=round(plan.seconds, 2),
    )
    write_manifest(folder, with_engine(bundle, engine))
    return engine


def builder_here(
    settings: EngineSettings, timing_cache: Path | None = None
) -> tuple[Library, Host]:
    """The library that builds by these settings on this machine. Raises UsageError with every reason."""
    no_gpu = None
    try:
        host = host_of(open_cuda())
    # Whatever CUDA says, TensorRT-RTX needs no GPU.
    except GftEdgeError as error:
        host, no_gpu = host_of(None), str(error)

    def unfit(library: Library) -> str | None:
        level = settings.hardware_compatibility
        if timing_cache is not None and not library.has("create_timing_cache"):
            return "keeps no timing cache: leave --timing-cache out"
        if settings.version_compatible and not library.has("VERSION_COMPATIBLE"):
            return "has no version-compatible engines: leave --version-compatible out"
        # docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html
        if level != "none" and host.l4t:
            return "builds for the Jetson at hand alone: leave --hardware-compatibility-level out"
        if level != "none" and not library.has(_COMPATIBILITY[level]):
            return f"has no --hardware-compatibility-level {level}: leave it out"
        return no_gpu if library.flavor == "tensorrt" else None

    return builder_library(settings.flavor, unfit), host


def check_settings(settings: EngineSettings, timing_cache: Path | None = None) -> None:
    """Raise UsageError for numbers that no library takes, and for a file that cannot be written."""
    if settings.workspace_gib is not None and not 0 < settings.workspace_gib <= 1024:
        raise UsageError(
            f"--workspace is {settings.workspace_gib:g}: give GiB above 0, for example 2"
        )
    level = settings.builder_optimization_level
    if level is not None and not 0 <= level <= 5:
        raise UsageError(f"--builder-optimization-level is {level}: give 0 (quick) to 5 (thorough)")
    if timing_cache is not None and (timing_cache.is_dir() or not timing_cache.parent.is_dir()):
        raise UsageError(f"--timing-cache is {timing_cache}: give a file in a folder that is there")


def fresh_engine(
    bundle: Bundle,
    path: str,
    settings: EngineSettings | None,
    outputs: tuple[str, ...],
    library: Library,
) -> Engine | None:
    """The recorded engine at `path`, if graph, file and, where they are given, settings are the same."""
    for engine in bundle.manifest.engines:
        file = bundle.folder / engine.path
        if (
            (engine.path, engine.outputs) == (path, outputs)
            and engine.settings == (settings or engine.settings)
            and engine.graph_sha256 == bundle.manifest.artifact.sha256
            and engine.version == library.version
            and file.is_file()
            and sha256_of(file) == engine.sha256
        ):
            return engine
    return None


def with_engine(bundle: Bundle, engine: Engine) -> Manifest:
    """The manifest with an engine added, in place of the one at its path and those without a file."""
    others = tuple(
        other
        for other in bundle.manifest.engines
        if other.path != engine.path and (bundle.folder / other.path).is_file()
    )
    return dataclasses.replace(bundle.manifest, engines=(*others, engine))


def _plan(
    bundle: Bundle,
    settings: EngineSettings,
    library: Library,
    outputs: Iterable[str],
    cache: Path,
    progress: Progress,
    say: Say,
) -> Plan:
    """Check the graph, say what the build takes, and build."""
    started = time.monotonic()
    _, *kept = outputs
    graph = bundle.artifact_path.read_bytes() + b"".join(map(graph_output, kept))
    # Before the parser takes its part of what is free.
    _say_memory(len(graph), settings, say)
    network, builder, log = parse(library, graph, bundle.artifact_path)
    config = builder.create_builder_config()
    _configure(config, settings, library)
    timings = _timing_cache(config, library, cache, say)
    plan = watched(
        lambda: builder.build_serialized_network(network, config), config, library, progress
    )
    if plan is None:
        raise PipelineError(_failure(library, log.first_error("it gives no reason")))
    cached = timings.serialize() if timings is not None else None
    return Plan(plan, cached, _flags(config, library), time.monotonic() - started)


def _configure(config: Any, settings: EngineSettings, library: Library) -> None:
    module = library.module
    # On by default, it computes FP32 products with FP16's 10 bits of mantissa: patches are ranked
    # in FP32, and `--precision fp32` says FP32.
    config.clear_flag(module.BuilderFlag.TF32)
    if library.has("REQUIRE_USER_ALLOCATION"):
        # Without it RTX's engines need not be fit for CUDA graphs:
        # docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/release-notes-1/1.2.html
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    # What inspect --engine reads.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if settings.workspace_gib is not None:
        limit = int(settings.workspace_gib * 2**30)
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, limit)
    if settings.builder_optimization_level is not None:
        config.builder_optimization_level = settings.builder_optimization_level
    if settings.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility != "none":
        level = _COMPATIBILITY[settings.hardware_compatibility]
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)


def _flags(config: Any, library: Library) -> tuple[str, ...]:
    """What the builder was told, by its own names."""
    flags = library.module.BuilderFlag.__members__.items()
    return ("STRONGLY_TYPED", *(name for name, flag in flags if config.get_flag(flag)))


def _timing_cache(config: Any, library: Library, path: Path, say: Say) -> Any:
    if not library.has("create_timing_cache"):
        return None
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"{path} holds no timings of this TensorRT and GPU: timing anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def memory_bytes(graph_bytes: int) -> int:
    """What the build of a graph takes of the host's memory, at most and about."""
    return BASE_BYTES + int(GRAPH_COPIES * graph_bytes)


def _say_memory(graph_bytes: int, settings: EngineSettings, say: Say) -> None:
    needed, free = memory_bytes(graph_bytes), available_bytes()
    text = f"the build takes about {needed / 2**20:.0f} MiB of memory"
    if free is not None:
        text += f", {free / 2**20:.0f} MiB are free"
        if free < needed:
            text += ": close other programs, or add swap"
    # The GPU's memory, which on a Jetson is the host's.
    gib = settings.workspace_gib
    bound = f" of up to {gib:g} GiB" if gib else ", which --workspace bounds"
    say(f"{text}; on a GPU also a workspace{bound}")


def _failure(library: Library, reason: str) -> str:
    memory = out_of_memory(reason)
    workspace = "workspace" in reason.lower()
    advice = "report the line"
    if memory or workspace:
        advice = "close other programs, add swap" if memory else "the scratch memory is too small"
        advice += ", or give another --workspace"
    return f"{library.name} built no engine: {reason} ({advice})"
