"""Profiles as one HTML page: verdict, latency, where the time goes, cost, machine, how to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

from gft_edge.profiling.conditions import Conditions, GpuState, other_load
from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.machine import Machine, summary
from gft_edge.profiling.report import Boundary, Profile, Report
from gft_edge.profiling.samples import MOST_SPREAD, MOST_VARIATION, WINDOWS, samples_needed
from gft_edge.profiling.verdict import energy_text, named_boundaries, verdicts, why_unstable
from gft_edge.reporting.drawing import shortened
from gft_edge.reporting.latency_charts import (
    PART_NAMES,
    distribution_chart,
    split_chart,
    timeline_chart,
)
from gft_edge.reporting.layer_chart import breakdown_chart
from gft_edge.reporting.page import (
    bullets,
    figure,
    html_page,
    paragraph,
    section,
    side_by_side,
    table,
    verdict,
)

LONGEST_NAME_PX = 240  # in the title, which stands above the verdict

# A report and what it is called on the page.
Named = tuple[str, Report]


def profile_page(profiles: Mapping[str, Profile]) -> str:
    """All that the profiles say. Keys are the files they came from, "" for one just measured."""
    named = _named(profiles)
    everything = [pair for own in named.values() for pair in own]
    sections = [_verdict(file, profile) for file, profile in profiles.items()]
    if len(profiles) > 1:
        sections.append(_across(profiles, named))
    sections.append(_latency(profiles, named))
    sections.append(_end_to_end(everything))
    sections += [_layers(name, report.layers) for name, report in everything if report.layers]
    sections.append(_cost(everything))
    for file, profile in profiles.items():
        sections.append(_machine(file, profile))
        sections.append(_measured_how(file, profile))
    sections.append(_how_to_read(profiles))
    names = ", ".join(shortened(name, LONGEST_NAME_PX) for name, _ in everything)
    return html_page(f"Profile of {names}", sections)


def _named(profiles: Mapping[str, Profile]) -> dict[str, list[Named]]:
    """As short as tells them apart: the end of a bundle's path, then its file's, then a number."""
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


def _heading(words: str, file: str) -> str:
    return f"{words}: {file}" if file else words


def _verdict(file: str, profile: Profile) -> str:
    good = profile.stable and profile.complete
    lines = verdicts(profile)
    if good:
        lines.insert(0, "STABLE: windows and calls agree within the bounds given below")
    # Its own heading would stand between the page's title and what matters most.
    words = ", ".join(filter(None, (file, summary(profile.machine), profile.made_at)))
    return verdict(lines, good) + paragraph(words, "note")


def _across(profiles: Mapping[str, Profile], named: Mapping[str, Sequence[Named]]) -> str:
    """Ratios of medians, no pairs."""
    rows = []
    first: dict[str, float] = {}
    for file, profile in profiles.items():
        for name, report in named[file]:
            for boundary_name, boundary in named_boundaries(report):
                median_ms = boundary.p50_ms or boundary.mean_ms
                first.setdefault(boundary_name, median_ms)
                rows.append(
                    (name, summary(profile.machine), boundary_name, f"{median_ms:.3f}",
                     f"{median_ms / first[boundary_name]:.3f}", _judged(boundary))
                )  # fmt: skip
    columns = ("bundle", "machine", "boundary", "median ms", "time / first", "verdict")
    note = "Measured at different times or on different machines: a drift is in these ratios."
    return section("Profiles side by side", paragraph(note) + table(columns, rows))


def _latency(profiles: Mapping[str, Profile], named: Mapping[str, Sequence[Named]]) -> str:
    body = ""
    for file, profile in profiles.items():
        percentiles = [f"p{percentile:g}" for percentile in profile.settings.percentiles]
        columns = ("bundle", "boundary", *percentiles, "mean", "max", "cv", "calls",
                   "images/s", "time / first [95 %]", "verdict")  # fmt: skip
        rows = [
            _latency_row(name, boundary_name, boundary, percentiles)
            for name, report in named[file]
            for boundary_name, boundary in named_boundaries(report)
        ]
        body += table(columns, rows, _heading("Milliseconds a call", file))
    every = [pair for own in named.values() for pair in own]
    for boundary_name in ("engine", "end to end"):
        found = {
            name: boundary
            for name, report in every
            for said, boundary in named_boundaries(report)
            if said == boundary_name
        }
        if found:
            samples = {name: boundary.samples_ms for name, boundary in found.items()}
            turns = {name: boundary.by_turn() for name, boundary in found.items()}
            charts = (
                distribution_chart(samples, f"Every call, {boundary_name}"),
                timeline_chart(turns, f"Turn by turn, {boundary_name}"),
            )
            body += side_by_side([figure(chart) for chart in charts])
    return section("Latency", body)


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
        _judged(boundary),
    ]


def _ms(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.3f}"


def _judged(boundary: Boundary) -> str:
    return "stable" if boundary.stable else why_unstable(boundary)


def _end_to_end(named: Sequence[Named]) -> str:
    splits = {
        name: end.split_ms
        for name, report in named
        if (end := report.boundaries.end_to_end) is not None and end.split_ms is not None
    }
    if not splits:
        return section(
            "End to end",
            paragraph("Not measured: calls that overlap have no latency of their own."),
        )
    rows = [
        (name, *(f"{ms:.3f}" for ms in dataclasses.astuple(parts)))
        for name, parts in splits.items()
    ]
    columns = ("bundle", *PART_NAMES)
    return section(
        "End to end",
        side_by_side([figure(split_chart(splits))])
        + table(columns, rows, "Mean milliseconds of each part"),
    )


def _layers(name: str, breakdown: Breakdown) -> str:
    """From the instrumented run: parts, the layers that take longest, attention."""
    top = [
        (layer.name, layer.part, layer.kind, layer.kernel, layer.precision,
         f"{layer.mean_ms:.3f}", f"{layer.share:.1%}")
        for layer in breakdown.top
    ]  # fmt: skip
    parts = [
        (part.name, f"{part.mean_ms:.3f}", f"{part.share:.1%}", part.layers)
        for part in breakdown.parts
    ]
    attention = [(kernel.where, kernel.verdict, kernel.reason) for kernel in breakdown.attention]
    return section(
        f"Where the time goes: {name}",
        figure(breakdown_chart(breakdown))
        + table(("part", "ms", "share", "layers"), parts, "Parts of the network")
        + table(
            ("layer", "part", "kind", "kernel", "precision", "ms", "share"),
            top,
            "The layers that take longest",
        )
        + table(("where", "attention", "why"), attention, "Attention in one kernel or in parts"),
    )


def _cost(named: Sequence[Named]) -> str:
    rows = [
        (name, f"{r.files_mb:.1f}", f"{r.load_ms:.0f}", f"{r.first_ms:.1f}", f"{r.peak_rss_mb:.0f}",
         "-" if r.device_memory_mb is None else f"{r.device_memory_mb:.0f}", energy_text(r),
         _energy_note(r))
        for name, r in named
    ]  # fmt: skip
    columns = ("bundle", "files MiB", "load ms", "first call ms", "peak RSS MiB", "GPU MiB",
               "energy", "energy from")  # fmt: skip
    what = [
        (name, r.network, r.target, r.precision, r.engine, ", ".join(r.flags) or "-", r.bundle,
         r.digest)
        for name, r in named
    ]  # fmt: skip
    return section(
        "Cost",
        table(columns, rows)
        + table(
            ("bundle", "network", "target", "precision", "engine", "flags", "folder", "digest"),
            what,
            "What was measured",
        ),
    )


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


def _machine(file: str, profile: Profile) -> str:
    before, after = profile.before, profile.after
    rows = [
        (what, shown(before), shown(after))
        for what, shown in _CONDITIONS
        if (shown(before), shown(after)) != ("-", "-")
    ]
    others = other_load(before, after)
    body = table(("what", "value"), _fingerprint(profile.machine))
    body += table(("condition", "before", "after"), rows, "Before and after")
    silent = [what for what, shown in _CONDITIONS if (shown(before), shown(after)) == ("-", "-")]
    if silent:
        body += paragraph(f"The machine does not say: {', '.join(silent)}.", "note")
    if others is not None:
        body += paragraph(
            f"{after.at_s - before.at_s:.1f} s between the two, {others:.2f} cores at work on "
            "average, those that measured among them.",
            "note",
        )
    return section(_heading("Machine", file), body)


def _fingerprint(machine: Machine) -> list[tuple[str, str]]:
    return [
        ("board", machine.board or "-"),
        ("CPU", f"{machine.cpu}, {machine.cores} cores"),
        ("instruction sets", ", ".join(machine.instruction_sets) or "-"),
        ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        ("GPU", ", ".join(machine.gpus) or "none"),
        ("NVIDIA driver", machine.driver or "-"),
        ("Jetson Linux", machine.l4t or "-"),
        ("system", machine.system),
        ("Python", machine.python),
    ]


def _range(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:.0f} {unit}" if low == high else f"{low:.0f} to {high:.0f} {unit}"


def _gpu(state: GpuState) -> str:
    said = [
        f"{value:.0f} {unit}"
        for value, unit in (
            (state.mhz, "MHz"),
            (state.max_mhz, "MHz at most"),
            (state.temperature_c, "°C"),
            (state.busy_pct, "% busy"),
        )
        if value is not None
    ]
    said += ["slowed by " + ", ".join(state.slowed_by)] if state.slowed_by else []
    return f"{state.name}: {', '.join(said) or '-'}"


def _listed(names: Sequence[str] | None) -> str:
    """None is silence; an empty list is that all is well."""
    return "-" if names is None else ", ".join(names) or "none"


_CONDITIONS: tuple[tuple[str, Callable[[Conditions], str]], ...] = (
    ("power mode", lambda c: c.power_mode or "-"),
    ("governor", lambda c: ", ".join(c.governors) or "-"),
    ("CPU clock", lambda c: _range(c.cpu_mhz, "MHz")),
    ("highest CPU clock allowed", lambda c: _range(c.cpu_max_mhz, "MHz")),
    ("temperatures", lambda c: ", ".join(f"{k} {v:.0f} °C" for k, v in c.temperatures_c.items()) or "-"),
    ("GPU", lambda c: "; ".join(map(_gpu, c.gpus)) or "-"),
    ("slowed down by", lambda c: _listed(c.throttling)),
    ("slowed down since start", lambda c: ", ".join(f"{k} {v}" for k, v in c.throttle_counts.items()) or "-"),
    ("load over a minute", lambda c: "-" if c.load_1min is None else f"{c.load_1min:.2f}"),
    ("CPU time lost to other guests", lambda c: "-" if c.stolen_cpu_s is None else f"{c.stolen_cpu_s:.1f} s"),
)  # fmt: skip


def _measured_how(file: str, profile: Profile) -> str:
    settings, inputs = profile.settings, profile.inputs
    rows = [
        ("duration", f"{settings.duration_s:g} s of each bundle at each boundary, at least"),
        ("calls", f"{settings.min_samples}, at least"),
        ("warm-up", f"{settings.warmup_ms:g} ms at least, and until the median settled"),
        ("turns", f"{settings.turn_ms:.0f} ms each, bundles one after the other; the first "
         f"{settings.settle_ms:.0f} ms of a turn do not count"),
        ("hint", settings.hint),
        ("images a call", settings.batch),
        ("threads", "all" if settings.threads is None else settings.threads),
        ("engine asked for", settings.backend or "each bundle's own"),
        ("CUDA graph", "yes" if settings.cuda_graph else "no"),
        ("inputs", f"{inputs.count} {inputs.kind} from {inputs.source}"),
        ("their digest", inputs.digest),
        ("measured by", f"gft-edge {profile.version}, {profile.made_at}"),
    ]  # fmt: skip
    return section(_heading("How it was measured", file), table(("setting", "value"), rows))


def _how_to_read(profiles: Mapping[str, Profile]) -> str:
    reports = [report for profile in profiles.values() for report in profile.reports]
    whats = dict.fromkeys(b.what for report in reports for b in report.boundaries.measured())
    percentiles = sorted({p for one in profiles.values() for p in one.settings.percentiles})
    needed = ", ".join(f"p{p:g} {samples_needed(p)}" for p in percentiles)
    said = [
        *(f"{what[0].upper()}{what[1:]}." for what in whats),
        "The two boundaries hold different things: never compare one with the other.",
        f"A percentile is withheld with fewer calls than it needs: {needed}.",
        f"Stable: the medians of {WINDOWS} windows lie within {MOST_SPREAD:.0%} of each other and "
        f"calls vary by {MOST_VARIATION:.1%} or less (coefficient of variation, each input's own "
        "median divided out); no call was lost to a clock that jumped.",
        "Time / first: the median over turns of a bundle's time by the first bundle's in the same "
        "turn, so that a drift of the machine cancels; under 1 is faster. The interval holds the "
        "true median 95 times in 100; with 1 inside it, no difference was shown.",
        "Load: from the call to a loaded engine in a fresh process, importing and checking "
        "digests included. Peak RSS is that process's, its inputs among it. MiB are 2^20 bytes.",
        "Energy: of engine calls one after another in a window of their own.",
    ]
    body = bullets(said)
    return section("How to read it", body)
