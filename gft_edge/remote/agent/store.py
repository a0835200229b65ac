"""Files by their sha256, each whole and checked, and those on their way: an interrupted copy goes on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO

from gft_edge.remote.agent.messages import Desk, RefusedError, reason_of


class Store:
    """The folder of the files that desks sent."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.incoming = os.path.join(folder, "incoming")
        self._parts: dict[str, BinaryIO] = {}
        self._failed: dict[str, str] = {}
        self._sending: BinaryIO | None = None

    def path(self, sha256: str) -> str:
        """Return where a file of this content lies, or would lie."""
        return os.path.join(self.folder, sha256)

    def missing(self, wanted: Mapping[str, int | None]) -> dict[str, int]:
        """Return the files, by sha256, that are not here, with how many bytes of each are.

        `wanted` has their sizes, where they are known: a power cut may leave a file without its content.
        """
        absent = {}
        for sha256, size in wanted.items():
            path, part = self.path(sha256), os.path.join(self.incoming, sha256)
            with suppress(FileNotFoundError):
                if size in (None, os.path.getsize(path)):
                    os.utime(path)
                    continue
                os.unlink(path)
            there = os.path.getsize(part) if os.path.exists(part) else 0
            absent[sha256] = there if size is None or there <= size else 0
        return absent

    def claim(self, desk: Desk) -> None:
        """Let no other desk send until `release`: two would write into the same file."""
        if self._sending is None:
            self._sending = locked(os.path.join(self.folder, "sending.lock"), desk)

    def release(self) -> None:
        """Let other desks send."""
        if self._sending is not None:
            self._sending.close()
        self._sending = None

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
        self.release()
        failed, self._failed = self._failed, {}
        return failed

    def received(self, names: list[str]) -> dict[str, str]:
        """Keep what rsync brought; return why a file is not kept, by sha256."""
        failed = {}
        for sha256 in names:
            try:
                self._keep(sha256)
            except (OSError, RefusedError) as error:
                failed[sha256] = reason_of(error)
        self.release()
        return failed

    def _keep(self, sha256: str) -> None:
        part = os.path.join(self.incoming, sha256)
        if sha256_of(part) != sha256:
            os.unlink(part)
            raise RefusedError("it arrived damaged (its sha256 differs): try again")
        os.chmod(part, 0o644)
        os.replace(part, self.path(sha256))

    def holds(self, path: str, sha256: str) -> bool:
        """Whether the file at a path is that of the store, or has its content."""
        with suppress(FileNotFoundError):
            if os.path.samefile(path, self.path(sha256)):
                return True
        return sha256_of(path) == sha256

    def adopt(self, path: str) -> str:
        """Take a file that was made here into the store, and return its sha256."""
        sha256 = sha256_of(path)
        with suppress(FileExistsError):
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
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:
        partial = f"{path}.{os.getpid()}"
        shutil.copyfile(source, partial)
        os.replace(partial, path)


def locked(path: str, desk: Desk) -> BinaryIO:
    """Lock a file, until it is closed; wait for another desk that has it."""
    lock = open(path, "wb")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        desk.say("waiting for another desk, which sends or installs there")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
