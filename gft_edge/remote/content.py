"""What travels to a device: files of the desk by their sha256, over the connection or by rsync."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import sha256_of
from gft_edge.errors import RemoteError, UsageError
from gft_edge.remote.channel import Channel, ssh_options

PIECE_BYTES = 1 << 18
# Another connection costs more than it saves below.
RSYNC_BYTES = 4 << 20


@dataclass(frozen=True)
class Content:
    """Files and folders of the desk, as the device is to find them below one folder.

    `files` has the sha256 of each by its path there, `folders` are those that are empty; `sources` is where
    each sha256 lies here.
    """

    files: Mapping[str, str]
    folders: tuple[str, ...]
    sources: Mapping[str, Path]

    def without(self, places: Container[str]) -> Content:
        """The same less the files that lie in these places."""
        files = {place: sha256 for place, sha256 in self.files.items() if place not in places}
        wanted = {*files.values()}
        sources = {sha256: path for sha256, path in self.sources.items() if sha256 in wanted}
        return Content(files, self.folders, sources)


def content_of(paths: Mapping[str, Path]) -> Content:
    """Read what is to be sent: `paths` by the place of each there, a folder with all below it.

    The place "" is the folder itself where all is to lie. Links are followed. Raises UsageError.
    """
    files: dict[str, str] = {}
    folders: list[str] = []
    sources: dict[str, Path] = {}
    for place, path in paths.items():
        try:
            found = [("", path)] if path.is_file() else _below(path, place, folders)
            for relative, file in found:
                sha256 = sha256_of(file)
                files["/".join(filter(None, (place, relative)))] = sha256
                sources[sha256] = file
        except OSError as error:
            raise UsageError(
                f"{error.filename or path} cannot be sent: {error.strerror}"
            ) from error
    return Content(files, tuple(folders), sources)


def _below(folder: Path, at: str, empty: list[str]) -> Iterator[tuple[str, Path]]:
    """Each file below a folder with its path in it; links are followed, but not in circles."""

    def failed(error: OSError) -> None:
        raise error

    seen = set()
    for place, names, files in os.walk(folder, onerror=failed, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        relative = Path(place).relative_to(folder)
        if not names and not files:
            empty.append((PurePosixPath(at) / relative.as_posix()).as_posix())
        for name in sorted(files):
            # A lock is of this machine alone.
            if name != ".lock":
                yield (relative / name).as_posix(), Path(place, name)


def send_files(channel: Channel, sources: Mapping[str, Path], progress: Progress) -> int:
    """Send the files, by sha256, that the device lacks; return how many bytes that were.

    Raises RemoteError where the device has no room for them.
    """
    sizes = {sha256: path.stat().st_size for sha256, path in sources.items()}
    # From here no other desk sends, until the device has been told that all is sent.
    answer = channel.ask("have", json.dumps(sizes).encode(), send=True)
    missing: dict[str, int] = answer["missing"]
    if not missing:
        return 0
    total = sum(sizes[sha256] - there for sha256, there in missing.items())
    if total > answer["free_bytes"]:
        raise RemoteError(
            channel.host,
            f"has {answer['free_bytes'] / 2**20:.0f} MiB free, {total / 2**20:.0f} MiB are to be sent: make "
            f"room there (gft-edge doctor --on {channel.host} --clean removes what was sent before)",
        )
    if total >= RSYNC_BYTES and _rsync_here() and channel.facts["rsync"]:
        failed = _by_rsync(channel, {sha256: sources[sha256] for sha256 in missing}, progress)
    else:
        failed = _by_stream(channel, sources, missing, total, progress)
    for sha256, reason in failed.items():
        raise RemoteError(channel.host, f"{sources[sha256]} did not arrive: {reason}")
    return total


def _by_stream(
    channel: Channel,
    sources: Mapping[str, Path],
    missing: Mapping[str, int],
    total: int,
    progress: Progress,
) -> dict[str, str]:
    sent, text = 0, f"send  {total / 2**20:.1f} MiB"
    for sha256, offset in missing.items():
        with sources[sha256].open("rb") as file:
            file.seek(offset)
            # One message at least: an empty file is a file.
            piece = file.read(PIECE_BYTES)
            while True:
                channel.send("put", piece, sha256=sha256, offset=offset)
                sent += len(piece)
                progress(text, sent, total)
                piece = file.read(PIECE_BYTES)
                if not piece:
                    break
    failed: dict[str, str] = channel.ask("sent")["failed"]
    return failed


def _by_rsync(channel: Channel, sources: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    incoming = channel.facts["incoming"]
    destination, port = _as_rsync_takes(channel.host)
    ssh = ["ssh", *ssh_options(channel.host), *(["-p", str(port)] if port else [])]
    with tempfile.TemporaryDirectory(prefix="gft-edge-") as folder:
        for sha256, path in sources.items():
            Path(folder, sha256).symlink_to(path.absolute())
        # --inplace keeps what came of an interrupted file, under its name.
        words = [
            "rsync",
            "--copy-links",
            "--recursive",
            "--inplace",
            "--secluded-args",
            "--info=progress2",
        ]
        _watched(
            [*words, "-e", " ".join(ssh), f"{folder}/", f"{destination}:{incoming}/"],
            channel,
            progress,
        )
    failed: dict[str, str] = channel.ask("received", json.dumps([*sources]).encode())["failed"]
    return failed


def _watched(words: list[str], channel: Channel, progress: Progress) -> None:
    """Run rsync to its end. Raises RemoteError with its reason."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as rsync:
        assert rsync.stdout is not None
        assert rsync.stderr is not None
        done = 0
        while told := rsync.stdout.read1(4096):  # type: ignore[attr-defined]
            percent = re.findall(rb"(\d+)%", told)
            # It tells the last one twice.
            if percent and int(percent[-1]) > done:
                done = int(percent[-1])
                progress("send  by rsync, percent", done, 100)
            if channel.aborted:
                rsync.terminate()
        reasons = rsync.stderr.read().decode(errors="replace").strip().splitlines()
    if rsync.returncode:
        if any("No space left" in line for line in reasons):
            raise RemoteError(
                channel.host,
                f"has no space left: gft-edge doctor --on {channel.host} --clean removes what was sent",
            )
        raise RemoteError(
            channel.host,
            f"rsync failed ({reasons[0] if reasons else rsync.returncode}): the same command goes on",
        )


def _rsync_here() -> bool:
    """Whether this machine has the rsync that takes our options: macOS's own is another program."""
    if shutil.which("rsync") is None:
        return False
    told = subprocess.run(["rsync", "--version"], capture_output=True, check=False).stdout
    found = re.match(rb"rsync\s+version\s+v?(\d+)\.(\d+)", told)
    return found is not None and (int(found[1]), int(found[2])) >= (3, 2)


def _as_rsync_takes(host: str) -> tuple[str, int | None]:
    """The host and port of what ssh takes as ssh://[user@]host[:port], which rsync does not."""
    if not host.startswith("ssh://"):
        return host, None
    parts = urlsplit(host)
    user = f"{parts.username}@" if parts.username else ""
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{user}{name}", parts.port
