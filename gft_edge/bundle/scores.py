"""The scores that a selection may rank patches by: which attention is read, and what is taken of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gft_edge.bundle.specs import Score

AttentionMap = Literal["raw", "class-raw", "class", "received"]
Taken = Literal["value", "gradient", "laplacian"]


@dataclass(frozen=True)
class ScoreRule:
    """One number a patch and head from `attention`, and what of it the patches are ranked by.

    `raw` is Eq. 1, the mean of the scores before the softmax over the keys; `class-raw` is the class
    token's row of these; `class` is that row after the softmax; `received` is the softmaxed attention to a
    patch, the mean over all queries. `gradient` is Eq. 2, along the kept patches in grid order, smoothed by a
    learned kernel; `laplacian` is the second derivative on the patch grid: how far a patch stands out from
    its neighbours. An `attention` of None is a random order of the grid, one for all images, that a
    training draws by its seed.
    """

    title: str
    attention: AttentionMap | None
    taken: Taken = "value"

    @property
    def smoothed(self) -> bool:
        """Whether a learned kernel smooths it, and is trained through the choice of patches."""
        return self.taken == "gradient"


SCORES: Mapping[Score, ScoreRule] = {
    # arXiv 2504.09852, Eq. 1, 2 and 5.
    "gala": ScoreRule("GALA", "raw", "gradient"),
    # What the paper's figure 2 sets beside GALA.
    "raw": ScoreRule("absolute attention", "raw"),
    # EViT, arXiv 2202.07800.
    "class": ScoreRule("class attention", "class"),
    # The softmax is a constant a head and image under the logarithm: the Laplacian does not see it.
    "class-laplacian": ScoreRule("Laplacian of log class attention", "class-raw", "laplacian"),
    "received": ScoreRule("attention received", "received"),
    "random": ScoreRule("random", None),
}
