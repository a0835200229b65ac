"""Photographs of anything, for what needs no label: agreement, kept patches, the ranges of INT8."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import (
    Photographs,
    check_folder,
    imagefolder,
    likeness,
    read_split,
    source_of,
    splits_of,
)
from gft_edge.datasets.names import class_name, printable
from gft_edge.errors import DataError

# Of the classes that a network does not know so many are named.
NAMED = 3
# From here on, of difflib's ratio, two names are one with a slip of the pen.
ALIKE = 0.75


def photographs_split(
    source: DataSource | Path, named: str | None, choose: Callable[[DataSource], str]
) -> str | None:
    """The split to read, `named` or else what `choose` takes; None where a folder of images has no split."""
    source = source_of(source)
    whole = source.dataset == imagefolder.NAME and not splits_of(source)
    return named or (None if whole else choose(source))


def read_photographs(
    source: DataSource | Path, split: str | None, labels: tuple[str, ...]
) -> Photographs:
    """List a split, or with None every image in and under the folder, whatever classes they have.

    The targets are indices into `labels`, a network's classes, and None for every other class; a remark
    counts those. Raises DataError as read_split does, but for classes.
    """
    source = source_of(source)
    check_folder(source.folder)
    if source.dataset != imagefolder.NAME:
        assert split is not None, "only a folder of images can be read as a whole"
        own = read_split(source, split)
        classes = [own.labels[target] for target in own.targets]
        return _of_network(own, classes, labels, f"{own.root}, {split}")
    if split is None and (other := likeness(source)):
        raise DataError(f"{source.folder} has no train/, val/ or test/ folder{other}")
    here = imagefolder.in_folders(source, split, labels)
    found = Photographs(
        name=split or here.folder.resolve().name,
        paths=here.images,
        targets=(None,) * len(here.images),
        labels=labels,
        root=source.folder,
        remarks=here.remarks,
    )
    return _of_network(found, here.classes, labels, str(here.folder))


def _of_network(
    found: Photographs, classes: Sequence[str | None], labels: tuple[str, ...], where: str
) -> Photographs:
    """Give images of `classes` their targets among a network's `labels`, and remark what has none."""
    index = {class_name(label): number for number, label in enumerate(labels)}
    targets = tuple(None if name is None else index.get(class_name(name)) for name in classes)
    others = Counter(
        name or imagefolder.OUTSIDE
        for name, target in zip(classes, targets, strict=True)
        if target is None
    )
    remarks = found.remarks
    if others:
        remarks = (*remarks, f"{where}: {_of_others(others, len(classes), labels)}")
    return Photographs(
        found.name, found.paths, targets, labels, found.root, found.crop_bottom_px, remarks
    )


def _of_others(others: Counter[str], images: int, labels: Sequence[str]) -> str:
    """Say how many images have none of a network's classes, and which they have in their place."""
    names = sorted(others, key=lambda name: (-others[name], name))
    text = ", ".join(map(printable, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
    # A class whose name is misspelt must not go unnoticed.
    close = ((name, difflib.get_close_matches(name, labels, n=1, cutoff=ALIKE)) for name in names)
    meant = next(
        (f"; is {printable(name)} meant to be {like[0]}?" for name, like in close if like), ""
    )
    return f"{others.total():,} of {images:,} images have no class of the network's ({text}{meant})"
