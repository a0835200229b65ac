"""The machine's fingerprint: board, CPU and its instruction sets, GPUs, system."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from gft_edge.errors import GftEdgeError
from gft_edge.nvidia.cuda import open_cuda
from gft_edge.nvidia.nvml import cards
from gft_edge.nvidia.system import driver, l4t
from gft_edge.profiling.cores import cores_by_name
from gft_edge.profiling.sysfs import text
from gft_edge.runtime.processor import X86_DOT_PRODUCTS, cpuinfo

# What decides the speed of low-precision inference, by the names Linux gives them.
INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "fphp", "asimdhp", "i8mm", "bf16",
    "sve", "sve2", "svei8mm", "svebf16", "sme",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """`board` and `l4t` (Jetson Linux) are None on other machines; memory is physical.

    `driver` is NVIDIA's, None without one.
    """

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[str, ...]
    driver: str | None
    board: str | None
    l4t: str | None
    system: str
    python: str


def this_machine() -> Machine:
    """Read from /proc, /etc, psutil, NVML and CUDA; what is not there is reported as absent."""
    told = cpuinfo()
    info = _first_core(told)
    # A Jetson has no NVML: there the GPU is the one that CUDA opens.
    listed = [
        f"{card.name} (driver {card.driver}, compute {card.compute_capability})" for card in cards()
    ]
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        cpu=cores_by_name(told)
        or info.get("model name")
        or info.get("Model")
        or platform.processor()
        or "unknown",
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else psutil.cpu_count() or 1,
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        memory_bytes=psutil.virtual_memory().total,
        gpus=tuple(listed) or _cuda(),
        driver=driver(),
        board=text(Path("/proc/device-tree/model")),
        l4t=l4t(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def summary(machine: Machine) -> str:
    """One line for a report's heading."""
    parts = [machine.board or machine.cpu, f"{machine.cores} cores"]
    if machine.instruction_sets:
        parts.append(" ".join(machine.instruction_sets))
    parts += machine.gpus
    return ", ".join(parts)


def without_dot_products(machine: Machine) -> str | None:
    """Say that the CPU multiplies 8-bit integers no faster than floats; None where it has instructions."""
    known = set(machine.instruction_sets)
    if not known or known & {*X86_DOT_PRODUCTS, "asimddp"}:
        return None
    missing = "dot products (asimddp)" if "asimd" in known else "VNNI"
    return f"this CPU has no {missing}: INT8 may be slower than FP32 on it, gft-edge profile measures both"


def _first_core(told: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in told.splitlines() if ":" in line)
    info: dict[str, str] = {}
    for key, _, value in pairs:
        info.setdefault(key.strip(), value.strip())
    return info


def _cuda() -> tuple[str, ...]:
    try:
        cuda = open_cuda()
        gpu = cuda.gpu()
    except GftEdgeError:
        return ()
    return (f"{gpu.name} (CUDA {cuda.driver_version}, compute {gpu.compute_capability})",)
