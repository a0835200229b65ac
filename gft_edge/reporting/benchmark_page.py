"""The sections of a benchmark's page: its table, accuracy against latency, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gft_edge.profiling.report import Report
from gft_edge.reporting.page import Block, Bullets, Charts, Section
from gft_edge.reporting.pareto import ParetoPoint, pareto_chart
from gft_edge.reporting.profile_page import latency_charts, layer_sections, parts_blocks
from gft_edge.reporting.table import Table


def benchmark_sections(
    summary: Sequence[Block],
    table: Table,
    shortfalls: Sequence[str],
    points: Sequence[ParetoPoint],
    accuracy: str,
    cost: str,
    reports: Mapping[str, Report],
) -> list[Section]:
    """The sections below the title.

    `summary` stands right below it: the verdict and the conditions. `table` has a row a bundle, its
    best cells marked, and `shortfalls` say what is missing from it. `points` are the bundles that were
    measured and judged, `accuracy` the title of their chart, `cost` the name and the unit of their cost.
    `reports` are those of the profile by their rows' names, empty without a profile.
    """
    missing: list[Block] = [Bullets(shortfalls)] if shortfalls else []
    rows: list[Block] = [table] if table.rows else []
    sections = [Section("", summary), Section("Everything that runs here", [*rows, *missing])]
    if points:
        chart = pareto_chart(points, accuracy, cost)
        sections.append(Section("Accuracy against cost", [Charts([chart])]))
    if reports:
        sections.append(Section("Latency", latency_charts(reports)))
        if parts := parts_blocks(reports):
            sections.append(Section("End to end", parts))
        sections += layer_sections(reports)
    return sections
