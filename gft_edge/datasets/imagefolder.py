"""A folder of class folders: DATA/SPLIT/CLASS/image."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import Split, likeness
from gft_edge.datasets.names import class_name, printable, utf8_name
from gft_edge.errors import DataError
from gft_edge.runtime.image_formats import IMAGE_SUFFIXES
from gft_edge.runtime.sources.images import (
    Entries,
    Found,
    cannot_be_read,
    entries,
    find_images,
    left_out_text,
)

NAME = "imagefolder"
SPLITS = ("train", "val", "test")
# What other tools call the folder of a split, after its own name.
FOLDERS_OF = {"val": ("val", "valid", "validation")}
OUTSIDE = "in no class folder"


def locate(folder: Path) -> Path | None:
    """The folder itself, where it has a split."""
    return folder if splits(DataSource(folder)) else None


def splits(source: DataSource) -> tuple[str, ...]:
    """The splits of train, val and test that have a folder. Any other folder can be read as one, too."""
    return tuple(split for split in SPLITS if os.path.isdir(_folder_of(source.folder, split)))


class InFolders(NamedTuple):
    """The images of a folder, with the name of the folder below it that each is in, None for no such."""

    folder: Path
    images: tuple[Path, ...]
    classes: tuple[str | None, ...]
    remarks: tuple[str, ...]


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """List DATA/SPLIT. With `labels` the classes are those, in that order; some may have no image.

    Folders are followed through links; a name in another of Unicode's forms is the same class. The
    remarks count what is left out. Raises DataError when the folder is missing, empty or in part
    unreadable, has one folder for two classes or a class that `labels` lacks, or, without `labels`, fewer
    than two classes or a class without an image.
    """
    data = source.folder
    folder = _opened(source, split)
    here = _entries(folder)
    stray = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in here.files)
    left_out = Counter({OUTSIDE: stray}) + here.left_out
    classes: dict[str, list[Path]] = defaultdict(list)
    for path in here.folders:
        classes[class_name(utf8_name(path.name))].append(path)
    _refuse_one_folder_of_two(classes)
    complete = labels is None
    if labels is None:
        if len(classes) < 2:
            raise DataError(
                f"{folder} has {len(classes)} class folders: classification needs at least two"
            )
        labels = tuple(sorted(classes))
    index = {class_name(label): number for number, label in enumerate(labels)}
    unknown = sorted(classes.keys() - index.keys())
    if unknown:
        raise DataError(
            f"{folder} has {len(unknown)} classes the model does not know ({printable(unknown[0])}, ...): "
            f"the model has {len(labels)} classes; use the data it was trained for"
        )
    paths: list[Path] = []
    targets: list[int] = []
    homes = {os.path.realpath(path): name for name, each in classes.items() for path in each}
    for name in sorted(classes):
        images: list[Path] = []
        instead: Counter[str] = Counter()
        for path in classes[name]:
            within = _images(path)
            _refuse_links_to_others(within.linked, name, homes)
            images += within.images
            instead += within.left_out
        if not images and complete:
            raise DataError(
                f"{classes[name][0]} holds no image: add some or remove the folder{_but(instead)}"
            )
        left_out += instead
        paths += images
        targets += [index[name]] * len(images)
    if not paths:
        raise DataError(
            f"{folder} holds no image: expected {split}/CLASS/image files{_but(left_out)}"
        )
    remarks = _remarks(folder, left_out, data, split)
    return Split(split, tuple(paths), tuple(targets), labels, data, remarks=remarks)


def in_folders(source: DataSource, split: str | None, labels: tuple[str, ...]) -> InFolders:
    """List every image in and under DATA/SPLIT, or of DATA itself, whatever its class is or if it has one.

    `labels` are the classes that are known. Raises DataError when the folder is missing, empty or in part
    unreadable, or has one folder for two of `labels`.
    """
    data = source.folder
    folder = data if split is None else _opened(source, split)
    found = _images(folder)
    if not found.images:
        raise DataError(f"{folder} holds no image{_but(found.left_out)}")
    known = {class_name(label) for label in labels}
    classes: dict[str, list[Path]] = defaultdict(list)
    for path in _entries(folder).folders:
        if (name := class_name(utf8_name(path.name))) in known:
            classes[name].append(path)
    _refuse_one_folder_of_two(classes)
    below = [path.relative_to(folder).parts for path in found.images]
    first = tuple(class_name(utf8_name(parts[0])) if parts[1:] else None for parts in below)
    remarks = _remarks(folder, found.left_out, data, split)
    return InFolders(folder, tuple(found.images), first, remarks)


def _opened(source: DataSource, split: str) -> Path:
    """The folder of a split. Raises DataError where there is none."""
    data = source.folder
    folder = _folder_of(data, split)
    if os.path.isdir(folder):
        return folder
    found = ", ".join(sorted(path.name for path in _entries(data).folders)) or "no folder"
    raise DataError(
        f"{data} has no {split}/ folder (found: {found}): expected {split}/CLASS/image files"
        f"{likeness(source)}"
    )


def _remarks(
    folder: Path, left_out: Counter[str], data: Path, split: str | None
) -> tuple[str, ...]:
    """What is said of the files that are not read, and of the folders that a split has besides."""
    remarks = [f"{folder}: {left_out_text(left_out)}"] if left_out else []
    for other in _folders_of(data, split)[1:] if split is not None else ():
        remarks.append(f"{folder} is {split}, {other} beside it is not read")
    return tuple(remarks)


def _folder_of(data: Path, split: str) -> Path:
    """Where a split lies, or would lie by its own name."""
    return next(iter(_folders_of(data, split)), data / split)


def _folders_of(data: Path, split: str) -> list[Path]:
    """The folders that a split could lie in, the one that it does first."""
    names = FOLDERS_OF.get(split, (split,))
    return [data / name for name in names if os.path.isdir(data / name)]


def _entries(folder: Path) -> Entries:
    """entries of a folder. Raises DataError where it, or something in it, cannot be read."""
    try:
        found = entries(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror})") from error
    if found.unread:
        raise DataError(cannot_be_read(found.unread))
    return found


def _refuse_one_folder_of_two(classes: Mapping[str, Sequence[Path]]) -> None:
    """Raise DataError for two classes whose folders are links to one: an image has one class."""
    owner: dict[str, Path] = {}
    for name, folders in classes.items():
        for path in folders:
            other = owner.setdefault(os.path.realpath(path), path)
            if class_name(utf8_name(other.name)) != name:
                raise DataError(
                    f"{path} and {other} are one folder, and its images have one class: remove the link"
                )


def _refuse_links_to_others(linked: Sequence[Path], name: str, homes: Mapping[str, str]) -> None:
    """Raise DataError for a link in a class that leads into another's folder: an image has one class."""
    for path in linked:
        target = Path(os.path.realpath(path))
        for folder in (target, *target.parents):
            other = homes.get(str(folder), name)
            if other != name:
                raise DataError(
                    f"{path} leads to images of the class {printable(other)}, and an image has one class: "
                    "remove the link"
                )


def _images(folder: Path) -> Found:
    found = find_images(folder)
    if found.unread:
        raise DataError(cannot_be_read(found.unread))
    return found


def _but(left_out: Counter[str]) -> str:
    return f" ({left_out_text(left_out)})" if left_out else ""
