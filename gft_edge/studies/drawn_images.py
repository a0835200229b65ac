"""The one drawing of images for exports: to calibrate on, to verify on, and to measure accuracy on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gft_edge.bundle.images import DataSource, ImageSet
from gft_edge.bundle.specs import Say
from gft_edge.calibration.image_set import (
    CALIBRATION_IMAGES,
    FEWEST_IMAGES,
    Decisions,
    draw_calibration_set,
    draw_judges,
    in_turn,
    read_calibration_folder,
    without_images,
)
from gft_edge.datasets import Photographs, Split, splits_of, verification_split
from gft_edge.datasets.photographs import photographs_split, read_photographs
from gft_edge.errors import DataError, UsageError

SEED = 0
VERIFICATION_IMAGES = 512


def calibration_images(
    folder: Path | None,
    source: DataSource,
    labels: tuple[str, ...],
    say: Say,
    count: int | None = None,
    seed: int = SEED,
) -> ImageSet:
    """Draw the images that INT8 is calibrated on from `folder`, or else from the train split.

    They may be of any classes, none of them in the test split. `count` None takes CALIBRATION_IMAGES, or
    what there is, and of the train split or of the source's own folder no more than half: the rest judges.
    Raises DataError where there is nothing to calibrate on, UsageError for too small a `count`.
    """
    here = splits_of(source)
    if folder is None and "train" not in here:
        raise DataError(
            f"{source.folder} has no train/ to calibrate on: give --calibration-data FOLDER of "
            "real images"
        )
    test = read_photographs(source, "test", labels) if "test" in here else None
    if folder is None:
        available = read_photographs(source, "train", labels)
    else:
        dataset = (source.dataset, source.coco_category)
        available = read_calibration_folder(folder, labels, *dataset)
    if count is None:
        judges = folder is None or folder.resolve() == source.folder.resolve()
        most = len(available.paths) // (2 if judges else 1)
        count = max(FEWEST_IMAGES, min(CALIBRATION_IMAGES, most))
    images, remarks = draw_calibration_set(available, count, seed, test)
    for remark in (*available.remarks, *remarks):
        say(remark)
    return images


def verification_images(
    source: DataSource,
    labels: tuple[str, ...],
    count: int = VERIFICATION_IMAGES,
    calibrated_on: ImageSet | None = None,
    split: str | None = None,
    seed: int = SEED,
    decisions: Decisions | None = None,
) -> ImageSet:
    """Draw from verification_splits what every step of an export is verified on.

    With `decisions` it is drawn as by draw_judges. Raises DataError where calibration leaves no image.
    """
    splits = verification_splits(source, labels, calibrated_on, split)
    return draw_judges(splits, count, seed, decisions)


def verification_splits(
    source: DataSource,
    labels: tuple[str, ...],
    calibrated_on: ImageSet | None = None,
    split: str | None = None,
) -> list[Photographs]:
    """List what an export may be verified on, none of the images calibrated on, whatever their classes.

    `split` None takes val, else test, and then train, which the network has learnt; of a folder without
    splits it takes every image. Raises DataError where calibration leaves none.
    """
    names = [photographs_split(source, split, verification_split)]
    if split is None and "train" in splits_of(source):
        names = list(dict.fromkeys([*names, "train"]))
    splits = [read_photographs(source, name, labels) for name in names]
    if calibrated_on is not None:
        splits = [without_images(one, calibrated_on) for one in splits]
    if not any(one.paths for one in splits):
        raise DataError(
            f"every image of {' and '.join(one.name for one in splits)} is calibrated on, none is left to "
            "verify on: give --split another, or calibrate on fewer"
        )
    return splits


def limited(split: Split, limit: int | None) -> Split:
    """The images that accuracy is measured on: all of a split, or `limit` drawn class by class."""
    if limit is None:
        return split
    if limit < 1:
        raise UsageError(f"--limit is {limit}: give 1 or more")
    chosen = in_turn(split, SEED)[:limit]
    return dataclasses.replace(
        split,
        paths=tuple(split.paths[n] for n in chosen),
        targets=tuple(split.targets[n] for n in chosen),
    )
