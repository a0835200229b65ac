"""How far a graph is from its reference, with the bounds that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["pass", "fail"]


@dataclass(frozen=True)
class Tolerance:
    """The bounds a FidelityReport is judged by. Fractions of 1.

    `kept_overlap` has one bound a stage, the last of which holds for every further one. `max_drop`
    is how much accuracy may be lost; None where decisions have to agree anyway.
    """

    top1_agreement: float
    kept_overlap: tuple[float, ...]
    cosine: float
    max_drop: float | None = None

    def overlap_bound(self, stage: int) -> float:
        """The bound of a stage, counted from 0."""
        return self.kept_overlap[min(stage, len(self.kept_overlap) - 1)]


@dataclass(frozen=True)
class FidelityReport:
    """How far a graph's outputs are from its reference on the same images.

    `step` names the step of the export that made the graph.

    `cosine` is the mean over images of the cosine between logit vectors. `kept_overlap` has one
    number a stage: the mean Jaccard overlap of the kept patches. `patches_lost` has the mean number
    of patches an image that the reference keeps and the graph does not, `lost_near_border` how many
    of these the reference itself all but dropped (see fidelity.BORDER); empty where the reference
    has no ranks. The accuracies are None where no classes were given. `verdict` is `pass` when no bound
    was missed. Fractions of 1.
    """

    step: str
    max_abs: float
    cosine: float
    top1_agreement: float
    kept_overlap: tuple[float, ...]
    images: int
    tolerance: Tolerance
    failures: tuple[str, ...]
    accuracy: float | None = None
    reference_accuracy: float | None = None
    patches_lost: tuple[float, ...] = ()
    lost_near_border: tuple[float, ...] = ()
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        # A field, so that every JSON form holds it; it follows from the failures alone.
        object.__setattr__(self, "verdict", "fail" if self.failures else "pass")
