"""Explain images one by one, with a picture of each, or measure what a ranking of patches is worth."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec, Score
from gft_edge.bundle.store import write_whole
from gft_edge.datasets import Split
from gft_edge.errors import ImageError, UsageError
from gft_edge.explanation.deletion import DeletionReport, InsertFrom, deletion_report
from gft_edge.explanation.occlusion import Occlusion, cells_named, cover_grid, occlude
from gft_edge.explanation.sheet import explanation_sheet
from gft_edge.explanation.subject import BundleSubject, Pixels, Subject, log_probabilities
from gft_edge.explanation.view import Explanation, Positions, explanation
from gft_edge.runtime.batches import Advance
from gft_edge.runtime.classifier import load_pixels

PREDICTIONS = 5


def explain_images(
    subject: Subject, paths: Sequence[str], out: Path, cover: int
) -> Iterator[dict[str, Any]]:
    """Write a picture of each image to the folder `out`, and give what it shows as JSON.

    `cover` is the side of what `occlude` covers, 0 for nothing. An image that cannot be read has an
    `error` in the place of its picture.
    """
    for place, path in enumerate(paths, start=1):
        try:
            pixels = load_pixels(path, subject.model.preprocessing)
        except ImageError as error:
            yield {"path": path, "error": str(error)}
            continue
        explained = explanation(subject.see(pixels[None]), subject.model.patch_count)
        covered = occlude(subject, pixels, cover) if cover else None
        name = f"{place:0{len(str(len(paths)))}d}-{Path(path).stem}.png"
        notes = _footnotes(subject, explained, covered)
        title = Path(path).name.encode("utf-8", "replace").decode()
        sheet = explanation_sheet(title, pixels, explained, subject.model, covered, notes)
        content = io.BytesIO()
        sheet.save(content, "PNG")
        write_whole(out / name, content.getvalue())
        yield {"path": path, "picture": name, **_record(explained, covered, subject.model)}


def _footnotes(subject: Subject, explained: Explanation, covered: Occlusion | None) -> list[str]:
    """The lines below an image's picture."""
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


def _record(explained: Explanation, covered: Occlusion | None, model: ModelSpec) -> dict[str, Any]:
    """An image's explanation as JSON."""
    columns = model.patch_grid[1]

    def places(positions: Positions) -> Any:
        """Row and column of each patch."""
        return np.stack(np.divmod(positions, columns), axis=1).tolist()

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
                "present": places(stage.present),
                "importance": None if stage.importance is None else stage.importance.tolist(),
                "attention": None if stage.attention is None else stage.attention.tolist(),
                "kept": places(stage.kept),
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


def check_ranking(subject: Subject) -> None:
    """Raise UsageError for a network that shows no order to delete its patches in."""
    if not subject.model.stages:
        why = "shows no parts" if subject.model.family == "transfg" else "ranks no patches"
        raise UsageError(f"this network {why}: there is no order to delete patches in")
    if subject.unavailable:
        raise UsageError(f"there is no order to delete patches in: {subject.unavailable[-1]}")


def drawn_pixels(split: Split, model: ModelSpec, limit: int, seed: int) -> Pixels:
    """Draw up to `limit` images of a split by `seed`: uint8 (images,S,S,3). Raises ImageError."""
    drawn = np.random.default_rng(seed).permutation(len(split.paths))[:limit]
    spec, crop_px = model.preprocessing, split.crop_bottom_px
    return np.stack([load_pixels(split.paths[i], spec, crop_px) for i in sorted(drawn)])


def measure_ranking(
    subject: Subject,
    pixels: Pixels,
    points: int,
    insert_from: InsertFrom,
    random_orders: int,
    seed: int,
    advance: Advance,
) -> tuple[DeletionReport, list[str]]:
    """Deletion and insertion on images, and which orders are not to be had, and why.

    The arguments are deletion_report's; no curve has more points than there are patches.
    """
    others, missing = _other_orders(subject)
    points = min(points, subject.model.patch_count)
    found = deletion_report(
        subject, others, pixels, points, insert_from, random_orders, seed, advance
    )
    return found, missing


def _other_orders(subject: Subject) -> tuple[dict[str, Subject], list[str]]:
    """The same weights ranking by the other scores, and which of these are not to be had."""
    wanted: list[Score] = [name for name in ("class", "gala") if name != subject.model.score]
    if isinstance(subject, BundleSubject):
        return {}, [
            f"the order by {SCORES[name].title}: a bundle ranks by its own score alone; give the run"
            for name in wanted
        ]
    from gft_edge.explanation.torch_subject import NetworkSubject

    assert isinstance(subject, NetworkSubject)
    return {SCORES[name].title: subject.ranking_by(name) for name in wanted}, []
