"""Frames of a video with what a network says of them, written as a video or as single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.reporting.pictures import kept_patches, plain

# The first that this build of FFmpeg has; x264 with a preset that leaves the cores to the network.
_ENCODERS = (
    ("libx264", {"preset": "veryfast", "crf": "23"}),
    ("libopenh264", {"b": "4000000"}),
    ("mpeg4", {"q": "4"}),
)
_TICKS = 90_000
_BT709 = 1
_LIMITED_RANGE = 1
# The height of a picture with patches beside it, whatever the frame's.
_LOWEST_PX, _HIGHEST_PX = 480, 1080
_PANELS_A_COLUMN = 3
_CAPTION_PX = 18
_BAND, _WORDS = (0, 0, 0), (255, 255, 255)


class Recorder(Protocol):
    """Writes pictures one after another. Raises UsageError where they cannot be written."""

    def add(self, image: Image.Image, name: str, time_s: float) -> None:
        """Write a picture, of a frame with that name and of that time."""

    def close(self) -> None:
        """Finish what is written. Closing twice is harmless."""


class PictureFolder:
    """Pictures in a folder, a JPEG file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, image: Image.Image, name: str, time_s: float) -> None:
        """See Recorder."""
        path = self._folder / f"{name}.jpg"
        try:
            image.save(path, quality=90)
        except OSError as error:
            raise _unwritable(path, error) from error

    def close(self) -> None:
        """See Recorder."""


class VideoFile:
    """Pictures as an MP4 file, each shown until the next one's time; the first one decides the size.

    What was written can be played even where the process ends without closing it.
    """

    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingDependencyError("PyAV", "video") from error
        self._av = av
        self._path = path
        self._size = (0, 0)
        self._first_s = 0.0
        self._last_tick = -1
        self._stream: Any = None
        try:
            # PyAV opens it with the first packet, which comes seconds later.
            path.write_bytes(b"")
            # Written in fragments, and as a plain file in the end (FFmpeg 7.1).
            self._container: Any = av.open(
                str(path.absolute()), "w", format="mp4", options={"movflags": "+hybrid_fragmented"}
            )
        except (av.FFmpegError, OSError) as error:
            raise _unwritable(path, error) from error

    def add(self, image: Image.Image, name: str, time_s: float) -> None:
        """See Recorder."""
        if self._stream is None:
            # 4:2:0 needs even sides.
            self._size = (image.width + image.width % 2, image.height + image.height % 2)
            self._first_s = time_s
            self._stream = self._begun()
        if image.size != self._size:
            image = ImageOps.pad(image, self._size, color=_BAND)
        frame = self._av.VideoFrame.from_ndarray(np.asarray(image)).reformat(
            format="yuv420p", dst_colorspace="ITU709"
        )
        self._last_tick = max(self._last_tick + 1, round((time_s - self._first_s) * _TICKS))
        frame.pts, frame.time_base = self._last_tick, Fraction(1, _TICKS)
        self._mux(frame)

    def close(self) -> None:
        """See Recorder."""
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if self._stream is not None:
                container.mux(self._stream.encode(None))
            container.close()
        except (self._av.FFmpegError, OSError) as error:
            raise _unwritable(self._path, error) from error
        if self._stream is None:
            self._path.unlink(missing_ok=True)

    def _begun(self) -> Any:
        for name, options in _ENCODERS:
            try:
                self._av.codec.Codec(name, "w")
            except ValueError:
                continue
            stream = self._container.add_stream(name, rate=30, options=options)
            stream.width, stream.height = self._size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, _TICKS)
            stream.codec_context.colorspace = _BT709
            stream.codec_context.color_range = _LIMITED_RANGE
            return stream
        raise UsageError(f"this PyAV encodes no video: give a folder in the place of {self._path}")

    def _mux(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (self._av.FFmpegError, OSError) as error:
            raise _unwritable(self._path, error) from error


def captioned(image: Image.Image, words: str) -> Image.Image:
    """A copy of the image with a line of words on a band at its bottom."""
    image = image.copy()
    size = max(11, min(image.height, image.width) // 20)
    height = round(1.6 * size)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, image.height - height, image.width, image.height), fill=_BAND)
    draw.text(
        (size // 2, image.height - height + size // 5),
        plain(words),
        _WORDS,
        ImageFont.load_default(size),
    )
    return image


def beside_patches(
    image: Image.Image,
    words: str,
    pixels: npt.NDArray[np.uint8],
    kept: Sequence[npt.NDArray[np.int64]],
    grid: tuple[int, int],
) -> Image.Image:
    """A frame with its words, and to its right what the network sees of it: the patches of each stage.

    Dropped patches are dark, as `explain` draws them.
    `pixels` (S,S,3) is what the network sees, `kept` (K,) a stage are positions on the (rows, columns)
    `grid`. The result is _LOWEST_PX to _HIGHEST_PX high.
    """
    height = min(max(image.height, _LOWEST_PX), _HIGHEST_PX)
    frame = image.resize(
        (max(1, round(image.width * height / image.height)), height), Image.Resampling.BILINEAR
    )
    rows = min(len(kept), _PANELS_A_COLUMN)
    side = min(height // rows, height // 2) - _CAPTION_PX
    canvas = Image.new("RGB", (frame.width + -(-len(kept) // rows) * side, height), _BAND)
    canvas.paste(captioned(frame, words), (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, positions in enumerate(kept):
        left = frame.width + number // rows * side
        top = number % rows * (side + _CAPTION_PX)
        heading = f"stage {number + 1}: {len(positions)} of {grid[0] * grid[1]}"
        draw.text((left + 4, top + 1), heading, _WORDS, font)
        panel = kept_patches(pixels, positions, grid, 1)
        canvas.paste(
            panel.resize((side, side), Image.Resampling.BICUBIC), (left, top + _CAPTION_PX)
        )
    return canvas


def _unwritable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error})")
