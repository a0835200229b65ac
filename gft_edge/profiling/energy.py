"""The energy of an image: the power over a steady window, by the images predicted in it."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.profiling.conditions import throttle_alerts, throttle_counts
from gft_edge.profiling.power import FIRST_LINE_S, PowerSource, Reading, total_name

MIN_WINDOW_S = 10.0
# A sensor that says nothing for longer leaves a hole in the window.
MAX_GAP_S = 2.0


@dataclass(frozen=True)
class RailPower:
    """A rail and its mean power over the window."""

    name: str
    mean_power_w: float


@dataclass(frozen=True)
class Energy:
    """Millijoules an image, over a window of `window_s` in which `images` were predicted.

    `why` says what is missing when it is not available; every number that was not measured is None.
    `total` names the rails that add up to `mean_power_w`; `rails` are all that were read, parts of
    the total among them. Net is without the power of the idle machine, and can be negative; `net_note`
    says so, or why it is None. `throttled` names what slowed the machine down meanwhile: None where
    the machine does not say.
    """

    available: bool
    why: str | None
    source: str | None = None
    rails: tuple[RailPower, ...] = ()
    total: str | None = None
    mean_power_w: float | None = None
    idle_power_w: float | None = None
    gross_mj_per_image: float | None = None
    net_mj_per_image: float | None = None
    net_note: str | None = None
    window_s: float | None = None
    images: int | None = None
    throttled: tuple[str, ...] | None = None


class PowerMeter:
    """Reads a source in a thread, from entry to exit; the window then can be asked for its energy.

    A source that fails meanwhile fails nothing here: the energy then is not available.
    """

    def __init__(
        self, source: PowerSource, interval_s: float = 0.1, sysfs: Path = Path("/sys")
    ) -> None:
        self._source = source
        self._interval_s = interval_s
        self._sysfs = sysfs
        self._readings: list[tuple[float, Reading]] = []
        self._failure: str | None = None
        self._alerts: set[str] = set()
        self._throttled: tuple[str, ...] | None = None
        self._stop = threading.Event()
        self._first = threading.Event()
        self._window = (0.0, 0.0)

    def __enter__(self) -> PowerMeter:
        self._counts = throttle_counts(self._sysfs)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        # A tool takes its time to start, which is not part of the window.
        try:
            self._first.wait(FIRST_LINE_S)
        except BaseException:
            self._stop.set()
            raise
        self._started_s = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._window = (self._started_s, time.perf_counter())
        self._stop.set()
        # A sensor that hangs leaves a gap, and the profile goes on.
        self._thread.join(timeout=5)
        self._throttled = self._throttles()

    @property
    def mean_power_w(self) -> float | None:
        """The mean over the window, however short; None where it could not be read throughout."""
        return None if self._hole() else self._joules(self._source.total) / self._seconds()

    def energy(self, images: int, idle_power_w: float | None = None) -> Energy:
        """The energy of the window just left. `idle_power_w` is the same source's on the idle machine."""
        source, seconds, why = self._source, self._seconds(), self._why_not(images)
        known = Energy(
            available=why is None,
            why=why,
            source=source.name,
            total=total_name(source.total),
            window_s=seconds,
            images=images,
            throttled=self._throttled,
        )
        if why is not None:
            return known
        joules = self._joules(source.total)
        net_mj, note = _net(joules / seconds, idle_power_w, seconds / images)
        rails = sorted({rail for _, reading in self._readings for rail in reading.watts})
        return dataclasses.replace(
            known,
            rails=tuple(RailPower(rail, self._joules([rail]) / seconds) for rail in rails),
            mean_power_w=joules / seconds,
            idle_power_w=idle_power_w,
            gross_mj_per_image=joules / images * 1000,
            net_mj_per_image=net_mj,
            net_note=note,
        )

    def _watch(self) -> None:
        source, next_alert_s = self._source, 0.0
        for reading in source.readings(self._stop, self._interval_s):
            now_s = time.perf_counter()
            if all(rail in reading.watts for rail in source.total):
                self._readings.append((now_s, reading))
                self._failure = None
            else:
                self._failure = reading.failure or self._failure
            self._first.set()
            if now_s >= next_alert_s:
                self._alerts.update(throttle_alerts(self._sysfs) or ())
                next_alert_s = now_s + 1
        self._first.set()

    def _why_not(self, images: int) -> str | None:
        if images < 1:
            return "no image was predicted"
        if self._seconds() < MIN_WINDOW_S:
            return (
                f"the window lasted {self._seconds():.1f} s, "
                f"and energy takes {MIN_WINDOW_S:.0f} s or more of steady work"
            )
        return self._hole()

    def _hole(self) -> str | None:
        """Why the readings do not cover the window, None if they do."""
        if self._failure is not None:
            return f"{self._source.name} failed during the run: {self._failure}"
        if not self._readings:
            return f"{self._source.name} said nothing during the run"
        times = [self._clip(at) for at, _ in self._readings]
        edges = [self._window[0], *times, self._window[1]]
        gap_s = max(after - before for before, after in itertools.pairwise(edges))
        if gap_s > MAX_GAP_S:
            return f"{self._source.name} said nothing for {gap_s:.1f} s of the run"
        return None

    def _seconds(self) -> float:
        return self._window[1] - self._window[0]

    def _clip(self, at_s: float) -> float:
        """Readings come from a moment before the window to a moment after it."""
        return min(max(at_s, self._window[0]), self._window[1])

    def _joules(self, rails: Iterable[str]) -> float:
        """The energy of these rails together, over the window, wherever they were read."""
        points = [
            (self._clip(at), sum(reading.watts[rail] for rail in rails))
            for at, reading in self._readings
            if all(rail in reading.watts for rail in rails)
        ]
        return integral_j(points, self._window, self._source.averaged)

    def _throttles(self) -> tuple[str, ...] | None:
        alerts, counts = throttle_alerts(self._sysfs), throttle_counts(self._sysfs)
        if alerts is None and not counts:
            return None
        events = (
            f"{name}: {count - self._counts[name]} events"
            for name, count in counts.items()
            if count > self._counts.get(name, count)
        )
        return (*sorted(self._alerts.union(alerts or ())), *events)


def idle_power_w(source: PowerSource, seconds: float) -> float | None:
    """The mean power while this process sleeps; None where it cannot be read."""
    with PowerMeter(source) as meter:
        time.sleep(seconds)
    return meter.mean_power_w


def integral_j(
    points: Sequence[tuple[float, float]], window: tuple[float, float], averaged: bool
) -> float:
    """Watts over seconds by the trapezoid rule, the nearest reading held to the window's edges.

    `averaged`: a point is the mean since the one before, so it counts as it is.
    """
    held = [(window[0], points[0][1]), *points, (window[1], points[-1][1])]
    return sum(
        (after - before) * (end if averaged else (start + end) / 2)
        for (before, start), (after, end) in itertools.pairwise(held)
    )


def _net(
    power_w: float, idle_w: float | None, seconds_per_image: float
) -> tuple[float | None, str | None]:
    """Millijoules an image beyond the idle machine's, and what is to be said of them."""
    if idle_w is None:
        return None, "the power of the idle machine was not measured"
    net_mj = (power_w - idle_w) * seconds_per_image * 1000
    if net_mj < 0:
        return net_mj, (
            f"the machine drew less at work ({power_w:.2f} W) than idle ({idle_w:.2f} W): "
            "it was not idle, or the difference is below what this source resolves"
        )
    return net_mj, None
