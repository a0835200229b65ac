"""What was compiled or computed, kept between processes: a file each, found by all that decides it, checked.

OpenVINO's own CACHE_DIR, given a folder for each sha256, would not answer with a stale model, but it does
not see damage: with 4 bytes changed at 60 places of a blob, OpenVINO 2026.4.1 loaded it all the same and
34 gave other logits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

# A compiled gft_base is 372 MB, a gft_tiny_edge 23: the longest unused go beyond this.
MOST_BYTES = 2**30

_CHECK_BYTES = 4

_log = logging.getLogger(__name__)


def key_of(*parts: object) -> str:
    """A name for what these JSON-able parts decide."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def usable(folder: Path, what: str = "compiled models") -> bool:
    """Whether `folder` can hold a cache, made with mode 0700 when absent; one remark is logged if not.

    `what` is to be kept. A compiled model is as good as code: a folder that others write to is not read.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32":
            status = folder.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise PermissionError(0, "other users may write to it")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it cannot be written to")
    # ValueError: a NUL in the name.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        _log.warning("%s are not kept in %s: %s", what, folder, reason)
        return False
    return True


def read_entry(folder: Path, key: str) -> npt.NDArray[np.uint8] | None:
    """What was kept under `key`, mapped into memory; None when there is none or it is damaged."""
    path = _path(folder, key)
    try:
        # Copy on write: OpenVINO takes memory that it may write to, and the file stays as it is.
        content = np.memmap(path, dtype=np.uint8, mode="c")
    except (OSError, ValueError):
        return None
    model, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    # OpenVINO takes weights that have changed on the disk, and gives NaN or another class.
    if check.tobytes() != _check(model.data):
        return None
    with suppress(OSError):
        os.utime(path)
    return model


def keep_entry(
    folder: Path, key: str, model: bytes | memoryview, what: str = "the compiled model"
) -> None:
    """Keep an entry, and forget the longest unused ones; one remark is logged on failure."""
    if len(model) > MOST_BYTES:
        return
    try:
        _write(_path(folder, key), model)
    except OSError as error:
        _log.warning("%s is not kept in %s: %s", what, folder, error.strerror)
        return
    # Another process may forget the same ones.
    with suppress(OSError):
        entries = [(e.stat(), e) for e in folder.glob(_path(folder, "*").name)]
        kept_bytes = 0
        for status, entry in sorted(entries, key=lambda e: e[0].st_mtime, reverse=True):
            kept_bytes += status.st_size
            if kept_bytes > MOST_BYTES:
                entry.unlink()


def _write(path: Path, model: bytes | memoryview) -> None:
    # Whole or not at all, but not forced to the disk, which took seconds for 372 MB: what a power cut
    # leaves fails its check. One that was interrupted here is forgotten like any other.
    handle, partial = tempfile.mkstemp(prefix="gft-edge-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model)
            file.write(_check(model))
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _path(folder: Path, key: str) -> Path:
    return folder / f"gft-edge-{key}.blob"


def _check(model: bytes | memoryview) -> bytes:
    return zlib.crc32(model).to_bytes(_CHECK_BYTES, "little")
