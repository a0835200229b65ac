"""A variant: a run in one target, one precision and at one set of keep counts, the row of every study."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.bundle.specs import Stage
from gft_edge.profiling.report import Report
from gft_edge.reporting.pareto import ParetoPoint, pareto_front

Status = Literal["done", "absent", "failed"]
Role = Literal["trained", "other", "dense"]
Rests = Literal["seeds and images", "seeds", "images"]

# The "target" of a row that is not exported.
PYTORCH = "pytorch"


@dataclass(frozen=True)
class KeepCounts:
    """The stages of a network at the trained counts, at others, or at those that drop nothing."""

    role: Role
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """`147,98,49`, as --keep takes it, or `dense`."""
        if self.role == "dense":
            return "dense"
        return ",".join(str(stage.keep) for stage in self.stages)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95 % interval.

    `standard_errors` is how many of them the mean is away from 0, and `p_value` how often at least as
    many come about where the mean in the long run is 0, by t with these degrees of freedom; both None
    where the error is 0, as nothing varied. `rests_on` says what the error is of: of images alone where
    the seeds differ no more than images explain, and the other way round; None too where nothing varied.
    """

    mean: float
    standard_error: float
    degrees_of_freedom: float
    low: float
    high: float
    standard_errors: float | None
    p_value: float | None
    rests_on: Rests | None


@dataclass(frozen=True)
class AtCounts:
    """What the network in PyTorch does at some keep counts, not retrained, on the images of the split.

    `gflops` is of one image. `difference` is to the accuracy at the trained counts, over the same
    images; None of the trained counts themselves. `gained` images are right here and wrong there,
    `lost` the other way round. Fractions of 1.
    """

    gflops: float
    top1: float
    difference: Estimate | None
    gained: int
    lost: int


@dataclass(frozen=True)
class Accuracy:
    """A bundle on the split, against PyTorch at the same keep counts on the same pixels. Fractions of 1.

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

    `ratio_to_first` is the engine's time by that of the first bundle measured, turn by turn.
    `images_per_s` is end to end. Memory is the peak of its process, in MiB of 2**20 bytes; energy is
    gross, None with `energy_why` where it cannot be read.
    """

    engine_p50_ms: float | None
    engine_p99_ms: float | None
    ratio_to_first: float
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
class Variant:
    """What was exported, judged and measured: `done`, `absent` from this machine, or `failed`.

    `keep` is None where nothing but the trained counts was asked for. `reason` says why a variant is
    not done. `bundle` is its folder, relative to the study's; `digest` its manifest's seal. `build_s`
    is the time of the export, its verification included, and of building its engine. `front` is True
    where no other variant is as accurate and as fast.
    """

    target: str
    precision: str
    keep: KeepCounts | None = None
    status: Status = "done"
    reason: str | None = None
    bundle: str | None = None
    digest: str | None = None
    files_mb: float | None = None
    build_s: float | None = None
    at_counts: AtCounts | None = None
    accuracy: Accuracy | None = None
    measured: Measured | None = None
    front: bool = False

    @property
    def name(self) -> str:
        """The name that a person reads: `onnx fp32`, with the keep counts where there are several."""
        counts = f" {self.keep.name}" if self.keep else ""
        return f"{self.target} {self.precision}{counts}"

    @property
    def file_name(self) -> str:
        """The name of its folder. The trained counts are the plain name: both are one bundle."""
        other = self.keep is not None and self.keep.role != "trained"
        counts = f"-{self.keep.name.replace(',', '-')}" if self.keep and other else ""
        return f"{self.target}-{self.precision}{counts}"

    @property
    def other_stages(self) -> tuple[Stage, ...] | None:
        """The stages that it is exported at where they are others than the trained ones."""
        return None if self.keep is None or self.keep.role == "trained" else self.keep.stages

    @property
    def holds(self) -> bool:
        """Whether it keeps the bounds of its export on the split as well."""
        return self.status == "done" and not (self.accuracy and self.accuracy.missed)

    @property
    def cost(self) -> float | None:
        """The milliseconds of its engine, or the GFLOPs of what is not exported."""
        if self.target == PYTORCH:
            return self.at_counts.gflops if self.at_counts else None
        return self.measured.engine_p50_ms if self.measured else None

    @property
    def top1(self) -> float | None:
        """Its accuracy on the split: the bundle's own, or PyTorch's of what is not exported."""
        found = self.at_counts if self.target == PYTORCH else self.accuracy
        return found.top1 if found else None

    def absent(self, reason: str) -> Variant:
        """The same, absent from this machine for this reason."""
        return dataclasses.replace(self, status="absent", reason=reason)

    def failed(self, reason: str) -> Variant:
        """The same, failed for this reason."""
        return dataclasses.replace(self, status="failed", reason=reason)


def measured(report: Report) -> Measured:
    """The short form of a bundle's report."""
    engine, end_to_end = report.boundaries.engine, report.boundaries.end_to_end
    assert end_to_end is not None, "calls that overlap are not benchmarked"
    return Measured(
        engine.p50_ms,
        engine.p99_ms,
        report.ratio_to_first,
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


def with_front(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The same with `front` told: of those that hold their bounds none is as cheap and as accurate."""
    points = [
        ParetoPoint(variant.name, variant.cost, variant.top1, variant.target)
        for variant in variants
        if variant.holds and variant.cost is not None and variant.top1 is not None
    ]
    best = {(point.cost, point.accuracy) for point in pareto_front(points)}
    return tuple(
        dataclasses.replace(one, front=one.holds and (one.cost, one.top1) in best)
        for one in variants
    )
