"""What TensorRT's libraries log: kept, not printed, and read from a point in time on."""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

# A failure says a few lines; a session that runs for weeks may warn at each run.
KEPT_LINES = 200


class LogReader:
    """The lines that a library logs after this reader was made or cleared.

    `sink` is the ILogger for its constructors, one a library for the life of the process: lines of
    other objects at work at the same time are among those read.
    """

    def __init__(self, module: Any) -> None:
        self.sink = _log(module)
        self.clear()

    def clear(self) -> None:
        """Read from here on."""
        self._start = self.sink.count

    @property
    def lines(self) -> list[tuple[str, str]]:
        """(severity, message) of warnings and errors, oldest first."""
        kept = list(self.sink.kept)
        return [(severity, text) for number, severity, text in kept if number >= self._start]

    def first_error(self, otherwise: object) -> str:
        """The first error, on one line: what follows is its echo."""
        errors = [message.strip() for severity, message in self.lines if severity != "WARNING"]
        text = next(filter(None, errors), str(otherwise).strip())
        return text.partition("\n")[0]


# TensorRT takes the logger of its first object for the whole process and keeps the bare pointer:
# a logger that went with its object would be called after its end.
@functools.cache
def _log(module: Any) -> Any:
    base: Any = module.ILogger

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.count = 0
            self.kept: deque[tuple[int, str, str]] = deque(maxlen=KEPT_LINES)

        def log(self, severity: Any, message: str) -> None:
            levels = base.Severity
            if severity in (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING):
                self.kept.append((self.count, severity.name, message))
                self.count += 1

    return Log()
