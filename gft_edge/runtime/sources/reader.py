"""A thread that reads a source beside the engine: a file ahead of it, of a live source the newest frame."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.runtime.sources.frames import Decoded, Pace, Source

Pixels = npt.NDArray[np.uint8]
Prepare = Callable[[Image.Image], Pixels]

# A file's frames that are made ready ahead of the engine, for each image of its batch.
AHEAD = 2


@dataclass(frozen=True)
class Ready:
    """A frame with its picture, and uint8 (S,S,3) as the network sees it."""

    frame: Decoded
    image: Image.Image
    pixels: Pixels


class Reader:
    """Reads a source; `wake` is notified of whatever there is to take, and of the end.

    A file's frames wait in a queue of AHEAD for each image of the engine's `batch`, prepared in this
    thread, which then waits too. Of a live source one frame is kept, replaced by each newer one and
    prepared when it is taken: `dropped` counts those that nobody took. `error` is what ended it, where
    that was no end.
    """

    def __init__(
        self,
        source: Source,
        pace: Pace,
        prepare: Prepare,
        wake: threading.Condition,
        batch: int = 1,
    ) -> None:
        self.source = source
        self.dropped = 0
        self.error: BaseException | None = None
        self._pace = pace
        self._prepare = prepare
        self._wake = wake
        self._most = AHEAD * batch
        self._stop = threading.Event()
        self._waiting: deque[Decoded | Ready] = deque()
        self._ended = False
        # Whoever waits for a camera must not keep the process from ending.
        self._thread = threading.Thread(target=self._read, name=source.name, daemon=True)
        self._thread.start()

    @property
    def has(self) -> bool:
        """Whether there is a frame to take. To be asked with `wake` held."""
        return bool(self._waiting)

    @property
    def done(self) -> bool:
        """Whether nothing more will come. To be asked with `wake` held."""
        return self._ended and not self._waiting

    def take(self) -> Decoded | Ready:
        """The next frame of a file, the newest of a live source. To be called with `wake` held."""
        self._wake.notify_all()
        return self._waiting.popleft()

    def ready(self, frame: Decoded | Ready) -> Ready:
        """Make ready what was taken, where it is not yet. Raises SourceError, ImageError."""
        if isinstance(frame, Ready):
            return frame
        image = frame.rgb()
        return Ready(frame, image, self._prepare(image))

    def fail(self, error: BaseException) -> None:
        """End it with an error, whatever is still to come."""
        with self._wake:
            self.error = self.error or error
            self._ended = True
            self._waiting.clear()
            self._stop.set()
            self._wake.notify_all()

    def close(self) -> None:
        """Have the thread end, and wait a second for it: a read of a network lasts as long as it lasts."""
        with self._wake:
            self._stop.set()
            self._wake.notify_all()
        self._thread.join(1)

    def _read(self) -> None:
        try:
            for frame in self.source.frames(self._stop):
                if self._pace.wants(frame.index, frame.time_s) and not self._put(frame):
                    break
        except BaseException as error:
            self.error = self.error or error
        finally:
            self.source.close()
            with self._wake:
                self._ended = True
                self._wake.notify_all()

    def _put(self, frame: Decoded) -> bool:
        """Offer a frame; False when nobody wants any more."""
        offered = frame if self.source.live else self.ready(frame)
        with self._wake:
            if self.source.live:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            while len(self._waiting) >= self._most and not self._stop.is_set():
                self._wake.wait()
            if self._stop.is_set():
                return False
            self._waiting.append(offered)
            self._wake.notify_all()
        return True
