"""Data sets by name: one data set is one file here, found by its file name.

A data set's module defines

    NAME: str                                    what `--dataset` calls it
    locate(folder) -> Path | None                the folder its paths start from, where `folder` is,
                                                 or holds, an unpacked copy; None where it does not
    splits(source) -> tuple[str, ...]            the splits that `source` has
    read(source, split, labels) -> Split         list one split; no image is opened

Nothing is ever downloaded: what is missing is named, with where it comes from and where it goes.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import Progress
from gft_edge.datasets.digests import file_digests
from gft_edge.errors import DataError, UsageError


@dataclass(frozen=True)
class Split:
    """The images of one split: `targets[i]` is the index of `paths[i]`'s class in `labels`.

    `paths` lie under `root`. `crop_bottom_px` rows at the bottom of every image are not part of the
    picture. `remarks` say what the files list and the split does not have.
    """

    name: str
    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    labels: tuple[str, ...]
    root: Path
    crop_bottom_px: int = 0
    remarks: tuple[str, ...] = ()


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
    than they should, or whose classes are not `labels`.
    """
    source = source_of(source)
    chosen = data_set(source.dataset)
    if not source.folder.is_dir():
        raise DataError(f"{source.folder}: no such data folder")
    return chosen.read(source, split, labels)


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
    DataError for an image that is gone.
    """
    try:
        contents = file_digests(split.root, split.paths, progress, remember=not fresh)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}: the data changed meanwhile") from None
    digest = hashlib.sha256()
    for path, target, content in zip(split.paths, split.targets, contents, strict=True):
        name = path.relative_to(split.root).as_posix()
        line = f"{name}\t{split.labels[target]}\t{content}\n"
        digest.update(line.encode(errors="backslashreplace"))
    return digest.hexdigest()


# What the data sets' own files share.


@dataclass(frozen=True)
class Listing:
    """What a split file lists: image paths below the root, and the class of each, by name."""

    names: tuple[str, ...]
    classes: tuple[str, ...]


def split_of(
    split: str,
    root: Path,
    listing: Listing,
    classes: Sequence[str],
    labels: tuple[str, ...] | None,
    fetch: str,
) -> Split:
    """The split that a listing describes, its classes mapped to `labels`, every image looked for.

    `classes` are the data set's own, in its own order; `fetch` says where its images come from. Raises
    DataError.
    """
    if not listing.names:
        raise DataError(f"{root}: its {split} split lists no image: {fetch}")
    if len(classes) < 2:
        raise DataError(f"{root} names {len(classes)} classes: classification needs at least two")
    if labels is None:
        labels = tuple(classes)
    elif set(labels) != set(classes):
        here, there = first_difference(classes, labels)
        raise DataError(
            f"{root} has {len(classes)} classes and the model {len(labels)}, first difference "
            f"{here} and {there}: use the data it was trained for"
        )
    index = {label: number for number, label in enumerate(labels)}
    paths = tuple(root / name for name in listing.names)
    refuse_missing(paths, root, split, fetch)
    return Split(split, paths, tuple(index[name] for name in listing.classes), labels, root)


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str]:
    """Where two lists of classes differ first, each side in words."""
    shorter = min(len(ours), len(theirs))
    n = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    here, there = (repr(side[n]) if n < len(side) else "nothing" for side in (ours, theirs))
    return f"{here} (class {n + 1})", there


def refuse_missing(paths: Sequence[Path], root: Path, split: str, fetch: str) -> None:
    """Raise DataError with the count and the first of the listed images that are not there."""
    # Each folder is read once, in place of asking for 118,000 files one by one.
    held: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in held:
            try:
                held[path.parent] = set(os.listdir(path.parent))
            except OSError:
                held[path.parent] = set()
        if path.name not in held[path.parent]:
            missing.append(path)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images of {root}'s {split} split are missing, first "
            f"{missing[0].relative_to(root)}: {fetch}"
        )


def refuse_shared(listings: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise DataError for an image that a split file lists twice, or that two files list.

    `listings` has each file's name with the images it lists.
    """
    owner: dict[str, str] = {}
    for file, names in listings:
        for name in names:
            if name in owner:
                where = f"both {owner[name]} and {file}" if owner[name] != file else f"{file} twice"
                raise DataError(
                    f"{name} is in {where}: an image belongs to one split once, unpack the data set's "
                    "own files again"
                )
            owner[name] = file


def refuse_unknown_split(name: str, split: str, known: Sequence[str]) -> None:
    """Raise DataError for a split that a data set does not have."""
    if split not in known:
        raise DataError(f"{name} has no {split} split: choose from {', '.join(known)}")


def refuse_elsewhere(path: str, file: Path) -> None:
    """Raise DataError for a listed image whose path leads out of the data set's folder."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DataError(f"{file} lists {path!r}, which is not below the data set's folder")


def hold_out(
    listing: Listing, one_in: int, groups: Sequence[str] | None = None
) -> tuple[Listing, Listing]:
    """(the rest, a hold-out of one image in `one_in` of each group, at least one).

    `groups` names the group of each image; None is one group. Both parts keep the listing's order, and
    a group of one image stays whole. The hash of its name decides whether an image is held out: neither
    the order of a file nor Python's version does.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position in range(len(listing.names)):
        members[groups[position] if groups else ""].append(position)
    held = set()
    for positions in members.values():
        positions.sort(
            key=lambda n: hashlib.sha256(
                listing.names[n].encode(errors="backslashreplace")
            ).digest()
        )
        count = max(1, len(positions) // one_in) if len(positions) > 1 else 0
        held.update(positions[:count])
    rest = [n for n in range(len(listing.names)) if n not in held]
    return _part(listing, rest), _part(listing, sorted(held))


def _part(listing: Listing, positions: Sequence[int]) -> Listing:
    return Listing(
        tuple(listing.names[n] for n in positions), tuple(listing.classes[n] for n in positions)
    )


def text_lines(file: Path, fetch: str) -> list[tuple[int, str]]:
    """(line number, stripped line) of a text file, empty lines left out. Raises DataError."""
    text = file_text(file, fetch)
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in numbered if line]


def file_text(file: Path, fetch: str) -> str:
    """A UTF-8 file of a data set. Raises DataError where it is missing or no text."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file} is missing: {fetch}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): unpack it again") from None


def class_names(file: Path, fetch: str) -> tuple[str, ...]:
    """A file of one class name a line. Raises DataError for one that is named twice."""
    names = tuple(line for _, line in text_lines(file, fetch))
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise DataError(f"{file} names {twice!r} twice: unpack the data set's own file again")
    return names


def not_here(name: str, source: DataSource, looked_for: Sequence[str], fetch: str) -> DataError:
    """The refusal of a folder that does not hold a data set."""
    places = ", ".join(looked_for)
    return DataError(
        f"{source.folder} holds no {name} (looked for {places}): {fetch}{likeness(source)}"
    )


def likeness(source: DataSource) -> str:
    """For the end of a refusal: which other data set the folder holds, or nothing."""
    others = (found for name, found in data_sets().items() if name != source.dataset)
    other = next((found.NAME for found in others if found.locate(source.folder)), None)
    return f"; it looks like --dataset {other}" if other else ""
