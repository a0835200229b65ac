"""What the files of the data sets share: where they lie, and lists of images made a split."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import Split, likeness
from gft_edge.datasets.names import class_name
from gft_edge.errors import DataError


@dataclass(frozen=True)
class Layout:
    """A data set as its archives unpack it.

    `places` are the folders, below the one that is given, that may be its root; `list_of` is the file
    below a root that lists a split. `fetch` says where it comes from, {root} being where it goes.
    """

    name: str
    splits: tuple[str, ...]
    places: tuple[str, ...]
    list_of: Callable[[str], str]
    fetch: str

    def locate(self, folder: Path) -> Path | None:
        """The first root in a folder that has a split."""
        return next((folder / p for p in self.places if self._splits_in(folder / p)), None)

    def splits_of(self, source: DataSource) -> tuple[str, ...]:
        """The splits whose lists are there."""
        root = self.locate(source.folder)
        return () if root is None else self._splits_in(root)

    def opened(self, source: DataSource, split: str) -> tuple[Path, str]:
        """The root, and `fetch` for it. Raises DataError where there is none, or no such split."""
        if split not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"{self.name} has no {split} split: choose from {known}")
        root = self.locate(source.folder)
        fetch = self.fetch.format(root=root or source.folder)
        if root is None:
            looked_for = ", ".join(str(Path(p) / self.list_of(split)) for p in self.places)
            raise DataError(
                f"{source.folder} holds no {self.name} (looked for {looked_for}): "
                f"{fetch}{likeness(source)}"
            )
        return root, fetch

    def _splits_in(self, root: Path) -> tuple[str, ...]:
        return tuple(s for s in self.splits if os.path.isfile(root / self.list_of(s)))


class Listed(NamedTuple):
    """An image that a split file lists: its path below the root, and its class by name."""

    name: str
    label: str


def split_of(
    split: str,
    root: Path,
    listed: Sequence[Listed],
    classes: Sequence[str],
    labels: tuple[str, ...] | None,
    fetch: str,
) -> Split:
    """The split of what is listed, its classes mapped to `labels`, every image looked for.

    `classes` are the data set's own, in its own order; `fetch` says where its images come from. Raises
    DataError.
    """
    if not listed:
        raise DataError(f"{root}: its {split} split lists no image: {fetch}")
    if len(classes) < 2:
        raise DataError(f"{root} names {len(classes)} classes: classification needs at least two")
    if labels is None:
        labels = tuple(classes)
    elif set(map(class_name, labels)) != set(map(class_name, classes)):
        here, there = first_difference(classes, labels)
        raise DataError(
            f"{root} has {len(classes)} classes and the model {len(labels)}, first difference "
            f"{here} and {there}: use the data it was trained for"
        )
    index = {class_name(label): number for number, label in enumerate(labels)}
    paths = tuple(root / image.name for image in listed)
    refuse_missing(paths, root, split, fetch)
    return Split(
        split, paths, tuple(index[class_name(image.label)] for image in listed), labels, root
    )


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str]:
    """The first difference of two lists of classes, each side in words."""
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
            except (FileNotFoundError, NotADirectoryError):
                held[path.parent] = set()
            except OSError as error:
                raise DataError(f"{path.parent} cannot be listed ({error.strerror})") from error
        if path.name not in held[path.parent]:
            missing.append(path)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images of {root}'s {split} split are missing, first "
            f"{missing[0].relative_to(root)}: {fetch}"
        )


def refuse_shared(listed: Mapping[str, Sequence[Listed]]) -> None:
    """Raise DataError for an image that a split file, known by its name, lists twice or two files list."""
    owner: dict[str, str] = {}
    for file, images in listed.items():
        for name, _ in images:
            if name in owner:
                where = f"both {owner[name]} and {file}" if owner[name] != file else f"{file} twice"
                raise DataError(
                    f"{name} is in {where}: an image belongs to one split once, unpack the data set's "
                    "own files again"
                )
            owner[name] = file


def refuse_elsewhere(path: str, file: Path) -> None:
    """Raise DataError for a listed image whose path leads out of the data set's folder."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DataError(f"{file} lists {path!r}, which is not below the data set's folder")


def hold_out(
    listed: Sequence[Listed], one_in: int, by_class: bool
) -> tuple[list[Listed], list[Listed]]:
    """(the rest, a hold-out of one image in `one_in` of each class, or of all, and at least one).

    Both parts keep the order, and a class of one image stays whole. The hash of its name decides whether
    an image is held out: neither the order of a file nor Python's version does.
    """
    groups: dict[str, list[Listed]] = defaultdict(list)
    for image in listed:
        groups[image.label if by_class else ""].append(image)
    held: set[Listed] = set()
    for group in groups.values():
        group.sort(key=_hash_of_name)
        held.update(group[: max(1, len(group) // one_in) if len(group) > 1 else 0])
    return [each for each in listed if each not in held], [each for each in listed if each in held]


def _hash_of_name(image: Listed) -> bytes:
    return hashlib.sha256(image.name.encode(errors="backslashreplace")).digest()


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
