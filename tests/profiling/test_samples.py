"""Percentiles, windows, scatter and paired ratios say what the samples support, and no more."""

from __future__ import annotations

import math
import random

import pytest

from gft_edge.profiling.samples import (
    paired_ratio,
    percentile_ms,
    samples_needed,
    spread,
    variation,
    variation_of_one_input,
    window_medians,
)


# MLPerf's own table: 64 queries for a p90, 662 for a p99, 6636 for a p99.9.
@pytest.mark.parametrize(("percentile", "count"), [(90, 64), (99, 662), (99.9, 6636)])
def test_a_percentile_needs_the_samples_of_early_stopping(percentile: float, count: int) -> None:
    assert samples_needed(percentile) == count
    assert percentile_ms([1.0] * (count - 1), percentile) is None
    assert percentile_ms([1.0] * count, percentile) == 1.0


@pytest.mark.parametrize("count", [662, 1000, 1001, 5000])
@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0, 99.0])
def test_a_percentile_is_the_sample_that_trtexec_takes(count: int, percentile: float) -> None:
    samples_ms = [float(n) for n in range(count)]
    random.Random(0).shuffle(samples_ms)
    assert percentile_ms(samples_ms, percentile) == count - 1 - int((1 - percentile / 100) * count)


def test_windows_are_thirds_of_the_turns() -> None:
    turns = [[1.0, 1.0], [1.0], [2.0], [2.0, 2.0, 2.0], [4.0], [4.0]]
    assert window_medians(turns) == (1.0, 2.0, 4.0)
    assert window_medians(turns[:2]) == (1.0, 1.0)
    assert window_medians([]) == ()
    assert spread((1.0, 2.0, 4.0)) == 3.0


def test_photographs_of_different_sizes_are_no_unrest() -> None:
    samples_ms = [10.0, 20.0, 40.0] * 50
    assert variation(samples_ms) > 0.5
    assert variation_of_one_input(samples_ms, inputs=3) == pytest.approx(0, abs=1e-12)
    assert variation_of_one_input(samples_ms, inputs=1) > 0.5


def test_few_samples_of_each_photograph_do_not_hide_unrest() -> None:
    generator = random.Random(0)
    noisy = [generator.gauss(10, 1) for _ in range(64)]
    # Two of each: the median of two lies between them.
    assert variation_of_one_input(noisy, inputs=32) == variation(noisy) > 0.05
    assert variation_of_one_input(noisy[:32], inputs=32) > 0.05
    many = [generator.gauss(10, 1) for _ in range(160)]
    assert variation_of_one_input(many, inputs=32) == pytest.approx(variation(many), rel=0.25)


def test_a_drift_that_meets_both_cancels_in_the_paired_ratio() -> None:
    generator = random.Random(0)
    drift = [1 + 3 * math.sin(turn / 5) ** 2 for turn in range(40)]
    first = [[d * generator.uniform(0.99, 1.01) for _ in range(9)] for d in drift]
    ours = [[1.25 * d * generator.uniform(0.99, 1.01) for _ in range(9)] for d in drift]
    ratio, interval = paired_ratio(ours, first)
    assert ratio == pytest.approx(1.25, abs=0.01)
    assert interval is not None
    assert 1.24 < interval[0] <= ratio <= interval[1] < 1.26


def test_an_interval_covers_the_median_as_often_as_it_says() -> None:
    generator = random.Random(1)
    covered = 0
    for _ in range(400):
        ratios = [[generator.lognormvariate(0, 0.3)] for _ in range(20)]
        interval = paired_ratio(ratios, [[1.0]] * 20)[1]
        assert interval is not None
        covered += interval[0] <= 1 <= interval[1]
    # 95.9 % is exact for 20 turns.
    assert 0.92 < covered / 400 < 0.99


def test_five_turns_give_no_interval() -> None:
    assert paired_ratio([[1.0]] * 5, [[1.0]] * 5) == (1.0, None)
    assert paired_ratio([[1.0]] * 6, [[1.0]] * 6) == (1.0, (1.0, 1.0))
