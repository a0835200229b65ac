"""Pipelines of GStreamer, through an OpenCV that plays its part: the real one is the system's own."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from gft_edge.errors import SourceError
from gft_edge.runtime.sources import gstreamer
from gft_edge.runtime.sources.open import opened
from tests.support.refusals import refusal_of

BGR = np.array([[[0, 0, 255], [255, 0, 0]]], np.uint8)  # a red pixel, a blue one


class OpenCv(SimpleNamespace):
    """What gft-edge asks of cv2; a pipeline with "broken" does not start, one with "stuck" hangs."""

    CAP_GSTREAMER = 1800
    __file__ = "/usr/lib/python3/dist-packages/cv2.so"

    def __init__(self, build: str = "GStreamer:    YES (1.22.0)", picture: object = BGR) -> None:
        super().__init__(build=build, picture=picture, pipelines=[], left=3, released=0)

    def getBuildInformation(self) -> str:  # noqa: N802
        return f"  Video I/O:\n    {self.build}\n"

    def VideoCapture(self, pipeline: str, api: int) -> OpenCv:  # noqa: N802
        assert api == self.CAP_GSTREAMER
        self.pipelines.append(pipeline)
        if "stuck" in pipeline:
            time.sleep(1)
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return "broken" not in self.pipelines[-1]

    def read(self) -> tuple[bool, object]:
        self.left -= 1
        return self.left >= 0, self.picture

    def release(self) -> None:
        self.released += 1


def given(monkeypatch: pytest.MonkeyPatch, cv2: OpenCv) -> OpenCv:
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return cv2


def test_pictures_of_a_pipeline_are_rgb_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = given(monkeypatch, OpenCv())
    source = gstreamer.Pipeline("gst:a", "a")
    frames = source.frames(threading.Event())
    found = [next(frames) for _ in range(3)]
    assert [frame.index for frame in found] == [0, 1, 2]
    assert [found[0].rgb().getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert all(frame.captured_at is not None for frame in found)
    refusal_of(SourceError, lambda: next(frames), "gst:a")
    source.close()
    assert cv2.released == 1


def test_a_pipeline_ends_in_an_appsink_with_the_newest_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cv2 = given(monkeypatch, OpenCv())
    for text in ("gst:a ! b", "gst:a ! appsink", "csi:1"):
        opened(text, lambda line: None).close()
    plain, own, csi = cv2.pipelines
    assert plain.startswith("a ! b ! ")
    assert plain.endswith("format=BGR ! appsink drop=true max-buffers=1")
    assert own == "a ! appsink"
    assert "nvarguscamerasrc sensor-id=1" in csi


def test_what_does_not_start_or_gives_no_colours_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gstreamer, "STARTS_S", 0.05)
    given(monkeypatch, OpenCv())
    for text in ("gst:broken", "gst:stuck"):
        refusal_of(SourceError, partial(opened, text, lambda line: None), text, "gst-launch-1.0")
    given(monkeypatch, OpenCv(picture=BGR[..., 0]))
    grey = gstreamer.Pipeline("gst:a", "a")
    refusal_of(SourceError, lambda: next(grey.frames(threading.Event())), "format=BGR")
    given(monkeypatch, OpenCv(build="GStreamer:    NO"))
    refusal_of(SourceError, partial(opened, "csi:0", lambda line: None), "python3-opencv")
