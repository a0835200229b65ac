"""Where this user's caches lie: below XDG_CACHE_HOME, else ~/.cache."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """Return the folder gft-edge/NAME of the user's cache, or None where there is no home folder."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(home, "gft-edge", name)
