"""Small videos, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
SIZE = (96, 64)


def numbered(count: int, size: tuple[int, int] = SIZE) -> Iterator[Image.Image]:
    """Grey pictures; `number_of` reads which one it is."""
    for number in range(count):
        yield Image.new("RGB", size, (10 + 10 * number,) * 3)


def number_of(image: Image.Image) -> int:
    """Which of the numbered pictures it is, after whatever a codec did to it."""
    return round((float(np.asarray(image).mean()) - 10) / 10)


def write_video(
    path: Path,
    images: Iterator[Image.Image] | Sequence[Image.Image],
    fps: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times_s: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    flags: int = 0,
    colorspace: Literal["ITU709", "ITU601"] | None = None,
    **container: Any,
) -> Path:
    """Write pictures as a video; `times_s` are theirs where they are not 1 / fps apart."""
    with av.open(str(path), "w", **container) as file:
        stream: Any = None
        for number, image in enumerate(images):
            if stream is None:
                stream = file.add_stream(codec, rate=fps, options=options or {})
                stream.width, stream.height = image.size
                stream.pix_fmt = pix_fmt
                stream.codec_context.time_base = Fraction(1, 1000)
                stream.codec_context.flags |= flags
                if colorspace is not None:
                    stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 6}[colorspace]
            frame = av.VideoFrame.from_ndarray(np.asarray(image))
            if colorspace is not None:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace)
            time_s = number / fps if times_s is None else times_s[number]
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Give an MP4 file a display matrix (a, b, c, d): the x axis goes to (a, b), y to (c, d)."""
    content = bytearray(path.read_bytes())
    a, b, c, d = matrix
    numbers = [65536 * each for each in (a, b, 0, c, d, 0, 0, 0)]
    # ISO/IEC 14496-12, 8.3.2: version and flags, times and track, layer and volume stand before it.
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, *numbers, 1 << 30)
    path.write_bytes(content)
    return path
