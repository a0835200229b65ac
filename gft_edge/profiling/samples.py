"""What latency samples say: percentiles with enough of them, windows, scatter, paired ratios."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence

from gft_edge.errors import UsageError

# MLPerf's early stopping for a percentile at 99 % confidence, with one sample over it to spare:
# github.com/mlcommons/inference_policies, "Early Stopping". 64 for a p90, 662 for a p99.
CONFIDENCE = 0.99

WINDOWS = 3

# perf_analyzer's bound on the spread of its windows, trtexec's on the coefficient of variation.
MOST_SPREAD = 0.10
MOST_VARIATION = 0.025
LEAST_OF_ONE_INPUT = 5


@functools.cache
def samples_needed(percentile: float) -> int:
    """The least n for which fewer than two of n samples lie over the percentile at 1 % odds or less.

    `percentile` is over 0 and under 100.
    """
    below = percentile / 100
    count = 2
    while below**count + count * below ** (count - 1) * (1 - below) > 1 - CONFIDENCE:
        count += 1
    return count


def check_percentiles(percentiles: Sequence[float]) -> None:
    """Raise UsageError for one outside 0 to 99.99: over it a report would need a million samples."""
    for percentile in percentiles:
        if not 0 < percentile <= 99.99:
            raise UsageError(
                f"--percentiles has {percentile:g}: give numbers over 0 and up to 99.99, as 50,90,99"
            )


def percentile_ms(samples_ms: Sequence[float], percentile: float) -> float | None:
    """trtexec's percentile, the sorted sample at n - 1 - int((1 - p/100) n); None with too few samples."""
    count = len(samples_ms)
    if count < samples_needed(percentile):
        return None
    return sorted(samples_ms)[count - 1 - int((1 - percentile / 100) * count)]


def variation(samples: Sequence[float]) -> float:
    """The coefficient of variation: standard deviation over mean; 0 of fewer than two samples."""
    return statistics.stdev(samples) / statistics.mean(samples) if len(samples) > 1 else 0.0


def variation_of_one_input(samples: Sequence[float], inputs: int) -> float:
    """The coefficient of variation once each input's own median is divided out.

    Sample i is of input i modulo `inputs`: photographs of different sizes take different times, and
    that is no unrest of the machine. With under LEAST_OF_ONE_INPUT samples of each its median follows
    its samples and would hide the unrest: then it is the plain one.
    """
    if len(samples) < LEAST_OF_ONE_INPUT * inputs:
        return variation(samples)
    relative = [0.0] * len(samples)
    for first in range(inputs):
        own = samples[first::inputs]
        median = statistics.median(own)
        relative[first::inputs] = [sample / median for sample in own]
    return variation(relative)


def window_medians(turns: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The median of each third of the turns; fewer thirds where there are fewer turns than that."""
    windows = min(WINDOWS, len(turns))
    bounds = [len(turns) * n // windows for n in range(windows + 1)] if windows else []
    parts = (turns[a:b] for a, b in itertools.pairwise(bounds))
    return tuple(statistics.median([s for turn in part for s in turn]) for part in parts)


def spread(values: Sequence[float]) -> float:
    """How far the largest is over the smallest, as a fraction of it."""
    return max(values) / min(values) - 1 if values else 0.0


def paired_ratio(
    ours: Sequence[Sequence[float]], first: Sequence[Sequence[float]]
) -> tuple[float, tuple[float, float] | None]:
    """The median over turns of our median by the first's in the same turn, and its 95 % interval.

    The interval is between order statistics (exact for any distribution); None under six turns, which
    cannot give one.
    """
    ratios = sorted(
        statistics.median(a) / statistics.median(b) for a, b in zip(ours, first, strict=False)
    )
    return statistics.median(ratios), median_interval(ratios)


def median_interval(ordered: Sequence[float]) -> tuple[float, float] | None:
    """The samples at the ranks outside of which a fair coin leaves 2.5 % on either side."""
    count = len(ordered)
    outside, rank = 0.0, 0
    while outside + math.comb(count, rank) / 2**count <= 0.025:
        outside += math.comb(count, rank) / 2**count
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else None
