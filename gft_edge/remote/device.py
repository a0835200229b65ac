"""A device, opened: gft-edge made ready on it, then files sent, a command run, results fetched."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from gft_edge.bundle.specs import Progress, Say
from gft_edge.errors import RemoteError
from gft_edge.remote import PROGRESS_MARK, PROGRESS_VARIABLE
from gft_edge.remote.channel import Channel
from gft_edge.remote.content import Content, content_of, send_files
from gft_edge.remote.package import package_zip, pip_zip, requirements, wheels_for

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class There:
    """A path of the device, as scp reads it: relative to the user's home folder."""

    path: str


Word = str | There
# The line of a stream that a command printed.
Line = Callable[[str], None]


# Beyond it certificates are not valid, and files look older than they are.
CLOCK_OFF_S = 24 * 3600


class Device:
    """A device on which gft-edge runs: a context manager that connects, and ends what runs there."""

    def __init__(self, host: str, progress: Progress, say: Say) -> None:
        self.host = host
        self.interrupted = False
        self._progress = progress
        self._say = say
        self._channel = Channel(host, say)
        self._running = False
        self._runner: list[str] = []
        self._env: dict[str, str] = {}
        self._roots = 0

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the device says of itself (remote/agent/serve.py)."""
        return self._channel.facts

    def __enter__(self) -> Device:
        """Connect. Raises RemoteError, UsageError."""
        self._channel.open()
        off = self.facts["time"] - time.time()
        if abs(off) > CLOCK_OFF_S:
            self._say(
                f"the clock of {self.host} is {abs(off) / 86400:.0f} days {'fast' if off > 0 else 'slow'}: "
                "set it (sudo timedatectl set-ntp true), or nothing can be installed there"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def prepare(self, extras: Iterable[str], offline: bool = False) -> None:
        """Make gft-edge ready with the engines of `extras`; what is there already is kept.

        With `offline` what it requires is fetched here. Raises RemoteError with pip's reason.
        """
        self._channel.ask("begin")
        facts = self._channel.facts
        met = self._channel.ask("met")["requirements"]
        wanted = [each for each in requirements(extras, facts) if each not in met]
        with tempfile.TemporaryDirectory(prefix="gft-edge-") as name:
            folder = Path(name)
            package = self._sent(folder / "gft-edge.zip", package_zip())
            pip = self._sent(folder / "pip.zip", pip_zip()) if wanted else None
            wheels = None
            if wanted and offline:
                self._say(f"fetching {', '.join(wanted)} for the platform of {self.host}")
                wheels_for(wanted, facts, folder / "wheels")
                wheels = self.place(content_of({"": folder / "wheels"}))
        made = self._channel.ask(
            "install", package=package, pip=pip, requirements=wanted, wheels=wheels
        )
        self._runner = [made["python"], "-m", "gft_edge"]
        self._env = {"PYTHONPATH": made["package"], PROGRESS_VARIABLE: "json"}

    def _sent(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        send_files(self._channel, {sha256: path}, self._progress)
        return sha256

    def place(self, content: Content) -> str:
        """Send what the device lacks of `content`; return the folder where it has all of it.

        The folder is there until the device is closed. Raises RemoteError.
        """
        send_files(self._channel, content.sources, self._progress)
        self._roots += 1
        placed = self._channel.ask(
            "place",
            json.dumps(dict(content.files)).encode(),
            root=str(self._roots),
            folders=content.folders,
        )
        return str(placed["path"])

    def has(self, sha256s: Iterable[str]) -> set[str]:
        """Which of these files the device has."""
        wanted = dict.fromkeys(sha256s)
        missing = self._channel.ask("have", json.dumps(wanted).encode(), send=False)["missing"]
        return {*wanted} - {*missing}

    def run(self, words: Sequence[Word], printed: Line, told: Line) -> int:
        """Run gft-edge with these words; return its exit code.

        `printed` gets its output line by line, `told` what it says meanwhile; its progress is shown here.
        """
        self._channel.send(
            "run",
            words=[*self._runner, *(w if isinstance(w, str) else {"there": w.path} for w in words)],
            env=self._env,
        )
        self._running = True
        streams = {"stdout": _Lines(printed), "stderr": _Lines(lambda line: self._tell(line, told))}
        while True:
            message, payload = self._channel.receive()
            if message["op"] == "exit":
                self._running = False
                for stream in streams.values():
                    stream.end()
                return int(message["code"])
            streams[message["op"]].add(payload)

    def _tell(self, line: str, told: Line) -> None:
        if not line.startswith(PROGRESS_MARK):
            told(line)
            return
        with suppress(ValueError):
            text, done, total = json.loads(line[1:])
            self._progress(text, done, total)

    def interrupt(self) -> None:
        """Do to the command what Ctrl-C does: `run` returns when it has ended.

        Where none runs the connection ends: whoever waits for the device gets a RemoteError.
        """
        self.interrupted = True
        if not self._running:
            self._channel.abort()
            return
        with suppress(RemoteError):
            self._channel.send("interrupt")

    def made(self, placed: str) -> dict[str, str]:
        """Return the files below a placed path that are new or changed since: path -> sha256.

        Raises RemoteError for names by which files would be written elsewhere here.
        """
        self._channel.send("made", root=Path(placed).name)
        found: dict[str, str] = json.loads(self._channel.receive()[1])
        for path, sha256 in found.items():
            inside = PurePosixPath(path)
            if inside.is_absolute() or ".." in inside.parts or not _SHA256.fullmatch(sha256):
                raise RemoteError(
                    self.host,
                    f"sends {path!r} ({sha256!r}), which is no file of what was made there",
                )
        return found

    def fetch(self, sha256: str, path: Path) -> None:
        """Fetch a file whole, or not at all. Raises RemoteError where it arrives damaged."""
        self._channel.send("get", sha256=sha256)
        digest = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                while piece := self._channel.receive()[1]:
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise RemoteError(
                    self.host, f"{path} arrived damaged (its sha256 differs): try again"
                )
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)

    def clean(self) -> tuple[str, bool]:
        """Remove all that was put on the device: its folder, and whether there was one."""
        answer = self._channel.ask("clean")
        return str(answer["folder"]), bool(answer["there"])


class _Lines:
    """Whole lines of what arrives in pieces."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._rest = b""

    def add(self, piece: bytes) -> None:
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for line in whole:
            self._line(line.decode(errors="replace"))

    def end(self) -> None:
        if self._rest:
            self._line(self._rest.decode(errors="replace"))
