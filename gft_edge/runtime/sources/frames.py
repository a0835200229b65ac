"""What every moving source is: frames in order, each with its time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from gft_edge.errors import UsageError


@dataclass(frozen=True)
class Decoded:
    """A frame as it comes: `index` counts from 0, `rgb` makes the upright picture when it is called.

    `time_s` is the container's time of a file's frame, and the seconds since the first one of a live
    source. `captured_at` is the time.monotonic() at which a camera took it, None for a file.
    """

    index: int
    time_s: float
    rgb: Callable[[], Image.Image]
    captured_at: float | None = None


class Source(Protocol):
    """An open source. A live one does not wait for who reads it, and has no end of its own."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def live(self) -> bool:
        """Whether it goes on whether or not it is read."""

    @property
    def damaged(self) -> int:
        """How many frames could not be decoded so far, and are left out."""

    def frames(self, stop: threading.Event) -> Iterator[Decoded]:
        """Decode frame after frame, in the thread that calls; it ends soon after `stop` is set.

        Raises SourceError where it ends before its end.
        """

    def close(self) -> None:
        """Release it, in the thread that read it or before any did."""


class Pace:
    """Which frames of a source are wanted: one in `every`, or about `fps` a second of its time."""

    def __init__(self, every: int = 1, fps: float | None = None) -> None:
        if every < 1:
            raise UsageError(f"every is {every}: give 1 for every frame, or more")
        if fps is not None and not 0 < fps < float("inf"):
            raise UsageError(f"fps is {fps}: give more than 0 frames a second")
        if fps is not None and every != 1:
            raise UsageError("every and fps are two ways to take fewer frames: give one of them")
        self._every = every
        self._fps = fps
        self._due = float("-inf")

    def wants(self, index: int, time_s: float) -> bool:
        """Whether this frame is to be looked at. To be asked of every frame, in order."""
        if self._fps is None:
            return index % self._every == 0
        step = 1 / self._fps
        # Containers round times to milliseconds; a tenth of a step is no other frame's time.
        late = time_s - self._due + step / 10
        # A clock that was set back, as a camera's is, begins anew.
        if -step <= late < 0:
            return False
        # In step with the first frame, so that 25 a second give 10 and not 8.
        self._due = self._due + step if 0 <= late < step else time_s + step
        return True
