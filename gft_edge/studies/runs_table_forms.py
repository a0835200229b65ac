"""Runs side by side as a Table: for people as the paper prints them, and with every number in full."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from gft_edge.profiling.verdict import unstable
from gft_edge.reporting.table import Cell, Table, Value
from gft_edge.studies.runs_table import Row, RunsTable


def shown(runs: RunsTable) -> Table:
    """Return what a person reads; nothing is the best of fewer than two rows."""
    rows, average = runs.rows, runs.average
    columns: dict[str, list[Value]] = {
        "model": [row.model for row in rows],
        "accuracy %": _marked([100 * row.metrics.top1 for row in rows], "{:.2f}".format, max),
        **{
            head: _marked([_metric(row, name, average) for row in rows], "{:.3f}".format, max)
            for head, name in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
        },
        "parameters M": _marked([row.parameters / 1e6 for row in rows], _figures, min),
        "GFLOPs": _marked([row.gflops for row in rows], _figures, min),
        "type": [row.type for row in rows],
    }
    for key in _measured(runs):
        times = _marked([_latency(row, key)[0] for row in rows], "{:.2f}".format, min)
        columns[f"{' '.join(key)} ms"] = [
            cell
            if ratio is None or not isinstance(cell, Cell)
            else Cell(f"{cell.text} ({ratio:.2f})", cell.best)
            for cell, ratio in zip(times, (_latency(row, key)[1] for row in rows), strict=True)
        ]
    title = (
        f"{runs.data}, {runs.split} ({runs.images} images, {runs.classes} classes), "
        f"{average} averages"
    )
    return Table(title, [*columns], [*zip(*columns.values(), strict=True)], [*_notes(runs)])


def in_full(runs: RunsTable) -> Table:
    """Return every number as it was computed, a row a run, rates as fractions of 1: what CSV holds."""
    lines = []
    for row in runs.rows:
        line: dict[str, Value] = {
            "model": row.model,
            "run": row.run,
            "type": row.type,
            "data": runs.data,
            "split": runs.split,
            "images": runs.images,
            "accuracy": row.metrics.top1,
            "average": runs.average,
            **{name: _metric(row, name, runs.average) for name in ("precision", "recall", "f1")},
            "parameters": row.parameters,
            "gflops": row.gflops,
        }
        for key in _measured(runs):
            line["_".join((*key, "p50_ms"))], line["_".join((*key, "ratio"))] = _latency(row, key)
        if runs.measured is not None:
            line["stable"], line["machine"] = runs.measured.stable, runs.measured.machine
        lines.append(line)
    return Table("", [*lines[0]], [[*line.values()] for line in lines])


def _metric(row: Row, name: str, average: str) -> float:
    return float(getattr(row.metrics, f"{name}_{average}"))


def _latency(row: Row, key: tuple[str, str]) -> tuple[float | None, float | None]:
    """Return a row's median in ms and its ratio to the first row, at a target and precision."""
    found = (x for x in row.latency if (x.target, x.precision) == key)
    return next(((x.p50_ms, x.ratio) for x in found), (None, None))


def _marked(
    values: list[float | None] | list[float],
    text: Callable[[float], str],
    best: Callable[[list[float]], float],
) -> list[Value]:
    """Return a column's cells; the best is marked as far as the digits that are shown tell."""
    known = [value for value in values if value is not None]
    leader = text(best(known)) if len(known) > 1 else None
    texts = ["-" if value is None else text(value) for value in values]
    return [Cell(each, each == leader) for each in texts]


def _figures(value: float) -> str:
    """Three significant figures, one decimal at least: 93.0, 2.17, 0.0061."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 1
    return f"{value:.{max(digits, 1)}f}"


def _measured(runs: RunsTable) -> list[tuple[str, str]]:
    """Target and precision of every bundle, sorted."""
    return sorted({(x.target, x.precision) for row in runs.rows for x in row.latency})


def _notes(runs: RunsTable) -> Iterator[str]:
    """The machine that latencies are of, and whether they are to be trusted."""
    if runs.measured is None:
        return
    yield (
        f"ms: median of the engine at batch {runs.measured.batch}, all bundles measured in turn on "
        f"{runs.measured.machine}; in brackets relative to the first row that has one"
    )
    if not runs.measured.stable:
        yield unstable(runs.measured.causes)
