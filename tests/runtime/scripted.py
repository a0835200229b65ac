"""A source of the tests that does as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from PIL import Image

from gft_edge.errors import SourceError
from gft_edge.runtime.sources.frames import Decoded


class Scripted:
    """Gives `count` frames, `live` or not, and then ends, with an error where it has one.

    Frames of a `bad` one have no picture.
    """

    damaged = 1

    def __init__(
        self,
        count: int,
        error: str | None = None,
        live: bool = True,
        bad: bool = False,
        name: str = "camera:0",
    ) -> None:
        self.name = name
        self.live = live
        self.closed = False
        self._count = count
        self._error = error
        self._bad = bad

    def frames(self, stop: threading.Event) -> Iterator[Decoded]:
        """See Source."""
        for index in range(self._count):
            yield Decoded(index, index / 10, self._picture, time.monotonic())
        if self._error is not None:
            raise SourceError(self.name, self._error)

    def close(self) -> None:
        """See Source."""
        self.closed = True

    def _picture(self) -> Image.Image:
        if self._bad:
            raise SourceError(self.name, "has no picture")
        return Image.new("RGB", (4, 4))
