"""A profile and its machine as tables, for the terminal and for a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.machine import Machine, summary
from gft_edge.profiling.report import Boundary, Profile, Report
from gft_edge.profiling.verdict import energy_text, verdicts, why_unstable
from gft_edge.reporting.latency_charts import PART_NAMES
from gft_edge.reporting.table import Cell, Table

# A report, and what it is called in every table and chart.
Named = tuple[str, Report]


def named(profiles: Mapping[str, Profile]) -> dict[str, list[Named]]:
    """The reports of each file under names as short as tells them apart.

    A name is the end of a bundle's path, then its file's, then a number. Keys of `profiles` are the
    files that they came from, "" for one just measured.
    """
    owned = [(file, report) for file, profile in profiles.items() for report in profile.reports]
    paths = [PurePath(report.bundle).parts or (report.bundle,) for _, report in owned]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    names = [str(PurePath(*path[-depth:])) for path in paths]
    if len(set(names)) < len(names) and len(profiles) > 1:
        names = [f"{name} in {file}" for name, (file, _) in zip(names, owned, strict=True)]
    found: dict[str, list[Named]] = {file: [] for file in profiles}
    for n, (name, (file, report)) in enumerate(zip(names, owned, strict=True)):
        again = f" ({names[:n].count(name) + 1})" if names.count(name) > 1 else ""
        baseline = " (baseline)" if report.role == "baseline" else ""
        found[file].append((f"{name}{again}{baseline}", report))
    return found


def profile_blocks(profile: Profile, file: str = "") -> list[Table | str]:
    """Everything that a terminal shows of a profile; `file` is where it came from.

    The conditions of its machine and the settings stand on its page.
    """
    settings, inputs = profile.settings, profile.inputs
    threads = "all" if settings.threads is None else settings.threads
    reports = named({file: profile})[file]
    parts = parts_table(reports)
    return [
        f"{file or 'profile'}: {machine_line(profile)}; {settings.hint}, batch "
        f"{settings.batch}, {threads} threads; {inputs.count} {inputs.kind}",
        latency_table(profile, reports, "Latency in ms a call").without("max", "calls"),
        *([] if parts is None else [parts]),
        cost_table(reports).without("energy from"),
        *(table for _, one in reports if one.layers for table in layer_tables(one.layers)),
        *verdicts(profile),
    ]


def machine_line(profile: Profile) -> str:
    """The machine in one line, with its host where it was measured over ssh."""
    host = "" if profile.host is None else f"{profile.host}, "
    return f"{host}{summary(profile.machine)}"


def machine_table(title: str, machine: Machine) -> Table:
    """What a machine is, by what it says of itself."""
    rows = [
        ("board", machine.board),
        ("CPU", f"{machine.cpu}, {machine.cores} cores"),
        ("instruction sets", " ".join(machine.instruction_sets) or "none of interest"),
        ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        ("GPU", "; ".join(machine.gpus) or "none seen by NVML or CUDA"),
        ("NVIDIA driver", machine.driver),
        ("Jetson Linux", machine.l4t),
        ("system", f"{machine.system}, Python {machine.python}"),
    ]
    return Table(title, ("what", "value"), rows)


def latency_table(profile: Profile, reports: Sequence[Named], title: str) -> Table:
    """Percentiles, scatter, pace and verdict of every bundle at every boundary."""
    percentiles = [f"p{percentile:g}" for percentile in profile.settings.percentiles]
    columns = ("bundle", "boundary", *percentiles, "mean", "max", "cv", "calls", "images/s",
               "time / first [95 %]", "verdict")  # fmt: skip
    rows = [
        _latency_row(name, boundary_name, boundary, percentiles)
        for name, report in reports
        for boundary_name, boundary in report.boundaries.named().items()
    ]
    return Table(title, columns, rows)


def _latency_row(
    name: str, boundary_name: str, boundary: Boundary, percentiles: Sequence[str]
) -> list[str]:
    interval = boundary.ratio_interval
    ratio = f"{boundary.ratio_to_first:.3f}"
    return [
        name,
        boundary_name,
        *(_ms(boundary.percentiles_ms[f"{p}_ms"]) for p in percentiles),
        f"{boundary.mean_ms:.3f}",
        f"{boundary.max_ms:.3f}",
        f"{boundary.cv:.1%}",
        str(len(boundary.samples_ms)),
        f"{boundary.images_per_s:.1f}",
        f"{ratio} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ratio,
        stability(boundary),
    ]


def _ms(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.3f}"


def stability(boundary: Boundary) -> str:
    """The word stable, or the bound that was missed."""
    return "stable" if boundary.stable else why_unstable(boundary)


def across_table(profiles: Mapping[str, Profile]) -> Table:
    """Profiles of different times or machines side by side: ratios of medians, no pairs."""
    rows = []
    first: dict[str, float] = {}
    for file, reports in named(profiles).items():
        for name, report in reports:
            for boundary_name, boundary in report.boundaries.named().items():
                median_ms = boundary.p50_ms or boundary.mean_ms
                first.setdefault(boundary_name, median_ms)
                rows.append(
                    (file, name, machine_line(profiles[file]), boundary_name, _of(median_ms),
                     _of(median_ms / first[boundary_name]), stability(boundary))
                )  # fmt: skip
    columns = ("profile", "bundle", "machine", "boundary", "median ms", "time / first", "verdict")
    return Table("Measured apart: a drift of the machine is in these ratios", columns, rows)


def _of(value: float) -> Cell:
    return Cell(f"{value:.3f}", value=value)


def parts_table(reports: Sequence[Named]) -> Table | None:
    """The mean of each part of a call end to end; None where no bundle was measured so."""
    rows = [
        (name, *(f"{ms:.3f}" for ms in dataclasses.astuple(end.split_ms)))
        for name, report in reports
        if (end := report.boundaries.end_to_end) is not None and end.split_ms is not None
    ]
    return Table("Mean milliseconds of each part", ("bundle", *PART_NAMES), rows) if rows else None


def cost_table(reports: Sequence[Named]) -> Table:
    """Files, loading, memory and energy of each bundle."""
    columns = ("bundle", "files MiB", "load ms", "first call ms", "peak RSS MiB", "GPU MiB",
               "energy", "energy from")  # fmt: skip
    rows = [
        (name, f"{r.files_mb:.1f}", f"{r.load_ms:.0f}", f"{r.first_ms:.1f}", f"{r.peak_rss_mb:.0f}",
         None if r.device_memory_mb is None else f"{r.device_memory_mb:.0f}", energy_text(r),
         _energy_note(r))
        for name, r in reports
    ]  # fmt: skip
    return Table("Cost", columns, rows)


def _energy_note(report: Report) -> str:
    energy = report.energy
    said = []
    if energy.available:
        said.append(f"{energy.source}: {energy.total}, {energy.mean_power_w:.2f} W")
        said.append(f"{energy.images} images in {energy.window_s:.1f} s")
    if energy.available and energy.idle_power_w is not None:
        said.append(f"idle {energy.idle_power_w:.2f} W")
    said += [energy.net_note] if energy.net_note else []
    said += ["slowed down by " + ", ".join(energy.throttled)] if energy.throttled else []
    return "; ".join(said) or "-"


def subject_table(reports: Sequence[Named]) -> Table:
    """What each bundle is and where it lies."""
    columns = ("bundle", "network", "target", "precision", "engine", "flags", "folder", "digest")
    rows = [
        (name, r.network, r.target, r.precision, r.engine, ", ".join(r.flags) or "-", r.bundle,
         r.digest)
        for name, r in reports
    ]  # fmt: skip
    return Table("What was measured", columns, rows)


def layer_tables(breakdown: Breakdown) -> list[Table]:
    """The parts of the network, the layers that take longest, and how attention is computed."""
    parts = [(p.name, f"{p.mean_ms:.3f}", f"{p.share:.1%}", p.layers) for p in breakdown.parts]
    top = [
        (layer.name, layer.part, layer.kind, layer.kernel or "-", layer.precision,
         f"{layer.mean_ms:.3f}", f"{layer.share:.1%}")
        for layer in breakdown.top
    ]  # fmt: skip
    attention = [(one.where, one.verdict, one.reason) for one in breakdown.attention]
    cost = (
        f"{breakdown.runs} instrumented inferences of {breakdown.instrumented_ms:.3f} ms, plain ones "
        f"of {breakdown.plain_ms:.3f} ms, in turn: instrumentation costs {breakdown.overhead:+.1%}"
    )
    between = breakdown.instrumented_ms - breakdown.layers_ms
    notes = [
        f"the layers take {breakdown.layers_ms:.3f} ms of an instrumented inference, what lies between "
        f"them {between:.3f} ms",
        cost,
    ]
    if breakdown.int8_layers or breakdown.integer_layers:
        notes.append(
            f"{breakdown.integer_layers} products and convolutions are computed in integers here; the "
            f"bundle has {breakdown.int8_layers} layers in INT8"
        )
    return [
        Table("Parts of the network", ("part", "ms", "share", "layers"), parts, notes),
        Table("The layers that take longest",
              ("layer", "part", "operator", "kernel", "precision", "ms", "share"), top),
        Table("Attention in one kernel or in parts", ("where", "attention", "why"), attention),
    ]  # fmt: skip
