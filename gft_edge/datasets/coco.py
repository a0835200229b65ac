"""COCO 2017 as classification: an image has the category of its largest box, or of its first.

https://cocodataset.org/#download. The paper takes the first annotation's category, which is that of
whatever object was outlined first; of the largest box it is what the picture mostly shows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.datasets import Split
from gft_edge.datasets.listing import (
    Layout,
    Listed,
    first_difference,
    hold_out,
    refuse_elsewhere,
    refuse_shared,
    split_of,
)
from gft_edge.errors import DataError

NAME = "coco"

# test2017 has no public labels, so val2017 is the test split, as in the paper. An epoch chosen on it
# would be judged on what chose it: one image in twenty of train2017, about as many as val2017 has, is
# held out as val, the same ones whichever category counts. `trainval` is all of train2017.
HELD_OUT_ONE_IN = 20


def _year(split: str) -> str:
    return "val2017" if split == "test" else "train2017"


def _list_of(split: str) -> str:
    return f"annotations/instances_{_year(split)}.json"


LAYOUT = Layout(
    NAME,
    ("train", "val", "test", "trainval"),
    ("", "coco"),
    _list_of,
    "fetch annotations_trainval2017.zip, train2017.zip and val2017.zip from "
    "https://cocodataset.org/#download and unpack them so that {root}/annotations, {root}/train2017 and "
    "{root}/val2017 exist",
)
locate, splits = LAYOUT.locate, LAYOUT.splits_of

# An outline is a list of lists of numbers. Without them three quarters of train2017's annotations need
# not be parsed: 9 s and 0.4 GiB instead of 18 s and 0.9 GiB (benchmarks/coco_listing.py).
_OUTLINE_KEY, _NO_OUTLINE = b'"segmentation"', b'"segmentation":0'
_OUTLINE = re.compile(rb'"segmentation":\s*\[[\[\]\d.,eE+\-\s]*\]')
CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class _Instances:
    """An annotation file: its annotated images by id, its categories' names, and its count of images."""

    listed: tuple[Listed, ...]
    names: tuple[str, ...]
    images: int


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """One split, the categories in the order of their ids. Raises DataError.

    An image without an annotation has no category and is left out; the remarks count them.
    """
    root, fetch = LAYOUT.opened(source, split)
    file, other = root / _list_of(split), root / _list_of("test")
    category = source.coco_category or "largest"
    found = _read(file, category, fetch)
    if file != other and other.is_file():
        _refuse_disagreement(file, found, other, _read(other, category, fetch))
    year, listed = _year(split), found.listed
    if split in ("train", "val"):
        rest, held = hold_out(listed, HELD_OUT_ONE_IN, by_class=False)
        listed = tuple(held if split == "val" else rest)
    folder = next((f for f in (year, f"images/{year}") if (root / f).is_dir()), year)
    placed = [Listed(f"{folder}/{image.name}", image.label) for image in listed]
    result = split_of(split, root, placed, found.names, labels, fetch)
    left_out = found.images - len(found.listed)
    if not left_out:
        return result
    remark = f"{file.name}: {left_out} of {found.images} images have no annotation and are left out"
    return dataclasses.replace(result, remarks=(remark,))


def _read(file: Path, category: CocoCategory, fetch: str) -> _Instances:
    try:
        stat = file.stat()
    except OSError:
        raise DataError(f"{file} is missing: {fetch}") from None
    return _parsed(file, category, (stat.st_mtime_ns, stat.st_size))


# Training reads train2017 for its classes, for train and for val: seconds each time.
@functools.lru_cache(maxsize=4)
def _parsed(file: Path, category: CocoCategory, state: tuple[int, int]) -> _Instances:
    """Read an annotation file as it is in `state`. Raises DataError."""
    reading = _Reading(file, category)
    try:
        content = json.loads(_without_outlines(file), object_hook=reading.entry)
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}): unpack it again") from None
    return reading.finish(content)


def _without_outlines(file: Path) -> bytes:
    parts = []
    rest = b""
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            # An outline may go on in the next chunk; what comes before the last one does not.
            before, key, after = (rest + chunk).rpartition(_OUTLINE_KEY)
            parts.append(_OUTLINE.sub(_NO_OUTLINE, before))
            rest = key + after
    return b"".join([*parts, _OUTLINE.sub(_NO_OUTLINE, rest)])


class _Reading:
    """One pass over an annotation file that keeps a name and a category for each image.

    Every object is reduced as soon as it is parsed: as dicts they would take gigabytes.
    """

    def __init__(self, file: Path, category: CocoCategory):
        self.file, self.category = file, category
        self.images: dict[int, str] = {}
        # image id -> (is no crowd, area in px), category id
        self.chosen: dict[int, tuple[tuple[bool, float], int]] = {}
        # category id -> an image that has it
        self.named: dict[int, int] = {}

    def entry(self, found: dict[str, Any]) -> Any:
        """An image or an annotation is taken note of, all else is left as it is."""
        if "image_id" in found:
            try:
                self._annotation(found)
            except (KeyError, TypeError, ValueError, IndexError):
                wanted = "image_id, category_id and bbox [x, y, width, height]"
                raise self._shape(f"annotation {found.get('id')!r} lacks one of {wanted}") from None
            return None
        if "file_name" in found:
            self._image(found)
            return None
        return None if "counts" in found else found

    def _annotation(self, found: dict[str, Any]) -> None:
        image, category = found["image_id"], found["category_id"]
        self.named.setdefault(category, image)
        if self.category == "first":
            self.chosen.setdefault(image, ((True, 0.0), category))
            return
        _, _, width, height = found["bbox"]
        # A crowd's box spans a whole group: it counts where there is nothing else.
        rank = (not found.get("iscrowd"), float(width) * float(height))
        if image not in self.chosen or rank > self.chosen[image][0]:
            self.chosen[image] = (rank, category)

    def _image(self, found: dict[str, Any]) -> None:
        number, name = found.get("id"), found["file_name"]
        if not isinstance(number, int) or not isinstance(name, str):
            raise self._shape(f"image {name!r} has no number as its id")
        if number in self.images:
            raise self._shape(f"two images have the id {number}")
        refuse_elsewhere(name, self.file)
        self.images[number] = name

    def finish(self, content: Any) -> _Instances:
        """Everything, once the file is read. Raises DataError."""
        for name in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(name), list):
                raise self._shape(f"it has no list {name!r}")
        for name, key in (("images", "file_name"), ("annotations", "image_id")):
            if any(entry is not None for entry in content[name]):
                raise self._shape(f"an entry of {name!r} has no {key}")
        categories = self._categories(content["categories"])
        for image in self.chosen:
            if image not in self.images:
                raise self._shape(f"an annotation is of image {image!r}, which is not listed")
        for category, image in self.named.items():
            if category not in categories:
                raise self._shape(
                    f"image {image} has the category {category!r}, which is not listed"
                )
        if not self.chosen:
            raise DataError(
                f"{self.file}: none of its {len(self.images)} images has an annotation, so none has a "
                "category: take the instances_*.json of annotations_trainval2017.zip"
            )
        listed = tuple(
            Listed(self.images[image], categories[self.chosen[image][1]])
            for image in sorted(self.chosen)
        )
        refuse_shared({self.file.name: listed})
        return _Instances(listed, tuple(categories.values()), len(self.images))

    def _categories(self, listed: list[Any]) -> dict[int, str]:
        """Category id -> name, by id."""
        try:
            found = dict(sorted((int(entry["id"]), str(entry["name"])) for entry in listed))
        except (KeyError, TypeError, ValueError):
            raise self._shape("a category lacks its id or its name") from None
        if len(found) < len(listed) or len(set(found.values())) < len(found):
            raise self._shape("two categories have the same id or name")
        return found

    def _shape(self, problem: str) -> DataError:
        return DataError(
            f"{self.file} is no file of COCO instances: {problem}; take the instances_*.json of "
            "annotations_trainval2017.zip"
        )


def _refuse_disagreement(file: Path, ours: _Instances, other: Path, theirs: _Instances) -> None:
    """The two years' files name the same categories and none of the same images."""
    if ours.names != theirs.names:
        here, there = first_difference(ours.names, theirs.names)
        raise DataError(
            f"{file.name} and {other.name} have other categories, first {here} and {there}: "
            "unpack annotations_trainval2017.zip again"
        )
    refuse_shared({file.name: ours.listed, other.name: theirs.listed})
