"""Files under /sys and /proc, which may be absent, unreadable, or gone since they were listed."""

from __future__ import annotations

import math
from pathlib import Path


def listed(folder: Path, pattern: str) -> list[Path]:
    """What lies there and matches, cpu2 before cpu10."""
    try:
        return sorted(folder.glob(pattern), key=lambda path: (len(str(path)), path))
    except OSError:
        return []


def text(path: Path) -> str | None:
    """What the file says, without the space and zero bytes around it; None where it says nothing."""
    try:
        return path.read_text(errors="replace").strip("\x00\n ") or None
    except OSError:
        return None


def number(path: Path) -> float | None:
    """The file's first word, None where that is no number."""
    try:
        value = float((text(path) or "").split()[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) else None
