"""A camera's RTSP server on loopback, for the system's Python: frames that show when they were made.

python3 rtsp_server.py PORT FPS KEY_FRAME_EVERY SECONDS

Each frame has the milliseconds of CLOCK_MONOTONIC in it, 24 bits as black and white squares, four rows of
six. KEY_FRAME_EVERY 0 sends none after the first, which is gone before anybody reads. It ends by itself.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SQUARE, ROWS, COLUMNS = 40, 4, 6


def picture() -> bytes:
    stamp = int(time.monotonic() * 1000) & 0xFFFFFF
    rows = []
    for row in range(ROWS):
        bits = [stamp >> (row * COLUMNS + column) & 1 for column in range(COLUMNS)]
        rows.append(b"".join((b"\xe0" if bit else b"\x20") * SQUARE for bit in bits) * SQUARE)
    grey = b"".join(rows)
    # I420: both colour planes at their middle.
    return grey + b"\x80" * (len(grey) // 2)


class Camera(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc]
    def __init__(self, fps: int, key_every: int) -> None:
        super().__init__()
        self.fps = fps
        keys = f"key-int-max={key_every}" if key_every else "key-int-max=1000000"
        hidden = "" if key_every else " ! identity name=late"
        self.set_launch(
            f"( appsrc name=frames is-live=true format=time do-timestamp=true "
            f"caps=video/x-raw,format=I420,width={COLUMNS * SQUARE},height={ROWS * SQUARE},framerate={fps}/1 "
            f"! x264enc tune=zerolatency speed-preset=ultrafast {keys}{hidden} "
            f"! h264parse config-interval=1 ! rtph264pay name=pay0 pt=96 )"
        )
        self.set_shared(True)
        self.hides_key = not key_every

    def begin(self, media: Any) -> None:
        source = media.get_element().get_by_name("frames")
        if self.hides_key:
            pad = media.get_element().get_by_name("late").get_static_pad("src")
            pad.add_probe(Gst.PadProbeType.BUFFER, self.without_key_frames)

        def push() -> Any:
            buffer = Gst.Buffer.new_wrapped(picture())
            return source.emit("push-buffer", buffer) == Gst.FlowReturn.OK

        GLib.timeout_add(round(1000 / self.fps), push)

    def without_key_frames(self, pad: Any, info: Any) -> Any:
        delta = info.get_buffer().has_flags(Gst.BufferFlags.DELTA_UNIT)
        return Gst.PadProbeReturn.OK if delta else Gst.PadProbeReturn.DROP


def main() -> None:
    port, fps, key_every, seconds = map(int, sys.argv[1:])
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=str(port))
    camera = Camera(fps, key_every)
    camera.connect("media-configure", lambda factory, media: factory.begin(media))
    server.get_mount_points().add_factory("/live", camera)
    server.attach(None)
    loop = GLib.MainLoop()
    GLib.timeout_add_seconds(seconds, loop.quit)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    loop.run()


if __name__ == "__main__":
    main()
