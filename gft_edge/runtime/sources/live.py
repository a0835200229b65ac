"""A live source that is opened again when it is gone: at first soon, then ever more seldom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from gft_edge.bundle.specs import Say
from gft_edge.errors import SourceError
from gft_edge.runtime.sources.frames import Decoded, Source

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


class Reopened:
    """A live source that outlives its connections; frames and seconds count on over all of them.

    Where no picture has ever come it fails as it would alone. `say` is told of every loss, from the
    thread that reads.
    """

    live = True

    def __init__(self, first: Source, again: Callable[[], Source], say: Say) -> None:
        self.name = first.name
        self._source: Source | None = first
        self._again = again
        self._say = say
        self._damaged_before = 0

    @property
    def damaged(self) -> int:
        """See Source."""
        return self._damaged_before + (self._source.damaged if self._source else 0)

    def frames(self, stop: threading.Event) -> Iterator[Decoded]:
        """See Source."""
        count, started, time_s = 0, 0.0, 0.0
        wait_s = FIRST_WAIT_S
        while not stop.is_set():
            try:
                source = self._source = self._source or self._again()
                before = count
                for frame in source.frames(stop):
                    wait_s = FIRST_WAIT_S
                    at = time.monotonic() if frame.captured_at is None else frame.captured_at
                    started = started or at
                    # What a clock tells of the past may be set right a little later.
                    time_s = max(time_s, at - started)
                    count = before + frame.index + 1
                    yield replace(frame, index=count - 1, time_s=time_s)
                reason = "it ended"
            except SourceError as error:
                if not count:
                    raise
                reason = error.reason
            self._lose()
            if stop.is_set():
                return
            self._say(f"{self.name}: {reason}; it is opened again in {wait_s:.0f} s")
            stop.wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def close(self) -> None:
        """See Source."""
        self._lose()

    def _lose(self) -> None:
        if self._source is not None:
            self._damaged_before += self._source.damaged
            self._source.close()
            self._source = None
