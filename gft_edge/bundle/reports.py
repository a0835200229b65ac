"""How far a graph is from its reference, with the bounds that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["pass", "fail", "not judged"]

# What nobody sees in a photograph; see fidelity.noise_floor.
Change = Literal["noise", "jpeg75", "brightness", "shift"]


@dataclass(frozen=True)
class Tolerance:
    """The bounds a FidelityReport is judged by. Fractions of 1.

    `kept_overlap` has one bound a stage, the last of which holds for every further one. `max_drop`
    is how much accuracy may be lost; None where decisions have to agree anyway. With a `change` (see
    fidelity.noise_floor) the reference's own answers to the changed images bound the graph's: it may
    change `share` of the patches that these change, or of the cosine where there are no stages, and
    every bound fails only where its 95 % interval excludes it.
    """

    top1_agreement: float
    kept_overlap: tuple[float, ...]
    cosine: float
    max_drop: float | None = None
    change: Change | None = None
    share: float = 1.0

    def overlap_bound(self, stage: int) -> float:
        """The bound of a stage, counted from 0."""
        return self.kept_overlap[min(stage, len(self.kept_overlap) - 1)]

    @property
    def judges(self) -> bool:
        """Whether there is any bound."""
        fixed = self.cosine > -1 or any((self.top1_agreement, *self.kept_overlap))
        return fixed or self.max_drop is not None or self.change is not None


@dataclass(frozen=True)
class NoiseFloor:
    """How far the reference's answers to changed images are from its answers to the images themselves.

    The fields are those of FidelityReport.
    """

    change: Change
    cosine: float
    top1_agreement: float
    kept_overlap: tuple[float, ...]
    patches_lost: tuple[float, ...]
    confidence_change: float


@dataclass(frozen=True)
class FidelityReport:
    """How far a graph's outputs are from its reference on the same images.

    `step` names the step of the export that made the graph.

    `cosine` is the mean over images of the cosine between logit vectors. `kept_overlap` has one
    number a stage: the mean Jaccard overlap of the kept patches. `patches_lost` has the mean number
    of patches an image that the reference keeps and the graph does not, `lost_near_border` how many
    of these the reference itself all but dropped (see fidelity.BORDER); empty where the reference
    has no ranks. The accuracies are of the `labelled` images; they are None where there is none, and so
    is the `drop`, the 95 % interval of what the accuracy loses. `confidence_change` is the mean change of
    the probability of the reference's own decision. `noise_floor` is there where the tolerance names a
    change. `verdict` is `pass` when no bound was missed, `not judged` where the tolerance has none.
    `ece` and `reference_ece` are the expected calibration errors of the labelled images' probabilities,
    at the temperature of the network. Fractions of 1.
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
    confidence_change: float | None = None
    labelled: int = 0
    drop: tuple[float, float] | None = None
    noise_floor: NoiseFloor | None = None
    ece: float | None = None
    reference_ece: float | None = None
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        # A field, so that every JSON form holds it; it follows from the failures alone.
        passes: Verdict = "pass" if self.tolerance.judges else "not judged"
        object.__setattr__(self, "verdict", "fail" if self.failures else passes)

    @property
    def resolved(self) -> bool:
        """Whether the images are enough to tell that the accuracy loses no more than it may."""
        allowed = self.tolerance.max_drop
        return allowed is None or (self.drop is not None and self.drop[1] <= allowed)
