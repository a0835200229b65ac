"""A camera on loopback that speaks HTTP, and a server of one film."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.videos import numbered


@contextmanager
def http_camera(film: bytes = b"") -> Iterator[str]:
    """Yields an address: /live is six numbered pictures as MJPEG, then the end; /film.mp4 is the film."""

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/film.mp4":
                self.send_header("Content-Length", str(len(film)))
                self.end_headers()
                self.wfile.write(film)
                return
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for image in numbered(6):
                content = io.BytesIO()
                image.save(content, "JPEG")
                size = len(content.getvalue())
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {size}\r\n\r\n"
                self.wfile.write(head.encode() + content.getvalue() + b"\r\n")
                time.sleep(0.02)

        def log_message(self, *words: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
