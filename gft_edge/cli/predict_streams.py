"""What predict prints and saves of videos, streams and cameras."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import ModelSpec
from gft_edge.cli.output import made_folder, print_json, say, shown, writable_file
from gft_edge.errors import GftEdgeError, UsageError
from gft_edge.reporting.frames import (
    PictureFolder,
    Recorder,
    VideoFile,
    beside_patches,
    captioned,
)
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.sources import is_live
from gft_edge.runtime.stream import Labelled

# Frames over which the rate of a source is shown.
_RATE_OF = 30


class Saving:
    """Where labelled frames go: a video of one source, or a folder of pictures. Raises UsageError."""

    def __init__(self, path: Path, show_kept: bool, sources: Sequence[str]) -> None:
        self._path = path
        self._show_kept = show_kept
        self._sources = [*sources]
        self._of_video = path.suffix.lower() == ".mp4"
        if not self._of_video:
            if path.suffix and not path.is_dir():
                raise UsageError(f"--save {path}: give a file that ends in .mp4, or a folder")
            made_folder(path, "--save")
            return
        if len(self._sources) > 1:
            raise UsageError(
                f"--save {path} holds the frames of one source, and here are {len(self._sources)}: "
                "give a folder"
            )
        writable_file(path, "--save")
        if os.path.realpath(path) == os.path.realpath(self._sources[0]):
            raise UsageError(f"--save {path} is the video that is read: choose another name")

    def checked(self, manifest: Manifest) -> bool:
        """Whether kept patches are drawn. Raises UsageError for a bundle that has none."""
        if self._show_kept and not manifest.kept_outputs:
            raise UsageError("--show-kept shows which patches survive, and this network drops none")
        return self._show_kept

    def opened(self) -> Recorder:
        """What writes the pictures."""
        return VideoFile(self._path) if self._of_video else PictureFolder(self._path)

    def add(self, recorder: Recorder, seen: Labelled, model: ModelSpec, fps: float) -> None:
        """Draw a frame and write it."""
        best = seen.predictions[0]
        name = named(best.label, best.index, model.labels)
        words = f"{name}  {100 * best.probability:.1f} %   {fps:.1f} fps"
        if self._show_kept:
            image = beside_patches(seen.image, words, seen.pixels, seen.kept, model.patch_grid)
        else:
            image = captioned(seen.image, words)
        number = f"{1 + self._sources.index(seen.source)}-" if len(self._sources) > 1 else ""
        recorder.add(image, f"{number}{seen.frame:06d}", seen.time_s)


class Tally:
    """One source's frames so far: how many, how fast, how late. It holds as much after hours."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._recent = deque[float](maxlen=_RATE_OF + 1)
        self._labelled = 0
        self._dropped = 0
        self._latencies_ms = Counter[int]()

    def add(self, seen: Labelled) -> float:
        """Count a frame; return how many are labelled a second now."""
        now = time.monotonic()
        self._recent.append(now)
        self._labelled += 1
        self._dropped = seen.dropped
        if seen.latency_ms is not None:
            self._latencies_ms[round(seen.latency_ms)] += 1
        passed = now - self._recent[0]
        return (len(self._recent) - 1) / passed if passed > 0 else 0.0

    def summary(self) -> str:
        """What a person is told in the end."""
        seconds = time.monotonic() - self._started
        words = [
            f"{self._labelled} frames labelled in {seconds:.1f} s ({self._labelled / seconds:.1f} fps)"
        ]
        if self._latencies_ms:
            p50, p95 = (self._latency_ms(share) for share in (0.5, 0.95))
            words += [
                f"{self._dropped} dropped",
                f"label {p50} ms late, 95 % within {p95} ms",
            ]
        return ", ".join(words)

    def _latency_ms(self, share: float) -> int:
        left = share * self._latencies_ms.total()
        for latency_ms in sorted(self._latencies_ms):
            left -= self._latencies_ms[latency_ms]
            if left <= 0:
                return latency_ms
        raise AssertionError(share)


def label_streams(
    classifier: Classifier,
    sources: Sequence[str],
    saving: Saving | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Print, and save, a label for each frame; return how many sources could not be read to their end.

    Ctrl-C ends it: that is how a live source ends, and cuts a file short. `settings` are those of
    Classifier.stream.
    """
    tallies: dict[str, Tally] = {}
    unread = 0

    def failed(source: str, error: GftEdgeError) -> None:
        nonlocal unread
        unread += 1
        if as_json:
            print_json({"source": source, "error": str(error)}, lines=True)
        else:
            say(f"Error: {error}")

    recorder = None if saving is None else saving.opened()
    model = classifier.bundle.manifest.model
    try:
        with closing(classifier.stream(sources, say=say, failed=failed, **settings)) as stream:
            for seen in stream:
                fps = tallies.setdefault(seen.source, Tally()).add(seen)
                content = _content(seen, fps)
                if as_json:
                    print_json(content, lines=True)
                else:
                    print_frame(content, model.labels)
                if saving is not None and recorder is not None:
                    saving.add(recorder, seen, model, fps)
    except KeyboardInterrupt:
        unread += not all(map(is_live, sources))
        say("interrupted")
    finally:
        for source, tally in tallies.items():
            say(f"{source}: {tally.summary()}")
        if recorder is not None:
            recorder.close()
    return unread


def named(label: str | None, index: int, labels: Sequence[str]) -> str:
    """A prediction for a person: its label, or that it has none and which class is the likeliest."""
    return f"none of these ({labels[index]})" if label is None else label


def print_frame(content: dict[str, Any], labels: Sequence[str]) -> None:
    """Print one line for a person: what `_content` gives of a frame."""
    best = content["predictions"][0]
    name = named(best["label"], best["index"], labels)
    late = "" if content["latency_ms"] is None else f"  {content['latency_ms']:.0f} ms late"
    dropped = f"  {content['dropped']} dropped" if content["dropped"] else ""
    line = (
        f"{content['source']}  {content['time_s']:.2f} s  {100 * best['probability']:6.2f} %  {name}"
        f"  {content['fps']:.1f} fps{late}{dropped}"
    )
    click.echo(shown(line))


def _content(seen: Labelled, fps: float) -> dict[str, Any]:
    """A frame's JSON."""
    return {
        "source": seen.source,
        "frame": seen.frame,
        "time_s": round(seen.time_s, 6),
        "label": seen.predictions[0].label,
        "predictions": to_json(seen.predictions),
        "dropped": seen.dropped,
        "latency_ms": seen.latency_ms and round(seen.latency_ms, 1),
        "fps": round(fps, 2),
    }
