"""The numbers a classifier is judged by, from logits; runs and bundles share this code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.errors import FailedError, MissingDependencyError


@dataclass(frozen=True)
class Metrics:
    """Fractions of 1. Macro: mean over the classes that occur among targets or predictions."""

    top1: float
    top5: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float
    images: int


def classification_metrics(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> Metrics:
    """logits (images, classes) and class indices (images,) -> Metrics.

    With five classes or fewer `top5` is 1. Raises FailedError for logits that are not finite,
    MissingDependencyError without scikit-learn.
    """
    try:
        from sklearn.metrics import precision_recall_fscore_support
    except ImportError:
        raise MissingDependencyError("scikit-learn", "evaluate") from None
    if not np.isfinite(logits).all():
        raise FailedError("the logits hold NaN or infinity: no accuracy can be given")
    predicted = logits.argmax(axis=1)
    best_five = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    averages = {}
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            targets, predicted, average=average, zero_division=0
        )
        averages[average] = (float(precision), float(recall), float(f1))
    return Metrics(
        float((predicted == targets).mean()),
        float((best_five == targets[:, None]).any(axis=1).mean()),
        *averages["macro"],
        *averages["weighted"],
        images=len(targets),
    )
