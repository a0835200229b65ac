"""What a program prints, line by line as it prints it, until it is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress


class EndedError(Exception):
    """A tool that ended, or did not start."""


def lines_of(command: list[str], stop: threading.Event) -> Iterator[str]:
    """Yield what the program prints, as it prints it, until `stop` is set; that kills it.

    Raises EndedError when it ends by itself. `stop` is set when this ends, however it does.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for the profile, which then ends the tool.
            start_new_session=True,
        )
    except OSError as error:
        raise EndedError(f"it did not start: {error.strerror}") from error
    threading.Thread(target=_kill_when, args=(stop, process), daemon=True).start()
    last = "none"
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip()
                yield last
            if not stop.is_set():
                raise EndedError(f"it ended; its last line: {last[:80]}")
        finally:
            stop.set()


def _kill_when(stop: threading.Event, process: subprocess.Popen[str]) -> None:
    """Kill it with the children that it may have, which hold its output open."""
    stop.wait()
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
