"""Profiles as one page: verdict, latency, where the time goes, cost, machine, how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gft_edge.nvidia.nvml import GpuState
from gft_edge.profiling.conditions import Conditions, other_load
from gft_edge.profiling.report import Profile, Report
from gft_edge.profiling.samples import MOST_SPREAD, MOST_VARIATION, WINDOWS, samples_needed
from gft_edge.profiling.verdict import verdicts
from gft_edge.reporting.drawing import shortened
from gft_edge.reporting.latency_charts import (
    breakdown_chart,
    distribution_chart,
    split_chart,
    timeline_chart,
)
from gft_edge.reporting.page import Banner, Block, Bullets, Charts, Note, Page, Section
from gft_edge.reporting.profile_tables import (
    across_table,
    cost_table,
    latency_table,
    layer_tables,
    machine_line,
    machine_table,
    named,
    parts_table,
    subject_table,
)
from gft_edge.reporting.table import Table

LONGEST_NAME = 32  # in the title, which stands above the verdict


def profile_page(profiles: Mapping[str, Profile]) -> Page:
    """A page of all that the profiles say. Keys are the files they came from, "" for one just measured."""
    names = named(profiles)
    everything = {name: report for own in names.values() for name, report in own}
    # The verdict stands under the title itself: a heading would stand above what matters most.
    sections = [Section("", [*_verdict(file, one)]) for file, one in profiles.items()]
    if len(profiles) > 1:
        sections.append(Section("Profiles side by side", [across_table(profiles)]))
    tables = [
        latency_table(profile, names[file], _heading("Milliseconds a call", file))
        for file, profile in profiles.items()
    ]
    sections.append(Section("Latency", [*tables, *latency_charts(everything, turn_by_turn=True)]))
    no_parts: list[Block] = ["Not measured: calls that overlap have no latency of their own."]
    sections.append(Section("End to end", parts_blocks(everything) or no_parts))
    sections += layer_sections(everything)
    reports = [*everything.items()]
    sections.append(Section("Cost", [cost_table(reports), subject_table(reports)]))
    for file, profile in profiles.items():
        sections.append(Section(_heading("Machine", file), _machine(profile)))
        sections.append(Section(_heading("How it was measured", file), [_settings(profile)]))
    sections.append(Section("How to read it", [Bullets(_how_to_read(profiles))]))
    title = ", ".join(shortened(name, LONGEST_NAME) for name in everything)
    return Page(f"Profile of {title}", sections)


def latency_charts(reports: Mapping[str, Report], turn_by_turn: bool = False) -> list[Block]:
    """Every call at each boundary that was measured, and the turns beside it; keys are the names."""
    charts = []
    for said in ("engine", "end to end"):
        found = {
            name: report.boundaries.named()[said]
            for name, report in reports.items()
            if said in report.boundaries.named()
        }
        if found:
            samples = {name: boundary.samples_ms for name, boundary in found.items()}
            charts.append(distribution_chart(samples, said))
        if found and turn_by_turn:
            turns = {name: boundary.by_turn() for name, boundary in found.items()}
            charts.append(timeline_chart(turns, said))
    return [Charts(charts)]


def parts_blocks(reports: Mapping[str, Report]) -> list[Block]:
    """The parts of a call end to end as a chart and a table; nothing where none was measured so."""
    table = parts_table([*reports.items()])
    if table is None:
        return []
    splits = {
        name: end.split_ms
        for name, report in reports.items()
        if (end := report.boundaries.end_to_end) is not None and end.split_ms is not None
    }
    return [Charts([split_chart(splits)]), table]


def layer_sections(reports: Mapping[str, Report]) -> list[Section]:
    """A section for each bundle that was profiled with its layers."""
    return [
        Section(
            f"Where the time goes: {name}",
            [Charts([breakdown_chart(report.layers)]), *layer_tables(report.layers)],
        )
        for name, report in reports.items()
        if report.layers is not None
    ]


def _heading(words: str, file: str) -> str:
    return f"{words}: {file}" if file else words


def _verdict(file: str, profile: Profile) -> list[Block]:
    good = profile.stable and profile.complete
    lines = verdicts(profile)
    if good:
        lines.insert(0, "STABLE: windows and calls agree within the bounds given below")
    words = ", ".join(filter(None, (file, machine_line(profile), profile.made_at)))
    return [Banner(lines, good), Note(words)]


def _machine(profile: Profile) -> list[Block]:
    before, after = profile.before, profile.after
    said = [(what, text(before), text(after)) for what, text in _CONDITIONS]
    blocks: list[Block] = [
        machine_table("", profile.machine),
        Table("Before and after", ("condition", "before", "after"),
              [row for row in said if row[1:] != ("-", "-")]),
    ]  # fmt: skip
    if silent := [row[0] for row in said if row[1:] == ("-", "-")]:
        blocks.append(Note(f"The machine does not say: {', '.join(silent)}."))
    others = other_load(before, after)
    if others is not None:
        blocks.append(
            Note(
                f"{after.at_s - before.at_s:.1f} s between the two, {others:.2f} cores at work on "
                "average, those that measured among them."
            )
        )
    return blocks


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
    """The names; None means that the machine does not say, an empty list that all is well."""
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


def _settings(profile: Profile) -> Table:
    settings, inputs = profile.settings, profile.inputs
    rows: list[tuple[str, str | int]] = [
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
    return Table("", ("setting", "value"), rows)


def _how_to_read(profiles: Mapping[str, Profile]) -> list[str]:
    reports = [report for profile in profiles.values() for report in profile.reports]
    whats = dict.fromkeys(b.what for report in reports for b in report.boundaries.named().values())
    percentiles = sorted({p for one in profiles.values() for p in one.settings.percentiles})
    needed = ", ".join(f"p{p:g} {samples_needed(p)}" for p in percentiles)
    return [
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
