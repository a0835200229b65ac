"""The interval over seeds and images: worked by hand, and by how often it holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from crossed import crossed_estimate
from gft_edge.errors import UsageError
from gft_edge.studies.keep_counts import paired_estimate
from tests.support.refusals import refusal_of


def test_the_estimate_is_that_worked_by_hand() -> None:
    # Means of rows 0.5 and 0, of columns 0.5, 0.5, 0.5 and -0.5; all 0.25.
    found = crossed_estimate(np.array([[1, 0, 1, 0], [0, 1, 0, -1]]))
    # MS_seed = 4 x 2 x 0.25^2 / 1 = 0.5; MS_image = 2 x (3 x 0.25^2 + 0.75^2) / 3 = 0.5;
    # the rest is 0.25 or 0.75 off: (6 x 0.25^2 + 2 x 0.75^2) / 3 = 0.5. Their sum is no more than one.
    assert found.mean == 0.25
    assert found.standard_error == pytest.approx((0.5 / 8) ** 0.5)
    assert found.standard_errors == pytest.approx(1.0)
    # Of two that are equal the one that is known less counts: t of one degree of freedom.
    assert found.degrees_of_freedom == 1
    assert found.high == pytest.approx(0.25 + 12.7062 * 0.25, rel=1e-4)
    # t of one degree of freedom is Cauchy's: half of it lies beyond 1.
    assert found.p_value == pytest.approx(0.5)
    assert found.rests_on == "seeds"


def test_the_sum_of_both_components_has_satterthwaites_degrees_of_freedom() -> None:
    values = np.array([[4.0, 0, 2], [2, 1, 0], [0, 0, 0]])
    found = crossed_estimate(values)
    # Row means 2, 1, 0 of 1 and column means 2, 1/3, 2/3.
    ms_seed, ms_image = 3 * 1.0, 3 * (1 + 4 / 9 + 1 / 9) / 2
    ms_rest = (np.square(values - 1).sum() - 2 * ms_seed - 2 * ms_image) / 4
    total = ms_seed + ms_image - ms_rest
    assert total > max(ms_seed, ms_image)
    assert found.rests_on == "seeds and images"
    assert found.standard_error == pytest.approx((total / 9) ** 0.5)
    df = total**2 / (ms_seed**2 / 2 + ms_image**2 / 2 + ms_rest**2 / 4)
    assert found.degrees_of_freedom == pytest.approx(df)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


@pytest.mark.parametrize(("axis", "rests_on"), [(0, "seeds"), (1, "images")])
def test_what_differs_between_seeds_or_images_alone_is_a_t_test_over_them(
    axis: int, rests_on: str
) -> None:
    alone = np.array([1.0, 2, 6, 0, -1])
    found = crossed_estimate(np.repeat(np.expand_dims(alone, 1 - axis), 50, axis=1 - axis))
    expected = stats.ttest_1samp(alone, 0)
    assert found.mean == pytest.approx(alone.mean())
    assert found.standard_errors == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.degrees_of_freedom == pytest.approx(4)
    assert found.rests_on == rests_on


def test_two_that_always_agree_differ_by_nothing_and_one_seed_tells_nothing() -> None:
    found = crossed_estimate(np.zeros((3, 20), dtype=np.int8))
    assert (found.mean, found.low, found.high, found.standard_errors) == (0, 0, 0, None)
    assert (found.p_value, found.rests_on) == (None, None)
    refusal_of(UsageError, lambda: crossed_estimate(np.zeros((1, 20))), "--seeds")


def test_an_interval_over_images_alone_is_that_of_one_training_and_needs_two() -> None:
    found = paired_estimate(np.array([1, 0, -1, 0, 1]))
    assert found.mean == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(np.std([1, 0, -1, 0, 1], ddof=1) / 5**0.5)
    assert (found.degrees_of_freedom, found.rests_on) == (4, "images")
    assert paired_estimate(np.zeros(5)).standard_error == 0
    refusal_of(UsageError, lambda: paired_estimate(np.ones(1)), "--split")


@pytest.mark.parametrize(
    ("seed_effect", "image_effect"), [(0.0, 0.0), (0.01, 0.2), (0.03, 0.0), (0.03, 0.2)]
)
def test_95_of_100_intervals_hold_the_truth(seed_effect: float, image_effect: float) -> None:
    generator = np.random.default_rng(0)
    held, trials, seeds, images = 0, 600, 3, 300
    for _ in range(trials):
        values = (
            generator.normal(0, seed_effect, (seeds, 1))
            + generator.normal(0, image_effect, (1, images))
            + generator.normal(0, 0.25, (seeds, images))
        )
        # -1, 0 and 1, as the differences of right and wrong answers.
        found = crossed_estimate(np.clip(np.round(2 * values), -1, 1))
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / trials <= 0.985
