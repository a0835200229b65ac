"""The numbers a classifier is judged by, from logits; runs and bundles share this code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.errors import FailedError


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

    With five classes or fewer `top5` is 1. A class that is never predicted has a precision of 0, one
    that no image has a recall of 0, as scikit-learn's zero_division=0 has it. Raises FailedError
    for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise FailedError("the logits hold NaN or infinity: no accuracy can be given")
    predicted = logits.argmax(axis=1)
    best_five = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    classes = logits.shape[1]
    have, named, right = (
        np.bincount(each, minlength=classes).astype(np.float64)
        for each in (targets, predicted, targets[predicted == targets])
    )
    occurs = (have > 0) | (named > 0)
    have, named, right = have[occurs], named[occurs], right[occurs]
    precision = right / np.maximum(named, 1)
    recall = right / np.maximum(have, 1)
    f1 = 2 * right / (have + named)
    scores = {"precision": precision, "recall": recall, "f1": f1}
    return Metrics(
        top1=float((predicted == targets).mean()),
        top5=float((best_five == targets[:, None]).any(axis=1).mean()),
        **{f"{name}_macro": float(score.mean()) for name, score in scores.items()},
        **{
            f"{name}_weighted": float(np.average(score, weights=have))
            for name, score in scores.items()
        },
        images=len(targets),
    )


def right_of(
    logits: npt.NDArray[np.float32], targets: Sequence[int | None]
) -> npt.NDArray[np.bool_]:
    """Return whether logits (images, classes) are right, of the images whose target is not None."""
    labelled = [n for n, target in enumerate(targets) if target is not None]
    known = np.asarray([targets[n] for n in labelled], dtype=np.int64)
    return np.asarray(logits[labelled].argmax(axis=1) == known)


def accuracy_of(logits: npt.NDArray[np.float32], targets: Sequence[int | None]) -> float | None:
    """Return the share of right decisions, of 1, as in `right_of`; None where no target is known."""
    right = right_of(logits, targets)
    return float(right.mean()) if len(right) else None
