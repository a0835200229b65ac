"""A benchmark as one table and the lines below it, for a terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.bundle.store import write_whole
from gft_edge.profiling.machine import summary
from gft_edge.profiling.samples import samples_needed
from gft_edge.studies.results import Benchmark, Goal, Row


@dataclass(frozen=True)
class Cell:
    """A cell's text, and the goal that it is the best for, if any."""

    text: str
    best: Goal | None = None


COLUMNS = (
    "bundle", "size MiB", "top-1 %", "drop", "agree %", "kept patches %", "engine p50", "engine p99",
    "end to end p50", "end to end p99", "images/s", "energy mJ", "memory MiB", "build s",
)  # fmt: skip

LEGEND = (
    "latencies in ms; drop, agreement and kept patches (a number a stage) are against PyTorch, in "
    "percent; images/s end to end; energy an image; memory: the peak of the process; build: export "
    "with its verification, and the engine"
)


def heading(benchmark: Benchmark) -> str:
    """What was judged on what."""
    return f"{benchmark.network} on {benchmark.split}, {benchmark.images} images"


def cells(benchmark: Benchmark) -> list[list[Cell]]:
    """The rows that were measured or at least judged, a cell for each of COLUMNS."""
    return [_cells(row, benchmark) for row in benchmark.rows if row.accuracy is not None]


def _cells(row: Row, benchmark: Benchmark) -> list[Cell]:
    def best(goal: Goal) -> Goal | None:
        found = benchmark.best_at(goal)
        return goal if found and found.row == row.name else None

    accuracy, speed = row.accuracy, row.measured
    assert accuracy is not None
    judged = [
        Cell(row.name if row.holds else f"{row.name} (see below)"),
        Cell(_number(row.files_mb, 1), best("smallest")),
        Cell(_number(100 * accuracy.top1, 2), best("most accurate")),
        Cell(_number(100 * accuracy.top1_drop, 2)),
        Cell(_number(100 * accuracy.top1_agreement, 2)),
        Cell(" / ".join(f"{100 * value:.1f}" for value in accuracy.kept_overlap) or "-"),
    ]
    if speed is None:
        return [*judged, *[Cell("-")] * 7, Cell(_number(row.build_s, 0))]
    return [
        *judged,
        Cell(_number(speed.engine_p50_ms, 2, "withheld")),
        Cell(_number(speed.engine_p99_ms, 2, "withheld")),
        Cell(_number(speed.end_to_end_p50_ms, 2, "withheld"), best("fastest")),
        Cell(_number(speed.end_to_end_p99_ms, 2, "withheld")),
        Cell(_number(speed.images_per_s, 1)),
        Cell(_number(speed.energy_mj_per_image, 1), best("least energy")),
        Cell(_number(speed.peak_rss_mb, 0), best("least memory")),
        Cell(_number(row.build_s, 0)),
    ]


def _number(value: float | None, digits: int, otherwise: str = "-") -> str:
    return otherwise if value is None else f"{value:.{digits}f}"


def warnings(benchmark: Benchmark) -> list[str]:
    """Why the latencies are not to be trusted, if so."""
    lines = []
    if not benchmark.complete:
        lines.append("PARTIAL: interrupted, latencies are of the samples so far")
    if benchmark.stable is False:
        causes = "; ".join(benchmark.causes) or "unknown, nothing was recorded that explains it"
        lines.append(f"UNSTABLE: do not decide on these latencies. Likely cause: {causes}")
    return lines


def conditions(benchmark: Benchmark) -> list[str]:
    """The machine, and the reference."""
    lines = [f"machine: {summary(benchmark.machine)}"]
    if benchmark.reference_top1 is not None:
        lines.append(f"PyTorch: {100 * benchmark.reference_top1:.2f} % top-1 on the same images")
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
    lines = [f"{kind}: {', '.join(names)}: {reason}" for (kind, reason), names in grouped.items()]
    for row in benchmark.rows:
        if row.accuracy is not None:
            if row.accuracy.missed:
                missed = "; ".join(row.accuracy.missed)
                lines.append(f"out of bounds: {row.name} on {benchmark.split}: {missed}")
            lines += [f"not checked: {row.name}: {reason}" for reason in row.accuracy.skipped]
    if any(row.measured and row.measured.end_to_end_p99_ms is None for row in benchmark.rows):
        lines.append(
            f"p99 withheld: it needs {samples_needed(99)} calls of each bundle, see --min-samples"
        )
    reasons = {r.measured.energy_why for r in benchmark.rows if r.measured}
    lines += [f"energy not available: {reason}" for reason in sorted(filter(None, reasons))]
    return lines


def write_markdown(benchmark: Benchmark, path: Path) -> None:
    """Write the table, best cells bold, with the lines that belong to it."""
    rows = [
        [f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in cells(benchmark)
    ]
    lines = [
        f"# {_escaped(heading(benchmark))}",
        "",
        *_bullets([*warnings(benchmark), *conditions(benchmark)]),
        "",
        _row(COLUMNS),
        _row(["---", *["---:"] * (len(COLUMNS) - 1)]),
        *map(_row, rows),
        "",
        f"Bold is best of those that hold their bounds; {LEGEND}.",
        "",
        *_bullets(winners(benchmark)),
    ]
    if missing := shortfalls(benchmark):
        lines += ["", *_bullets(missing)]
    lines += ["", _escaped(origin(benchmark))]
    write_whole(path, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines]


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


def _escaped(text: str) -> str:
    """A path's own signs are no Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*[]<>|" else sign for sign in text)
