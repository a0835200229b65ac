"""A command done on several devices at once: files sent, the command run, its words translated back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
    open: dict[str, Device] = field(default_factory=dict)

    def done(self, report: Progress) -> list[Answer]:
        answers = {host: Answer(host) for host in self.hosts}
        threads = [
            threading.Thread(target=self._on, args=(answer, report), daemon=True)
            for answer in answers.values()
        ]
        for thread in threads:
            thread.start()
        interrupted = False
        while any(thread.is_alive() for thread in threads):
            try:
                for thread in threads:
                    thread.join(0.1)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                for device in [*self.open.values()]:
                    device.interrupt()
        return [*answers.values()]

    def _on(self, answer: Answer, report: Progress) -> None:
        several = len(self.hosts) > 1
        remark: Say = (lambda text: say(f"{answer.host}: {text}")) if several else say
        if several:
            plain = report
            report = lambda text, done, total: plain(f"{answer.host}: {text}", done, total)  # noqa: E731
        try:
            with ExitStack() as stack:
                device = stack.enter_context(Device(answer.host, report, remark))
                self.open[answer.host] = device
                self._run(device, answer, remark)
        except GftEdgeError as error:
            answer.error = str(error).removeprefix(f"{answer.host}: ")
            answer.exit_code = error.exit_code
            if several:
                remark(f"Error: {answer.error}")
        finally:
            self.open.pop(answer.host, None)

    def _run(self, device: Device, answer: Answer, remark: Say) -> None:
        device.prepare(_extras(self.bundles, self.backend, device), self.offline)
        root = device.place(self.content.without(_other_engines(self.places, device)))
        names = {f"{root}/{place}": word.as_typed for place, word in self.places.items()}
        names[f"{root}/{OUT}"] = OUT
        whole: list[str] = []

        def printed(line: str) -> None:
            if self.each is None:
                whole.append(line)
            else:
                self.each(answer.host, _renamed(json.loads(line), names))

        def told(line: str) -> None:
            if line.startswith("Error: "):
                answer.error = _replaced(line.removeprefix("Error: "), names)
            else:
                remark(_replaced(line, names))

        command, *words = [self._there(word, root) for word in self.words]
        answer.exit_code = device.run([command, "--json", *words], printed, told)
        if whole:
            answer.documents = [_renamed(json.loads("\n".join(whole)), names)]
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
    if "tensorrt" in engines and (device.facts["tensorrt"] or _is_jetson(device)):
        if not device.facts["tensorrt"]:
            raise RemoteError(
                device.host,
                f"{device.facts['executable']} has no TensorRT: sudo apt install nvidia-jetpack "
                "python3-libnvinfer",
            )
        engines.discard("tensorrt")
    return {engine for engine in engines if engine}


def _is_jetson(device: Device) -> bool:
    board = str(device.facts["board"] or "")
    return "Jetson" in board or "NVIDIA" in board


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
