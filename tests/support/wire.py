"""A wire between a client and a server on loopback: it counts bytes, and can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.support.ssh import free_port


class Wire:
    """Forwards a port of its own to another. `up` counts the bytes to the server, `down` those back.

    It cuts every connection once `up` reaches `cut_at`, and takes no other until `mend`. Every piece waits
    for `slow_s`.
    """

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self.up = self.down = 0
        self.cut_at: int | None = None
        self.slow_s = 0.0
        self._to = to
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._cut = False
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._listen, daemon=True).start()

    def count(self) -> int:
        """Return the bytes of both directions since the last call."""
        with self._lock:
            total, self.up, self.down = self.up + self.down, 0, 0
        return total

    def cut(self) -> None:
        """Break every connection at once, as a cable that is pulled and seen to be."""
        with self._lock:
            self._cut = True
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._open = []

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._cut, self.cut_at = False, None

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                with self._lock:
                    if up:
                        self.up += len(piece)
                    else:
                        self.down += len(piece)
                    full = self.cut_at is not None and self.up >= self.cut_at
                if full:
                    self.cut()
                    return
                time.sleep(self.slow_s)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
