"""What was measured of each bundle, as the boundaries and the report that a profile holds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gft_edge.bundle.store import Bundle, size_bytes
from gft_edge.errors import FailedError
from gft_edge.profiling.energy import Energy, PowerMeter
from gft_edge.profiling.latency import Series, Worker
from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.power import PowerSource
from gft_edge.profiling.report import (
    END_TO_END,
    ENGINE,
    ENGINE_THROUGHPUT,
    Boundaries,
    Report,
    Role,
    Settings,
    boundary_of,
)
from gft_edge.runtime.backends import Backend, backend_for
from gft_edge.runtime.classifier import Timing

INTERRUPTED = Energy(available=False, why="interrupted before it was measured")

ENERGY_S = 10.5
SETTLE_POWER_S = 2.0
HELD_UP = 2.0
FEW = 0.05


@dataclass
class BundleUnderTest:
    """A bundle under measurement, and what is known of it so far."""

    bundle: Bundle
    worker: Worker
    opened: Mapping[str, Any]
    engine: Series
    end_to_end: Series | None
    on_gpu: bool
    peak_rss_bytes: int = 0
    energy: Energy = INTERRUPTED
    layers: Breakdown | None = None

    @property
    def series(self) -> tuple[Series, ...]:
        """The series of the boundaries that are measured."""
        return (self.engine,) if self.end_to_end is None else (self.engine, self.end_to_end)


def energy_of(subject: BundleUnderTest, source: PowerSource | str, idle_w: float | None) -> Energy:
    """Energy per image. Measured in a window of its own: turns of several bundles share their power."""
    if isinstance(source, str):
        return Energy(available=False, why=source)
    series = Series(subject.worker, "engine")
    try:
        # Sensors that average over a second still hold what was before.
        series.take_turn(SETTLE_POWER_S)
        series.forget()
        with PowerMeter(source) as meter:
            series.take_turn(ENERGY_S, settle_s=0)
    except FailedError as error:
        return Energy(available=False, why=str(error))
    return meter.energy(series.count * subject.bundle.manifest.input.batch, idle_w)


def report_of(
    subject: BundleUnderTest,
    role: Role,
    settings: Settings,
    first: Boundaries | None,
) -> Report:
    manifest, opened = subject.bundle.manifest, subject.opened
    backend = backend_for(settings.backend or manifest.target)
    boundaries = _boundaries(subject, settings, first)
    device_bytes = opened.get("device_bytes")
    return Report(
        bundle=str(subject.bundle.folder),
        digest=manifest.seal,
        role=role,
        network=manifest.model.name,
        target=backend.TARGET,
        precision=manifest.precision,
        engine=_engine(backend, settings.device),
        flags=tuple(opened["flags"]),
        files_mb=size_bytes(subject.bundle) / 2**20,
        load_ms=opened["load_ms"],
        first_ms=opened["first_ms"],
        peak_rss_mb=subject.peak_rss_bytes / 2**20,
        device_memory_mb=None if device_bytes is None else device_bytes / 2**20,
        boundaries=boundaries,
        ratio_to_first=boundaries.engine.ratio_to_first,
        energy=subject.energy,
        layers=subject.layers,
    )


def _engine(backend: Backend, device: str | None) -> str:
    on = f" on {device}" if device is not None and backend.TARGET == "openvino" else ""
    return f"{backend.version()}{on}"


def _boundaries(
    subject: BundleUnderTest, settings: Settings, first: Boundaries | None
) -> Boundaries:
    engine, end_to_end = subject.engine, subject.end_to_end
    in_flight = settings.hint == "throughput"
    others = first.named() if first else {}
    at_engine = boundary_of(
        ENGINE_THROUGHPUT if in_flight else ENGINE,
        engine.samples_ms,
        settings.percentiles,
        settings.batch,
        1,
        others.get("engine"),
        lost=engine.lost,
        turns_s=engine.elapsed_s if in_flight else None,
    )
    if end_to_end is None:
        return Boundaries(at_engine, None)
    calls = [parts for turn in end_to_end.turns for parts in turn]
    whole = boundary_of(
        END_TO_END,
        end_to_end.samples_ms,
        settings.percentiles,
        settings.batch,
        subject.opened["inputs"],
        others.get("end to end"),
        Timing(*(statistics.mean(part) for part in zip(*calls, strict=True))),
        end_to_end.lost,
    )
    return Boundaries(at_engine, whole)


def interruptions(reports: Sequence[Report]) -> Iterator[str]:
    """Calls that something held up, where these are few: the others may well be steady."""
    boundaries = [boundary for report in reports for boundary in report.boundaries.named().values()]
    calls = sum(len(boundary.samples_ms) for boundary in boundaries)
    held_up = 0
    for boundary in boundaries:
        median_ms = statistics.median(boundary.samples_ms)
        held_up += sum(sample > HELD_UP * median_ms for sample in boundary.samples_ms)
    if 0 < held_up <= FEW * calls:
        yield (
            f"{held_up} of {calls} calls took over {HELD_UP:g} times their median, as when another "
            "process or the hypervisor takes the core"
        )
