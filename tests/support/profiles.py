"""Profiles of made-up measurements: a calm one, and one with everything that can go wrong."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from gft_edge.nvidia.nvml import GpuState
from gft_edge.profiling.conditions import Conditions
from gft_edge.profiling.energy import Energy
from gft_edge.profiling.layers import AttentionKernel, Breakdown, Part, TopLayer
from gft_edge.profiling.machine import Machine
from gft_edge.profiling.report import (
    END_TO_END,
    ENGINE,
    Boundaries,
    Inputs,
    Profile,
    Report,
    Settings,
    boundary_of,
)
from gft_edge.profiling.report_file import is_stable
from gft_edge.runtime.classifier import Timing

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
HOSTILE = (
    "/runs/<script>window.hacked=1<&sol;script>\"'&\udcff\n<img src=x onerror=window.hacked=1>"
)

Turns = list[list[float]]


def turns_of(
    middle_ms: float, count: int = 12, calls: int = 60, scatter: float = 0.01, seed: int = 0
) -> Turns:
    noise = random.Random(f"{middle_ms} {seed}")
    return [[middle_ms * noise.gauss(1, scatter) for _ in range(calls)] for _ in range(count)]


def boundaries_of(engine: Turns, first: Turns | None = None) -> Boundaries:
    """End to end takes 3 ms longer."""
    others = None if first is None else boundaries_of(first)
    whole = [[ms + 3 for ms in turn] for turn in engine]
    first_whole = None if others is None else others.end_to_end
    end_to_end = boundary_of(END_TO_END, whole, PERCENTILES, 1, 1, first_whole)
    split = Timing(1.8, 0.9, 0, end_to_end.mean_ms - 3, 0, 0.3)
    return Boundaries(
        boundary_of(ENGINE, engine, PERCENTILES, 1, 1, None if others is None else others.engine),
        dataclasses.replace(end_to_end, split_ms=split),
    )


def report_of(bundle: str, boundaries: Boundaries, **changes: Any) -> Report:
    report = Report(
        bundle=bundle,
        digest="0f" * 32,
        role="bundle",
        network="gft_tiny",
        target="openvino",
        precision="int8",
        engine="openvino 2026.4.1",
        flags=("INFERENCE_PRECISION_HINT=float32", "PERFORMANCE_HINT=LATENCY"),
        files_mb=21.5,
        load_ms=792.6,
        first_ms=193.3,
        peak_rss_mb=172.7,
        device_memory_mb=None,
        boundaries=boundaries,
        ratio_to_first=boundaries.engine.ratio_to_first,
        energy=Energy(available=False, why="RAPL: no package in /sys/class/powercap"),
        layers=None,
    )
    return dataclasses.replace(report, **changes)


CONDITIONS = Conditions(
    at_s=100.0,
    cpu_mhz=(2000.0, 2400.0),
    cpu_max_mhz=(2600.0, 2600.0),
    governors=("performance",),
    temperatures_c={"cpu-thermal": 50.0},
    gpus=(GpuState("GPU 0", 918.0, 1200.0, 51.0, 97.0, ("power cap",)),),
    power_mode="MAXN (mode 0)",
    throttling=(),
    throttle_counts={"over-current oc3": 4},
    load_1min=0.1,
    busy_cpu_s=1000.0,
    stolen_cpu_s=10.0,
    own_cpu_s=5.0,
)


def profile_of(*reports: Report, **changes: Any) -> Profile:
    profile = Profile(
        schema_version=1,
        version="0.1.0",
        made_at="2026-11-21T06:45:22+00:00",
        complete=True,
        stable=is_stable(reports, 0.0, 8),
        causes=(),
        other_cores=0.0,
        host=None,
        machine=Machine(
            "Some CPU", 8, ("avx2",), 2**34, ("Some GPU",), "580.1", None, None, "Linux", "3.11"
        ),
        before=CONDITIONS,
        after=dataclasses.replace(CONDITIONS, at_s=130.0, busy_cpu_s=1060.0, cpu_mhz=(1200.0,)),
        settings=Settings(
            10, 200, 662, PERCENTILES, "latency", None, 1, None, None, False, 420.0, 50.0
        ),
        inputs=Inputs("encoded images", 32, "ab" * 32, "photographs"),
        reports=reports,
    )
    return dataclasses.replace(profile, **changes)


def breakdown() -> Breakdown:
    kinds = ("scoring", "selection", "refinement blocks")
    stages = [f"stage {n}: {kind}" for n in (1, 2, 3) for kind in kinds]
    names = ["patch embedding", "base blocks", *stages, "head", "other"]
    total = sum(range(1, len(names) + 1))
    parts = tuple(Part(name, n * 0.1, n / total, n) for n, name in enumerate(names, 1))
    top = tuple(
        TopLayer(f"/blocks.{n}/mlp/fc1/MatMul <fused>", "base blocks", "FullyConnected", "brgemm_avx512_amx",
                 "int8", 0.3, 0.04) for n in range(15)
    )  # fmt: skip
    attention = (AttentionKernel("block 0", "fused", "one ScaledDotProductAttention, ref_any"),)
    return Breakdown("openvino", "openvino 2026.4.1", 50, parts, top, attention, 9.1, 8.0, 0.13)


def stable_profile() -> Profile:
    """Dense, sparse and a baseline; one call took a hundred times as long."""
    dense = turns_of(10.0)
    sparse = turns_of(7.2)
    energy = Energy(
        available=True, why=None, source="RAPL", total="package-0", mean_power_w=31.5,
        idle_power_w=11.25, gross_mj_per_image=226.8, net_mj_per_image=145.8, window_s=10.5,
        images=1460, throttled=("over-current oc3: 2 events",),
    )  # fmt: skip
    return profile_of(
        report_of("/runs/dense", boundaries_of(dense)),
        report_of("/runs/sparse", boundaries_of(sparse, dense), energy=energy, layers=breakdown()),
        report_of(
            "/runs/vit", boundaries_of(turns_of(12.0), dense), role="baseline", network="vit"
        ),
    )


def disturbed_profile() -> Profile:
    """Interrupted, of names that break pages, with an outlier, a drift, and too few calls for a p99."""
    dense, sparse = turns_of(10.0, 7, 20), turns_of(7.2, 7, 20)
    dense[3][5] = 1000.0
    drifting = [[ms * (1 + n / 10) for ms in turn] for n, turn in enumerate(sparse)]
    return profile_of(
        report_of(HOSTILE, boundaries_of(dense), layers=breakdown()),
        report_of("/runs/" + "a-long-name-of-a-bundle-" * 5, boundaries_of(drifting, dense)),
        complete=False,
        causes=("other processes used 1.6 cores", "the <clock> fell by 50 %"),
    )
