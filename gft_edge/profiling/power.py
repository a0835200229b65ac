"""The power that a machine says it draws, rail by rail: hwmon, tegrastats, NVML or RAPL."""

from __future__ import annotations

import math
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gft_edge.nvidia import nvml
from gft_edge.profiling.sysfs import listed, number, text
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

# Of a line of tegrastats: milliwatts now, then their mean, then their maximum. Before Jetson Linux 36
# they had no unit, and there only the name tells a rail from a word that is not known here.
_RAIL = re.compile(
    r"(?<!\S)(?:([A-Za-z][\w.-]*) (-?\d+)mW(?:/-?\d+(?:mW)?){0,2}"
    r"|((?:VDD|VIN|POM)\w*) (-?\d+)(?:/-?\d+){1,2})(?!\S)"
)


@dataclass(frozen=True)
class Reading:
    """The watts of each rail that could be read, and why another could not."""

    watts: Mapping[str, float]
    failure: str | None = None


Readings = Callable[[threading.Event, float], Iterator[Reading]]


@dataclass(frozen=True)
class PowerSource:
    """Something that says what it draws: `total` are the rails that make up the whole of it.

    `readings` gives one every so many seconds until its event is set, or until the source ends; it
    raises nothing. `averaged`: a reading is the mean since the one before, and otherwise the power at
    its moment.
    """

    name: str
    total: tuple[str, ...]
    readings: Readings
    averaged: bool = False


def find_power_source(sysfs: Path = Path("/sys"), nvidia_gpu: bool = False) -> PowerSource | str:
    """A Jetson's own sensors; on another machine those of what the engine computes on.

    With `nvidia_gpu` that is the card, and otherwise the processor: the power of the other one says
    nothing of the engine. Where no power can be read, one line that names each source that was tried.
    """
    tried = []
    looks: list[Callable[[], PowerSource | str]] = [lambda: _hwmon(sysfs), _tegrastats]
    looks.append(_nvidia if nvidia_gpu else lambda: _rapl(sysfs))
    for look in looks:
        found = look()
        if not isinstance(found, str):
            return found
        tried.append(found)
    return "; ".join(tried)


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
    first = _hwmon_reading(rails)
    total = total_of(first.watts)
    if total is None:
        return f"hwmon: {first.failure or _no_total(rails)}"
    return PowerSource("hwmon", total, partial(_polled, partial(_hwmon_reading, rails)))


def _hwmon_reading(rails: Mapping[str, tuple[Path, ...]]) -> Reading:
    """Every rail at this moment; its files hold microwatts, or millivolts and milliamperes."""
    values, failure = _numbers_of(rails)
    # mV x mA are microwatts too.
    return Reading({rail: math.prod(numbers) / 1e6 for rail, numbers in values.items()}, failure)


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

    line, stop = "nothing", threading.Event()
    timer = threading.Timer(FIRST_LINE_S, stop.set)
    timer.start()
    try:
        for line in lines_of([tool, "--interval", "100"], stop):
            rails = tegrastats_watts(line)
            if rails:
                total = total_of(rails)
                if total is None:
                    return f"tegrastats: {_no_total(rails)}"
                return PowerSource("tegrastats", total, partial(_tegrastats_readings, tool, total))
    except EndedError as ended:
        return f"tegrastats: {ended}"
    finally:
        timer.cancel()
    return f"tegrastats: no power in what it prints: {line[:80]}"


def _tegrastats_readings(
    tool: str, total: tuple[str, ...], stop: threading.Event, interval_s: float
) -> Iterator[Reading]:
    try:
        for line in lines_of([tool, "--interval", str(round(interval_s * 1000))], stop):
            watts = tegrastats_watts(line)
            if watts.keys() >= set(total):
                yield Reading(watts)
    except EndedError as ended:
        yield Reading({}, str(ended))


def tegrastats_watts(line: str) -> dict[str, float]:
    """The rails in a line of any Jetson; one that feeds nothing can report negative power."""
    found = ((a or b, int(x or y)) for a, x, b, y in _RAIL.findall(line))
    return {rail: mw / 1000 for rail, mw in found if rail != "NC"}


def _nvidia() -> PowerSource | str:
    """The cards of a desktop or a server, each a rail."""
    try:
        with nvml.power_meter() as read:
            watts = read()
    except OSError as error:
        return f"NVML: {error}"
    unread = [name for name, w in watts.items() if w is None]
    if unread:
        return f"NVML: it does not read the power of {', '.join(unread)}"
    return PowerSource("NVML", tuple(watts), _nvml_readings) if watts else "NVML: it names no GPU"


def _nvml_readings(stop: threading.Event, interval_s: float) -> Iterator[Reading]:
    try:
        with nvml.power_meter() as read:
            yield from _polled(lambda: _reading(read()), stop, interval_s)
    except OSError as error:
        yield Reading({}, str(error))


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
    _, failure = _rapl_counters(zones)
    if failure is not None:
        return f"RAPL: {failure} (root may read it)"
    return PowerSource("RAPL", tuple(zones), partial(_rapl_readings, zones), averaged=True)


def _rapl_readings(
    zones: Mapping[str, Path], stop: threading.Event, interval_s: float
) -> Iterator[Reading]:
    before, _ = _rapl_counters(zones)
    last = False
    while not last:
        last = stop.wait(interval_s)
        now, failure = _rapl_counters(zones)
        watts = {
            rail: _rapl_watts(zones[rail], before[rail], after)
            for rail, after in now.items()
            if rail in before
        }
        yield _reading(watts, failure)
        before |= now


def _rapl_counters(
    zones: Mapping[str, Path],
) -> tuple[dict[str, tuple[float, int]], str | None]:
    """The time in seconds and the counter of each zone, and why one could not be read."""
    values, failure = _numbers_of({rail: (zone / "energy_uj",) for rail, zone in zones.items()})
    now_s = time.perf_counter()
    return {rail: (now_s, energy_uj) for rail, (energy_uj,) in values.items()}, failure


def _rapl_watts(zone: Path, before: tuple[float, int], after: tuple[float, int]) -> float | None:
    """The mean power between two counts; None where the counter, which wraps, tells nothing."""
    if after[0] <= before[0]:
        return None
    used_uj: float = after[1] - before[1]
    if used_uj < 0:
        range_uj = number(zone / "max_energy_range_uj")
        if range_uj is None or used_uj + range_uj < 0:
            return None
        used_uj += range_uj
    return used_uj / 1e6 / (after[0] - before[0])


def _polled(
    read: Callable[[], Reading], stop: threading.Event, interval_s: float
) -> Iterator[Reading]:
    last = False
    while not last:
        last = stop.is_set()
        yield read()
        if not last:
            stop.wait(interval_s)


def _no_total(rails: Iterable[str]) -> str:
    return f"which of its rails make up the total is not known here: {', '.join(sorted(rails))}"


def _reading(watts: Mapping[str, float | None], failure: str | None = None) -> Reading:
    """A reading without the rails that say nothing."""
    return Reading({rail: w for rail, w in watts.items() if w is not None}, failure)


def _numbers_of(
    rails: Mapping[str, tuple[Path, ...]],
) -> tuple[dict[str, list[int]], str | None]:
    """The numbers in the files of each rail that can be read, and why the first other one cannot."""
    numbers, failure = {}, None
    for rail, files in rails.items():
        try:
            numbers[rail] = [int(file.read_text()) for file in files]
        # Without the path, which differs from boot to boot.
        except OSError as error:
            failure = failure or f"{rail}: {error.strerror or error}"
        except ValueError:
            failure = failure or f"{rail}: not a number"
    return numbers, failure
