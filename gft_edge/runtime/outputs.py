"""What a network gave for some images: logits, and the patches that each stage kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Outputs:
    """What a network gave for some images: logits (images, classes) and, per stage, the kept patches.

    `kept` (images, K) are indices into the patches that the stage before left, ascending. `ranks`
    (images, N), where known, is the place of each of these patches by score, 0 the best.
    """

    logits: npt.NDArray[np.float32]
    kept: tuple[npt.NDArray[np.int64], ...]
    ranks: tuple[npt.NDArray[np.int64], ...] = ()

    def __len__(self) -> int:
        return len(self.logits)

    def first(self, images: int) -> Outputs:
        """The outputs for the first so many images."""
        kept, ranks = (tuple(a[:images] for a in arrays) for arrays in (self.kept, self.ranks))
        return Outputs(self.logits[:images], kept, ranks)


def concatenate(batches: Sequence[Outputs]) -> Outputs:
    """Outputs of consecutive batches as one."""
    return Outputs(
        np.concatenate([batch.logits for batch in batches]),
        tuple(map(np.concatenate, zip(*(batch.kept for batch in batches), strict=True))),
        tuple(map(np.concatenate, zip(*(batch.ranks for batch in batches), strict=True))),
    )


def grid_positions(
    kept: Sequence[npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.int64], ...]:
    """Kept patches of each stage as positions on the full patch grid, (images, K) each."""
    positions: list[npt.NDArray[np.int64]] = []
    for indices in kept:
        positions.append(
            np.take_along_axis(positions[-1], indices, axis=1) if positions else indices
        )
    return tuple(positions)
