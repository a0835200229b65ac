"""A benchmark as tables: what people read, with the lines below it, and the CSV with everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import zip_longest

from gft_edge.profiling.machine import summary
from gft_edge.profiling.samples import samples_needed
from gft_edge.profiling.verdict import unstable
from gft_edge.reporting.table import Cell, Table, Value
from gft_edge.studies.results import Benchmark, Goal
from gft_edge.studies.variants import Measured, Variant

LEGEND = (
    "latencies in ms; drop, agreement and kept patches (a number a stage) are against PyTorch at the "
    "same keep counts, in percent; images/s end to end; energy an image; memory: the peak of the "
    "process; build: export with its verification, and the engine"
)


@dataclass(frozen=True)
class _Column:
    """A column of what people read; `where` says in which benchmarks it stands."""

    head: str
    text: Callable[[Variant], str | None]
    goal: Goal | None = None
    where: str = "all"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _judged(name: str) -> Callable[[Variant], str | None]:
    return lambda row: _number(100 * getattr(row.accuracy, name), 2) if row.accuracy else None


def _timed(name: str, digits: int, otherwise: str | None = None) -> Callable[[Variant], str | None]:
    return lambda row: (
        (_number(getattr(row.measured, name), digits) or otherwise) if row.measured else None
    )


def _kept(row: Variant) -> str | None:
    overlaps = row.accuracy.kept_overlap if row.accuracy else ()
    return " / ".join(f"{100 * overlap:.1f}" for overlap in overlaps) or None


def _difference(row: Variant) -> str | None:
    found = row.at_counts.difference if row.at_counts else None
    if found is None:
        return None
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _changed(row: Variant) -> str | None:
    found = row.at_counts
    return f"{found.gained} / {found.lost}" if found and found.difference else None


# A column without any value is left out.
_COLUMNS = (
    _Column("variant", lambda row: row.name if row.holds else f"{row.name} (see below)"),
    _Column("size MiB", lambda row: _number(row.files_mb, 1), "smallest", "plain"),
    _Column("top-1 %", lambda row: _number(row.top1 and 100 * row.top1, 2), "most accurate"),
    _Column("drop", _judged("top1_drop")),
    _Column("agree %", _judged("top1_agreement")),
    _Column("kept patches %", _kept, None, "plain"),
    _Column("to trained counts %", _difference),
    _Column("gained / lost", _changed),
    _Column("GFLOPs", lambda row: _number(row.at_counts.gflops, 3) if row.at_counts else None),
    _Column("engine p50", _timed("engine_p50_ms", 2, "withheld")),
    _Column("ratio", _timed("ratio_to_first", 2), None, "counts"),
    _Column("engine p99", _timed("engine_p99_ms", 2, "withheld"), None, "plain"),
    _Column("end to end p50", _timed("end_to_end_p50_ms", 2, "withheld"), "fastest"),
    _Column("end to end p99", _timed("end_to_end_p99_ms", 2, "withheld"), None, "plain"),
    _Column("images/s", _timed("images_per_s", 1), None, "plain"),
    _Column("energy mJ", _timed("energy_mj_per_image", 1), "least energy"),
    _Column("memory MiB", _timed("peak_rss_mb", 0), "least memory"),
    _Column("build s", lambda row: _number(row.build_s, 0), None, "plain"),
    _Column("front", lambda row: "yes" if row.front else None, None, "counts"),
)


def benchmark_table(benchmark: Benchmark) -> Table:
    """The variants that were judged, the best cell for each goal marked, and the notes."""
    rows = [row for row in benchmark.rows if row.top1 is not None]
    where = "counts" if any(row.keep for row in rows) else "plain"
    columns = [
        column
        for column in _COLUMNS
        if column.where in ("all", where) and any(column.text(row) is not None for row in rows)
    ]
    return Table(
        heading(benchmark),
        [column.head for column in columns],
        [[_cell(benchmark, column, row) for column in columns] for row in rows],
        notes(benchmark),
    )


def _cell(benchmark: Benchmark, column: _Column, row: Variant) -> Value:
    text = column.text(row)
    best = benchmark.best_at(column.goal) if column.goal else None
    return None if text is None else Cell(text, best is not None and best.row == row.name)


def heading(benchmark: Benchmark) -> str:
    """What was judged on what."""
    counts = ", not retrained" if any(row.keep for row in benchmark.rows) else ""
    return f"{benchmark.network} on {benchmark.split}, {benchmark.images} images{counts}"


def notes(benchmark: Benchmark) -> list[str]:
    """Every line without which the numbers would be read wrongly."""
    return [
        *warnings(benchmark),
        *conditions(benchmark),
        *winners(benchmark),
        *shortfalls(benchmark),
    ]


def warnings(benchmark: Benchmark) -> list[str]:
    """Why the latencies are not to be trusted, if so."""
    lines = []
    if not benchmark.complete:
        lines.append("PARTIAL: interrupted, latencies are of the samples so far")
    if benchmark.stable is False:
        lines.append(unstable(benchmark.causes))
    return lines


def conditions(benchmark: Benchmark) -> list[str]:
    """The machine, the reference, and what a difference between keep counts is."""
    lines = [f"machine: {summary(benchmark.machine)}"]
    if benchmark.reference_top1 is not None:
        lines.append(f"PyTorch: {100 * benchmark.reference_top1:.2f} % top-1 on the same images")
    if any(row.keep for row in benchmark.rows):
        lines += [
            "to trained counts: PyTorch's accuracy against that at the trained counts, over the same "
            "images, with its 95 % interval over images, of this one training; the network was not "
            "trained at any other row's counts",
            f"counts chosen by this table are chosen on these {benchmark.split} images, which "
            "flatter them: report them on other images, once",
        ]
    return lines


def origin(benchmark: Benchmark) -> str:
    """What the numbers are of, and when."""
    return (
        f"{benchmark.run}, weights {benchmark.weights_sha256[:12]}; gft-edge {benchmark.version}, "
        f"{benchmark.made_at}"
    )


def winners(benchmark: Benchmark) -> list[str]:
    """The best row for each goal."""
    return [
        f"{best.goal}: {best.row}, {best.value}" + (f"; {best.note}" if best.note else "")
        for best in benchmark.best
    ]


def shortfalls(benchmark: Benchmark) -> list[str]:
    """What is missing from the table, or stands in it and is no candidate, and why."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in benchmark.rows:
        if row.status != "done":
            kind = "not here" if row.status == "absent" else "failed"
            grouped.setdefault((kind, row.reason or ""), []).append(row.name)
        for reason in row.accuracy.skipped if row.accuracy else ():
            grouped.setdefault(("not checked", reason), []).append(row.name)
    lines = [f"{kind}: {', '.join(names)}: {reason}" for (kind, reason), names in grouped.items()]
    for row in benchmark.rows:
        if row.accuracy is not None and row.accuracy.missed:
            missed = "; ".join(row.accuracy.missed)
            lines.append(f"out of bounds: {row.name} on {benchmark.split}: {missed}")
    if any(row.measured and row.measured.end_to_end_p99_ms is None for row in benchmark.rows):
        lines.append(
            f"p99 withheld: it needs {samples_needed(99)} calls of each bundle, see --min-samples"
        )
    reasons = {r.measured.energy_why for r in benchmark.rows if r.measured}
    lines += [f"energy not available: {reason}" for reason in sorted(filter(None, reasons))]
    return lines


def csv_table(benchmark: Benchmark) -> Table:
    """A line a variant, everything that is known of it in columns of its own."""
    stages = max((len(r.accuracy.kept_overlap) for r in benchmark.rows if r.accuracy), default=0)
    lines = [_line(row, benchmark, stages) for row in benchmark.rows]
    return Table("", list(lines[0]), [list(line.values()) for line in lines])


def _line(row: Variant, benchmark: Benchmark, stages: int) -> dict[str, Value]:
    counts, accuracy = row.at_counts, row.accuracy
    overlap = accuracy.kept_overlap if accuracy else ()
    difference = counts.difference if counts else None
    return {
        **_named(row, "target", "precision"),
        **_named(row.keep, "name", "role", name="keep"),
        **_named(row, "status", "reason"),
        "best": "; ".join(best.goal for best in benchmark.best if best.row == row.name),
        **_named(row, "front", "bundle", "digest", "files_mb", "build_s"),
        "images": None if row.top1 is None else benchmark.images,
        "top1": row.top1,
        **_named(accuracy, "top1_drop", "top1_agreement"),
        **{f"kept_overlap_{n}": each for n, each in zip_longest(range(1, stages + 1), overlap)},
        "bounds_missed": "; ".join(accuracy.missed if accuracy else ()) or None,
        **_named(counts, "gflops", "top1", top1="pytorch_top1"),
        **_named(difference, "mean", "low", "high",
                 mean="difference", low="difference_low", high="difference_high"),
        **_named(counts, "gained", "lost"),
        **_named(row.measured, *(field.name for field in fields(Measured))),
        "machine": summary(benchmark.machine),
    }  # fmt: skip


def _named(found: object, *names: str, **columns: str) -> dict[str, Value]:
    """Fields under the names of their columns, where they have others; None of what there is not."""
    return {columns.get(name, name): getattr(found, name, None) for name in names}
