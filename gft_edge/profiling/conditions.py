"""What the machine was doing at one moment, and what between two may have disturbed a measurement."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gft_edge.nvidia.nvml import GpuState, cards
from gft_edge.profiling.sysfs import listed, number, text

CLOCK_CHANGE = 0.05
WARMER_C = 10.0
HOT_C = 85.0
OTHER_CORES = 0.2
STOLEN_CORES = 0.05
LOCKED = 0.97
# What a sensor that is switched off reports.
ABSENT_C = -256


@dataclass(frozen=True)
class Conditions:
    """One moment. None or empty: the machine does not say.

    `at_s` is a monotonic clock. A CPU clock is that of a core, or of a group of cores that share one;
    `temperatures_c` names thermal zones. `throttling` is what slows the machine at this moment,
    `throttle_counts` how often it did since it started. CPU seconds are those since the start: of the
    whole machine at work, those that a hypervisor gave to others, and those of this process with the
    children it has waited for.
    """

    at_s: float
    cpu_mhz: tuple[float, ...]
    cpu_max_mhz: tuple[float, ...]
    governors: tuple[str, ...]
    temperatures_c: Mapping[str, float]
    gpus: tuple[GpuState, ...]
    power_mode: str | None
    throttling: tuple[str, ...] | None
    throttle_counts: Mapping[str, int]
    load_1min: float | None
    busy_cpu_s: float | None
    stolen_cpu_s: float | None
    own_cpu_s: float


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Read from /sys below `root`, psutil, NVML and nvpmodel. Raises nothing."""
    sysfs = root / "sys"
    busy_s, stolen_s = _cpu_seconds()
    governors = listed(sysfs / "devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor")
    own = os.times()
    # On Thor NVML may answer too, and leaves the clocks to devfreq.
    gpus = (*(card.state for card in cards()), *_devfreq_gpus(sysfs))
    clocks = _clocks()
    return Conditions(
        at_s=time.monotonic(),
        cpu_mhz=tuple(core.current for core in clocks),
        cpu_max_mhz=tuple(core.max for core in clocks if core.max),
        governors=tuple(sorted(filter(None, {text(file) or "" for file in governors}))),
        temperatures_c=_temperatures_c(sysfs),
        gpus=gpus,
        power_mode=_nvpmodel() or _nvpmodel_status(root),
        throttling=_throttling(sysfs, gpus),
        throttle_counts=throttle_counts(sysfs),
        load_1min=_load_1min(),
        busy_cpu_s=busy_s,
        stolen_cpu_s=stolen_s,
        own_cpu_s=own.user + own.system + own.children_user + own.children_system,
    )


def other_load(
    before: Conditions, after: Conditions, own_cpu_s: float | None = None
) -> float | None:
    """Cores that other processes kept busy between the two; None where the machine does not say.

    `own_cpu_s`: what to take for this process' own CPU seconds, where that is not what the two hold.
    """
    # The kernel counts the machine in ticks and a process in nanoseconds: no load may come out
    # as a little less than none.
    own_s = after.own_cpu_s - before.own_cpu_s if own_cpu_s is None else own_cpu_s
    return _cores(before.busy_cpu_s, after.busy_cpu_s, after.at_s - before.at_s, own_s)


def stolen_load(before: Conditions, after: Conditions) -> float | None:
    """Cores that the hypervisor gave to others between the two; None where it is not known."""
    return _cores(before.stolen_cpu_s, after.stolen_cpu_s, after.at_s - before.at_s)


def _cores(
    before_s: float | None, after_s: float | None, seconds: float, less_s: float = 0.0
) -> float | None:
    if before_s is None or after_s is None or seconds <= 0:
        return None
    return max(0.0, after_s - before_s - less_s) / seconds


def likely_causes(
    before: Conditions, after: Conditions, own_cpu_s: float | None = None
) -> Iterator[str]:
    """Why times taken between the two may have varied, a line each; nothing where nothing shows."""
    # The fastest core: the others may rest at any clock.
    clocks = [("CPU", max(before.cpu_mhz, default=None), max(after.cpu_mhz, default=None))]
    clocks += [(a.name, a.mhz, b.mhz) for a, b in zip(before.gpus, after.gpus, strict=False)]
    for name, old_mhz, new_mhz in clocks:
        if old_mhz and new_mhz and abs(new_mhz / old_mhz - 1) > CLOCK_CHANGE:
            yield f"the clock of the {name} went from {old_mhz:.0f} to {new_mhz:.0f} MHz"
    for name in sorted({*(before.throttling or ()), *(after.throttling or ())}):
        yield f"the machine was throttled: {name}"
    for name, count in after.throttle_counts.items():
        events = count - before.throttle_counts.get(name, count)
        if events > 0:
            yield f"the machine was throttled {events} times: {name}"
    old_c = _all_temperatures_c(before)
    for name, now_c in _all_temperatures_c(after).items():
        if name in old_c and now_c - old_c[name] > WARMER_C:
            yield f"{name} warmed from {old_c[name]:.0f} to {now_c:.0f} °C"
        elif now_c >= HOT_C:
            yield f"{name} is hot: {now_c:.0f} °C"
    others, stolen = other_load(before, after, own_cpu_s), stolen_load(before, after)
    if others is not None and others >= OTHER_CORES:
        yield f"other processes used {others:.1f} cores"
    if stolen is not None and stolen >= STOLEN_CORES:
        yield f"the hypervisor gave {stolen:.2f} cores to other machines"
    for name in after.governors:
        if name != "performance":
            yield f"the {name} governor lets the clocks move: performance holds them"


def _all_temperatures_c(conditions: Conditions) -> dict[str, float]:
    # A Jetson's PMIC zone holds no sensor: it says 50 or 100 °C whatever happens.
    zones = {k: v for k, v in conditions.temperatures_c.items() if not k.startswith("PMIC")}
    return zones | {g.name: g.temperature_c for g in conditions.gpus if g.temperature_c is not None}


def throttle_alerts(sysfs: Path) -> tuple[str, ...] | None:
    """The throttling devices that are active, None where the machine has no such device."""
    devices = [
        (kind, device)
        for device in listed(sysfs / "class" / "thermal", "cooling_device*")
        if "throttle" in (kind := text(device / "type") or "").lower()
    ]
    states = [(kind, number(device / "cur_state")) for kind, device in devices]
    known = [(kind, state) for kind, state in states if state is not None]
    return tuple(sorted({kind for kind, state in known if state > 0})) if known else None


def throttle_counts(sysfs: Path) -> dict[str, int]:
    """How often the machine was slowed since it started: x86 by heat, a Jetson by its current."""
    counts: dict[str, int] = {}
    cores = sysfs / "devices" / "system" / "cpu"
    for scope in ("core", "package"):
        files = listed(cores, f"cpu[0-9]*/thermal_throttle/{scope}_throttle_count")
        seen = [count for count in map(number, files) if count is not None]
        if seen:
            # Each core of a package repeats the count of the package.
            counts[f"CPU {scope} too hot"] = int(sum(seen) if scope == "core" else max(seen))
    for chip in listed(sysfs / "class" / "hwmon", "hwmon*"):
        if text(chip / "name") == "soctherm_oc":
            for file in listed(chip, "oc*_event_cnt"):
                events = number(file)
                if events is not None:
                    counts[f"over-current {file.name.split('_')[0]}"] = int(events)
    return counts


def _clocks() -> list[Any]:
    """psutil's clock of each core, or of each group of cores that share one."""
    try:
        return list(psutil.cpu_freq(percpu=True))
    except (AttributeError, OSError, ValueError, NotImplementedError, TypeError):
        return []


def _temperatures_c(sysfs: Path) -> dict[str, float]:
    """The temperature of each zone; a second zone of one name is told apart by its number."""
    zones: dict[str, float] = {}
    for zone in listed(sysfs / "class" / "thermal", "thermal_zone*"):
        name, millidegrees = text(zone / "type"), number(zone / "temp")
        if name and millidegrees is not None and millidegrees > ABSENT_C * 1000:
            zones[f"{name} ({zone.name})" if name in zones else name] = millidegrees / 1000
    # AMD has no thermal zone: its sensor is a hwmon chip.
    for chip in listed(sysfs / "class" / "hwmon", "hwmon*"):
        if text(chip / "name") == "k10temp":
            millidegrees = number(chip / "temp1_input")
            if millidegrees is not None:
                zones[f"k10temp {text(chip / 'temp1_label') or 'temp1'}"] = millidegrees / 1000
    return zones


def _devfreq_gpus(sysfs: Path) -> Iterator[GpuState]:
    """A Jetson's GPU, whose temperature is a thermal zone of the board's.

    Orin calls it 17000000.gpu or .ga10b, Thor gpu-gpc-0 beside the video engines' gpu-nvd-0.
    """
    for device in listed(sysfs / "class" / "devfreq", "*"):
        if not re.search(r"\.(gpu|ga10b|gv11b|gp10b)$|^gpu-gpc", device.name):
            continue
        mhz, lowest_mhz, highest_mhz = (
            None if hz is None else hz / 1e6
            for hz in (number(device / f"{name}_freq") for name in ("cur", "min", "max"))
        )
        permille = number(device / "device" / "load")
        slowed: tuple[str, ...] | None = None
        if mhz and highest_mhz and lowest_mhz == highest_mhz:
            under = f"{mhz:.0f} MHz, under its locked {highest_mhz:.0f} MHz"
            slowed = (under,) if mhz < LOCKED * highest_mhz else ()
        yield GpuState(
            f"GPU {device.name}",
            mhz,
            highest_mhz,
            None,
            None if permille is None else permille / 10,
            slowed,
        )


def _throttling(sysfs: Path, gpus: Iterable[GpuState]) -> tuple[str, ...] | None:
    alerts = throttle_alerts(sysfs)
    slowed = [(gpu.name, gpu.slowed_by) for gpu in gpus if gpu.slowed_by is not None]
    if alerts is None and not slowed:
        return None
    return (*(alerts or ()), *(f"{name} {reason}" for name, why in slowed for reason in why))


def _nvpmodel() -> str | None:
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, "-q"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    name = re.search(r"^NV Power Mode: *(\S+)", done.stdout, re.MULTILINE)
    number_of = re.search(r"^(\d+)\s*$", done.stdout, re.MULTILINE)
    if name is None:
        return None
    return f"{name[1]} (mode {number_of[1]})" if number_of else name[1]


def _nvpmodel_status(root: Path) -> str | None:
    """The mode that nvpmodel keeps, and the name that its table gives it."""
    status = re.search(r"pmode:(\d+)", text(root / "var" / "lib" / "nvpmodel" / "status") or "")
    if status is None:
        return None
    mode = int(status[1])
    table = text(root / "etc" / "nvpmodel.conf") or ""
    name = re.search(rf"POWER_MODEL\s+ID={mode}\s+NAME=(\S+)", table)
    return f"{name[1]} (mode {mode})" if name else f"mode {mode}"


def _cpu_seconds() -> tuple[float | None, float | None]:
    """CPU seconds of the machine since its start: at work, and taken by the hypervisor."""
    try:
        times = psutil.cpu_times()
    except (OSError, ValueError, IndexError):
        return None, None
    # Guests are counted in user already.
    busy = ("user", "nice", "system", "irq", "softirq")
    return sum(getattr(times, name, 0.0) for name in busy), getattr(times, "steal", None)


def _load_1min() -> float | None:
    try:
        return float(psutil.getloadavg()[0])
    except (AttributeError, OSError):
        return None
