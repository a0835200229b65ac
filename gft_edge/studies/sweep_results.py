"""What a sweep found: its points, which of them nothing beats, and their CSV form."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

from gft_edge.studies.keep_counts import Role
from gft_edge.studies.latency import Conditions, Latency


@dataclass(frozen=True)
class Point:
    """Keep counts and what came of them. Fractions of 1; `gflops` is of one image.

    `gained` images are right here and wrong at the trained counts, `lost` the other way round;
    `difference` is what that makes of the accuracy, `standard_error` its own over these same
    images, of this one training. `latency` is None where none was measured; `reason` says why if its
    export failed.
    """

    name: str
    role: Role
    keep: tuple[int, ...]
    top1: float
    difference: float
    standard_error: float
    gained: int
    lost: int
    gflops: float
    latency: Latency | None
    reason: str | None
    front: bool = False


@dataclass(frozen=True)
class Sweep:
    """The points, the trained counts first and the dense network last. `measured` None: no latency.

    `patches` is how many there are before the first stage.
    """

    run: str
    network: str
    patches: int
    weights_sha256: str
    split: str
    split_digest: str
    images: int
    target: str | None
    precision: str | None
    measured: Conditions | None
    points: tuple[Point, ...]

    def cost(self, point: Point) -> float | None:
        """Milliseconds, or GFLOPs where nothing was timed; None for one that alone was not."""
        if self.measured is None:
            return point.gflops
        return point.latency.p50_ms if point.latency else None

    def exportable(self) -> list[Point]:
        """The points on the front that gft-edge export makes too: --keep leaves no stage out."""
        return [point for point in self.points if point.front and point.keep]

    def with_front(self) -> Sweep:
        """The same with `front` told: of points that none is as cheap as and as accurate."""
        costs = [self.cost(point) for point in self.points]
        placed = [
            (cost, -point.top1)
            for cost, point in zip(costs, self.points, strict=True)
            if cost is not None
        ]
        told = [
            dataclasses.replace(
                point,
                front=cost is not None
                and not any(
                    other != (cost, -point.top1) and other[0] <= cost and other[1] <= -point.top1
                    for other in placed
                ),
            )
            for cost, point in zip(costs, self.points, strict=True)
        ]
        return dataclasses.replace(self, points=tuple(told))


def to_csv(found: Sweep) -> str:
    """A line a point, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "network", "split", "images", "keep", "role", "top1", "difference",
         "standard_error", "gained", "lost", "gflops", "target", "precision", "p50_ms",
         "ratio_to_trained", "front", "stable", "machine"]
    )  # fmt: skip
    for point in found.points:
        timed, measured = point.latency, found.measured
        writer.writerow(
            [found.run, found.network, found.split, found.images, point.name, point.role,
             point.top1, point.difference, point.standard_error, point.gained, point.lost,
             point.gflops, found.target, found.precision,
             timed.p50_ms if timed else None, timed.ratio if timed else None, point.front,
             measured.stable if measured else None, measured.machine if measured else None]
        )  # fmt: skip
    return text.getvalue()


def conditions(found: Sweep) -> Sequence[str]:
    """Remarks without which the numbers would be read wrongly."""
    notes = [
        "difference: to the trained counts, over the same images, +- one standard error over "
        "images, of this one training; the network was not trained at any other row's counts",
        f"counts chosen by this table are chosen on these {found.split} images, which flatter them: "
        "report them on other images, once",
    ]
    if found.measured is not None:
        measured = found.measured
        notes.append(
            f"ms: median of the engine at batch {measured.batch}, all bundles measured in turn on "
            f"{measured.machine}; ratio: to the trained counts"
        )
        if not measured.stable:
            notes.append(
                "UNSTABLE: do not decide on these latencies. Likely cause: "
                f"{'; '.join(measured.causes) or 'unknown'}."
            )
    notes += [f"{p.name} has no latency: {p.reason}" for p in found.points if p.reason]
    return notes
