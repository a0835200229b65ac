"""One lock for every folder that is written: held by one process at a time, refused to any other."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gft_edge.errors import LockedError, UsageError

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that is written to, a bundle or a run, until the block or the process ends.

    Raises UsageError where it cannot be written or locked, LockedError while another process holds it.
    """
    try:
        file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}): copy it to a folder that can"
        ) from error
    with file:
        _lock(file.fileno(), folder)
        yield


@contextmanager
def claimed_name(out: Path) -> Iterator[None]:
    """Hold a name that a folder is about to get, by a hidden file beside it that goes at the end.

    Raises UsageError where the folder around it cannot be written or locked, LockedError while
    another process holds the name.
    """
    path = out.with_name(f".{out.name}.lock")
    while True:
        try:
            file = path.open("w")
        except OSError as error:
            raise UsageError(f"cannot write beside {out}: {error.strerror}") from error
        with file:
            _lock(file.fileno(), out)
            # Whoever held it before may have removed the file between our opening and locking it.
            if not _is_at(path, file.fileno()):
                continue
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps a file that is open
                    path.unlink()
            return


@contextmanager
def claimed_folder(out: Path, marker: str, kind: str) -> Iterator[None]:
    """Hold the folder that a command fills: a new one, or one whose file `marker` says it is a `kind`.

    The caller writes the marker. Raises UsageError where `out` is anything else or cannot be written,
    LockedError while another process holds it.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give --out a folder")
    begun = (out / marker).exists()
    if out.is_dir() and not begun and any(path.name != LOCK_FILE for path in out.iterdir()):
        raise UsageError(f"{out} exists and is no {kind}: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK_FILE).touch()
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror}): choose another --out"
        ) from error
    with locked(out):
        yield


def _lock(handle: int, what: Path) -> None:
    """Lock an open file without waiting; the lock goes with the process that holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # EACCES is Windows's word. A network disk without locks gives another.
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise UsageError(
                f"{what} cannot be locked ({error.strerror}): put it on a local disk"
            ) from error
        raise LockedError(what) from error


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
