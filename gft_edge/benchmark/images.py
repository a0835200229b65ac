"""Images of a data folder for a benchmark: to calibrate on, to verify exports on, to measure accuracy on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from gft_edge.calibration.image_set import (
    draw_calibration_set,
    draw_image_set,
    read_calibration_folder,
    without_images,
)
from gft_edge.errors import DataError, UsageError
from gft_edge.image_folder import Split, read_split
from gft_edge.specs import ImageSet, Say

CALIBRATION_IMAGES = 300
SEED = 0


def calibration_images(
    folder: Path | None, data: Path, labels: tuple[str, ...], say: Say
) -> ImageSet | str:
    """Images to calibrate INT8 on, or why there are none: from `folder`, or else DATA/train.

    Raises DataError for a `folder` that cannot be calibrated on.
    """
    try:
        if folder is None and not (data / "train").is_dir():
            raise DataError(
                f"{data} has no train/ to calibrate on: give --calibration-data FOLDER of real images"
            )
        known = read_split(data, "test", labels) if (data / "test").is_dir() else None
        available = read_calibration_folder(folder or data / "train", labels)
        images, remarks = draw_calibration_set(available, CALIBRATION_IMAGES, SEED, known)
    except DataError as error:
        if folder is not None:
            raise
        return str(error)
    for remark in remarks:
        say(remark)
    return images


def verification_images(
    data: Path, labels: tuple[str, ...], count: int, calibrated_on: ImageSet | None
) -> ImageSet:
    """What every stage of an export is verified on: val where there is one, none calibrated on."""
    split = next((name for name in ("val", "test") if (data / name).is_dir()), "train")
    available = read_split(data, split, labels)
    if calibrated_on is not None:
        available = without_images(available, calibrated_on)
    return draw_image_set(available, count, SEED)


def evaluation_split(data: Path, split: str, labels: tuple[str, ...], limit: int | None) -> Split:
    """The images that accuracy is measured on: all of DATA/SPLIT, or `limit` drawn class by class."""
    images = read_split(data, split, labels)
    if limit is None:
        return images
    if limit < 1:
        raise UsageError(f"--limit is {limit}: give 1 or more")
    drawn = draw_image_set(images, limit, SEED)
    return dataclasses.replace(
        images, paths=tuple(map(Path, drawn.paths)), targets=tuple(drawn.targets)
    )


def listing_digest(data: Path, split: Split) -> str:
    """Of the names and sizes of a split's files: other images seldom have both."""
    digest = hashlib.sha256()
    for path in split.paths:
        digest.update(f"{path.relative_to(data)} {path.stat().st_size}\n".encode(errors="replace"))
    return digest.hexdigest()
