"""The device's end of the connection: messages in on file descriptor 0, out on 1.

A message is a line of JSON with "op" and "bytes", the length of the payload behind it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import threading
from typing import Any

PIECE_BYTES = 1 << 18
# A desk that says nothing for so long is gone, though its connection looks alive.
SILENCE_S = 60.0
# The agent's first line, behind whatever the login shell printed.
MARKER = b"gft-edge agent\n"
NO_SPACE = "no space is left there: gft-edge doctor --on HOST --clean removes what was sent"


class RefusedError(Exception):
    """A request that cannot be met; the desk reports the reason."""


class Desk:
    """Whoever sent this program."""

    def __init__(self) -> None:
        self._read = b""
        self._sending = threading.Lock()

    def send(self, op: str, payload: bytes = b"", **fields: Any) -> None:
        """Send one message, from any thread. Raises OSError when the desk is gone."""
        head = json.dumps({**fields, "op": op, "bytes": len(payload)}).encode() + b"\n"
        with self._sending:
            rest = memoryview(head + payload)
            while rest:
                rest = rest[os.write(1, rest) :]

    def say(self, text: str) -> None:
        """Send a remark for whoever waits at the desk."""
        self.send("say", text=text)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Wait for one message. Raises EOFError when the desk is gone."""
        while b"\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(head)
        while len(self._read) < message["bytes"]:
            self._more()
        payload, self._read = self._read[: message["bytes"]], self._read[message["bytes"] :]
        return message, payload

    def _more(self) -> None:
        ready, _, _ = select.select([0], [], [], SILENCE_S)
        piece = os.read(0, PIECE_BYTES) if ready else b""
        if not piece:
            raise EOFError
        self._read += piece


def reason_of(error: Exception) -> str:
    """Say what went wrong, with the file that it went wrong at."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NO_SPACE
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
