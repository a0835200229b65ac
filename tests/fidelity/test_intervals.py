"""95 % intervals, held to SciPy's and to how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gft_edge.fidelity.intervals import (
    mean_interval,
    paired_drop_interval,
    proportion_interval,
)


@pytest.mark.parametrize(
    ("hits", "total"), [(0, 1), (0, 64), (1, 64), (63, 64), (64, 64), (970, 1000)]
)
def test_a_proportions_interval_is_clopper_and_pearsons(hits: int, total: int) -> None:
    exact = stats.binomtest(hits, total).proportion_ci(0.95, "exact")
    assert proportion_interval(hits, total) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_a_means_interval_narrows_with_the_images() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    low, high = mean_interval(values)
    exact = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(exact, rel=0.02)
    assert mean_interval(values[:1]) == (values[0], values[0])


def test_a_drops_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Also where hardly an image differs."""
    drawn = np.random.default_rng(0)
    for lost, won in ((0.02, 0.02), (0.03, 0.0), (0.005, 0.005), (0.1, 0.05)):
        held = 0
        for _ in range(3000):
            chance = drawn.random(200)
            before = chance < 0.9
            after = np.where(before, chance >= lost, chance >= 1 - won)
            low, high = paired_drop_interval(before, after)
            held += low <= lost - won <= high
        assert held >= 0.93 * 3000


def test_without_a_differing_image_the_drop_is_still_not_known_to_be_none() -> None:
    right = np.ones(100, dtype=bool)
    low, high = paired_drop_interval(right, right)
    assert low == -high
    assert 0.01 < high < 0.04
