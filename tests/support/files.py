"""What lies in a folder, to write and to compare, and a file that must not be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(folder: Path, files: Mapping[str, object]) -> Path:
    """Write a line into each file, by its path below `folder`."""
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    return folder


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must not run",))
