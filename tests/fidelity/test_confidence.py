"""Temperature, calibration error and the area under the curve are what their papers and scikit-learn say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from gft_edge.fidelity.confidence import (
    acceptance,
    expected_calibration_error,
    fit_temperature,
    kept_threshold,
    probabilities,
)


def answers(
    scale: float, images: int = 20_000
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits `scale` times as large as those by which the classes were drawn."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(images, 7))
    shares = probabilities(logits)
    targets = (shares.cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    return (logits * scale).astype(np.float32), targets


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_the_temperature_is_how_much_too_large_the_logits_are(scale: float) -> None:
    logits, targets = answers(scale)
    fitted = fit_temperature(logits, targets)
    assert fitted == pytest.approx(scale, rel=0.03)

    def loss(temperature: float) -> float:
        likely = probabilities(logits, temperature)
        return float(-np.log(likely[np.arange(len(targets)), targets]).mean())

    assert loss(fitted) < min(loss(fitted * 0.99), loss(fitted * 1.01))
    assert expected_calibration_error(logits, targets, fitted) < 0.015
    if scale != 1:
        assert expected_calibration_error(logits, targets) > 0.1


def test_a_temperature_without_a_minimum_stays_in_its_bounds() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert fit_temperature(logits, np.arange(3)) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(logits, (np.arange(3) + 1) % 3) == pytest.approx(20, rel=1e-3)


def test_the_calibration_error_is_the_mean_gap_of_its_bins() -> None:
    # Confidence 0.9 three times, right twice; 0.6 once, wrong.
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    found = expected_calibration_error(np.log(shares), np.array([0, 0, 1, 1]))
    assert found == pytest.approx((3 * abs(0.9 - 2 / 3) + 0.6) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_known_and_unknown_are_told_apart_as_scikit_learn_counts_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    known = generator.beta(4, 2, 300).round(2)
    unknown = generator.beta(2, 3, 200).round(2)
    right = generator.random(300) < 0.8
    found = acceptance(known, right, unknown)
    expected = roc_auc_score(np.repeat([1, 0], [300, 200]), np.concatenate([known, unknown]))
    assert found.auroc == pytest.approx(expected)
    assert (known >= kept_threshold(known)).mean() >= 0.95
    assert found.unknown_at_95 == (unknown >= kept_threshold(known)).mean()

    gains = [(known >= t).mean() - (unknown >= t).mean() for t in np.linspace(0, 1, 101)]
    best = found.proposed
    assert best.known - best.unknown == pytest.approx(max(gains))
    for at in found.curve:
        assert at.known == (known >= at.min_probability).mean()
        assert at.right == (right & (known >= at.min_probability)).mean()
        assert at.unknown == (unknown >= at.min_probability).mean()


@pytest.mark.parametrize("images", [1, 19, 20, 21, 1000])
def test_the_threshold_keeps_95_percent_and_no_larger_one_does(images: int) -> None:
    confidence = np.random.default_rng(1).random(images)
    threshold = kept_threshold(confidence)
    assert (confidence >= threshold).mean() >= 0.95
    assert (confidence >= threshold + 2e-4).mean() < 0.95
