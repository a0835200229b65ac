"""One image's explanation: its patches stage by stage, and how all stages together order them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gft_edge.explanation.subject import Floats, Seen
from gft_edge.runtime.outputs import grid_positions

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StageView:
    """One stage of one image; positions on the patch grid, counted row by row, ascending.

    `present` (N,) are the patches that reach the stage, `kept` (K,) those that it keeps.
    `importance` (N,) is what it ranks them by, `attention` (N,) is Eq. 1, the mean over heads; None
    where the network does not tell.
    """

    present: Positions
    kept: Positions
    importance: Floats | None
    attention: Floats | None


@dataclass(frozen=True)
class Explanation:
    """One image: logits (classes,), its stages, and Seen's `difference`."""

    logits: Floats
    stages: tuple[StageView, ...]
    difference: float


def explanation(seen: Seen, patch_count: int) -> Explanation:
    """What was seen of one image, the first."""
    places = [np.arange(patch_count), *(kept[0] for kept in grid_positions(seen.kept))]
    return Explanation(
        seen.logits[0],
        tuple(
            StageView(
                present,
                kept,
                seen.importance[number][0] if seen.importance else None,
                seen.attention[number][0] if seen.attention else None,
            )
            for number, (present, kept) in enumerate(pairwise(places))
        ),
        float(seen.difference[0]),
    )


def on_grid(positions: Positions, values: npt.ArrayLike, patch_count: int) -> Floats:
    """Values of some patches as (patch_count,) with NaN elsewhere."""
    whole = np.full(patch_count, np.nan, np.float32)
    whole[positions] = values
    return whole


def composite(stages: Sequence[StageView], patch_count: int) -> Floats:
    """The importance of all stages in one map, (patch_count,) in 0..1 (the paper's figure 4).

    The mean over stages of each one's importance, scaled from 0 for its least patch to 1 for its
    best. A patch that a stage no longer sees counts 0 there. Stages must tell their importance.
    """
    total = np.zeros(patch_count, np.float32)
    for stage in stages:
        assert stage.importance is not None
        total[stage.present] += scaled(stage.importance)
    return (total / len(stages)).astype(np.float32)


def scaled(values: Floats) -> Floats:
    """Values from 0 for the least to 1 for the largest; 0 where all are equal."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)


def importance_order(stages: Sequence[StageView], patch_count: int) -> Positions:
    """All patches, most important first, (patch_count,).

    A patch that survives more stages comes first; among those that survive equally many, the one
    that the last stage to see both ranks higher. Stages must tell their importance.
    """
    survived = np.zeros(patch_count, np.int64)
    last = np.zeros(patch_count, np.float32)
    for stage in stages:
        assert stage.importance is not None
        last[stage.present] = stage.importance
        survived[stage.kept] += 1
    # Equal patches in grid order, as lexsort is stable.
    return np.lexsort((-last, -survived)).astype(np.int64)
