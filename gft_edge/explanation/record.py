"""One image's explanation as JSON, and in the lines below its picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from gft_edge.bundle.specs import ModelSpec
from gft_edge.explanation.occlusion import (
    Occlusion,
    cells_named,
    cover_grid,
)
from gft_edge.explanation.subject import Subject, log_probabilities
from gft_edge.explanation.view import Explanation

PREDICTIONS = 5


def footnotes(subject: Subject, explained: Explanation, covered: Occlusion | None) -> list[str]:
    notes = [f"Computed by {subject.runs}."]
    notes += [f"Not available: {reason}." for reason in subject.unavailable]
    if explained.difference > 0:
        notes.append(
            "Scores and kept patches come from a run with more outputs, whose logits differ from the "
            f"deployed one's by up to {explained.difference:.1e}."
        )
    if covered is not None:
        side, (rows, columns) = covered.block_patches, cover_grid(subject.model)
        grid = "" if subject.model.family == "gft" else f" of {rows} x {columns}"
        cells = f"{cells_named(subject.model)}{grid}"
        notes.append(
            f"Last row: {side} x {side} {cells} at a time covered with the mean colour, "
            f"{covered.inferences} inferences, {covered.seconds:.1f} s; red speaks for the class."
        )
    return notes


def record_of(
    explained: Explanation, covered: Occlusion | None, model: ModelSpec
) -> dict[str, Any]:
    probabilities = np.exp(log_probabilities(explained.logits))
    best = np.argsort(-probabilities, kind="stable")[:PREDICTIONS]
    return {
        "predictions": [
            {"label": model.labels[i], "index": int(i), "probability": float(probabilities[i])}
            for i in best
        ],
        "logits_difference": explained.difference,
        "stages": [
            {
                "present": _places(stage.present, model),
                "importance": _numbers(stage.importance),
                "attention": _numbers(stage.attention),
                "kept": _places(stage.kept, model),
            }
            for stage in explained.stages
        ],
        "occlusion": None if covered is None else {
            "classes": [
                {
                    "label": model.labels[index],
                    "log_probability": log_p,
                    "drop": drop.tolist(),
                }
                for index, log_p, drop in zip(
                    covered.classes, covered.log_p, covered.drops, strict=True
                )
            ],
            "cover_patches": covered.block_patches,
            "inferences": covered.inferences,
            "seconds": covered.seconds,
        },
    }  # fmt: skip


def _places(positions: Any, model: ModelSpec) -> list[list[int]]:
    """Row and column of each patch."""
    return [[*divmod(int(position), model.patch_grid[1])] for position in positions]


def _numbers(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
