"""What a benchmark found: its variants, and the best of them for each goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.profiling.machine import Machine
from gft_edge.profiling.report import Profile
from gft_edge.profiling.samples import paired_ratio
from gft_edge.studies.variants import Variant

SCHEMA_VERSION = 2

Goal = Literal["fastest", "most accurate", "smallest", "least energy", "least memory"]


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

    `stable` and `causes` are the profile's, None and empty where nothing was measured. `rows` are in
    the order of the targets, the trained keep counts first where there are several. `patches` is how
    many there are before the first stage.
    """

    schema_version: int
    version: str
    made_at: str
    complete: bool
    run: str
    network: str
    patches: int
    weights_sha256: str
    data: str
    split: str
    images: int
    split_digest: str
    reference_top1: float | None
    machine: Machine
    stable: bool | None
    causes: tuple[str, ...]
    rows: tuple[Variant, ...]
    best: tuple[Best, ...]

    def best_at(self, goal: Goal) -> Best | None:
        """Which row is best for a goal."""
        return next((best for best in self.best if best.goal == goal), None)


# A goal: what is least in the best row, None in a row that does not compete, and how it is said.
_GOALS: dict[Goal, tuple[Callable[[Variant], float | None], str]] = {
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


def best_rows(rows: Sequence[Variant], images: int, profile: Profile | None) -> tuple[Best, ...]:
    """The best row for each goal that any row competes for; of equal ones the faster.

    `images` is how many accuracy was measured on.
    """
    found = []
    speed = _GOALS["fastest"][0]
    for goal, (measure, said) in _GOALS.items():
        keyed = [
            (value, speed(row) or 0.0, number)
            for number, row in enumerate(rows)
            if row.holds and row.accuracy and (value := measure(row)) is not None
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


def _more_right(order: Sequence[Variant], images: int) -> int:
    """Images that the first classifies rightly over those of the next: one is no lead to build on."""
    first, second = (row.accuracy.top1 for row in order[:2] if row.accuracy is not None)
    return round((first - second) * images)


def _lead(order: Sequence[Variant], profile: Profile) -> str | None:
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
