"""A bundle's engines: what an engine is bound to, and which of them this machine loads."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle.manifest import Engine, EngineSettings
from gft_edge.errors import BundleError, FailedError, KeptPatchesError, UsageError
from gft_edge.nvidia.cuda import Cuda, Gpu
from gft_edge.nvidia.library import MODULES, Library, out_of_memory, version_of
from gft_edge.nvidia.log import LogReader
from gft_edge.nvidia.system import driver, l4t

FOLDER = "engines"
ENGINE_FILE = "model.engine"
EXPLAIN_FILE = "explain.engine"
TIMING_CACHE_FILE = "timing.cache"

# TensorRT-RTX's default, which needs no GPU
# (docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html).
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0+")


@dataclass(frozen=True)
class Host:
    """What decides which engines load here; without a GPU, only what can be built ahead of time."""

    platform: str
    gpu: Gpu | None
    cuda: str | None
    driver: str | None
    l4t: str | None

    @property
    def text(self) -> str:
        """What this machine is, for errors."""
        gpu = self.gpu
        return f"{self.platform}, " + (
            f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "no GPU"
        )


def host_of(cuda: Cuda | None) -> Host:
    """This machine, as the CUDA runtime and the system files show it."""
    return Host(
        f"{platform.system()}-{platform.machine()}".lower(),
        cuda.gpu() if cuda else None,
        cuda.runtime_version if cuda else None,
        driver(),
        l4t(),
    )


def capabilities(settings: EngineSettings, library: Library, host: Host) -> tuple[str, ...]:
    """The compute capabilities that an engine built here loads on; `+` stands for all above."""
    if library.flavor == "tensorrt-rtx":
        return RTX_CAPABILITIES
    if settings.hardware_compatibility == "ampere+":
        return ("8.0+",)
    return (host.gpu.compute_capability,) if host.gpu else ()


def engine_of(library: Library, host: Host, settings: EngineSettings, **recorded: Any) -> Engine:
    """The record of an engine that a library builds on a host; `recorded` are its other fields."""
    return Engine(
        settings=settings,
        flavor=library.flavor,
        version=library.version,
        platform=host.platform,
        gpu=host.gpu.name if host.gpu else None,
        multiprocessors=host.gpu.multiprocessors if host.gpu else None,
        compute_capabilities=capabilities(settings, library, host),
        cuda=host.cuda,
        driver=host.driver,
        l4t=host.l4t,
        **recorded,
    )


def fingerprint(settings: EngineSettings, library: Library, host: Host) -> str:
    """The folder of the engines that are bound to the same library and hardware.

    tensorrt-10.3.0-linux-aarch64-orin-8mp-sm87; tensorrt-rtx-1.7.1.116-sm80-sm86-sm89-sm120+.
    """
    parts = [library.name]
    if library.flavor == "tensorrt":
        parts.append(host.platform)
        if settings.hardware_compatibility == "none" and host.gpu:
            # Every Jetson Orin is called Orin: what tells them apart is their size.
            parts += [host.gpu.name.replace("NVIDIA", ""), f"{host.gpu.multiprocessors}mp"]
    parts += [f"sm{c.replace('.', '')}" for c in capabilities(settings, library, host)]
    return "-".join(re.sub(r"[^a-z0-9.+_]+", "-", part.lower()).strip("-") for part in parts)


def engine_for(
    folder: Path,
    engines: Sequence[Engine],
    graph_sha256: str,
    outputs: tuple[str, ...],
    libraries: Sequence[Library],
    host: Host,
) -> tuple[Engine, Library]:
    """The engine that fits this machine, and its library.

    Raises UsageError that lists those there are, why none fits, and the command that builds one;
    for an engine with more outputs than the logits its KeptPatchesError.
    """
    explain = len(outputs) > 1
    command = build_command(folder, outputs)
    error = KeptPatchesError if explain else UsageError
    candidates = [engine for engine in engines if engine.outputs == outputs]
    if not candidates:
        raise error(
            f"{folder} holds no engine{' that returns the kept patches' if explain else ''} yet: "
            f"{command} makes one on the machine that runs it"
        )
    here = {library.flavor: library for library in libraries}
    reasons = {}
    for engine in sorted(candidates, key=_generality):
        library = here.get(engine.flavor)
        reason = misfit(engine, graph_sha256, library, host)
        if reason is None and library is not None:
            return engine, library
        reasons[Path(engine.path).parent.name] = reason
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise error(
        f"no engine of {folder} fits this machine ({host.text}): {listed}. Build one here: {command}"
    )


def misfit(engine: Engine, graph_sha256: str, library: Library | None, host: Host) -> str | None:
    """Why an engine cannot be loaded here, or None. `library` is the installed one of its flavor."""
    if engine.graph_sha256 != graph_sha256:
        return "was built from another graph"
    if library is None:
        return f"needs {engine.flavor} {engine.version}, which is not installed here"
    if not _runs(engine, library):
        return f"was built by {engine.flavor} {engine.version}, here is {library.version}"
    if engine.flavor == "tensorrt" and engine.platform != host.platform:
        return f"was built on {engine.platform}"
    if host.gpu is None:
        return "needs a GPU"
    here = host.gpu.compute_capability
    if not any(_covers(built, here) for built in engine.compute_capabilities):
        built_for = ", ".join(engine.compute_capabilities)
        return f"was built for compute capability {built_for}, this GPU has {here}"
    # NVIDIA advises against another model of the same capability: its kernels were timed elsewhere.
    built_on, this = engine.gpu, host.gpu.name
    if engine.multiprocessors != host.gpu.multiprocessors:
        built_on = f"{built_on} with {engine.multiprocessors} multiprocessors"
        this = f"{this} with {host.gpu.multiprocessors}"
    if bound_to_gpu(engine) and built_on != this:
        return f"was built on {built_on}, this is {this}"
    return None


def serves(library: Library, gpu: Gpu) -> bool:
    """Whether a library has engines for a GPU."""
    served = RTX_CAPABILITIES if library.flavor == "tensorrt-rtx" else (gpu.compute_capability,)
    return any(_covers(capability, gpu.compute_capability) for capability in served)


def bound_to_gpu(engine: Engine) -> bool:
    """Whether an engine loads on the GPU that built it alone."""
    return engine.flavor == "tensorrt" and engine.settings.hardware_compatibility == "none"


def read_engine(folder: Path, engine: Engine) -> bytes:
    """The plan's bytes. An engine is code: only the file whose sha256 the manifest has is loaded.

    Raises BundleError.
    """
    path = folder / engine.path
    mended = f"{build_command(folder, engine.outputs)} makes it again"
    if not path.is_file():
        raise BundleError(f"{path} is missing: {mended}")
    # Read once: the bytes that are checked are those that are loaded.
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != engine.sha256:
        raise BundleError(
            f"{path} is not the engine the manifest describes (sha256 differs) and is not loaded: "
            f"{mended}"
        )
    return plan


def build_command(folder: Path, outputs: Sequence[str]) -> str:
    """The command line that builds an engine with these outputs."""
    return f"gft-edge build {shlex.quote(str(folder))}" + (" --explain" if len(outputs) > 1 else "")


def deserialized(folder: Path, engine: Engine, library: Library, cuda: Cuda, log: LogReader) -> Any:
    """TensorRT's ICudaEngine of an engine that fits.

    Raises BundleError when it is refused, FailedError when its weights do not fit into the GPU.
    """
    path, plan = folder / engine.path, read_engine(folder, engine)
    runtime = library.runtime(log)
    if engine.settings.version_compatible:
        # Such a plan carries the code of its own runtime.
        runtime.engine_host_code_allowed = True
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        reason = log.first_error("it gives no reason")
        if out_of_memory(reason):
            raise no_memory(path, len(plan), cuda, log)
        command = build_command(folder, engine.outputs)
        raise BundleError(
            f"{library.name} does not load {path}: {reason}. Build it again: {command} --fresh"
        )
    return loaded


def no_memory(path: Path, needed_bytes: int, cuda: Cuda, log: LogReader) -> FailedError:
    """The error of an engine for which the GPU has too little memory free."""
    free, total = cuda.memory()
    return FailedError(
        f"no memory on the GPU for {path}: it needs {needed_bytes / 2**20:.0f} MiB and "
        f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are free "
        f"({log.first_error('no reason given')}). "
        "Close other programs, or export with a smaller --batch"
    )


def _generality(engine: Engine) -> tuple[int, bool, bool]:
    # What an engine gains in places where it loads it loses in speed.
    portable = engine.settings.hardware_compatibility != "none"
    return list(MODULES).index(engine.flavor), portable, engine.settings.version_compatible


def _runs(engine: Engine, library: Library) -> bool:
    # A plan is bound to the whole version, build number included, unless it carries its own runtime:
    # docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html
    if engine.settings.version_compatible:
        return version_of(library.version) >= version_of(engine.version)
    return library.version == engine.version


def _covers(built: str, here: str) -> bool:
    if built.endswith("+"):
        return version_of(here) >= version_of(built[:-1])
    return built == here
