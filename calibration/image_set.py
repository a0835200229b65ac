"""Images drawn from splits: seeded, evenly, recorded by digest; and what looks unfit to calibrate on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import CocoCategory, DataSource, ImageSet
from gft_edge.datasets import Photographs, data_set, splits_of
from gft_edge.datasets.photographs import read_photographs
from gft_edge.errors import DataError, UsageError

# Drawn unless another number is asked for.
CALIBRATION_IMAGES = 300
FEWEST_IMAGES = 32

# Of neighbouring pixels, the median over the images. Photographs have 0.9 and more, white noise 0,
# noise scaled down 0.2, noise scaled up to twice its size 0.6.
LEAST_CORRELATION = 0.75
# One black frame in a folder is an accident; many are no calibration set.
MOST_CONSTANT = 0.05
CONSTANT_DEVIATION = 1.0  # grey levels


# (paths, rows to leave out at their bottom) -> the class that a network gives each.
Decisions = Callable[[Sequence[Path], int], Sequence[int]]

# Of the images wanted so many are asked for their class, to draw evenly over the classes.
CANDIDATES = 1.5


def draw_image_set(split: Photographs, count: int, seed: int) -> ImageSet:
    """Draw up to `count` images, seeded, the classes taken in turn so that each is represented."""
    chosen = [(split.paths[n], split.targets[n]) for n in in_turn(split, seed)[:count]]
    return _image_set(chosen, seed, split.crop_bottom_px)


def draw_judges(
    splits: Sequence[Photographs], count: int, seed: int, decisions: Decisions | None
) -> ImageSet:
    """Draw up to `count` images, from later splits only what the first has not.

    With `decisions` they are even over the classes that the network gives them, as far as there are
    images. Only those of the first split have targets: the network was trained on the others.
    """
    chosen: list[tuple[Path, int | None]] = []
    decided: Counter[int] = Counter()
    for number, split in enumerate(splits):
        left = count - len(chosen)
        images = in_turn(split, seed)
        if decisions is not None and left:
            images = images[: max(left, round(CANDIDATES * left))]
            paths = [split.paths[n] for n in images]
            classes = decisions(paths, split.crop_bottom_px) if paths else ()
            ranks = []
            for decision in classes:
                ranks.append(decided[decision])
                decided[decision] += 1
            order = sorted(range(len(images)), key=lambda n: ranks[n])[:left]
            images = [images[n] for n in sorted(order)]
        chosen += [
            (split.paths[n], split.targets[n] if number == 0 else None) for n in images[:left]
        ]
    return _image_set(chosen, seed, splits[0].crop_bottom_px)


def in_turn(split: Photographs, seed: int) -> list[int]:
    """Return the indices of a split's images, shuffled by the seed, the classes taken in turn.

    Images whose class is unknown are taken by their folders.
    """
    by_class: dict[int | Path, list[int]] = defaultdict(list)
    for number, (path, target) in enumerate(zip(split.paths, split.targets, strict=True)):
        by_class[path.parent if target is None else target].append(number)
    generator = random.Random(seed)
    for images in by_class.values():
        generator.shuffle(images)
    rounds = max(map(len, by_class.values()), default=0)
    return [
        images[turn] for turn in range(rounds) for images in by_class.values() if turn < len(images)
    ]


def _image_set(
    chosen: Sequence[tuple[Path, int | None]], seed: int, crop_bottom_px: int
) -> ImageSet:
    digest = hashlib.sha256()
    for path, _ in chosen:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return ImageSet(
        tuple(str(path) for path, _ in chosen),
        seed,
        digest.hexdigest(),
        tuple(target for _, target in chosen),
        crop_bottom_px,
    )


def read_calibration_folder(
    folder: Path,
    labels: tuple[str, ...],
    dataset: str = "imagefolder",
    coco_category: CocoCategory | None = None,
) -> Photographs:
    """The images to calibrate on, of any class: FOLDER/train where there is one, else all of FOLDER.

    A folder that holds the network's own data set gives its train split. Raises DataError as
    read_photographs does, and for a folder of splits none of which is train.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such calibration folder")
    if dataset != "imagefolder" and data_set(dataset).locate(folder):
        return read_photographs(DataSource(folder, dataset, coco_category), "train", labels)
    here = splits_of(folder)
    if here and "train" not in here:
        raise DataError(
            f"{folder} has no train/ to calibrate on, but {' and '.join(here)}: name the folder of the "
            "images themselves"
        )
    return read_photographs(folder, "train" if here else None, labels)


def draw_calibration_set(
    split: Photographs, count: int, seed: int, test: Photographs | None
) -> tuple[ImageSet, list[str]]:
    """Draw up to `count` images to calibrate on, and say what is less than asked for.

    Raises UsageError for a count under FEWEST_IMAGES, DataError for a split with fewer, and for
    images that are in `test` too: a network is not measured on what it was tuned with.
    """
    if count < FEWEST_IMAGES:
        raise UsageError(
            f"--subset-size {count} is too few to calibrate: give {FEWEST_IMAGES} or more"
        )
    if len(split.paths) < FEWEST_IMAGES:
        raise DataError(
            f"the calibration folder holds {len(split.paths)} images: give {FEWEST_IMAGES} or more"
        )
    images = draw_image_set(split, count, seed)
    if test is not None:
        _refuse_test_images(images, test)
    remarks = []
    if len(images.paths) < count:
        remarks.append(
            f"the calibration folder has {len(images.paths)} images, {count} were asked for"
        )
    missing = [label for n, label in enumerate(split.labels) if n not in images.targets]
    # Of photographs without classes their own remark says so.
    if missing and split.labelled:
        remarks.append(
            f"{len(missing)} of {len(split.labels)} classes are not among the calibration images "
            f"({missing[0]}, ...)"
        )
    return images, remarks


def without_images(split: Photographs, images: ImageSet) -> Photographs:
    """A split without the images of a set: what is calibrated on must not be the judge as well."""
    taken = {Path(path).resolve() for path in images.paths}
    left = [
        (path, target)
        for path, target in zip(split.paths, split.targets, strict=True)
        if path.resolve() not in taken
    ]
    return dataclasses.replace(
        split,
        paths=tuple(path for path, _ in left),
        targets=tuple(target for _, target in left),
    )


def unfit_pixels(pixels: npt.NDArray[np.uint8], paths: Sequence[str]) -> list[str]:
    """Return a sentence for each sign that uint8 (images,S,S,3) are noise, blank or copies of each other.

    None of these is a reason to refuse: whatever a graph was calibrated on, it is judged on other images.
    """
    remarks = []
    grey = pixels.mean(axis=3, dtype=np.float32)
    constant = [
        path for path, image in zip(paths, grey, strict=True) if image.std() < CONSTANT_DEVIATION
    ]
    if len(constant) > MOST_CONSTANT * len(paths):
        remarks.append(
            f"{len(constant)} of {len(paths)} calibration images are of one colour ({constant[0]}, ...)"
        )
    distinct = len({image.tobytes() for image in pixels})
    if distinct < FEWEST_IMAGES:
        remarks.append(f"only {distinct} of {len(paths)} calibration images differ")
    correlation = float(np.median([_neighbour_correlation(image) for image in grey]))
    if correlation < LEAST_CORRELATION:
        remarks.append(
            f"neighbouring pixels of the calibration images correlate by {correlation:.2f}, those of "
            "photographs by 0.9"
        )
    return remarks


def _neighbour_correlation(grey: npt.NDArray[np.float32]) -> float:
    centred = grey - grey.mean()
    variance = float(np.mean(centred**2))
    if variance < CONSTANT_DEVIATION**2:
        return 1.0
    across = float(np.mean(centred[:, 1:] * centred[:, :-1]))
    down = float(np.mean(centred[1:] * centred[:-1]))
    return (across + down) / 2 / variance


def _refuse_test_images(images: ImageSet, test: Photographs) -> None:
    # Only files of equal size can be equal.
    sizes = defaultdict(list)
    for path in test.paths:
        sizes[path.stat().st_size].append(path)
    for name in images.paths:
        path = Path(name)
        alike = sizes.get(path.stat().st_size, [])
        if alike and any(path.read_bytes() == other.read_bytes() for other in alike):
            raise DataError(
                f"{path} is an image of the run's test split: calibrate on train, or the measured "
                "accuracy would be of images the network was tuned with"
            )
