"""What a bundle and its reference gave for every image of a split, and where the two disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.datasets import Photographs
from gft_edge.fidelity.compare import image_overlaps
from gft_edge.runtime.outputs import Outputs, grid_positions


@dataclass(frozen=True)
class Disagreement:
    """An image that the two classify differently: its own label, theirs, the overlap a stage.

    `label` is None where it has no class of the network's.
    """

    path: str
    label: str | None
    reference: str
    candidate: str
    kept_overlap: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """The outputs of both for every image of a split, in its order.

    `reference_kept` and `kept` have an array (images, K) a stage, of grid positions; `overlaps`
    (images, stages) are their Jaccard overlaps.
    """

    split: Photographs
    reference: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.int64]
    reference_kept: tuple[npt.NDArray[np.int64], ...]
    kept: tuple[npt.NDArray[np.int64], ...]
    overlaps: npt.NDArray[np.float64]

    def by_overlap(self) -> list[int]:
        """Return every image's index, least overlap first: at the last stage, then at those before."""
        return sorted(range(len(self.overlaps)), key=lambda i: tuple(self.overlaps[i][::-1]))

    def differs(self, image: int) -> bool:
        """Return whether the two give an image different labels."""
        return bool(self.reference[image] != self.candidate[image])

    def row(self, image: int) -> Disagreement:
        """Return what the two say of an image, by name."""
        labels, target = self.split.labels, self.split.targets[image]
        return Disagreement(
            path=str(self.split.paths[image]),
            label=None if target is None else labels[target],
            reference=labels[int(self.reference[image])],
            candidate=labels[int(self.candidate[image])],
            kept_overlap=tuple(map(float, self.overlaps[image])),
        )

    def disagreements(self) -> tuple[Disagreement, ...]:
        """Return the images classified differently, least overlap first."""
        return tuple(self.row(i) for i in self.by_overlap() if self.differs(i))


def compared(split: Photographs, reference: Outputs, candidate: Outputs) -> Comparison:
    """Compare what the two gave for the images of a split.

    Where the candidate returns no kept patches there are no overlaps.
    """
    stages = len(candidate.kept)
    theirs = tuple(grid_positions(reference.kept)[:stages])
    ours = tuple(grid_positions(candidate.kept))
    overlaps = [image_overlaps(x, y) for x, y in zip(theirs, ours, strict=True)]
    return Comparison(
        split=split,
        reference=reference.logits.argmax(axis=1),
        candidate=candidate.logits.argmax(axis=1),
        reference_kept=theirs,
        kept=ours,
        overlaps=np.stack(overlaps, axis=1) if overlaps else np.zeros((len(candidate), 0)),
    )
