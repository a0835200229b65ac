"""A profile as data: built from raw samples, written as JSON, read back, compared with others."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.profiling import samples as of
from gft_edge.profiling.conditions import Conditions
from gft_edge.profiling.energy import Energy
from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.machine import Machine
from gft_edge.runtime.backends import Hint
from gft_edge.runtime.classifier import Timing

SCHEMA_VERSION = 2

Role = Literal["bundle", "baseline"]

# Always in a report; `--percentiles` adds others.
STANDARD = (50.0, 90.0, 99.0)

# A load that is steady slows every call alike and shows in no scatter.
MOST_OTHER_LOAD = 0.1

# What the boundaries are, word for word in every report.
ENGINE = (
    "engine: the engine's synchronous inference on prepared input; on TensorRT between CUDA events"
)
END_TO_END = "end to end: encoded image or decoded frame -> labels"
ENGINE_THROUGHPUT = "engine, requests in flight: from the start of a request to its completion"


@dataclass(frozen=True)
class Settings:
    """How it was measured. `batch` is images a call; `backend` None takes each bundle's own target.

    `device` is OpenVINO's, None for the CPU.
    `settle_ms` at the start of each turn of `turn_ms` is not counted.
    """

    duration_s: float
    warmup_ms: float
    min_samples: int
    percentiles: tuple[float, ...]
    hint: Hint
    threads: int | None
    batch: int
    backend: str | None
    device: str | None
    cuda_graph: bool
    turn_ms: float
    settle_ms: float


@dataclass(frozen=True)
class Inputs:
    """What end to end begins with: encoded images (file bytes), or decoded golden frames of a bundle.

    `digest` is of their contents, in order.
    """

    kind: Literal["encoded images", "golden frames"]
    count: int
    digest: str
    source: str


@dataclass(frozen=True)
class Boundary:
    """The latency of a call between two points, and the raw samples that all else here derives from.

    Percentiles are None with fewer samples than they need (samples.samples_needed). `cv` is the
    coefficient of variation; `cv_of_one_input` the same once every input's own median is divided out,
    which `stable` is judged by, with the spread of the medians of three windows. `split_ms` is the mean
    of each part end to end; they sum to `mean_ms`. `turns` has how many of the samples each turn took,
    `turns_s` the time that they took together, less than their sum where calls overlap.
    `ratio_to_first` is the median over turns of the time by the first bundle's in the same turn, with
    its 95 % interval. `lost` calls took no time or less, as a clock that goes backwards has it.
    """

    what: str
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    percentiles_ms: Mapping[str, float | None]
    mean_ms: float
    min_ms: float
    max_ms: float
    cv: float
    cv_of_one_input: float
    window_p50_ms: tuple[float, ...]
    spread: float
    stable: bool
    images_per_s: float
    ratio_to_first: float
    ratio_interval: tuple[float, ...] | None
    split_ms: Timing | None
    inputs: int
    lost: int
    turns: tuple[int, ...]
    turns_s: tuple[float, ...]
    samples_ms: tuple[float, ...]

    def by_turn(self) -> list[tuple[float, ...]]:
        """The samples, a tuple a turn."""
        samples_ms = iter(self.samples_ms)
        return [tuple(itertools.islice(samples_ms, count)) for count in self.turns]

    def pace(self, hint: Hint) -> list[tuple[float, ...]]:
        """What paired ratios compare, a tuple a turn: samples, or where they overlap the ms between two."""
        if hint == "latency":
            return self.by_turn()
        return [
            (1000 * elapsed_s / count,)
            for elapsed_s, count in zip(self.turns_s, self.turns, strict=True)
        ]


@dataclass(frozen=True)
class Boundaries:
    """The two boundaries, never to be mixed.

    `end_to_end` is None for throughput, where one call has no latency of its own.
    """

    engine: Boundary
    end_to_end: Boundary | None

    def named(self) -> dict[str, Boundary]:
        """The boundaries that were measured, the engine's first."""
        found = {"engine": self.engine, "end to end": self.end_to_end}
        return {name: boundary for name, boundary in found.items() if boundary is not None}


@dataclass(frozen=True)
class Report:
    """One bundle. `digest` is its manifest's seal; MiB are 2**20 bytes.

    `load_ms` is from the call to a loaded engine in a fresh process, importing and hashing included;
    `first_ms` the first inference after that. `peak_rss_mb` is that process's, in MiB, with the inputs in
    it; `device_memory_mb` what loading and the first inference took of the GPU's, in MiB.
    """

    bundle: str
    digest: str
    role: Role
    network: str
    target: str
    precision: str
    engine: str
    flags: tuple[str, ...]
    files_mb: float
    load_ms: float
    first_ms: float
    peak_rss_mb: float
    device_memory_mb: float | None
    boundaries: Boundaries
    ratio_to_first: float
    energy: Energy
    layers: Breakdown | None


@dataclass(frozen=True)
class Profile:
    """What one run of `gft-edge profile` found, and on which machine in which condition.

    `complete` is False when it was interrupted: the samples are those so far. `causes` is what may
    have made it unstable; `made_at` is UTC. `host` is what the desk calls the machine that was measured
    over ssh, None for this one.
    """

    schema_version: int
    version: str
    made_at: str
    complete: bool
    stable: bool
    causes: tuple[str, ...]
    other_cores: float | None
    machine: Machine
    host: str | None
    before: Conditions
    after: Conditions
    settings: Settings
    inputs: Inputs
    reports: tuple[Report, ...]


def boundary_of(
    what: str,
    turns: Sequence[Sequence[float]],
    percentiles: Sequence[float],
    batch: int,
    inputs: int,
    first: Boundary | None = None,
    split: Timing | None = None,
    lost: int = 0,
    turns_s: Sequence[float] | None = None,
) -> Boundary:
    """Derive everything from the samples of each turn; `first` is the first bundle's, None for itself.

    `turns_s` is given where calls overlap. As each of those waits for others, only the turns' medians then
    tell whether the machine is steady, and ratios are of images a second.
    """
    samples_ms = tuple(sample for turn in turns for sample in turn)
    windows = of.window_medians(turns)
    if turns_s is None:
        cv_of_one_input = of.variation_of_one_input(samples_ms, inputs)
    else:
        cv_of_one_input = of.variation([statistics.median(turn) for turn in turns])
    elapsed_s = tuple(sum(turn) / 1000 for turn in turns) if turns_s is None else tuple(turns_s)
    p50_ms, p90_ms, p99_ms = (of.percentile_ms(samples_ms, p) for p in STANDARD)
    found = Boundary(
        what=what,
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        percentiles_ms={f"p{p:g}_ms": of.percentile_ms(samples_ms, p) for p in percentiles},
        mean_ms=statistics.mean(samples_ms),
        min_ms=min(samples_ms),
        max_ms=max(samples_ms),
        cv=of.variation(samples_ms),
        cv_of_one_input=cv_of_one_input,
        window_p50_ms=windows,
        spread=of.spread(windows),
        stable=len(windows) == of.WINDOWS
        and of.spread(windows) <= of.MOST_SPREAD
        and cv_of_one_input <= of.MOST_VARIATION
        and not lost,
        images_per_s=batch * len(samples_ms) / sum(elapsed_s),
        ratio_to_first=1.0,
        ratio_interval=None,
        split_ms=split,
        inputs=inputs,
        lost=lost,
        turns=tuple(map(len, turns)),
        turns_s=elapsed_s,
        samples_ms=samples_ms,
    )
    if first is None:
        return found
    hint: Hint = "latency" if turns_s is None else "throughput"
    ratio, interval = of.paired_ratio(found.pace(hint), first.pace(hint))
    return dataclasses.replace(found, ratio_to_first=ratio, ratio_interval=interval)
