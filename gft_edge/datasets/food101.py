"""Food-101: 101 dishes in their official splits, and a hold-out of train to choose an epoch on.

https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/
"""

from __future__ import annotations

import json
from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import (
    Listing,
    Split,
    class_names,
    file_text,
    first_difference,
    hold_out,
    not_here,
    refuse_elsewhere,
    refuse_shared,
    refuse_unknown_split,
    split_of,
    text_lines,
)
from gft_edge.errors import DataError

NAME = "food-101"
OFFICIAL = ("train", "test")
SPLITS = ("train", "val", "test", "trainval")

# There is no official val, and an epoch chosen on test would be judged on what chose it: one training
# image in ten of each class, 75 of 750, is held out. `trainval` is the whole official train.
HELD_OUT_ONE_IN = 10

FETCH = (
    "fetch food-101.tar.gz from https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ and unpack "
    "it so that {}/images and {}/meta exist"
)


def locate(folder: Path) -> Path | None:
    """The folder of images/ and meta/: `folder` or food-101/ in it."""
    for place in (folder, folder / "food-101"):
        if any(file.is_file() for split in OFFICIAL for file in _files(place, split)):
            return place
    return None


def splits(source: DataSource) -> tuple[str, ...]:
    """Those whose files are there."""
    root = locate(source.folder)
    if root is None:
        return ()
    here = {s for s in OFFICIAL if any(file.is_file() for file in _files(root, s))}
    return tuple(s for s in SPLITS if _official(s) in here)


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """One split, the classes in the order of meta/classes.txt. Raises DataError."""
    refuse_unknown_split(NAME, split, SPLITS)
    root = locate(source.folder)
    fetch = FETCH.format(*[root or source.folder] * 2)
    if root is None:
        looked_for = ["meta/train.json", "meta/train.txt", "food-101/meta/train.json"]
        raise not_here(NAME, source, looked_for, fetch)
    official = _official(split)
    here = [s for s in OFFICIAL if s == official or any(f.is_file() for f in _files(root, s))]
    listed = {s: _listing(root, s, fetch) for s in here}
    classes = _classes(root, {s: dishes for s, (_, dishes) in listed.items()}, fetch)
    refuse_shared([(_file(root, s).name, listing.names) for s, (listing, _) in listed.items()])
    listing = listed[official][0]
    if split in ("train", "val"):
        rest, held = hold_out(listing, HELD_OUT_ONE_IN, listing.classes)
        listing = held if split == "val" else rest
    return split_of(split, root, listing, classes, labels, fetch)


def _official(split: str) -> str:
    return "test" if split == "test" else "train"


def _files(root: Path, split: str) -> tuple[Path, Path]:
    return root / "meta" / f"{split}.json", root / "meta" / f"{split}.txt"


def _file(root: Path, split: str) -> Path:
    """The JSON file where there is one; both say the same."""
    in_json, in_text = _files(root, split)
    return in_json if in_json.is_file() or not in_text.is_file() else in_text


def _listing(root: Path, split: str, fetch: str) -> tuple[Listing, tuple[str, ...]]:
    """What a file lists, and the classes it names, in its order."""
    file = _file(root, split)
    if file.suffix == ".json":
        return _listing_of_json(file, fetch)
    names, classes = [], []
    for number, line in text_lines(file, fetch):
        dish, slash, image = line.partition("/")
        if not slash or not dish or not image:
            raise DataError(f"{file} line {number} is {line!r}: expected CLASS/IMAGE")
        refuse_elsewhere(line, file)
        names.append(f"images/{line}.jpg")
        classes.append(dish)
    return Listing(tuple(names), tuple(classes)), tuple(dict.fromkeys(classes))


def _listing_of_json(file: Path, fetch: str) -> tuple[Listing, tuple[str, ...]]:
    expected = "expected an object of CLASS: [CLASS/IMAGE, ...]"
    try:
        content = json.loads(file_text(file, fetch))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}): unpack the data set's own again") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}: {expected}")
    names, classes = [], []
    for dish, images in content.items():
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise DataError(f"{file}: {dish!r} has no list of images: {expected}")
        for image in images:
            if image.rpartition("/")[0] != dish:
                raise DataError(f"{file} lists {image!r} under {dish!r}: {expected}")
            refuse_elsewhere(image, file)
            names.append(f"images/{image}.jpg")
            classes.append(dish)
    return Listing(tuple(names), tuple(classes)), tuple(content)


def _classes(root: Path, named: dict[str, tuple[str, ...]], fetch: str) -> tuple[str, ...]:
    """The classes in order, the same in every file that names them."""
    file = root / "meta" / "classes.txt"
    first = next(iter(named))
    if file.is_file():
        classes, where = class_names(file, fetch), file.name
    else:
        classes, where = tuple(sorted(named[first])), _file(root, first).name
    for split, dishes in named.items():
        if set(dishes) != set(classes):
            here, there = first_difference(sorted(classes), sorted(dishes))
            raise DataError(
                f"{root / 'meta'}: {where} and {_file(root, split).name} name other classes, first "
                f"{here} and {there}: unpack the data set's own files again"
            )
    return classes
