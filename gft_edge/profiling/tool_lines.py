"""What a program prints, line by line as it prints it, until it is told to stop."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator


class EndedError(Exception):
    """A tool that ended, or did not start."""


def lines_of(command: list[str], stop: threading.Event) -> Iterator[str]:
    """What the program prints, as it prints it, until `stop`; it is killed at the end.

    Raises EndedError when it ends by itself.
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
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_pump, args=(process, lines), daemon=True)
    reader.start()
    last = "none"
    try:
        while not stop.is_set():
            try:
                line = lines.get(timeout=0.05)
            except queue.Empty:
                continue
            if line is None:
                raise EndedError(f"it ended; its last line: {last[:80]}")
            last = line
            yield line
    finally:
        _kill(process)
        reader.join(timeout=2)


def _pump(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.strip())
    lines.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    """With the children that it may have, which hold its output open."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except OSError:
        pass
    process.wait()
