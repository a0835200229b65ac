"""Which classes a network takes for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ClassResult:
    """A class with images: how many of them were named so, and how many of those named so are of it.

    Fractions of 1; `precision` is None where no image was given the label.
    """

    label: str
    images: int
    recall: float
    precision: float | None


@dataclass(frozen=True)
class Pair:
    """`count` images of `label`, a `share` of its images, were taken for `predicted`."""

    label: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """`counts[i, j]` images of class i were given label j."""

    labels: tuple[str, ...]
    counts: npt.NDArray[np.int64]

    def hardest(self) -> list[ClassResult]:
        """Every class with images: lowest recall first, of equal ones the one with more images."""
        images, named = self.counts.sum(axis=1), self.counts.sum(axis=0)
        results = [
            ClassResult(
                label,
                int(images[i]),
                float(self.counts[i, i] / images[i]),
                float(self.counts[i, i] / named[i]) if named[i] else None,
            )
            for i, label in enumerate(self.labels)
            if images[i]
        ]
        return sorted(results, key=lambda result: (result.recall, -result.images, result.label))

    def pairs(self) -> list[Pair]:
        """Every pair of classes that was confused at all: most images first, then the larger share."""
        images = self.counts.sum(axis=1)
        pairs = [
            Pair(
                self.labels[i],
                self.labels[j],
                int(self.counts[i, j]),
                float(self.counts[i, j] / images[i]),
            )
            for i, j in np.argwhere(self.counts)
            if i != j
        ]
        return sorted(pairs, key=lambda p: (-p.count, -p.share, p.label, p.predicted))


def confusion_of(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], labels: tuple[str, ...]
) -> Confusion:
    """logits (images, classes) and class indices (images,) -> Confusion."""
    classes = len(labels)
    flat = np.bincount(targets * classes + logits.argmax(axis=1), minlength=classes * classes)
    return Confusion(labels, flat.reshape(classes, classes))
