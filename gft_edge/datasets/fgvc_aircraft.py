"""FGVC-Aircraft (fgvc-aircraft-2013b): 100 variants in their official splits, without the banner.

https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import Split
from gft_edge.datasets.listing import (
    Layout,
    Listed,
    class_names,
    refuse_elsewhere,
    refuse_shared,
    split_of,
    text_lines,
)
from gft_edge.errors import DataError

NAME = "fgvc-aircraft"
CLASSES_FILE = "variants.txt"

# The copyright notice below each photograph: the data set's README asks to remove it.
BANNER_PX = 20

LAYOUT = Layout(
    NAME,
    ("train", "val", "test", "trainval"),
    ("", "data", "fgvc-aircraft-2013b/data"),
    "images_variant_{}.txt".format,
    "fetch fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ and "
    "unpack it so that {root}/images and {root}/variants.txt exist",
)
locate, splits = LAYOUT.locate, LAYOUT.splits_of


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """One split by the variants' names, in the order of variants.txt. Raises DataError."""
    root, fetch = LAYOUT.opened(source, split)
    classes = class_names(root / CLASSES_FILE, fetch)
    # trainval is train and val: those it shares its images with.
    apart = ("trainval", "test") if split == "trainval" else ("train", "val", "test")
    names = [LAYOUT.list_of(s) for s in apart if s == split or s in splits(source)]
    listed = {name: _listed(root / name, classes, fetch) for name in names}
    refuse_shared(listed)
    result = split_of(split, root, listed[LAYOUT.list_of(split)], classes, labels, fetch)
    return dataclasses.replace(result, crop_bottom_px=BANNER_PX)


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
