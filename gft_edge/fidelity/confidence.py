"""How far probabilities can be believed: temperature, calibration error, and what a threshold accepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import LEAST_TEMPERATURE, MOST_TEMPERATURE

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.int64]

# Guo et al. 2017, arXiv 1706.04599.
BINS = 15

# The AUROC of a score that tells nothing.
BY_CHANCE = 0.5

# The share of the network's own photographs that a threshold is asked to keep.
KEPT = 0.95


@dataclass(frozen=True)
class CalibrationError:
    """How far probabilities are from how often they are right: 0 is as far as they say. Fractions of 1.

    The expected calibration error at `temperature`, and at 1, with BINS bins of equal width.
    """

    temperature: float
    ece: float
    ece_uncalibrated: float


@dataclass(frozen=True)
class AcceptedAt:
    """What has a label at a least probability. Fractions of 1.

    `known` is the share of the network's own photographs, `right` the share of all of them that have
    the right label, `unknown` the share of the photographs of none of its classes.
    """

    min_probability: float
    known: float
    right: float
    unknown: float


@dataclass(frozen=True)
class Acceptance:
    """How well the largest probability tells a network's own photographs from those of no class of its.

    Hendrycks and Gimpel 2017, arXiv 1610.02136. `auroc` is how often a photograph of its own has the
    larger one of two, 0.5 by chance; `unknown_at_95` the share of the others that have a label where
    95 % of its own have one. `proposed` is where the difference of the two shares is largest (Youden).
    """

    known_images: int
    unknown_images: int
    auroc: float
    unknown_at_95: float
    proposed: AcceptedAt
    curve: tuple[AcceptedAt, ...]


def probabilities(logits: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Softmax of logits (images,classes) divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def fit_temperature(logits: Floats, targets: Classes) -> float:
    """The temperature at which the images' own classes (images,) are likeliest, within what a bundle takes.

    The loss is convex in 1 / temperature: where its slope is 0 is found by halving.
    """
    scores = logits.astype(np.float64)
    own = scores[np.arange(len(targets)), targets].mean()
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        slope = (probabilities(scores, 1 / middle) * scores).sum(axis=1).mean() - own
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(2 / (low + high))


def expected_calibration_error(logits: Floats, targets: Classes, temperature: float = 1.0) -> float:
    """The mean over images of the distance between confidence and accuracy, bin by bin."""
    likely = probabilities(logits, temperature)
    confidence = likely.max(axis=1)
    right = likely.argmax(axis=1) == targets
    # The first bin holds 0 too.
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(targets))


def calibration_error(logits: Floats, targets: Classes, temperature: float) -> CalibrationError:
    """The calibration error of logits (images,classes) before and after their temperature."""
    before, after = (expected_calibration_error(logits, targets, t) for t in (1.0, temperature))
    return CalibrationError(temperature, after, before)


def kept_threshold(confidence: Floats, share: float = KEPT) -> float:
    """The largest least probability at which `share` of photographs (images,) still have a label."""
    ordered = np.sort(confidence.astype(np.float64))
    return rounded_down(ordered[int(np.floor((1 - share) * len(ordered) + 1e-9))])


def rounded_down(probability: float) -> float:
    """A threshold that can be written in four decimals, and lets no less through."""
    return float(np.floor(probability * 1e4) / 1e4)


def acceptance(known: Floats, right: npt.NDArray[np.bool_], unknown: Floats) -> Acceptance:
    """Judge largest probabilities, (images,) each, of photographs known and unknown."""
    ours: npt.NDArray[np.float64] = known.astype(np.float64)
    others: npt.NDArray[np.float64] = unknown.astype(np.float64)

    def at(threshold: float) -> AcceptedAt:
        accepted = ours >= threshold
        return AcceptedAt(
            float(threshold),
            float(accepted.mean()),
            float((accepted & right).mean()),
            float((others >= threshold).mean()),
        )

    thresholds = np.unique(np.concatenate([ours, others]))
    # Shares of both at each threshold, from how many lie under it.
    under_known = np.searchsorted(np.sort(ours), thresholds) / len(ours)
    under_unknown = np.searchsorted(np.sort(others), thresholds) / len(others)
    best = rounded_down(thresholds[int(np.argmax(under_unknown - under_known))])
    return Acceptance(
        len(ours),
        len(others),
        _auroc(ours, others),
        at(kept_threshold(ours)).unknown,
        at(best),
        tuple(at(percent / 100) for percent in range(0, 100, 5)),
    )


def _auroc(known: npt.NDArray[np.float64], unknown: npt.NDArray[np.float64]) -> float:
    """The share of pairs in which the known one is larger, ties counting half (Mann-Whitney)."""
    ordered = np.sort(unknown)
    smaller = np.searchsorted(ordered, known, side="left")
    equal = np.searchsorted(ordered, known, side="right") - smaller
    return float((smaller + equal / 2).mean() / len(unknown))
