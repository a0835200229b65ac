"""Images of a data folder for a benchmark: to calibrate on, to verify exports on, to measure accuracy on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gft_edge.bundle.images import DataSource, ImageSet
from gft_edge.bundle.specs import Say
from gft_edge.calibration.image_set import (
    CALIBRATION_IMAGES,
    draw_calibration_set,
    draw_image_set,
    read_calibration_folder,
    without_images,
)
from gft_edge.datasets import Split, read_split, splits_of, verification_split
from gft_edge.errors import DataError, UsageError

SEED = 0


def calibration_images(
    folder: Path | None, source: DataSource, labels: tuple[str, ...], say: Say
) -> ImageSet | str:
    """Images to calibrate INT8 on, or why there are none: from `folder`, or else the train split.

    Raises DataError for a `folder` that cannot be calibrated on.
    """
    here = splits_of(source)
    try:
        if folder is None and "train" not in here:
            raise DataError(
                f"{source.folder} has no train/ to calibrate on: give --calibration-data FOLDER of "
                "real images"
            )
        known = read_split(source, "test", labels) if "test" in here else None
        if folder is None:
            available = read_split(source, "train", labels)
        else:
            dataset = (source.dataset, source.coco_category)
            available = read_calibration_folder(folder, labels, *dataset)
        images, remarks = draw_calibration_set(available, CALIBRATION_IMAGES, SEED, known)
    except DataError as error:
        if folder is not None:
            raise
        return str(error)
    for remark in remarks:
        say(remark)
    return images


def verification_images(
    source: DataSource, labels: tuple[str, ...], count: int, calibrated_on: ImageSet | None
) -> ImageSet:
    """What every step of an export is verified on: val where there is one, none calibrated on."""
    available = read_split(source, verification_split(source), labels)
    if calibrated_on is not None:
        available = without_images(available, calibrated_on)
    return draw_image_set(available, count, SEED)


def evaluation_split(
    source: DataSource, split: str, labels: tuple[str, ...], limit: int | None
) -> Split:
    """The images that accuracy is measured on: all of a split, or `limit` drawn class by class."""
    images = read_split(source, split, labels)
    if limit is None:
        return images
    if limit < 1:
        raise UsageError(f"--limit is {limit}: give 1 or more")
    drawn = draw_image_set(images, limit, SEED)
    return dataclasses.replace(
        images, paths=tuple(map(Path, drawn.paths)), targets=tuple(drawn.targets)
    )
