"""Files by their sha256, each whole and checked, and those on their way: an interrupted copy goes on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from typing import BinaryIO

from gft_edge.remote.agent.messages import RefusedError, reason_of


class Store:
    """The folder of the files that desks sent."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.incoming = os.path.join(folder, "incoming")
        self._parts: dict[str, BinaryIO] = {}
        self._failed: dict[str, str] = {}
        self._rsync: BinaryIO | None = None

    def path(self, sha256: str) -> str:
        """Return where a file of this content lies, or would lie."""
        return os.path.join(self.folder, sha256)

    def missing(self, wanted: list[str]) -> dict[str, int]:
        """Return the files that are not here, with how many bytes of each are."""
        absent = {}
        for sha256 in wanted:
            try:
                os.utime(self.path(sha256))
            except FileNotFoundError:
                part = os.path.join(self.incoming, sha256)
                absent[sha256] = os.path.getsize(part) if os.path.exists(part) else 0
        return absent

    def put(self, sha256: str, offset: int, piece: bytes) -> None:
        """Write a piece of a file; why one fails is told by `sent`."""
        if sha256 in self._failed:
            return
        try:
            if sha256 not in self._parts:
                # One at a time: thousands of photographs would be too many open files.
                self._close()
                self._parts[sha256] = self._opened(sha256, offset)
            self._parts[sha256].write(piece)
        except (OSError, RefusedError) as error:
            self._failed[sha256] = reason_of(error)

    def _opened(self, sha256: str, offset: int) -> BinaryIO:
        part = open(os.path.join(self.incoming, sha256), "ab")  # noqa: SIM115
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            part.close()
            raise RefusedError("another desk is sending the same file: try again") from None
        part.truncate(offset)
        return part

    def _close(self) -> None:
        """Keep the file that was being written, if it is whole."""
        for sha256, part in self._parts.items():
            try:
                with part:
                    part.flush()
                    if sha256 not in self._failed:
                        self._keep(sha256)
            except (OSError, RefusedError) as error:
                self._failed.setdefault(sha256, reason_of(error))
        self._parts = {}

    def sent(self) -> dict[str, str]:
        """Return why files that were put are not kept, by sha256."""
        self._close()
        failed, self._failed = self._failed, {}
        return failed

    def open_to_rsync(self) -> bool:
        """Whether rsync may write into `incoming` now: one desk at a time may."""
        lock = open(os.path.join(self.folder, "rsync.lock"), "wb")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._rsync = lock
        return True

    def received(self, names: list[str]) -> dict[str, str]:
        """Keep what rsync brought; return why a file is not kept, by sha256."""
        failed = {}
        for sha256 in names:
            try:
                self._keep(sha256)
            except (OSError, RefusedError) as error:
                failed[sha256] = reason_of(error)
        if self._rsync is not None:
            self._rsync.close()
        return failed

    def _keep(self, sha256: str) -> None:
        part = os.path.join(self.incoming, sha256)
        if sha256_of(part) != sha256:
            os.unlink(part)
            raise RefusedError("it arrived damaged (its sha256 differs): try again")
        os.chmod(part, 0o644)
        os.replace(part, self.path(sha256))

    def adopt(self, path: str) -> str:
        """Take a file that was made here into the store, and return its sha256."""
        sha256 = sha256_of(path)
        if not os.path.exists(self.path(sha256)):
            linked_or_copied(path, self.path(sha256))
        return sha256


def sha256_of(path: str) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def linked_or_copied(source: str, path: str) -> None:
    """Give a file a second name, or copy it where the disk has no links."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, path)
