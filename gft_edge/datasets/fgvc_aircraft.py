"""FGVC-Aircraft (fgvc-aircraft-2013b): 100 variants in their official splits, without the banner.

https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import Split, not_here
from gft_edge.datasets.listing import (
    Listed,
    class_names,
    refuse_elsewhere,
    refuse_shared,
    refuse_unknown_split,
    split_of,
    text_lines,
)
from gft_edge.errors import DataError

NAME = "fgvc-aircraft"
CLASSES_FILE = "variants.txt"
SPLITS = ("train", "val", "test", "trainval")

# The copyright notice below each photograph: the data set's README asks to remove it.
BANNER_PX = 20

FETCH = (
    "fetch fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ and "
    "unpack it so that {}/images and {}/variants.txt exist"
)


def locate(folder: Path) -> Path | None:
    """The data/ folder of the archive: `folder`, or one or two levels below it."""
    places = (folder, folder / "data", folder / "fgvc-aircraft-2013b" / "data")
    return next((place for place in places if (place / CLASSES_FILE).is_file()), None)


def splits(source: DataSource) -> tuple[str, ...]:
    """The splits whose file is there."""
    root = locate(source.folder)
    return tuple(s for s in SPLITS if root is not None and _file(root, s).is_file())


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """One split by the variants' names, in the order of variants.txt. Raises DataError."""
    refuse_unknown_split(NAME, split, SPLITS)
    root = locate(source.folder)
    fetch = FETCH.format(*[root or source.folder / "data"] * 2)
    if root is None:
        looked_for = [
            f"{place}{CLASSES_FILE}" for place in ("", "data/", "fgvc-aircraft-2013b/data/")
        ]
        raise not_here(NAME, source, looked_for, fetch)
    classes = class_names(root / CLASSES_FILE, fetch)
    # trainval is train and val: those it shares its images with.
    apart = ("trainval", "test") if split == "trainval" else ("train", "val", "test")
    files = [_file(root, s) for s in apart if s == split or _file(root, s).is_file()]
    listed = {file.name: _listed(file, classes, fetch) for file in files}
    refuse_shared(listed)
    result = split_of(split, root, listed[_file(root, split).name], classes, labels, fetch)
    return dataclasses.replace(result, crop_bottom_px=BANNER_PX)


def _file(root: Path, split: str) -> Path:
    return root / f"images_variant_{split}.txt"


def _listed(file: Path, classes: tuple[str, ...], fetch: str) -> list[Listed]:
    """Lines of IMAGE VARIANT; variants have spaces, images none."""
    known, listed = set(classes), []
    for number, line in text_lines(file, fetch):
        image, _, variant = line.partition(" ")
        variant = variant.strip()
        if not variant:
            raise DataError(f"{file} line {number} is {line!r}: expected an image and its variant")
        if variant not in known:
            raise DataError(
                f"{file} line {number}: {variant!r} is not one of the {len(classes)} variants in "
                f"{CLASSES_FILE}"
            )
        refuse_elsewhere(image, file)
        listed.append(Listed(f"images/{image}.jpg", variant))
    return listed
