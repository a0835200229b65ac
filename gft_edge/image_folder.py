"""A folder of class folders as lists of paths and labels: DATA/SPLIT/CLASS/image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import DataError
from gft_edge.preprocess import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Split:
    """The images of one split: `targets[i]` is the index of `paths[i]`'s class in `labels`."""

    name: str
    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    labels: tuple[str, ...]


def images_below(folder: Path) -> list[Path]:
    """The image files in and under `folder`, sorted; hidden ones (macOS writes ._NAME) left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def read_split(data: Path, split: str, labels: tuple[str, ...] | None = None) -> Split:
    """List DATA/SPLIT. With `labels` the classes are those, in that order; some may have no image.

    Raises DataError when the folder is missing or empty, has a class that `labels` lacks, or,
    without `labels`, fewer than two classes or a class without an image.
    """
    folder = data / split
    if not data.is_dir():
        raise DataError(f"{data}: no such data folder")
    if not folder.is_dir():
        found = ", ".join(sorted(p.name for p in data.iterdir() if p.is_dir())) or "no folder"
        raise DataError(
            f"{data} has no {split}/ folder (found: {found}): expected {split}/CLASS/image files"
        )
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    complete = labels is None
    if labels is None:
        if len(classes) < 2:
            raise DataError(
                f"{folder} has {len(classes)} class folders: classification needs at least two"
            )
        labels = tuple(classes)
    unknown = sorted(set(classes) - set(labels))
    if unknown:
        raise DataError(
            f"{folder} has {len(unknown)} classes the model does not know ({unknown[0]}, ...): "
            f"the model has {len(labels)} classes; use the data it was trained for"
        )
    paths: list[Path] = []
    targets: list[int] = []
    for name in classes:
        images = images_below(folder / name)
        if not images and complete:
            raise DataError(f"{folder / name} holds no image: add some or remove the folder")
        paths += images
        targets += [labels.index(name)] * len(images)
    if not paths:
        raise DataError(f"{folder} holds no image: expected {split}/CLASS/image files")
    return Split(split, tuple(paths), tuple(targets), labels)
