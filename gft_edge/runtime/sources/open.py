"""What an argument means that is no image: a video file, a stream, a camera or a pipeline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gft_edge.bundle.specs import Say
from gft_edge.errors import SourceError
from gft_edge.runtime.image_formats import is_image
from gft_edge.runtime.sources import is_live
from gft_edge.runtime.sources.frames import Source
from gft_edge.runtime.sources.gstreamer import Pipeline, csi_pipeline
from gft_edge.runtime.sources.live import Reopened
from gft_edge.runtime.sources.video import opened_camera, opened_file, opened_stream

_VIDEO_SUFFIXES = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc",
    ".ivf", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip
# How video files begin whose name does not say what they are: (offset, bytes).
_BEGINNINGS = (
    (4, b"ftyp"), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"FLV\x01"), (0, b"OggS"),
    (0, b"\x00\x00\x01\xba"), (0, b"YUV4MPEG2"), (0, b"0&\xb2u\x8ef\xcf\x11"),
)  # fmt: skip


def is_video(path: str) -> bool:
    """Whether a path is that of a video file, by its name, or by its content where the name says nothing."""
    if Path(path).suffix.lower() in _VIDEO_SUFFIXES:
        return not os.path.isdir(path)
    try:
        if not os.path.isfile(path) or is_image(Path(path)):
            return False
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return False
    return any(head[at : at + len(begins)] == begins for at, begins in _BEGINNINGS)


def opened(text: str, say: Say) -> Source:
    """Open what is no image. A live source is opened again when it is gone, which is said.

    Raises SourceError for what cannot be opened, and MissingDependencyError.
    """
    opening: Callable[[], Source] = partial(_opened, text)
    first = opening()
    return Reopened(first, opening, say) if first.live else first


def _opened(text: str) -> Source:
    kind, _, rest = text.partition(":")
    match kind.lower():
        case "camera":
            return opened_camera(
                text, f"/dev/video{_number(text, rest)}" if "/" not in rest else rest
            )
        case "csi":
            return Pipeline(text, csi_pipeline(_number(text, rest)))
        case "gst":
            if not rest.strip():
                raise SourceError(text, "has no pipeline: write gst:v4l2src device=/dev/video0")
            return Pipeline(text, rest)
    return opened_stream(text) if is_live(text) else opened_file(text)


def _number(text: str, rest: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", rest):
        raise SourceError(
            text, f"{rest!r} is no number of a camera: the first is {text.partition(':')[0]}:0"
        )
    return int(rest)
