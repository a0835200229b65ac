"""What PyAV decodes: video files, streams of a network and V4L2 cameras, as upright RGB."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from gft_edge.errors import MissingDependencyError, SourceError
from gft_edge.runtime.preprocess import MAX_PIXELS
from gft_edge.runtime.sources.frames import Decoded

# Seconds without a packet, and packets without a picture, after which a live source counts as gone.
SILENT_S = 10.0
# A stream that decodes this many seconds late skips to its next key frames until it has caught up.
LATE_S = 1.0

# What the display matrix of a frame asks for: the x axis goes to (a, b), the y axis to (c, d).
_TURNS: dict[tuple[int, ...], Image.Transpose] = {
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


class Video:
    """A video file, a stream or a camera, opened. Raises SourceError, MissingDependencyError.

    A URL of a network whose length is known is a file that lies elsewhere: it waits, and ends.
    """

    def __init__(
        self, name: str, where: str, live: bool, format_name: str | None = None, **options: str
    ) -> None:
        av = _pyav()
        self.name = name
        self.damaged = 0
        network = "://" in where
        try:
            self._container = av.open(
                where,
                format=format_name,
                options=options,
                timeout=SILENT_S if network or live else None,
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError, OSError) as error:
            raise SourceError(name, _reason(error, where)) from error
        cover = av.stream.Disposition.attached_pic
        tracks = [s for s in self._container.streams.video if not s.disposition & cover]
        if not tracks:
            kinds = sorted({stream.type for stream in self._container.streams} - {"video"})
            self._container.close()
            raise SourceError(
                name, f"has no video track ({' and '.join(kinds) or 'nothing'} alone)"
            )
        self.live = live and (where.startswith("rtsp") or self._container.duration is None)
        self._stream = tracks[0]
        # Threads a frame each hold as many frames back, which a live source cannot afford.
        self._stream.thread_type = "SLICE" if self.live else "AUTO"
        if self.live:
            self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        # Taken now: a picture may be asked for when the file is closed, and its memory given back.
        self._aspect = self._stream.sample_aspect_ratio or 1
        self._rate = self._stream.average_rate or self._stream.guessed_rate or 25
        # FFmpeg knows that such a frame is whole when the next one begins.
        held_back = where.startswith("rtsp") and self._stream.codec_context.name in ("h264", "hevc")
        self._clock = Clock(format_name == "v4l2", float(1 / self._rate) if held_back else 0.0)
        self._turn: tuple[int | None, Image.Transpose | None] = (None, None)
        self._reformatter = av.video.reformatter.VideoReformatter()

    def frames(self, stop: threading.Event) -> Iterator[Decoded]:
        """See Source."""
        index, pictured_at = 0, time.monotonic()
        for packet in self._packets():
            if stop.is_set():
                return
            for frame in self._decoded(packet):
                if frame.is_corrupt:
                    self.damaged += 1
                else:
                    pictured_at = time.monotonic()
                    pts_s = index / self._rate if frame.time is None else frame.time
                    captured_at = self._clock.captured_at(pts_s, pictured_at) if self.live else None
                    yield Decoded(index, float(pts_s), partial(self.rgb, frame), captured_at)
                index += 1
            if self.live:
                self._keep_up()
                if time.monotonic() - pictured_at > SILENT_S:
                    raise SourceError(
                        self.name,
                        f"no picture came in {SILENT_S:.0f} s, only data: it needs a key frame now and then",
                    )

    def close(self) -> None:
        """See Source."""
        self._container.close()

    def rgb(self, frame: Any) -> Image.Image:
        """A frame of PyAV's as an upright picture of square pixels. Raises SourceError."""
        width, height = frame.width, frame.height
        shown = max(1, round(width * self._aspect))
        if width * height > MAX_PIXELS or shown * height > MAX_PIXELS:
            raise SourceError(self.name, f"has frames of {width}x{height} pixels: scale it down")
        # swscale takes the matrix and the range that the frame names, and BT.601 where it names none.
        made = self._reformatter.reformat(frame, format="rgb24", width=shown, height=height)
        pixels = made.to_ndarray()
        if frame.interlaced_frame and height > 1:
            # Its two fields were taken at two times: one of them alone has no combs.
            field = Image.fromarray(pixels[::2])
            image = field.resize((shown, height), Image.Resampling.BILINEAR)
        else:
            image = Image.fromarray(pixels)
        turn = self._turn_of(frame)
        return image if turn is None else image.transpose(turn)

    def _turn_of(self, frame: Any) -> Image.Transpose | None:
        """What a frame's display matrix asks for; nothing for angles between the right ones.

        PyAV's side data and its frame hold each other: a picture whose matrix was read is given back by
        the garbage collector alone. So it is read when the rotation changes, which is told without.
        """
        rotation = frame.rotation
        if rotation != self._turn[0]:
            self._turn = (rotation, _TURNS.get(_matrix_of(frame)))
        return self._turn[1]

    def _packets(self) -> Iterator[Any]:
        """The packets of the video track. Raises SourceError for what ends before it says it would."""
        av = _pyav()
        end_s = 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    end_s = max(end_s, float((packet.pts + packet.duration) * packet.time_base))
                yield packet
        except av.EOFError:
            pass
        except (av.FFmpegError, OSError) as error:
            raise SourceError(self.name, f"breaks off: {_reason(error, '')}") from error
        declared_s = self._declared_s()
        if declared_s is not None and end_s < declared_s - LATE_S / 4:
            raise SourceError(
                self.name, f"is cut off: it ends after {end_s:.2f} s of {declared_s:.2f} s"
            )

    def _declared_s(self) -> float | None:
        """When a file says that its video ends, in its own time; None where it does not say."""
        if self.live:
            return None
        stream = self._stream
        if stream.duration is not None:
            return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
        if self._container.duration is None or len(self._container.streams) > 1:
            return None
        return float(self._container.duration + (self._container.start_time or 0)) / 1_000_000

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except _pyav().FFmpegError:
            self.damaged += 1
            return []

    def _keep_up(self) -> None:
        """Decode key frames alone for as long as the decoder is behind the source."""
        late = self._clock.late_s > (
            LATE_S if self._stream.codec_context.skip_frame == "DEFAULT" else 0.2
        )
        self._stream.codec_context.skip_frame = "NONKEY" if late else "DEFAULT"


class Clock:
    """When a live source's frames were taken, in time.monotonic(), from their times of its own.

    A V4L2 driver's clock is time.monotonic(). Of any other the soonest frame of the last minute came
    without a delay, but for `held_back_s` when each waits for the next one: another one is as late as it
    came later than that one's delay allows.
    """

    WINDOW_S = 30.0

    def __init__(self, of_kernel: bool = False, held_back_s: float = 0.0) -> None:
        self.late_s = 0.0
        self._of_kernel = of_kernel
        self._held_back_s = held_back_s
        self._least: list[float] = []
        self._since = 0.0

    def captured_at(self, pts_s: float, now: float) -> float:
        """When the frame of that time was taken that is decoded `now`."""
        offset = now - pts_s
        if self._of_kernel and 0 <= offset < SILENT_S:
            self.late_s = offset
            return pts_s
        if not self._least or abs(offset - min(self._least)) > SILENT_S:
            # The first frame, or the source's clock was set.
            self._least, self._since = [offset], now
        elif now - self._since > self.WINDOW_S:
            # Two windows: clocks drift apart by seconds a day.
            self._least, self._since = [self._least[-1], offset], now
        self._least[-1] = min(self._least[-1], offset)
        self.late_s = offset - min(self._least)
        return now - self.late_s - self._held_back_s


def opened_file(path: str) -> Video:
    """A video file."""
    return Video(path, str(Path(path).absolute()), live=False)


def opened_stream(url: str) -> Video:
    """A stream of a network."""
    # Over UDP, which would be tried first, a lost packet costs the picture up to the next key frame.
    rtsp = {"rtsp_flags": "prefer_tcp"} if url.startswith("rtsp") else {}
    return Video(url, url, live=True, **rtsp)


def opened_camera(name: str, device: str) -> Video:
    """A V4L2 camera, by its device file."""
    return Video(name, device, True, "v4l2")


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("PyAV", "video") from error
    return av


def _matrix_of(frame: Any) -> tuple[int, ...]:
    """Where the x axis and the y axis of a picture go: (a, b, c, d), empty for where they are."""
    try:
        matrix = struct.unpack("=9i", bytes(frame.side_data["DISPLAYMATRIX"])[:36])
    except (KeyError, struct.error):
        return ()
    return tuple(round(matrix[i] / 65536) for i in (0, 1, 3, 4))


def _reason(error: Exception, where: str) -> str:
    """Why PyAV cannot read it, as one line."""
    if isinstance(error, FileNotFoundError):
        return f"there is no {where}" if where.startswith("/dev/") else "no such file"
    text = getattr(error, "strerror", None) or str(error)
    if text.startswith("Immediate exit"):
        return f"no frame came in {SILENT_S:.0f} s"
    if text.startswith("Invalid data"):
        return "holds no video that can be read: it is damaged or cut off, or something else"
    return " ".join(text.split())
