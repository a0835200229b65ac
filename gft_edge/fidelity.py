"""How far one set of outputs is from another: logits, decisions and the patches each kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.specs import FidelityReport, Tolerance

# FP32 graphs must decide alike on every image and keep 99.9 % of the same patches.
FP32_TOLERANCE = Tolerance(top1_agreement=1.0, kept_overlap=0.999, cosine=0.9999)
# Weights stored in FP16 are rounded to 11 bits, and patches at the border change sides: measured for
# gft_tiny_edge on 256 photographs 99.6 %, 0.999 / 0.996 / 0.985 and 0.9996.
FP16_WEIGHTS_TOLERANCE = Tolerance(top1_agreement=0.99, kept_overlap=0.98, cosine=0.999)

TOLERANCES = {"fp32": FP32_TOLERANCE, "fp32-fp16-weights": FP16_WEIGHTS_TOLERANCE}


@dataclass(frozen=True)
class Outputs:
    """What a network gave for some images: logits (images, classes) and, per stage, the kept patches.

    `kept` (images, K) are indices into the patches that the stage before left, ascending.
    """

    logits: npt.NDArray[np.float32]
    kept: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.logits)


def concatenate(batches: Sequence[Outputs]) -> Outputs:
    """Outputs of consecutive batches as one."""
    return Outputs(
        np.concatenate([batch.logits for batch in batches]),
        tuple(
            np.concatenate([batch.kept[stage] for batch in batches])
            for stage in range(len(batches[0].kept))
        ),
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


def kept_overlap(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Mean over images of the Jaccard overlap of two kept sets of grid positions, (images, K) each."""
    common = [np.intersect1d(x, y, assume_unique=True).size for x, y in zip(a, b, strict=True)]
    union = a.shape[1] + b.shape[1] - np.asarray(common)
    return float(np.mean(np.asarray(common) / union))


def compare(
    stage: str, reference: Outputs, candidate: Outputs, tolerance: Tolerance
) -> FidelityReport:
    """Judge `candidate` against `reference` on the same images. NaN logits are a failure."""
    a, b = reference.logits.astype(np.float64), candidate.logits.astype(np.float64)
    # Infinite logits make NaN here, and a finding below.
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = float(np.mean((a * b).sum(axis=1) / np.maximum(norms, 1e-30)))
        max_abs = float(np.abs(a - b).max())
    agreement = float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
    overlaps = tuple(
        kept_overlap(x, y)
        for x, y in zip(grid_positions(reference.kept), grid_positions(candidate.kept), strict=True)
    )
    failures = []
    if not np.isfinite(b).all():
        failures.append("the logits hold NaN or infinity")
    if not agreement >= tolerance.top1_agreement:
        failures.append(f"top-1 agreement {agreement:.4f} is under {tolerance.top1_agreement:g}")
    if not cosine >= tolerance.cosine:
        failures.append(f"logit cosine {cosine:.6f} is under {tolerance.cosine:g}")
    failures += [
        f"stage {number} keeps {overlap:.4f} of the same patches, under {tolerance.kept_overlap:g}"
        for number, overlap in enumerate(overlaps, start=1)
        if not overlap >= tolerance.kept_overlap
    ]
    return FidelityReport(
        stage=stage,
        max_abs=max_abs,
        cosine=cosine,
        top1_agreement=agreement,
        kept_overlap=overlaps,
        images=len(reference),
        tolerance=tolerance,
        failures=tuple(failures),
    )
