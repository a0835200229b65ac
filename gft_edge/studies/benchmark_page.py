"""A benchmark as a page: the table, accuracy against latency, distributions, where time goes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gft_edge.bundle.json_form import from_json
from gft_edge.errors import SpecError, UsageError
from gft_edge.profiling.report import Profile, Report
from gft_edge.profiling.report_file import read_profile
from gft_edge.reporting.page import Banner, Block, Bullets, Charts, Note, Page, Section
from gft_edge.reporting.pareto import ParetoPoint, pareto_chart
from gft_edge.reporting.profile_page import latency_charts, layer_sections, parts_blocks
from gft_edge.studies.benchmark_table import (
    LEGEND,
    benchmark_table,
    conditions,
    heading,
    origin,
    shortfalls,
    warnings,
    winners,
)
from gft_edge.studies.memory import PROFILE_FILE
from gft_edge.studies.results import Benchmark
from gft_edge.studies.variants import PYTORCH, Role, Variant

_GROUPS: dict[Role, str] = {
    "trained": "as trained", "other": "other keep counts, not retrained", "dense": "nothing dropped",
}  # fmt: skip


def read_results(path: Path) -> tuple[Benchmark, Profile | None]:
    """The benchmark in a JSON file, and the profile beside it. Raises UsageError."""
    try:
        benchmark = from_json(Benchmark, json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, RecursionError, SpecError) as error:
        raise UsageError(
            f"{path} holds no benchmark: give a file that gft-edge benchmark wrote ({error})"
        ) from error
    profile = path.with_name(PROFILE_FILE)
    return benchmark, read_profile(profile) if profile.is_file() else None


def benchmark_page(benchmark: Benchmark, profile: Profile | None) -> Page:
    """The page; `profile` None leaves out what is drawn from samples."""
    warned = warnings(benchmark)
    lines = [*warned, *winners(benchmark)] or ["nothing was measured: the reasons stand below"]
    good = not warned and bool(benchmark.best)
    notes = [f"Bold is the best of those that hold their bounds; {LEGEND}."]
    table = dataclasses.replace(
        benchmark_table(benchmark), title="Targets and precisions", notes=notes
    )
    rows: list[Block] = [table] if table.rows else []
    if missing := shortfalls(benchmark):
        rows.append(Bullets(missing))
    sections = [
        Section("", [Banner(lines, good), Bullets(conditions(benchmark)), Note(origin(benchmark))]),
        Section("Everything that runs here", rows),
    ]
    cost, points = _points(benchmark)
    if points:
        chart = pareto_chart(points, f"Top-1 on {benchmark.split}", cost)
        sections.append(Section("Accuracy against cost", [Charts([chart])]))
    if reports := _by_name(benchmark, profile):
        sections.append(Section("Latency", latency_charts(reports)))
        if parts := parts_blocks(reports):
            sections.append(Section("End to end", parts))
        sections += layer_sections(reports)
    return Page(f"Benchmark of {heading(benchmark)}", sections)


def _points(benchmark: Benchmark) -> tuple[str, list[ParetoPoint]]:
    """The name of what the variants cost, and each by it: of keep counts as their front is told."""
    rows = benchmark.rows
    if not any(row.keep for row in rows):
        cost = "p50 end to end, ms an image"
    elif any(row.target == PYTORCH for row in rows):
        cost = "GFLOPs an image"
    else:
        cost = "p50 of the engine, ms an image"
    placed = [(row, _cost(row), row.top1) for row in rows]
    return cost, [
        ParetoPoint(row.name, x, top1, _GROUPS[row.keep.role] if row.keep else row.target)
        for row, x, top1 in placed
        if x is not None and top1 is not None
    ]


def _cost(row: Variant) -> float | None:
    if row.keep is not None:
        return row.cost
    return row.measured.end_to_end_p50_ms if row.measured else None


def _by_name(benchmark: Benchmark, profile: Profile | None) -> dict[str, Report]:
    """The reports of the profile by their rows' names."""
    if profile is None:
        return {}
    names = {row.digest: row.name for row in benchmark.rows if row.measured}
    return {names[report.digest]: report for report in profile.reports if report.digest in names}
