"""A benchmark as one HTML page: the table, accuracy against latency, distributions, where time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gft_edge.bundle.store import write_whole
from gft_edge.profiling.report import Profile, Report
from gft_edge.reporting.latency_charts import (
    ParetoPoint,
    distribution_chart,
    pareto_chart,
    split_chart,
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
from gft_edge.studies.results import Benchmark
from gft_edge.studies.variants import Variant


def write_page(benchmark: Benchmark, profile: Profile | None, path: Path) -> None:
    """Write the page whole."""
    write_whole(path, benchmark_page(benchmark, profile).encode("utf-8", "backslashreplace"))


def benchmark_page(benchmark: Benchmark, profile: Profile | None) -> str:
    """The page; `profile` None leaves out what is drawn from samples."""
    sections = [_summary(benchmark), _table(benchmark)]
    if points := _points(benchmark):
        chart = pareto_chart(points, f"Top-1 on {benchmark.split}", "p50 end to end, ms an image")
        sections.append(section("Accuracy against latency", figure(chart)))
    if profile is not None:
        reports = _by_name(benchmark, profile)
        sections += [_distributions(reports), _parts(reports), *_layers(reports)]
    return html_page(f"Benchmark of {heading(benchmark)}", sections)


def _summary(benchmark: Benchmark) -> str:
    warned = warnings(benchmark)
    lines = [*warned, *winners(benchmark)] or ["nothing was measured: the reasons stand below"]
    good = not warned and bool(benchmark.best)
    facts = bullets(conditions(benchmark)) + paragraph(origin(benchmark), "note")
    return verdict(lines, good) + facts


def _table(benchmark: Benchmark) -> str:
    found = benchmark_table(benchmark)
    rows = found.cells()
    texts = [[f"{cell.text} *" if cell.best else cell.text for cell in row] for row in rows]
    marked = [number for number, row in enumerate(rows) if any(cell.best for cell in row)]
    missing = shortfalls(benchmark)
    return section(
        "Everything that runs here",
        (table(found.columns, texts, "Targets and precisions", marked) if rows else "")
        + paragraph(f"* is the best of those that hold their bounds; {LEGEND}.", "note")
        + (bullets(missing) if missing else ""),
    )


def _points(benchmark: Benchmark) -> list[ParetoPoint]:
    return [
        ParetoPoint(row.name, row.measured.end_to_end_p50_ms, row.accuracy.top1, row.target)
        for row in benchmark.rows
        if row.accuracy and row.measured and row.measured.end_to_end_p50_ms is not None
    ]


def _by_name(benchmark: Benchmark, profile: Profile) -> dict[str, Report]:
    names: dict[str | None, Variant] = {row.digest: row for row in benchmark.rows if row.measured}
    return {names[report.digest].name: report for report in profile.reports}


def _distributions(reports: Mapping[str, Report]) -> str:
    engine = {name: report.boundaries.engine.samples_ms for name, report in reports.items()}
    end_to_end = {
        name: report.boundaries.end_to_end.samples_ms
        for name, report in reports.items()
        if report.boundaries.end_to_end is not None
    }
    charts = [
        figure(distribution_chart(engine, "Every call, engine")),
        figure(distribution_chart(end_to_end, "Every call, end to end")),
    ]
    return section("Latency", side_by_side(charts))


def _parts(reports: Mapping[str, Report]) -> str:
    splits = {
        name: report.boundaries.end_to_end.split_ms
        for name, report in reports.items()
        if report.boundaries.end_to_end is not None and report.boundaries.end_to_end.split_ms
    }
    return section("End to end, part by part", figure(split_chart(splits, "Mean of a call")))


def _layers(reports: Mapping[str, Report]) -> list[str]:
    """Of those profiled with their layers."""
    return [
        section(f"Where the time goes: {name}", figure(breakdown_chart(report.layers)))
        for name, report in reports.items()
        if report.layers is not None
    ]
