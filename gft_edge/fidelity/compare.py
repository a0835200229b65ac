"""How far one set of outputs is from another: logits, decisions and the patches each kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.reports import FidelityReport, Tolerance
from gft_edge.runtime.outputs import Outputs, grid_positions

# What a precision under fp32 may cost of the accuracy, a fraction of 1, unless told otherwise.
MAX_DROP = 0.01

# For comparisons that report and do not judge.
NO_BOUND = Tolerance(top1_agreement=0.0, kept_overlap=(0.0,), cosine=-1.0)

TOLERANCES = {
    # FP32 graphs must decide alike on every image and keep 99.9 % of the same patches.
    "fp32": Tolerance(top1_agreement=1.0, kept_overlap=(0.999,), cosine=0.9999),
    # Weights stored in FP16 are rounded to 11 bits, and patches at the border change sides: measured
    # for gft_tiny_edge on 256 photographs 99.6 %, 0.999 / 0.996 / 0.985 and 0.9996.
    "fp32-fp16-weights": Tolerance(top1_agreement=0.99, kept_overlap=(0.98,), cosine=0.999),
    # Errors compound: a patch that stage 1 drops cannot come back, so later stages have lower bounds.
    "fp16": Tolerance(0.99, kept_overlap=(0.995, 0.99, 0.97), cosine=0.999, max_drop=MAX_DROP),
    # About half of what plain INT8 loses on photographs (benchmarks/precision.py).
    "bf16": Tolerance(0.98, kept_overlap=(0.985, 0.95, 0.88), cosine=0.98, max_drop=MAX_DROP),
    "int8": Tolerance(0.99, kept_overlap=(0.985, 0.95, 0.88), cosine=0.98, max_drop=MAX_DROP),
}

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


def compare(
    step: str,
    reference: Outputs,
    candidate: Outputs,
    tolerance: Tolerance,
    targets: Sequence[int] | None = None,
) -> FidelityReport:
    """Judge `candidate` against `reference` on the same images. NaN logits are a failure.

    `targets`, the images' classes, adds both accuracies and the bound on what may be lost.
    """
    a, b = reference.logits.astype(np.float64), candidate.logits.astype(np.float64)
    # Infinite logits make NaN here, and a finding below.
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = float(np.mean((a * b).sum(axis=1) / np.maximum(norms, 1e-30)))
        max_abs = float(np.abs(a - b).max())
    agreement = float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
    accuracy = reference_accuracy = None
    if targets is not None:
        accuracy = float(np.mean(b.argmax(axis=1) == np.asarray(targets)))
        reference_accuracy = float(np.mean(a.argmax(axis=1) == np.asarray(targets)))
    overlaps = tuple(
        kept_overlap(x, y)
        for x, y in zip(grid_positions(reference.kept), grid_positions(candidate.kept), strict=True)
    )
    lost = [patches_lost(reference, candidate, number) for number in range(len(overlaps))]
    failures = []
    if not np.isfinite(b).all():
        failures.append("the logits hold NaN or infinity")
    lost_accuracy = (reference_accuracy or 0) - (accuracy or 0)
    # Rounding alone must not decide: 0.9 - 0.89 is more than 0.01.
    if tolerance.max_drop is not None and lost_accuracy > tolerance.max_drop + 1e-9:
        failures.append(
            f"accuracy falls from {reference_accuracy:.4f} to {accuracy:.4f}, by more than "
            f"{tolerance.max_drop:g}"
        )
    if not agreement >= tolerance.top1_agreement:
        failures.append(f"top-1 agreement {agreement:.4f} is under {tolerance.top1_agreement:g}")
    if not cosine >= tolerance.cosine:
        failures.append(f"logit cosine {cosine:.6f} is under {tolerance.cosine:g}")
    failures += [
        f"stage {number + 1} keeps {overlap:.4f} of the same patches, under "
        f"{tolerance.overlap_bound(number):g}"
        for number, overlap in enumerate(overlaps)
        if not overlap >= tolerance.overlap_bound(number)
    ]
    return FidelityReport(
        step=step,
        max_abs=max_abs,
        cosine=cosine,
        top1_agreement=agreement,
        kept_overlap=overlaps,
        images=len(reference),
        tolerance=tolerance,
        failures=tuple(failures),
        accuracy=accuracy,
        reference_accuracy=reference_accuracy,
        patches_lost=tuple(total for total, _ in lost),
        lost_near_border=tuple(near for _, near in lost if near is not None),
    )
