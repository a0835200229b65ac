"""Precision, recall and F1 in NumPy are scikit-learn's, and logits of NaN have none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from gft_edge.errors import FailedError
from gft_edge.fidelity.metrics import classification_metrics
from tests.support.refusals import refusal_of


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("images", "classes"), [(400, 10), (30, 81), (1, 3)])
def test_the_averages_are_those_of_scikit_learn(images: int, classes: int, seed: int) -> None:
    """With 81 classes many have no image, many are never predicted, and some are neither."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 1
    ours = classification_metrics(logits, targets)
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            targets, logits.argmax(axis=1), average=average, zero_division=0
        )
        found = [getattr(ours, f"{name}_{average}") for name in ("precision", "recall", "f1")]
        np.testing.assert_allclose(found, expected[:3], rtol=0, atol=1e-12)
    ranked = np.argsort(-logits, axis=1)
    assert ours.top1 == pytest.approx((ranked[:, 0] == targets).mean())
    assert ours.top5 == pytest.approx((ranked[:, :5] == targets[:, None]).any(axis=1).mean())


def test_logits_that_are_not_finite_have_no_accuracy() -> None:
    logits = np.full((2, 3), np.nan, dtype=np.float32)
    refusal_of(FailedError, lambda: classification_metrics(logits, np.array([0, 1])), "NaN")
