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
from gft_edge.explanation.occlusion import occlude
from gft_edge.explanation.record import footnotes, record_of
from gft_edge.explanation.sheet import explanation_sheet
from gft_edge.explanation.subject import BundleSubject, Pixels, Subject
from gft_edge.explanation.view import explanations
from gft_edge.runtime.classifier import Advance, load_pixels


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
        (explained,) = explanations(subject.see(pixels[None]), subject.model.patch_count)
        covered = occlude(subject, pixels, cover) if cover else None
        name = f"{place:0{len(str(len(paths)))}d}-{Path(path).stem}.png"
        notes = footnotes(subject, explained, covered)
        title = Path(path).name.encode("utf-8", "replace").decode()
        sheet = explanation_sheet(title, pixels, explained, subject.model, covered, notes)
        content = io.BytesIO()
        sheet.save(content, "PNG")
        write_whole(out / name, content.getvalue())
        yield {"path": path, "picture": name, **record_of(explained, covered, subject.model)}


def check_ranking(subject: Subject) -> None:
    """Raise UsageError for a network that shows no order to delete its patches in."""
    if not subject.model.stages:
        why = "shows no parts" if subject.model.family == "transfg" else "ranks no patches"
        raise UsageError(f"this network {why}: there is no order to delete patches in")
    if subject.unavailable:
        raise UsageError(f"there is no order to delete patches in: {subject.unavailable[-1]}")


def drawn_pixels(split: Split, model: ModelSpec, limit: int, seed: int) -> Pixels:
    """At most `limit` images of a split, drawn by `seed`, uint8 (images,S,S,3). Raises ImageError."""
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
