"""Pipelines of GStreamer, a Jetson's CSI cameras among them, through the system's OpenCV."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.errors import SourceError
from gft_edge.runtime.sources.frames import Decoded

# NVIDIA's own source of a CSI camera, scaled and converted by the chip; OpenCV takes BGR.
_CSI = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1"
    " ! nvvidconv ! video/x-raw,format=BGRx"
)
# Seconds that a pipeline has to start in.
STARTS_S = 10.0
_SINK = "video/x-raw,format=BGR ! appsink drop=true max-buffers=1"


class Pipeline:
    """A pipeline of GStreamer, opened; `appsink` with the newest frame is added where it has none.

    Raises SourceError, also where OpenCV is absent or was built without GStreamer.
    """

    live = True

    def __init__(self, name: str, pipeline: str) -> None:
        self.name = name
        self.damaged = 0
        cv2 = _opencv(name)
        if not re.search(r"\bappsink\b", pipeline):
            pipeline = f"{pipeline} ! videoconvert ! {_SINK}"
        # OpenCV waits forever for a pipeline of which a part is missing, deaf to Ctrl-C.
        found: list[Any] = []
        threading.Thread(
            target=lambda: found.append(cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)), daemon=True
        ).start()
        ends = time.monotonic() + STARTS_S
        while not found and time.monotonic() < ends:
            time.sleep(0.01)
        if not found or not found[0].isOpened():
            raise SourceError(
                name, f"GStreamer does not start it: try gst-launch-1.0 {shlex.quote(pipeline)}"
            )
        self._capture = found[0]

    def frames(self, stop: threading.Event) -> Iterator[Decoded]:
        """See Source."""
        index, first = 0, None
        while not stop.is_set():
            read, pixels = self._capture.read()
            if not read:
                raise SourceError(self.name, "gives no more pictures")
            if pixels.ndim != 3 or pixels.shape[2] != 3:
                raise SourceError(
                    self.name,
                    f"gives pictures of shape {pixels.shape}: let it end in video/x-raw,format=BGR ! appsink",
                )
            now = time.monotonic()
            first = now if first is None else first
            yield Decoded(index, now - first, partial(_rgb, pixels), now)
            index += 1

    def close(self) -> None:
        """See Source."""
        self._capture.release()


def csi_pipeline(number: int) -> str:
    """The pipeline of a Jetson's CSI camera."""
    return _CSI.format(number=number)


def _rgb(bgr: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))


def _opencv(name: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise SourceError(
            name, "OpenCV is not installed here: sudo apt install python3-opencv"
        ) from error
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise SourceError(
            name,
            f"the OpenCV in {cv2.__file__} was built without GStreamer, as pip's are: use the system's, "
            "sudo apt install python3-opencv",
        )
    return cv2
