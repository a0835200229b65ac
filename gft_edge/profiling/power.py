"""The power that a machine says it draws, rail by rail: hwmon, tegrastats, NVML or RAPL."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gft_edge.nvidia import nvml
from gft_edge.profiling.sysfs import listed, number, text
from gft_edge.profiling.tegrastats import parse_line
from gft_edge.profiling.tool_lines import EndedError, lines_of

# What a board draws in all, the first that it has in full. Rails beside these are parts of them.
# AGX Orin has no rail for its total; Thor's VIN_SYS_5V0 is a part of its VIN.
TOTALS = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VIN",),
)
FIRST_LINE_S = 5.0


@dataclass(frozen=True)
class Unavailable:
    """No power can be read: `why` names each source that was tried, in one line."""

    why: str


@dataclass(frozen=True)
class Reading:
    """The watts of each rail that could be read, and why another could not."""

    watts: Mapping[str, float]
    failure: str | None = None


class PowerSource(Protocol):
    """Something that says what it draws: `total` are the rails that make up the whole of it.

    `averaged`: a reading is the mean since the one before, and otherwise the power at its moment.
    """

    @property
    def name(self) -> str: ...
    @property
    def total(self) -> tuple[str, ...]: ...
    @property
    def averaged(self) -> bool: ...

    def readings(self, stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        """One every interval until `stop` is set, or until the source ends. Raises nothing."""


@dataclass(frozen=True)
class Hwmon:
    """The files of a rail hold microwatts, or millivolts and milliamperes."""

    total: tuple[str, ...]
    rails: Mapping[str, tuple[Path, ...]]
    name: str = "hwmon"
    averaged: bool = False

    def readings(self, stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        last = False
        while not last:
            last = stop.is_set()
            yield self.read()
            if not last:
                stop.wait(interval_s)

    def read(self) -> Reading:
        """Every rail at this moment."""
        watts, failure = {}, None
        for rail, files in self.rails.items():
            try:
                values = [int(file.read_text()) for file in files]
            except (OSError, ValueError) as error:
                failure = failure or _reason(rail, error)
                continue
            # mV x mA are microwatts too.
            watts[rail] = (values[0] * values[1] if len(values) == 2 else values[0]) / 1e6
        return Reading(watts, failure)


@dataclass(frozen=True)
class Rapl:
    """The zones of an x86 processor's packages: counters of microjoules that wrap."""

    total: tuple[str, ...]
    zones: Mapping[str, Path]
    name: str = "RAPL"
    averaged: bool = True

    def readings(self, stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        before, _ = self.read()
        last = False
        while not last:
            last = stop.wait(interval_s)
            now, failure = self.read()
            yield Reading(
                {
                    rail: watts
                    for rail, after in now.items()
                    if (watts := self._watts(rail, before.get(rail), after)) is not None
                },
                failure,
            )
            before |= now

    def read(self) -> tuple[dict[str, tuple[float, int]], str | None]:
        """The time in seconds and the counter of each zone, and why one could not be read."""
        counters, failure = {}, None
        for rail, zone in self.zones.items():
            try:
                energy_uj = int((zone / "energy_uj").read_text())
            except (OSError, ValueError) as error:
                failure = failure or _reason(rail, error)
                continue
            counters[rail] = (time.perf_counter(), energy_uj)
        return counters, failure

    def _watts(
        self, rail: str, before: tuple[float, int] | None, after: tuple[float, int]
    ) -> float | None:
        if before is None or after[0] <= before[0]:
            return None
        used_uj: float = after[1] - before[1]
        if used_uj < 0:
            range_uj = number(self.zones[rail] / "max_energy_range_uj")
            if range_uj is None or used_uj + range_uj < 0:
                return None
            used_uj += range_uj
        return used_uj / 1e6 / (after[0] - before[0])


@dataclass(frozen=True)
class Nvml:
    """The cards of a desktop or a server, each a rail."""

    total: tuple[str, ...]
    name: str = "NVML"
    averaged: bool = False

    def readings(self, stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        last = False
        try:
            with nvml.power_meter() as watts:
                while not last:
                    last = stop.is_set()
                    yield Reading(watts())
                    if not last:
                        stop.wait(interval_s)
        except OSError as error:
            yield Reading({}, str(error))


@dataclass(frozen=True)
class Tool:
    """A program that prints what it measures, line by line; `parse` finds the watts in a line."""

    name: str
    total: tuple[str, ...]
    command: Callable[[int], list[str]]
    parse: Callable[[str], Mapping[str, float]]
    averaged: bool = False

    def readings(self, stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        watts: dict[str, float] = {}
        try:
            for line in lines_of(self.command(round(interval_s * 1000)), stop):
                watts |= self.parse(line)
                if all(rail in watts for rail in self.total):
                    yield Reading(watts)
                    watts = {}
        except EndedError as ended:
            yield Reading({}, str(ended))


def find_power_source(
    sysfs: Path = Path("/sys"), nvidia_gpu: bool = False
) -> PowerSource | Unavailable:
    """A Jetson's own sensors; on another machine those of what the engine computes on.

    With `nvidia_gpu` that is the card, and otherwise the processor: the power of the other one says
    nothing of the engine.
    """
    tried = []
    looks: list[Callable[[], PowerSource | str]] = [lambda: _hwmon(sysfs), _tegrastats]
    looks.append(_nvidia if nvidia_gpu else lambda: _rapl(sysfs))
    for look in looks:
        found = look()
        if not isinstance(found, str):
            return found
        tried.append(found)
    return Unavailable("; ".join(tried))


def total_of(rails: Iterable[str]) -> tuple[str, ...] | None:
    """Which of these rails make up the board's total, None where that is not known."""
    names = set(rails)
    return next((total for total in TOTALS if names.issuperset(total)), None)


def total_name(total: tuple[str, ...]) -> str:
    """What a report calls it: a sum is called a sum."""
    return total[0] if len(total) == 1 else f"sum of {' + '.join(total)}"


def _hwmon(sysfs: Path) -> PowerSource | str:
    chips = listed(sysfs / "class" / "hwmon", "hwmon*")
    found = [(label, chip, files) for chip in chips for label, files in _chip_rails(chip)]
    count = Counter(label for label, _, _ in found)
    # Of two rails of one name neither is the total's.
    rails = {
        label if count[label] == 1 else f"{label} ({chip.name})": files
        for label, chip, files in found
    }
    if not rails:
        return "hwmon: no INA3221 or INA238"
    first = Hwmon((), rails).read()
    total = total_of(first.watts)
    if total is None:
        return f"hwmon: {first.failure or _no_total(rails)}"
    return Hwmon(total, rails)


def _chip_rails(chip: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """The rails of one INA3221 or INA238: label and files. NC: not connected."""
    kind = text(chip / "name")
    if kind == "ina238":
        # The kernel gives this chip no labels. On Thor, which alone has one, it meters VIN.
        yield text(chip / "in1_label") or "VIN", (chip / "power1_input",)
    elif kind == "ina3221":
        # in4 and later are the voltages over the shunts.
        for channel in (1, 2, 3):
            label = text(chip / f"in{channel}_label")
            if label is not None and label != "NC":
                yield label, (chip / f"in{channel}_input", chip / f"curr{channel}_input")


def _tegrastats() -> PowerSource | str:
    tool = shutil.which("tegrastats")
    if tool is None:
        return "tegrastats: not on the PATH"

    def command(interval_ms: int) -> list[str]:
        return [tool, "--interval", str(interval_ms)]

    line, stop = "nothing", threading.Event()
    timer = threading.Timer(FIRST_LINE_S, stop.set)
    timer.start()
    try:
        for line in lines_of(command(100), stop):
            rails = _tegrastats_watts(line)
            if rails:
                total = total_of(rails)
                if total is None:
                    return f"tegrastats: {_no_total(rails)}"
                return Tool("tegrastats", total, command, _tegrastats_watts)
    except EndedError as ended:
        return f"tegrastats: {ended}"
    finally:
        timer.cancel()
    return f"tegrastats: no power in what it prints: {line[:80]}"


def _tegrastats_watts(line: str) -> dict[str, float]:
    stats = parse_line(line)
    return {rail: mw / 1000 for rail, mw in stats.rails_mw.items()} if stats else {}


def _nvidia() -> PowerSource | str:
    reason = nvml.missing()
    if reason is not None:
        return f"NVML: {reason}"
    cards = nvml.cards()
    unread = [f"GPU {card.index}" for card in cards if card.power_w is None]
    if unread:
        return f"NVML: it does not read the power of {', '.join(unread)}"
    return Nvml(tuple(f"GPU {card.index}" for card in cards))


def _rapl(sysfs: Path) -> PowerSource | str:
    # Domains within a package, such as its cores, lie below it and are parts of it; intel-rapl-mmio
    # is a second view of the same counters.
    zones = {
        name: zone
        for zone in listed(sysfs / "class" / "powercap", "intel-rapl:*")
        if (name := text(zone / "name") or "").startswith("package-")
    }
    if not zones:
        return "RAPL: no package in /sys/class/powercap"
    source = Rapl(tuple(zones), zones)
    counters, failure = source.read()
    return source if len(counters) == len(zones) else f"RAPL: {failure} (root may read it)"


def _no_total(rails: Iterable[str]) -> str:
    return f"which of its rails make up the total is not known here: {', '.join(sorted(rails))}"


def _reason(rail: str, error: OSError | ValueError) -> str:
    """Without the path, which differs from boot to boot."""
    if isinstance(error, OSError):
        return f"{rail}: {error.strerror or error}"
    return f"{rail}: not a number"
