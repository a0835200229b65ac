"""What a benchmark found: rows, the best row for each goal, and the JSON and CSV they are saved as."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import write_whole
from gft_edge.profiling.machine import Machine, summary
from gft_edge.profiling.report import Profile, Report
from gft_edge.profiling.samples import paired_ratio

SCHEMA_VERSION = 1

Status = Literal["done", "absent", "failed"]
Goal = Literal["fastest", "most accurate", "smallest", "least energy", "least memory"]


@dataclass(frozen=True)
class Accuracy:
    """A bundle on the split, against the run in PyTorch on the same pixels. Fractions of 1.

    `top1_drop` is what the bundle loses on it. `kept_overlap` has one number a stage, none where
    the engine does not return what it keeps. `missed` are the bounds of its export that it misses on
    these images, `skipped` the checks that could not be made.
    """

    top1: float
    reference_top1: float
    top1_drop: float
    top1_agreement: float
    kept_overlap: tuple[float, ...]
    missed: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A bundle's report in the profile of all, in short. A percentile that lacks samples is None.

    `images_per_s` is end to end. Memory is the peak of its process, in MiB of 2**20 bytes; energy is
    gross, None with `energy_why` where it cannot be read.
    """

    engine_p50_ms: float | None
    engine_p99_ms: float | None
    end_to_end_p50_ms: float | None
    end_to_end_p99_ms: float | None
    images_per_s: float
    stable: bool
    load_ms: float
    peak_rss_mb: float
    device_memory_mb: float | None
    energy_mj_per_image: float | None
    net_energy_mj_per_image: float | None
    energy_why: str | None


@dataclass(frozen=True)
class Row:
    """One target in one precision: `done`, `absent` from this machine, or `failed`; `reason` says why.

    `bundle` is its folder, relative to the benchmark's; `digest` its manifest's seal. `build_s` is the
    time of the export, its verification included, and of building its engine.
    """

    target: str
    precision: str
    status: Status
    reason: str | None = None
    bundle: str | None = None
    digest: str | None = None
    files_mb: float | None = None
    build_s: float | None = None
    accuracy: Accuracy | None = None
    measured: Measured | None = None

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.target} {self.precision}"

    @property
    def holds(self) -> bool:
        """Whether it keeps the bounds of its export on the split as well."""
        return self.status == "done" and self.accuracy is not None and not self.accuracy.missed


@dataclass(frozen=True)
class Best:
    """The best row for a goal, of those that hold their bounds; `note` is what weakens that."""

    goal: Goal
    row: str
    value: str
    note: str | None


@dataclass(frozen=True)
class Benchmark:
    """Everything a run of `gft-edge benchmark` found. `complete` is False where it was interrupted.

    `stable` and `causes` are the profile's, None and empty where nothing was measured; `split_digest`
    is of the names and sizes of the images.
    """

    schema_version: int
    version: str
    made_at: str
    complete: bool
    run: str
    network: str
    weights_sha256: str
    data: str
    split: str
    images: int
    split_digest: str
    reference_top1: float | None
    machine: Machine
    stable: bool | None
    causes: tuple[str, ...]
    rows: tuple[Row, ...]
    best: tuple[Best, ...]

    def best_at(self, goal: Goal) -> Best | None:
        """Which row is best for a goal."""
        return next((best for best in self.best if best.goal == goal), None)


def measured(report: Report) -> Measured:
    """The short form of a bundle's report."""
    engine, end_to_end = report.boundaries.engine, report.boundaries.end_to_end
    assert end_to_end is not None, "calls that overlap are not benchmarked"
    return Measured(
        engine.p50_ms,
        engine.p99_ms,
        end_to_end.p50_ms,
        end_to_end.p99_ms,
        end_to_end.images_per_s,
        engine.stable and end_to_end.stable,
        report.load_ms,
        report.peak_rss_mb,
        report.device_memory_mb,
        report.energy.gross_mj_per_image,
        report.energy.net_mj_per_image,
        report.energy.why,
    )


# A goal: what is least in the best row, None in a row that does not compete, and how it is said.
_GOALS: dict[Goal, tuple[Callable[[Row], float | None], str]] = {
    "fastest": (
        lambda r: r.measured.end_to_end_p50_ms if r.measured else None,
        "{:.2f} ms end to end",
    ),
    "most accurate": (lambda r: -100 * r.accuracy.top1 if r.accuracy else None, "{:.2f} % top-1"),
    "smallest": (lambda r: r.files_mb, "{:.1f} MiB"),
    "least energy": (
        lambda r: r.measured.energy_mj_per_image if r.measured else None,
        "{:.1f} mJ an image",
    ),
    "least memory": (lambda r: r.measured.peak_rss_mb if r.measured else None, "{:.0f} MiB"),
}


def best_rows(rows: Sequence[Row], images: int, profile: Profile | None) -> tuple[Best, ...]:
    """The best row for each goal that any row competes for; of equal ones the faster.

    `images` is how many accuracy was measured on.
    """
    found = []
    speed = _GOALS["fastest"][0]
    for goal, (measure, said) in _GOALS.items():
        keyed = [
            (value, speed(row) or 0.0, number)
            for number, row in enumerate(rows)
            if row.holds and (value := measure(row)) is not None
        ]
        if not keyed:
            continue
        order = [rows[number] for _, _, number in sorted(keyed)]
        value = abs(min(keyed)[0])
        equal = [row.name for row in order[1:] if measure(row) == measure(order[0])]
        note = None
        if equal:
            note = f"as good: {', '.join(equal)}"
        elif goal == "fastest" and profile is not None:
            note = _lead(order, profile)
        elif goal == "most accurate" and len(order) > 1:
            note = f"{_more_right(order, images)} of {images} images more than {order[1].name}"
        found.append(Best(goal, order[0].name, said.format(value), note))
    return tuple(found)


def _more_right(order: Sequence[Row], images: int) -> int:
    """Images that the first classifies rightly over those of the next: one is no lead to build on."""
    first, second = (row.accuracy.top1 for row in order[:2] if row.accuracy is not None)
    return round((first - second) * images)


def _lead(order: Sequence[Row], profile: Profile) -> str | None:
    """How far the fastest is ahead of the next, in turns paired with it."""
    doubt = "" if profile.stable else "UNSTABLE; "
    if len(order) < 2:
        return doubt.rstrip("; ") or None
    turns = []
    for row in order[:2]:
        report = next(r for r in profile.reports if r.digest == row.digest)
        assert report.boundaries.end_to_end is not None
        turns.append(report.boundaries.end_to_end.by_turn())
    ratio, interval = paired_ratio(turns[1], turns[0])
    if interval is None or interval[0] <= 1 <= interval[1]:
        return f"{doubt}no clear lead on {order[1].name}, x {ratio:.2f}"
    between = f"95 % between {interval[0]:.2f} and {interval[1]:.2f}"
    return f"{doubt}x {ratio:.2f} as fast as {order[1].name}, {between}"


def write_json(benchmark: Benchmark, path: Path) -> None:
    """Write the JSON whole or not at all."""
    text = json.dumps(to_json(benchmark), indent=1) + "\n"
    write_whole(path, text.encode())


def write_csv(benchmark: Benchmark, path: Path) -> None:
    """Write one line a row, everything that is known of it in columns of its own."""
    stages = max((len(r.accuracy.kept_overlap) for r in benchmark.rows if r.accuracy), default=0)
    lines = [_line(row, benchmark, stages) for row in benchmark.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _line(row: Row, benchmark: Benchmark, stages: int) -> dict[str, object]:
    """What is not known is empty."""
    accuracy, speed = row.accuracy, row.measured
    overlap = accuracy.kept_overlap if accuracy else ()
    best = [b.goal for b in benchmark.best if b.row == row.name]
    return {
        "target": row.target,
        "precision": row.precision,
        "status": row.status,
        "reason": row.reason,
        "best": "; ".join(best),
        "bundle": row.bundle,
        "digest": row.digest,
        "files_mib": row.files_mb,
        "images": benchmark.images if accuracy else None,
        "top1": accuracy and accuracy.top1,
        "top1_drop": accuracy and accuracy.top1_drop,
        "top1_agreement": accuracy and accuracy.top1_agreement,
        **{
            f"kept_overlap_{n + 1}": overlap[n] if n < len(overlap) else None for n in range(stages)
        },
        "bounds_missed": "; ".join(accuracy.missed) if accuracy else None,
        "engine_p50_ms": speed and speed.engine_p50_ms,
        "engine_p99_ms": speed and speed.engine_p99_ms,
        "end_to_end_p50_ms": speed and speed.end_to_end_p50_ms,
        "end_to_end_p99_ms": speed and speed.end_to_end_p99_ms,
        "images_per_s": speed and speed.images_per_s,
        "stable": speed and speed.stable,
        "load_ms": speed and speed.load_ms,
        "energy_mj_per_image": speed and speed.energy_mj_per_image,
        "net_energy_mj_per_image": speed and speed.net_energy_mj_per_image,
        "energy_why": speed and speed.energy_why,
        "peak_rss_mib": speed and speed.peak_rss_mb,
        "device_memory_mib": speed and speed.device_memory_mb,
        "build_s": row.build_s,
        "machine": summary(benchmark.machine),
    }
