"""Data sets by name: one data set is one file here, found by its file name.

A data set's module defines

    NAME: str                                    what `--dataset` calls it
    locate(folder) -> Path | None                the folder its paths start from, where `folder` is,
                                                 or holds, an unpacked copy; None where it does not
    splits(source) -> tuple[str, ...]            the splits that `source` has
    read(source, split, labels) -> Split         list one split; no image is opened

listing.py has what they share: its Layout finds an unpacked archive and its splits. Nothing is ever
downloaded: what is missing is named, with where it comes from and where it goes.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import Progress, unusable_label
from gft_edge.datasets.digests import file_digests
from gft_edge.datasets.names import utf8_name
from gft_edge.errors import DataError, UsageError

# As many classes are named on one line.
MOST_CLASSES_NAMED = 12


@dataclass(frozen=True)
class Photographs:
    """Images of which some or all have no class that is known.

    `targets[i]` is the index of `paths[i]`'s class in `labels`, None where it has none of them.
    `paths` lie under `root`. `crop_bottom_px` rows at the bottom of every image are not part of the
    picture. `remarks` say what the files list and the images do not have.
    """

    name: str
    paths: tuple[Path, ...]
    targets: tuple[int | None, ...]
    labels: tuple[str, ...]
    root: Path
    crop_bottom_px: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def labelled(self) -> int:
        """How many images have a class that is known."""
        return sum(target is not None for target in self.targets)


@dataclass(frozen=True)
class Split(Photographs):
    """The images of one split, each of a class that is known."""

    targets: tuple[int, ...]


class DataSet(Protocol):
    """What every module in this folder offers; the module docstring says what each name means."""

    NAME: str

    def locate(self, folder: Path) -> Path | None: ...

    def splits(self, source: DataSource) -> tuple[str, ...]: ...

    def read(self, source: DataSource, split: str, labels: tuple[str, ...] | None) -> Split: ...


def data_sets() -> dict[str, DataSet]:
    """Every data set by name, class folders first."""
    modules = [
        cast(DataSet, module)
        for info in pkgutil.iter_modules(__path__)
        if hasattr(module := importlib.import_module(f"{__name__}.{info.name}"), "NAME")
    ]
    modules.sort(key=lambda module: (module.NAME != "imagefolder", module.NAME))
    return {module.NAME: module for module in modules}


def data_set(name: str) -> DataSet:
    """A data set by its name. Raises UsageError listing those there are."""
    known = data_sets()
    if name not in known:
        raise UsageError(f"there is no data set {name!r}: choose from {', '.join(known)}")
    return known[name]


def source_of(given: DataSource | Path) -> DataSource:
    """A folder alone holds class folders."""
    return DataSource(given) if isinstance(given, Path) else given


def read_split(
    source: DataSource | Path, split: str, labels: tuple[str, ...] | None = None
) -> Split:
    """List one split of a data set, or of a folder of class folders.

    With `labels`, a network's classes, the targets are indices into those. Raises UsageError for a
    data set or a split that there is not, DataError for files that are missing or say something else
    than they should, whose classes are not `labels`, or, without those, have names that no bundle can
    hold.
    """
    source = source_of(source)
    chosen = data_set(source.dataset)
    check_folder(source.folder)
    found = chosen.read(source, split, labels)
    reason = unusable_label(found.labels) if labels is None else None
    if reason:
        raise DataError(f"{source.folder / split}: {reason}: rename its folder")
    return found


def check_folder(folder: Path) -> None:
    """Raise DataError where there is no folder of data."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such data folder, or none that this user may open")


def splits_of(source: DataSource | Path) -> tuple[str, ...]:
    """The names of the splits that a source has; none where its folder holds no such data set."""
    source = source_of(source)
    return data_set(source.dataset).splits(source)


def verification_split(source: DataSource | Path) -> str:
    """The split that exports are verified on where none is named: val, else test, else train."""
    here = splits_of(source)
    return next((split for split in ("val", "test") if split in here), "train")


def reporting_split(source: DataSource | Path) -> str:
    """The split that is reported on where none is named: test, else val."""
    here = splits_of(source)
    return "val" if "val" in here and "test" not in here else "test"


def choosing_split(source: DataSource | Path) -> str:
    """The split that something is chosen on where none is named: val, which leaves test to report on."""
    return "val" if "val" in splits_of(source) else "test"


def split_digest(split: Split, progress: Progress | None = None, fresh: bool = False) -> str:
    """sha256 of the split's images in order: path below the data set's root, label, content.

    Two copies of a data set have the same digest wherever they lie. A file is read where it is not
    known by path, size, times and inode already (digests.file_digests); `fresh` reads all. Raises
    DataError for an image that is gone or cannot be read.
    """
    try:
        contents = file_digests(split.root, split.paths, progress, remember=not fresh)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is gone: the data changed meanwhile") from None
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256()
    for path, target, content in zip(split.paths, split.targets, contents, strict=True):
        name = utf8_name(path.relative_to(split.root).as_posix())
        line = f"{name}\t{split.labels[target]}\t{content}\n"
        digest.update(line.encode(errors="backslashreplace"))
    return digest.hexdigest()


def images_per_class(split: Split) -> list[str]:
    """How many images a split has of each class, of many classes the fewest and most; then those without.

    Each is a line.
    """
    count = Counter(split.targets)
    total = f"{split.name}: {len(split.paths):,} images of {len(count)} classes"
    counted = [(count[n], label) for n, label in enumerate(split.labels) if count[n]]
    if len(counted) > MOST_CLASSES_NAMED:
        (fewest, rare), (most, common) = min(counted), max(counted)
        lines = [f"{total}, {fewest:,} ({rare}) to {most:,} ({common}) each"]
    else:
        lines = [f"{total}: {', '.join(f'{label} ({number:,})' for number, label in counted)}"]
    without = [label for n, label in enumerate(split.labels) if not count[n]]
    if without:
        more = len(without) - MOST_CLASSES_NAMED
        names = ", ".join(without[:MOST_CLASSES_NAMED]) + (f" and {more} more" if more > 0 else "")
        lines.append(
            f"{split.name} HAS NO IMAGE of {len(without)} of {len(split.labels)} classes: {names}"
        )
    return lines


def likeness(source: DataSource) -> str:
    """The end of a refusal: which other data set the folder holds, or nothing."""
    others = (found for name, found in data_sets().items() if name != source.dataset)
    other = next((found.NAME for found in others if found.locate(source.folder)), None)
    return f"; it looks like --dataset {other}" if other else ""
