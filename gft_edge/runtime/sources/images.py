"""Where images come from: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gft_edge.bundle.specs import Say
from gft_edge.errors import UsageError
from gft_edge.runtime.image_formats import UNREAD_PICTURES, is_image

# What file servers, Windows and macOS keep among a user's files, in lower case. Whatever begins with a
# dot is hidden anyway.
_SYSTEMS_OWN = frozenset({
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@tmp",
    "__macosx", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found", "network trash folder", "recycler",
    "system volume information", "temporary items", "thumbs.db", "~snapshot",
})  # fmt: skip
_SYNOLOGY_STREAMS = ("@synoeastream", "@synoresource")

LEADS_BACK = "links that lead back"
NO_FILE = "neither files nor folders"
NO_SUFFIX = "without a suffix"


class Unread(NamedTuple):
    """A folder that cannot be listed or a link that leads nowhere, and why."""

    path: Path
    why: str


class Entries(NamedTuple):
    """What lies in one folder, in the order of the names; `left_out` counts what is none of it by kind."""

    folders: list[Path]
    files: list[Path]
    unread: list[Unread]
    left_out: Counter[str]


class Found(NamedTuple):
    """The images in and under a folder, sorted; `left_out` counts other files by suffix or kind.

    `linked` are the folders that were reached through a link, as they are named here.
    """

    images: list[Path]
    unread: list[Unread]
    left_out: Counter[str]
    linked: list[Path]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own."""
    low = name.lower()
    return low.startswith(".") or low in _SYSTEMS_OWN or low.endswith(_SYNOLOGY_STREAMS)


def entries(folder: Path) -> Entries:
    """List one folder without what is hidden. Links count as what they lead to.

    A link to a folder that the link itself lies in would be walked in circles, and is left out. Raises
    OSError for a folder that cannot be listed, or not be entered.
    """
    found = Entries([], [], [], Counter())
    os.stat(os.path.join(folder, os.curdir))  # A folder may be listed and yet not be entered.
    with os.scandir(folder) as listed:
        visible = sorted((e for e in listed if not is_hidden(e.name)), key=lambda e: e.name)
    for entry in visible:
        path = folder / entry.name
        try:
            if entry.is_dir():
                if entry.is_symlink() and _leads_back(path):
                    found.left_out[LEADS_BACK] += 1
                else:
                    found.folders.append(path)
            elif entry.is_file():
                found.files.append(path)
            elif path.exists():
                found.left_out[NO_FILE] += 1
            else:
                found.unread.append(Unread(path, f"links to {os.readlink(path)}: nothing is there"))
        except OSError as error:
            found.unread.append(Unread(path, str(error.strerror)))
    return found


def walked(folder: Path, unlisted: list[Unread]) -> Iterator[Entries]:
    """List a folder and those below it, each once, links followed; `unlisted` takes what cannot be listed.

    What is hidden below the folder is skipped; the folder's own path may hold anything.
    """
    seen: set[tuple[int, int]] = set()
    folders, linked = [folder], list[Path]()
    # Links last: what is reached without one as well is known by that path.
    while folders or linked:
        here = folders.pop() if folders else linked.pop(0)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            inside = entries(here)
        except OSError as error:
            unlisted.append(Unread(here, str(error.strerror)))
            continue
        for path in inside.folders:
            (linked if path.is_symlink() else folders).append(path)
        yield inside


def find_images(folder: Path) -> Found:
    """Find the images in and under a folder, as it is walked."""
    found = Found([], [], Counter(), [])
    for inside in walked(folder, found.unread):
        found.linked.extend(path for path in inside.folders if path.is_symlink())
        for path in inside.files:
            try:
                if is_image(path):
                    found.images.append(path)
                else:
                    found.left_out[path.suffix.lower() or NO_SUFFIX] += 1
            except OSError as error:
                found.unread.append(Unread(path, str(error.strerror)))
        found.unread.extend(inside.unread)
        found.left_out.update(inside.left_out)
    found.images.sort()
    found.unread.sort()
    return found


def images_below(folder: Path) -> list[Path]:
    """The images in and under a folder, sorted. Raises UsageError for a part that cannot be read."""
    found = find_images(folder)
    if found.unread:
        raise UsageError(cannot_be_read(found.unread))
    return found.images


def cannot_be_read(unread: list[Unread]) -> str:
    """What is said of the parts of a folder that cannot be read."""
    (path, why), more = unread[0], len(unread) - 1
    others = f", and {more} more such" if more else ""
    return (
        f"{path} cannot be read ({why}){others}: mend or remove it, or its images would be missing"
    )


def left_out_text(left_out: Mapping[str, int]) -> str:
    """What is said of the files that are no images, or that are pictures of a kind that is not read."""
    total = sum(left_out.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    text = f"{total} left out that {'is' if total == 1 else 'are'} not read as images ({kinds})"
    pictures = sorted(kind for kind in left_out if kind in UNREAD_PICTURES)
    if not pictures:
        return text
    return (
        f"{text}; Pillow does not read {' and '.join(pictures)}: convert such pictures, as "
        f"magick mogrify -format jpg '*{pictures[0]}' does (ImageMagick)"
    )


def expanded(
    paths: Iterable[str],
    say: Say = lambda text: None,
    also: Callable[[str], bool] = lambda path: False,
) -> Iterator[str]:
    """The files that arguments mean, in order; what is left out of folders is said.

    A glob means what it matches of images, and of files that are `also` wanted.

    A part of a folder that cannot be read stands among them: it is refused where it is opened. Raises
    UsageError for an argument that means none.
    """
    for text in paths:
        if not text:
            raise UsageError("an image path is empty: is a shell variable unset?")
        if os.path.isdir(text):
            yield from _images_of([text], text, say, also)
        elif os.path.lexists(text) or not glob.has_magic(text):
            yield text
        else:
            yield from _images_of(_visible_matches(text), text, say, also)


def _images_of(
    places: Iterable[str], text: str, say: Say, also: Callable[[str], bool]
) -> list[str]:
    """The images that files are and folders hold, each once. Raises UsageError where there is none."""
    found: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = find_images(path)
            parts = [*inside.images, *(each.path for each in inside.unread)]
            left_out.update(inside.left_out)
            found.update(dict.fromkeys(map(str, sorted(parts))))
        elif also(place) or _may_be_image(path):
            found[place] = None
        else:
            left_out[path.suffix.lower() or NO_SUFFIX] += 1
    if not found:
        raise UsageError(
            f"{text} matches no image" + (f": {left_out_text(left_out)}" if left_out else "")
        )
    if left_out:
        say(f"{text}: {left_out_text(left_out)}")
    return [*found]


def _may_be_image(path: Path) -> bool:
    try:
        return path.is_symlink() or (path.is_file() and is_image(path))
    # It is refused where it is opened, with the reason.
    except OSError:
        return True


def _visible_matches(pattern: str) -> list[str]:
    """What a glob matches, sorted, without what a system keeps in folders that it does not name."""
    named = set(Path(pattern).parts)
    return [
        match
        for match in sorted(glob.glob(pattern, recursive=True))
        if not any(is_hidden(part) for part in set(Path(match).parts) - named - {".."})
    ]


def _leads_back(link: Path) -> bool:
    """Whether a link to a folder leads to one that the link itself lies in."""
    target, here = Path(os.path.realpath(link)), Path(os.path.realpath(link.parent))
    return here == target or target in here.parents
