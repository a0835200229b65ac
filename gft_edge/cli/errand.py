"""A command done on several devices at once: files sent, the command run, its words translated back."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gft_edge.bundle.specs import Progress, Say
from gft_edge.bundle.store import is_bundle, read_manifest
from gft_edge.cli.answers import Answer, folder_of
from gft_edge.cli.output import say
from gft_edge.errors import GftEdgeError, RemoteError
from gft_edge.remote.content import Content
from gft_edge.remote.device import Device, There

# The folder, beside what was sent, that a command fills.
OUT = "out"


@dataclass(frozen=True)
class Here:
    """A path of the desk that travels; `as_typed` is what the user calls it.

    Of a folder that is read in part only the files `needed` travel.
    """

    path: Path
    as_typed: str
    needed: tuple[Path, ...] = ()

    def names(self, there: str) -> dict[str, str]:
        """What its path there, and those below it, are called here."""
        if not self.path.is_dir():
            return {there: self.as_typed}
        # As paths are joined: a/ and b are a/b, . and b are b.
        name = str(Path(self.as_typed))
        return {**({f"{there}/": ""} if name == "." else {}), there: name}

    def placed(self, place: str) -> dict[str, Path]:
        """What travels, by its place there."""
        if not self.needed:
            return {place: self.path}
        return {f"{place}/{path.relative_to(self.path).as_posix()}": path for path in self.needed}


@dataclass(frozen=True)
class Out:
    """The folder that a command fills there, which is fetched."""


Word = str | Here | There | Out


# Told a device and the folder of what was sent, when the command has ended.
Fetch = Callable[[Device, str, Answer], None]


@dataclass(frozen=True)
class Errand:
    """The words for every host, and what they need there."""

    hosts: Sequence[str]
    offline: bool
    words: Sequence[Word]
    places: Mapping[str, Here]
    content: Content
    bundles: Sequence[Path]
    backend: str | None
    fetch: Fetch
    each: Callable[[str, Any], None] | None
    told: Say = say
    extras: frozenset[str] = frozenset()
    open: dict[str, Device] = field(default_factory=dict)
    faults: list[BaseException] = field(default_factory=list)

    def done(self, report: Progress) -> list[Answer]:
        """Do it on every host. Ctrl-C interrupts the commands; where none runs yet, what leads to it."""
        answers = {host: Answer(host) for host in self.hosts}
        ended = [threading.Event() for _ in answers]
        for answer, event in zip(answers.values(), ended, strict=True):
            threading.Thread(target=self._on, args=(answer, report, event), daemon=True).start()
        interrupted = False
        # Not Thread.join: interrupted by Ctrl-C it takes the thread for ended (bugs.python.org/issue45274).
        while left := [event for event in ended if not event.is_set()]:
            try:
                left[0].wait(0.5)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                for device in [*self.open.values()]:
                    device.interrupt()
        for fault in self.faults:
            raise fault
        return [*answers.values()]

    def _on(self, answer: Answer, report: Progress, ended: threading.Event) -> None:
        several = len(self.hosts) > 1
        remark: Say = (lambda text: self.told(f"{answer.host}: {text}")) if several else self.told
        if several:
            plain = report
            report = lambda text, done, total: plain(f"{answer.host}: {text}", done, total)  # noqa: E731
        device = self.open[answer.host] = Device(answer.host, report, remark)
        try:
            self._tried(device, answer, remark)
            if several and answer.error is not None:
                remark(f"Error: {answer.error}")
        except BaseException as fault:
            self.faults.append(fault)
        finally:
            del self.open[answer.host]
            ended.set()

    def _tried(self, device: Device, answer: Answer, remark: Say) -> None:
        try:
            with device:
                self._run(device, answer, remark)
        except GftEdgeError as error:
            # Without a command to interrupt, the connection was broken off.
            reason = "interrupted" if device.interrupted else str(error)
            answer.error = reason.removeprefix(f"{answer.host}: ")
            answer.exit_code = 1 if device.interrupted else error.exit_code
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            answer.error = f"{where}{error.strerror or error}"

    def _run(self, device: Device, answer: Answer, remark: Say) -> None:
        engines = _extras(self.bundles, self.backend, device)
        device.prepare(engines | self.extras, self.offline)
        root = device.place(self.content.without(_other_engines(self.places, device)))
        names = {f"{root}/{OUT}": OUT}
        for place, word in self.places.items():
            names |= word.names(f"{root}/{place}")
        lines: list[str] = []
        last = ""

        def printed(line: str) -> None:
            lines.append(line)
            if self.each is not None:
                self.each(answer.host, _renamed(_json(line, device), names))

        def told(line: str) -> None:
            nonlocal last
            if line.startswith("Error: "):
                answer.error = _replaced(line.removeprefix("Error: "), names)
            # A Python that Ctrl-C ends while it imports says much, in several ways.
            elif not device.interrupted or line.startswith("interrupted"):
                last = _replaced(line, names)
                remark(last)

        command, *words = [self._there(word, root) for word in self.words]
        code = device.run([command, "--json", *words], printed, told)
        answer.exit_code = code if code >= 0 else 1
        if device.interrupted and (self.each is not None or not lines):
            # It may have said more of what that did, or something that is not so.
            said = answer.error or ""
            answer.error = said if said.startswith("interrupted") else "interrupted"
            answer.exit_code = 1
        elif code < 0:
            answer.error = _ended_by(-code)
        elif code and not lines:
            answer.error = answer.error or last or f"the command ended with exit code {code}"
        elif lines and self.each is None:
            answer.documents = [_renamed(_json("\n".join(lines), device), names)]
        self.fetch(device, root, answer)

    def _there(self, word: Word, root: str) -> str | There:
        if isinstance(word, Here):
            return next(f"{root}/{place}" for place, here in self.places.items() if here is word)
        return f"{root}/{OUT}" if isinstance(word, Out) else word


def fetched_folder(out: Path | None, several: bool) -> Fetch:
    """Fetch what a command wrote to its folder into `out`; None fetches nothing."""

    def fetch(device: Device, root: str, answer: Answer) -> None:
        if out is None:
            return
        for place, sha256 in device.made(root).items():
            if place.startswith(f"{OUT}/"):
                folder = folder_of(out, answer, several)
                device.fetch(sha256, folder / place.removeprefix(f"{OUT}/"))

    return fetch


def _extras(bundles: Iterable[Path], backend: str | None, device: Device) -> set[str]:
    """The extras of gft-edge that the bundles' engines need. Raises RemoteError for a board's own."""
    engines = {backend} if backend else {read_manifest(bundle).target for bundle in bundles}
    facts = device.facts
    if "tensorrt" in engines:
        if facts["tensorrt"] or facts["tensorrt_rtx"]:
            engines.discard("tensorrt")
        elif "Jetson" in (board := facts["board"] or "") or "NVIDIA" in board:
            raise RemoteError(
                device.host,
                f"{facts['executable']} has no TensorRT: sudo apt install nvidia-jetpack "
                "python3-libnvinfer",
            )
        elif not facts["nvidia"]:
            # Its wheels are gigabytes.
            raise RemoteError(
                device.host,
                "has no NVIDIA driver, and TensorRT runs on NVIDIA's GPUs: install the driver, or export "
                "with --target onnx or openvino",
            )
    return {engine for engine in engines if engine}


_WHY_ENDED = {
    "SIGKILL": ", as a system does that runs out of memory: close other programs there, or add swap",
    "SIGILL": ": a library has instructions that its processor lacks, and gft-edge doctor --on names it",
}


def _ended_by(number: int) -> str:
    """Say which signal ended a command."""
    name = signal.Signals(number).name
    return f"{name} ended the command there{_WHY_ENDED.get(name, '')}"


def _json(text: str, device: Device) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise RemoteError(
            device.host, f"the command printed something else than JSON: {text[:80]!r}"
        ) from None


def _other_engines(places: Mapping[str, Here], device: Device) -> set[str]:
    """The engines of bundles that another platform built: they do not load there."""
    platform = f"linux-{device.facts['machine']}"
    return {
        f"{place}/{engine.path}"
        for place, word in places.items()
        if is_bundle(word.path)
        for engine in read_manifest(word.path).engines
        if engine.flavor == "tensorrt" and engine.platform != platform
    }


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    """JSON with the device's names of what was sent replaced by the user's."""
    if isinstance(content, str):
        return _replaced(content, names)
    if isinstance(content, dict):
        return {key: _renamed(value, names) for key, value in content.items()}
    return [_renamed(each, names) for each in content] if isinstance(content, list) else content


def _replaced(text: str, names: Mapping[str, str]) -> str:
    for name, as_typed in names.items():
        text = text.replace(name, as_typed)
    return text
