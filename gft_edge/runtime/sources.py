"""Where images come from: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gft_edge.errors import UsageError
from gft_edge.runtime.preprocess import IMAGE_SUFFIXES


def images_below(folder: Path) -> list[Path]:
    """The image files in and under `folder`, sorted; hidden ones (macOS writes ._NAME) left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def expanded(paths: tuple[str, ...]) -> Iterator[str]:
    """The files that arguments mean, in order. Raises UsageError for one that means none."""
    for text in paths:
        if not text:
            raise UsageError("an image path is empty: is a shell variable unset?")
        if os.path.isdir(text):
            found = [str(path) for path in images_below(Path(text))]
        elif os.path.exists(text) or not glob.has_magic(text):
            found = [text]
        else:
            found = sorted(glob.glob(text, recursive=True))
        if not found:
            raise UsageError(f"{text} matches no image")
        yield from found
