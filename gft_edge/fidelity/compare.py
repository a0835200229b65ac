"""How far one set of outputs is from another: logits, decisions and the patches each kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.reports import Change, FidelityReport, NoiseFloor, Tolerance
from gft_edge.fidelity.confidence import expected_calibration_error, probabilities
from gft_edge.fidelity.intervals import mean_interval, paired_drop_interval, proportion_interval
from gft_edge.fidelity.metrics import right_of
from gft_edge.fidelity.noise_floor import NAMES
from gft_edge.runtime.outputs import Outputs, grid_positions

# What a precision under fp32 may cost of the accuracy, a fraction of 1, unless told otherwise.
MAX_DROP = 0.01

# For comparisons that report and do not judge.
NO_BOUND = Tolerance(top1_agreement=0.0, kept_overlap=(0.0,), cosine=-1.0)

# The precision of a bundle that was asked for in INT8 and has less than half of its work in it.
PARTLY_INT8 = "partly-int8"

TOLERANCES = {
    # FP32 graphs must decide alike on every image and keep 99.9 % of the same patches.
    "fp32": Tolerance(top1_agreement=1.0, kept_overlap=(0.999,), cosine=0.9999),
    # Weights stored in FP16 are rounded to 11 bits, and patches at the border change sides: measured
    # for gft_tiny_edge on 256 photographs 99.6 %, 0.999 / 0.996 / 0.985 and 0.9996.
    "fp32-fp16-weights": Tolerance(top1_agreement=0.99, kept_overlap=(0.98,), cosine=0.999),
    # Errors compound: a patch that stage 1 drops cannot come back, so later stages have lower bounds.
    "fp16": Tolerance(0.99, kept_overlap=(0.995, 0.99, 0.97), cosine=0.999, max_drop=MAX_DROP),
    # About half of what plain INT8 loses on photographs (docs/results.md).
    "bf16": Tolerance(0.98, kept_overlap=(0.985, 0.95, 0.88), cosine=0.98, max_drop=MAX_DROP),
    "int8": Tolerance(0.99, kept_overlap=(0.985, 0.95, 0.88), cosine=0.98, max_drop=MAX_DROP),
}
# What the rest is computed in, and how much of it there is, changes nothing in what INT8 may cost.
TOLERANCES["int8-bf16"] = TOLERANCES[PARTLY_INT8] = TOLERANCES["int8"]

# What a lower precision may change: so large a share of what a change that nobody sees does to the
# reference itself, all of it where none is named.
_FREE = Tolerance(0.0, kept_overlap=(0.0,), cosine=-1.0, max_drop=MAX_DROP)
PHOTO_TOLERANCES = {
    **TOLERANCES,
    # Fixed bounds besides, so that a fault cannot hide in a network that noise disturbs much.
    "fp16": Tolerance(0.99, (0.995, 0.0), -1.0, MAX_DROP, change="noise", share=0.25),
    "bf16": dataclasses.replace(_FREE, change="noise"),
    **dict.fromkeys(("int8", "int8-bf16"), dataclasses.replace(_FREE, change="jpeg75")),
}

# The rule that a precision under fp32 is judged by, by the name of --fidelity: `off` measures and has no
# bound.
FIDELITIES = {
    "photo": PHOTO_TOLERANCES,
    "strict": TOLERANCES,
    "off": {**dict.fromkeys(TOLERANCES, NO_BOUND), "fp32": TOLERANCES["fp32"]},
}

# A verdict by intervals needs as many images.
FEWEST_TO_JUDGE = 64

# Overlap of the patches and cosine of the logits that a change moves by less are a warning: photographs
# move those of a trained network by several times as much.
LOW_FLOORS: dict[Change, tuple[float, float]] = {
    "noise": (0.002, 5e-5),
    "jpeg75": (0.005, 1e-3),
}

# How far below a change's own agreement with the reference that of a graph may lie.
AGREEMENT_MARGIN = 0.01
# A drop of so many times what is allowed fails even where its interval begins lower.
GROSS_DROP = 3
# A class is lost where a graph keeps fewer of the decisions for it.
LEAST_OF_CLASS = 0.5

# A lost patch is near the border when the reference ranks it among the last of those it keeps, no
# further from the first it drops than this share of the patches it chose from: a tie, not a shift.
BORDER = 0.05


def image_overlaps(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Per image the Jaccard overlap of two kept sets of grid positions: (images, K) -> (images,)."""
    common = [np.intersect1d(x, y, assume_unique=True).size for x, y in zip(a, b, strict=True)]
    union = a.shape[1] + b.shape[1] - np.asarray(common)
    return np.asarray(common / union, dtype=np.float64)


def kept_overlap(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Mean over images of `image_overlaps`."""
    return float(np.mean(image_overlaps(a, b)))


def patches_lost(reference: Outputs, candidate: Outputs, stage: int) -> tuple[float, float | None]:
    """Patches an image that the reference keeps at a stage and the candidate does not: all, near the
    border. None for the latter where the reference has no ranks.
    """
    ours = grid_positions(reference.kept)[stage]
    theirs = grid_positions(candidate.kept)[stage]
    lost = [~np.isin(a, b) for a, b in zip(ours, theirs, strict=True)]
    total = float(np.mean([row.sum() for row in lost]))
    if not reference.ranks:
        return total, None
    ranks = np.take_along_axis(reference.ranks[stage], reference.kept[stage], axis=1)
    choice = reference.ranks[stage].shape[1]
    near = ranks >= ours.shape[1] - max(1, round(BORDER * choice))
    return total, float(np.mean((np.stack(lost) & near).sum(axis=1)))


@dataclass(frozen=True)
class Distances:
    """How far one set of outputs is from another, image by image: (images,) each, overlaps one a stage."""

    agree: npt.NDArray[np.bool_]
    cosine: npt.NDArray[np.float64]
    overlaps: tuple[npt.NDArray[np.float64], ...]
    confidence: npt.NDArray[np.float64]
    max_abs: float


def distances(reference: Outputs, candidate: Outputs, temperature: float = 1.0) -> Distances:
    """Compare outputs for the same images. Confidence is the change of the reference's top-1 probability."""
    a, b = reference.logits.astype(np.float64), candidate.logits.astype(np.float64)
    every, decided = np.arange(len(a)), a.argmax(axis=1)
    # Infinite logits make NaN here, and a finding of `compare`.
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
        sure, now = (probabilities(each, temperature)[every, decided] for each in (a, b))
        confidence = np.abs(sure - now)
        max_abs = float(np.abs(a - b).max())
    pairs = zip(grid_positions(reference.kept), grid_positions(candidate.kept), strict=True)
    overlaps = tuple(image_overlaps(ours, theirs) for ours, theirs in pairs)
    return Distances(decided == b.argmax(axis=1), cosine, overlaps, confidence, max_abs)


def compare(
    step: str,
    reference: Outputs,
    candidate: Outputs,
    tolerance: Tolerance,
    targets: Sequence[int | None] = (),
    floor: Outputs | None = None,
    labels: Sequence[str] = (),
    temperature: float = 1.0,
) -> FidelityReport:
    """Judge `candidate` against `reference` on the same images. NaN logits are a failure.

    `targets`, the images' classes where they count (see ImageSet), adds both accuracies and the bound on
    what may be lost. A tolerance with a change needs `floor`, the reference's outputs for the images after
    that change. A class that is lost is named by `labels`, by its index without.
    Probabilities are those at the network's `temperature`.
    """
    found = distances(reference, candidate, temperature)
    accuracy = reference_accuracy = drop = None
    ece: list[float | None] = []
    failures = []
    if not np.isfinite(candidate.logits).all():
        failures.append("the logits hold NaN or infinity")
    before, after = (right_of(outputs.logits, targets) for outputs in (reference, candidate))
    if len(before):
        accuracy, reference_accuracy = float(after.mean()), float(before.mean())
        drop = paired_drop_interval(before, after)
        failures += _accuracy_failures(tolerance, reference_accuracy, accuracy, drop)
        ece = [_ece(outputs, targets, temperature) for outputs in (candidate, reference)]
    failures += _bound_failures(tolerance, found)
    lost = [patches_lost(reference, candidate, number) for number in range(len(found.overlaps))]
    noise_floor = None
    if tolerance.change is not None:
        assert floor is not None, "a change bounds by what it does to the reference"
        theirs = distances(reference, floor, temperature)
        failures += _floor_failures(tolerance, reference, found, theirs, labels)
        noise_floor = noise_floor_of(tolerance.change, reference, floor, temperature)
    return FidelityReport(
        step=step,
        max_abs=found.max_abs,
        cosine=float(found.cosine.mean()),
        top1_agreement=float(found.agree.mean()),
        kept_overlap=tuple(float(overlap.mean()) for overlap in found.overlaps),
        images=len(reference),
        tolerance=tolerance,
        failures=tuple(failures),
        accuracy=accuracy,
        reference_accuracy=reference_accuracy,
        patches_lost=tuple(total for total, _ in lost),
        lost_near_border=tuple(near for _, near in lost if near is not None),
        confidence_change=float(found.confidence.mean()),
        labelled=len(before),
        drop=drop,
        noise_floor=noise_floor,
        ece=ece[0] if ece else None,
        reference_ece=ece[1] if ece else None,
    )


def _ece(outputs: Outputs, targets: Sequence[int | None], temperature: float) -> float | None:
    """The calibration error of the labelled images; None of logits that are no numbers."""
    if not np.isfinite(outputs.logits).all():
        return None
    known = [n for n, target in enumerate(targets) if target is not None]
    classes = np.asarray([targets[n] for n in known], dtype=np.int64)
    return expected_calibration_error(outputs.logits[known], classes, temperature)


def noise_floor_of(
    change: Change, reference: Outputs, floor: Outputs, temperature: float = 1.0
) -> NoiseFloor:
    """Return how far `floor`, the reference's outputs for changed images, is from its outputs for them."""
    found = distances(reference, floor, temperature)
    return NoiseFloor(
        change,
        float(found.cosine.mean()),
        float(found.agree.mean()),
        tuple(float(overlap.mean()) for overlap in found.overlaps),
        tuple(patches_lost(reference, floor, n)[0] for n in range(len(found.overlaps))),
        float(found.confidence.mean()),
    )


def low_floor(floor: NoiseFloor) -> str | None:
    """Say that a change moves so little of a network that its bounds are narrower than is usual."""
    overlap, cosine = LOW_FLOORS[floor.change]
    if floor.kept_overlap:
        low, moved = 1 - floor.kept_overlap[0] < overlap, "the patches of stage 1"
        share = 1 - floor.kept_overlap[0]
    else:
        low, moved, share = 1 - floor.cosine < cosine, "the logits' cosine", 1 - floor.cosine
    if not low:
        return None
    return (
        f"{NAMES[floor.change]} changes {moved} by {share:.2g} alone, so little that a sound graph may miss "
        "the bounds: --fidelity strict has fixed ones"
    )


def _accuracy_failures(
    tolerance: Tolerance, before: float, after: float, drop: tuple[float, float]
) -> list[str]:
    allowed = tolerance.max_drop
    if allowed is None:
        return []
    # Rounding alone must not decide: 0.9 - 0.89 is more than 0.01.
    lost = before - after - 1e-9
    if tolerance.change is None:
        fails = lost > allowed
    else:
        fails = drop[0] > allowed or (lost > GROSS_DROP * allowed and drop[0] > 0)
    text = f"accuracy falls from {before:.4f} to {after:.4f}, by more than {allowed:g}"
    return [text] if fails else []


def _bound_failures(tolerance: Tolerance, found: Distances) -> list[str]:
    """What misses a fixed bound: its mean or, under a tolerance with a change, its whole interval."""
    by_interval = tolerance.change is not None

    def most(values: npt.NDArray[np.float64]) -> float:
        return mean_interval(values)[1] if by_interval else float(values.mean())

    agreement, cosine = float(found.agree.mean()), float(found.cosine.mean())
    agreement_most = agreement
    if by_interval:
        agreement_most = proportion_interval(int(found.agree.sum()), len(found.agree))[1]
    failures = []
    if not agreement_most >= tolerance.top1_agreement:
        failures.append(f"top-1 agreement {agreement:.4f} is under {tolerance.top1_agreement:g}")
    if not most(found.cosine) >= tolerance.cosine:
        failures.append(f"logit cosine {cosine:.6f} is under {tolerance.cosine:g}")
    return failures + [
        f"stage {number + 1} keeps {overlap.mean():.4f} of the same patches, under "
        f"{tolerance.overlap_bound(number):g}"
        for number, overlap in enumerate(found.overlaps)
        if not most(overlap) >= tolerance.overlap_bound(number)
    ]


def _floor_failures(
    tolerance: Tolerance,
    reference: Outputs,
    found: Distances,
    theirs: Distances,
    labels: Sequence[str],
) -> list[str]:
    """What a graph changes beyond the tolerance's share of what the change does to the reference."""
    assert tolerance.change is not None
    share, change = tolerance.share, NAMES[tolerance.change]
    failures = []
    pairs = [
        (f"stage {number + 1} exchanges", 1 - ours, 1 - own)
        for number, (ours, own) in enumerate(zip(found.overlaps, theirs.overlaps, strict=True))
    ] or [("the logits' cosine falls by", 1 - found.cosine, 1 - theirs.cosine)]
    for what, ours, own in pairs:
        # NaN fails too.
        if not mean_interval(ours - share * own)[0] <= 0:
            failures.append(
                f"{what} {ours.mean():.2%}, over {share:g} of the {own.mean():.2%} of {change}"
            )
    if paired_drop_interval(theirs.agree, found.agree)[0] > AGREEMENT_MARGIN:
        failures.append(
            f"top-1 agreement {found.agree.mean():.4f} is more than {AGREEMENT_MARGIN:g} under the "
            f"{theirs.agree.mean():.4f} of {change}"
        )
    if not mean_interval(found.confidence - theirs.confidence)[0] <= 0:
        failures.append(
            f"the top-1 probability changes by {found.confidence.mean():.3f}, that under {change} by "
            f"{theirs.confidence.mean():.3f}"
        )
    for number in _lost_classes(reference, found, theirs):
        name = repr(labels[number]) if labels else number
        failures.append(
            f"class {name} is lost: under half of its decisions stay, more under {change}"
        )
    return failures


def _lost_classes(reference: Outputs, found: Distances, theirs: Distances) -> list[int]:
    """The classes whose decisions a graph cannot keep by half, and the change can."""
    decided = reference.logits.argmax(axis=1)
    lost = []
    for number in np.unique(decided):
        kept, own = found.agree[decided == number], theirs.agree[decided == number]
        most = proportion_interval(int(kept.sum()), len(kept))[1]
        if most < LEAST_OF_CLASS and own.mean() > kept.mean():
            lost.append(int(number))
    return lost
