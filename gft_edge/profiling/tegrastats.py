"""One line of tegrastats, as numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RAM = re.compile(r"(?<!\S)RAM (\d+)/(\d+)MB")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\](?:@(\d+))?")
_GPU = re.compile(r"(?<!\S)GR3D(?:_FREQ)? (\S+)")
_LOAD = re.compile(r"(?<!\S)(\d+(?:\.\d+)?)%")
_CLOCKS = re.compile(r"@\[?(\d+(?:,\d+)*)\]?")
_TEMPERATURE = re.compile(r"(?<!\S)([\w.-]+)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?!\S)")
# Milliwatts now, then their mean, then their maximum. Before Jetson Linux 36 they had no unit,
# and there only the name tells a rail from a word that is not known here.
_RAIL = re.compile(
    r"(?<!\S)(?:([A-Za-z][\w.-]*) (-?\d+)mW(?:/-?\d+(?:mW)?){0,2}"
    r"|((?:VDD|VIN|POM)\w*) (-?\d+)(?:/-?\d+){1,2})(?!\S)"
)
# What a sensor that is switched off reports.
ABSENT_C = -256


@dataclass(frozen=True)
class Tegrastats:
    """What one line says. None: not said; of a core: it is off, or its load or clock is not said.

    `gpu_mhz` has one clock a GPC. The temperatures leave out what is absent; `rails_mw` is the power
    at that moment, which a rail that feeds nothing can report as negative.
    """

    ram_used_mb: int | None
    ram_total_mb: int | None
    cpu_load_pct: tuple[float | None, ...]
    cpu_mhz: tuple[int | None, ...]
    gpu_load_pct: float | None
    gpu_mhz: tuple[int, ...]
    temperatures_c: Mapping[str, float]
    rails_mw: Mapping[str, int]


def parse_line(line: str) -> Tegrastats | None:
    """Read a line of any Jetson; unknown words are passed over. None where no word is known."""
    ram, cpu, gpu = _RAM.search(line), _CPU.search(line), _GPU.search(line)
    cores = [core.strip() for core in cpu[1].split(",")] if cpu and cpu[1].strip() else []
    shared_mhz = int(cpu[2]) if cpu and cpu[2] else None
    temperatures = {zone: float(value) for zone, value in _TEMPERATURE.findall(line)}
    rails = {a or b: int(x or y) for a, x, b, y in _RAIL.findall(line) if (a or b) != "NC"}
    if not (ram or cpu or gpu or temperatures or rails):
        return None
    return Tegrastats(
        ram_used_mb=int(ram[1]) if ram else None,
        ram_total_mb=int(ram[2]) if ram else None,
        cpu_load_pct=tuple(_load(core) for core in cores),
        cpu_mhz=tuple(
            next(iter(_clocks(core)), None if core == "off" else shared_mhz) for core in cores
        ),
        gpu_load_pct=_load(gpu[1]) if gpu else None,
        gpu_mhz=_clocks(gpu[1]) if gpu else (),
        temperatures_c={zone: c for zone, c in temperatures.items() if c > ABSENT_C},
        rails_mw=rails,
    )


def _load(word: str) -> float | None:
    found = _LOAD.match(word)
    return float(found[1]) if found else None


def _clocks(word: str) -> tuple[int, ...]:
    found = _CLOCKS.search(word)
    return tuple(int(mhz) for mhz in found[1].split(",")) if found else ()
