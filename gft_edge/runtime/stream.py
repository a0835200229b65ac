"""Frames of several sources through one engine: what `Classifier.stream` gives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.bundle.specs import Prediction, Say
from gft_edge.errors import GftEdgeError, SourceError, UsageError
from gft_edge.runtime.outputs import grid_positions
from gft_edge.runtime.sources import is_live
from gft_edge.runtime.sources.frames import Decoded, Pace
from gft_edge.runtime.sources.open import opened
from gft_edge.runtime.sources.reader import Pixels, Reader, Ready

if TYPE_CHECKING:
    from gft_edge.runtime.classifier import Classifier

# Told a source and what is wrong with it.
Failed = Callable[[str, GftEdgeError], None]
# Logits (images,classes) and a number -> as many predictions an image, best first.
Likeliest = Callable[[npt.NDArray[np.float32], int], list[list[Prediction]]]


@dataclass(frozen=True)
class StreamSettings:
    """Which frames are labelled, and how many of the likeliest classes they get. Raises UsageError.

    One frame in `every`, or about `fps` a second of the source's time. With `smooth_s` probabilities are
    the means over so many seconds.
    """

    top_k: int = 5
    every: int = 1
    fps: float | None = None
    smooth_s: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}: give 1 or more")
        if not 0 <= self.smooth_s < float("inf"):
            raise UsageError(
                f"smooth_s is {self.smooth_s}: give seconds, or 0 for each frame alone"
            )
        self.pace()

    def pace(self) -> Pace:
        """The choice of one source's frames, at its beginning."""
        return Pace(self.every, self.fps)


@dataclass(frozen=True)
class Labelled:
    """One frame and what the network says of it.

    `time_s` is the container's time of a file's frame, and the seconds since the first frame of a live
    source. `dropped` counts the frames of a live source that came and went before this one while the
    engine was busy, and `latency_ms` is the time from the camera to these predictions, as far as the
    source's clock tells; None for a file. `kept` are the surviving patches of each stage on the patch
    grid, (K,) each, of a Classifier that was loaded with `kept`; `pixels` (S,S,3) is what it saw of `image`.
    """

    source: str
    frame: int
    time_s: float
    predictions: list[Prediction]
    dropped: int
    latency_ms: float | None
    image: Image.Image
    pixels: Pixels
    kept: tuple[npt.NDArray[np.int64], ...]


class Smoothing:
    """The mean probability of each class over the last `seconds` of one source's frames."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rows: deque[tuple[float, list[Prediction]]] = deque()

    def mean(self, time_s: float, row: list[Prediction]) -> list[Prediction]:
        """All classes of a frame -> all classes, likeliest first."""
        if self._rows and time_s < self._rows[-1][0]:
            self._rows.clear()
        self._rows.append((time_s, row))
        while self._rows[0][0] <= time_s - self._seconds:
            self._rows.popleft()
        totals: dict[int, float] = {}
        for _, each in self._rows:
            for found in each:
                totals[found.index] = totals.get(found.index, 0.0) + found.probability
        return sorted(
            (Prediction(p.label, p.index, totals[p.index] / len(self._rows)) for p in row),
            key=lambda p: -p.probability,
        )


@dataclass(frozen=True)
class _Turn:
    """A frame that is about to be labelled."""

    reader: Reader
    ready: Ready
    dropped: int


class Stream:
    """Sources read beside the engine, the live ones all at once, files one after another.

    Each source that has a frame gets its turn; a static batch takes as many frames as are there.
    """

    def __init__(
        self,
        classifier: Classifier,
        likeliest: Likeliest,
        sources: Sequence[str],
        settings: StreamSettings,
        say: Say,
        failed: Failed | None,
    ) -> None:
        self._classifier = classifier
        self._batch = classifier.bundle.manifest.input.batch
        self._likeliest = likeliest
        self._files = deque(source for source in sources if not is_live(source))
        self._live = [source for source in sources if is_live(source)]
        self._settings = settings
        self._say = say
        self._failed = failed
        self._wake = Condition()
        self._readers: deque[Reader] = deque()
        self._file: Reader | None = None
        self._smoothings: dict[Reader, Smoothing] = {}

    def labelled(self) -> Generator[Labelled, None, None]:
        """The frames in the order in which they are labelled. Closed, it releases every source."""
        try:
            for text in self._live:
                self._open(text)
            while self._next_file() or self._readers:
                if turns := self._turns():
                    yield from self._labels(turns)
                self._end_what_is_over()
        finally:
            for reader in self._readers:
                reader.close()

    def _open(self, text: str) -> Reader | None:
        """Begin to read a source; None where it cannot be opened."""
        try:
            source = opened(text, self._say)
        except SourceError as error:
            self._fail(text, error)
            return None
        reader = Reader(
            source, self._settings.pace(), self._classifier.prepare, self._wake, self._batch
        )
        self._readers.append(reader)
        return reader

    def _next_file(self) -> bool:
        """Open the next file that can be opened, unless one is being read; False when there is none."""
        while self._file is None and self._files:
            self._file = self._open(self._files.popleft())
        return self._file is not None

    def _turns(self) -> list[_Turn]:
        """Frames for one run of the engine: one at least, or none when sources have ended."""
        taken: list[tuple[Reader, Decoded | Ready, int]] = []
        with self._wake:
            while not any(reader.has or reader.done for reader in self._readers):
                # During a wait without an end Ctrl-C is not heard on every system.
                self._wake.wait(0.5)
            while len(taken) < self._batch and (waiting := [r for r in self._readers if r.has]):
                reader = waiting[0]
                self._readers.remove(reader)
                self._readers.append(reader)
                taken.append((reader, reader.take(), reader.dropped))
        turns = []
        for reader, frame, dropped in taken:
            try:
                turns.append(_Turn(reader, reader.ready(frame), dropped))
            except GftEdgeError as error:
                reader.fail(error)
        return turns

    def _labels(self, turns: list[_Turn]) -> Iterator[Labelled]:
        classifier, settings = self._classifier, self._settings
        outputs = classifier.outputs(np.stack([turn.ready.pixels for turn in turns]))
        top_k = len(classifier.labels) if settings.smooth_s else settings.top_k
        rows = self._likeliest(outputs.logits, top_k)
        kept = grid_positions(outputs.kept)
        now = time.monotonic()
        for number, (turn, row) in enumerate(zip(turns, rows, strict=True)):
            frame = turn.ready.frame
            if settings.smooth_s:
                smoothing = self._smoothings.setdefault(turn.reader, Smoothing(settings.smooth_s))
                row = smoothing.mean(frame.time_s, row)[: settings.top_k]
            yield Labelled(
                turn.reader.source.name,
                frame.index,
                frame.time_s,
                classifier.accepted(row),
                turn.dropped,
                None if frame.captured_at is None else (now - frame.captured_at) * 1000,
                turn.ready.image,
                turn.ready.pixels,
                tuple(positions[number] for positions in kept),
            )

    def _end_what_is_over(self) -> None:
        with self._wake:
            over = [reader for reader in self._readers if reader.done]
        for reader in over:
            self._readers.remove(reader)
            self._smoothings.pop(reader, None)
            if reader is self._file:
                self._file = None
            reader.close()
            self._report(reader)

    def _report(self, reader: Reader) -> None:
        """Say what was wrong with a source that is over."""
        name, damaged = reader.source.name, reader.source.damaged
        if damaged:
            self._say(f"{name}: {damaged} damaged frame{'s' if damaged > 1 else ''} left out")
        if isinstance(reader.error, GftEdgeError):
            self._fail(name, reader.error)
        elif reader.error is not None:
            raise reader.error

    def _fail(self, name: str, error: GftEdgeError) -> None:
        if self._failed is None:
            raise error
        self._failed(name, error)
