"""The sha256 of many files, each read once: kept by path, size, times and inode, as git's index keeps it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import sha256_of, write_whole
from gft_edge.errors import BundleError
from gft_edge.runtime.user_cache import user_cache

# A file written this shortly before it was read may be written again within the same tick of the
# file system's clock, and then looks unchanged: it is read again the next time.
SETTLED_NS = 2 * 10**9
THREADS = 4  # sha256 lets other threads run: reading and hashing overlap

# size, mtime_ns, ctime_ns, inode, sha256. ctime_ns: tools that edit a photograph in place can set the
# modification time back, but not this one.
Entry = list[int | str]


def file_digests(
    root: Path, paths: Sequence[Path], progress: Progress | None = None, remember: bool = True
) -> list[str]:
    """Return the sha256 of the content of each of `paths`, files below `root`.

    A file is read where its size, modification time, change time or inode differ from those that
    were kept when it was last read. What is kept lies in the user's cache, one file a root; where that
    cannot be used, or without `remember`, every file is read. Raises OSError for a file that is gone.
    """
    file = _kept_file(root) if remember else None
    kept = {} if file is None else _read(file)
    keys = [_key(path) for path in paths]
    names = [path.relative_to(root).as_posix() for path in paths]
    unread = [
        n
        for n, (name, key) in enumerate(zip(names, keys, strict=True))
        if kept.get(name, [])[:-1] != key
    ]
    found = {name: str(entry[-1]) for name, entry in kept.items()}
    if unread:
        now = time.time_ns()
        with ThreadPoolExecutor(THREADS) as pool:
            for done, (n, digest) in enumerate(
                zip(unread, pool.map(lambda n: sha256_of(paths[n]), unread), strict=True), start=1
            ):
                found[names[n]] = digest
                kept.pop(names[n], None)
                # A file that changes while it is read has no content to keep.
                if now - max(keys[n][1:3]) > SETTLED_NS and _key(paths[n]) == keys[n]:
                    kept[names[n]] = [*keys[n], digest]
                if progress is not None:
                    progress("reading images", done, len(unread))
        # A cache that cannot be written costs time alone.
        with suppress(OSError, BundleError):
            if file is not None:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(file, json.dumps(kept, separators=(",", ":")).encode())
    return [found[name] for name in names]


def _key(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _kept_file(root: Path) -> Path | None:
    folder = user_cache("digests")
    if folder is None:
        return None
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    return folder / f"{name}.json"


def _read(file: Path) -> dict[str, Entry]:
    """Return what was kept; nothing where it is absent, damaged or of another form."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        name: entry
        for name, entry in content.items()
        if isinstance(entry, list) and len(entry) == 5 and isinstance(entry[-1], str)
    }
