"""Profiles of several devices as one table: what each is, how fast, how trustworthy."""

from __future__ import annotations

from collections.abc import Mapping

from gft_edge.profiling.report import Profile
from gft_edge.profiling.verdict import energy_text
from gft_edge.reporting.profile_tables import named, stability
from gft_edge.reporting.table import Table, Value


def fleet_profiles(profiles: Mapping[str, Profile], failed: Mapping[str, str]) -> Table:
    """A row for each bundle on each host, by its engine's latency; `failed` has the others' reasons.

    Layers in integers are known where `profile --layers` counted them. What makes a latency unstable stands
    below.
    """
    rows: list[tuple[Value, ...]] = []
    notes: list[str] = []
    for host, reports in named(profiles).items():
        profile = profiles[host]
        machine = profile.machine
        for name, report in reports:
            engine = report.boundaries.engine
            integers = report.layers.integer_layers if report.layers else None
            energy = energy_text(report) if report.energy.available else None
            name = name.removesuffix(f" in {host}")
            rows.append(
                (host, machine.board or machine.cpu, profile.before.power_mode, name, report.engine,
                 report.precision, integers, _ms(engine.p50_ms), _ms(engine.p99_ms), energy,
                 "stable" if engine.stable else "UNSTABLE")
            )  # fmt: skip
            if not engine.stable:
                causes = f" ({'; '.join(profile.causes)})" if profile.causes else ""
                notes.append(f"{name} on {host}: {stability(engine)}{causes}")
    columns = ("host", "board", "power mode", "bundle", "engine", "precision", "layers in integers",
               "p50 ms", "p99 ms", "energy", "verdict")  # fmt: skip
    rows += [(host, *[None] * (len(columns) - 2), "failed") for host in failed]
    notes += [f"{host}: {reason}" for host, reason in failed.items()]
    return Table("Latency in ms a call of the engine, on every host", columns, rows, notes)


def _ms(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.3f}"
