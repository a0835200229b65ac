"""The scores that a selection may rank patches by: which attention is read, and what is taken of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gft_edge.bundle.specs import Score

AttentionMap = Literal["raw", "class-raw", "class", "received"]
Taken = Literal["value", "gradient", "gradient-2d", "value and gradient-2d", "laplacian"]


@dataclass(frozen=True)
class ScoreRule:
    """One number a patch and head from `attention`, and what of it the patches are ranked by.

    `raw` is Eq. 1, the mean of the scores before the softmax over the keys; `class-raw` the class token's row
    of these; `class` that row after the softmax; `received` the softmaxed attention to a patch, mean
    over all queries. `gradient` is Eq. 2, along the kept patches in grid order; `gradient-2d` the same
    along the rows and the columns of the patch grid, between patches that are still there; a learned
    kernel smooths both. `laplacian` is the second derivative there: how far a patch stands out from
    its neighbours. `summed` adds up the maps of all blocks so far. An `attention` of None is a random order
    of the grid, one for all images, that a training draws by its seed.
    """

    title: str
    attention: AttentionMap | None
    taken: Taken = "value"
    summed: bool = False

    @property
    def smoothed(self) -> bool:
        """Whether a learned kernel smooths it: only what is a first derivative, or holds one."""
        return "gradient" in self.taken


SCORES: Mapping[Score, ScoreRule] = {
    # arXiv 2504.09852, Eq. 1, 2 and 5.
    "gala": ScoreRule("GALA", "raw", "gradient"),
    "gala-2d": ScoreRule("GALA on the grid", "raw", "gradient-2d"),
    # What the paper's figure 2 sets beside GALA.
    "raw": ScoreRule("absolute attention", "raw"),
    # EViT, arXiv 2202.07800.
    "class": ScoreRule("class attention", "class"),
    # Evo-ViT, arXiv 2108.01390, carries the class attention from block to block.
    "class-sum": ScoreRule("class attention of all blocks so far", "class", summed=True),
    "class-gradient": ScoreRule("gradient of class attention", "class", "gradient"),
    "class-gradient-2d": ScoreRule("grid gradient of class attention", "class", "gradient-2d"),
    "class-mixed": ScoreRule(
        "class attention and its grid gradient", "class", "value and gradient-2d"
    ),
    # The softmax is a constant a head and image under the logarithm: the Laplacian does not see it.
    "class-laplacian": ScoreRule("Laplacian of log class attention", "class-raw", "laplacian"),
    "received": ScoreRule("attention received", "received"),
    "received-gradient": ScoreRule("gradient of attention received", "received", "gradient"),
    "received-gradient-2d": ScoreRule(
        "grid gradient of attention received", "received", "gradient-2d"
    ),
    "received-mixed": ScoreRule(
        "attention received and its grid gradient", "received", "value and gradient-2d"
    ),
    "random": ScoreRule("random", None),
}
