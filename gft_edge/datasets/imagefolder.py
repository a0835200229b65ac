"""A folder of class folders: DATA/SPLIT/CLASS/image."""

from __future__ import annotations

from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import Split, likeness
from gft_edge.errors import DataError
from gft_edge.runtime.sources import images_below

NAME = "imagefolder"
SPLITS = ("train", "val", "test")


def locate(folder: Path) -> Path | None:
    """The folder itself, where it has a split."""
    return folder if any((folder / split).is_dir() for split in SPLITS) else None


def splits(source: DataSource) -> tuple[str, ...]:
    """The splits of train, val and test that have a folder. Any other folder can be read as one, too."""
    return tuple(split for split in SPLITS if (source.folder / split).is_dir())


def read(source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split:
    """List DATA/SPLIT. With `labels` the classes are those, in that order; some may have no image.

    Raises DataError when the folder is missing or empty, has a class that `labels` lacks, or,
    without `labels`, fewer than two classes or a class without an image.
    """
    data = source.folder
    folder = data / split
    if not folder.is_dir():
        found = ", ".join(sorted(p.name for p in data.iterdir() if p.is_dir())) or "no folder"
        raise DataError(
            f"{data} has no {split}/ folder (found: {found}): expected {split}/CLASS/image files"
            f"{likeness(source)}"
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
    return Split(split, tuple(paths), tuple(targets), labels, data)
