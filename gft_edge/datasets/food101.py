"""Food-101: 101 dishes in their official splits, and a hold-out of train to choose an epoch on.

https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/
"""

from __future__ import annotations

import json
from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import Split
from gft_edge.datasets.listing import (
    Layout,
    Listed,
    class_names,
    file_text,
    first_difference,
    hold_out,
    refuse_elsewhere,
    refuse_shared,
    split_of,
)
from gft_edge.errors import DataError

NAME = "food-101"

# There is no official val, and an epoch chosen on test would be judged on what chose it: one training
# image in ten of each class, 75 of 750, is held out. `trainval` is the whole official train.
HELD_OUT_ONE_IN = 10


def _list_of(split: str) -> str:
    return "meta/test.json" if split == "test" else "meta/train.json"


LAYOUT = Layout(
    NAME,
    ("train", "val", "test", "trainval"),
    ("", "food-101"),
    _list_of,
    "fetch food-101.tar.gz from https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ and unpack "
    "it so that {root}/images and {root}/meta exist",
)
locate, splits = LAYOUT.locate, LAYOUT.splits_of


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """One split, the classes in the order of meta/classes.txt. Raises DataError."""
    root, fetch = LAYOUT.opened(source, split)
    classes = class_names(root / "meta" / "classes.txt", fetch)
    files = dict.fromkeys(root / _list_of(s) for s in (split, *splits(source)))
    listed = {file.name: _listed(file, classes, fetch) for file in files}
    refuse_shared(listed)
    images = listed[(root / _list_of(split)).name]
    if split in ("train", "val"):
        rest, held = hold_out(images, HELD_OUT_ONE_IN, by_class=True)
        images = held if split == "val" else rest
    return split_of(split, root, images, classes, labels, fetch)


def _listed(file: Path, classes: tuple[str, ...], fetch: str) -> list[Listed]:
    """An object of CLASS: [CLASS/IMAGE, ...], whose classes are those of classes.txt."""
    expected = "expected an object of CLASS: [CLASS/IMAGE, ...]"
    try:
        content = json.loads(file_text(file, fetch))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}): unpack the data set's own again") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}: {expected}")
    listed = []
    for dish, images in content.items():
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise DataError(f"{file}: {dish!r} has no list of images: {expected}")
        for image in images:
            if image.rpartition("/")[0] != dish:
                raise DataError(f"{file} lists {image!r} under {dish!r}: {expected}")
            refuse_elsewhere(image, file)
            listed.append(Listed(f"images/{image}.jpg", dish))
    if set(content) != set(classes):
        here, there = first_difference(sorted(classes), sorted(content))
        raise DataError(
            f"{file.parent}: classes.txt and {file.name} name other classes, first {here} and {there}: "
            "unpack the data set's own files again"
        )
    return listed
