"""Live sources: the newest frame alone, how late it is, and what happens when they are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from gft_edge.errors import SourceError, UsageError
from gft_edge.runtime.sources import is_live, live
from gft_edge.runtime.sources.frames import Pace, Source
from gft_edge.runtime.sources.live import Reopened
from gft_edge.runtime.sources.open import opened
from gft_edge.runtime.sources.reader import AHEAD, Reader
from gft_edge.runtime.sources.video import Clock
from tests.runtime.scripted import Scripted
from tests.support.refusals import refusal_of


def opening(script: Sequence[Source | SourceError]) -> Callable[[], Source]:
    left = [*script]

    def again() -> Source:
        found = left.pop(0)
        if isinstance(found, SourceError):
            raise found
        return found

    return again


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.01)


def test_a_camera_that_was_unplugged_is_opened_again_and_its_frames_count_on(soon: None) -> None:
    stop, told = threading.Event(), list[str]()
    parts = [Scripted(2, "No such device"), Scripted(0, "no picture"), Scripted(3)]
    script: list[Source | SourceError] = [
        SourceError("camera:0", "there is no /dev/video0"),
        *parts[1:],
    ]
    source = Reopened(parts[0], opening(script), told.append)
    frames = []
    for frame in source.frames(stop):
        frames.append(frame)
        if len(frames) == 5:
            stop.set()
    assert [frame.index for frame in frames] == [*range(5)]
    assert [frame.time_s for frame in frames] == sorted(frame.time_s for frame in frames)
    assert all(part.closed for part in parts)
    assert source.damaged == 3
    for line, reason in zip(told, ("No such device", "/dev/video0", "no picture"), strict=True):
        assert line.startswith("camera:0: ")
        assert reason in line


def test_it_is_tried_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, stop = list[float](), threading.Event()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            stop.set()

    monkeypatch.setattr(stop, "wait", wait)
    gone = [SourceError("camera:0", "gone")] * 20
    assert len([*Reopened(Scripted(1), opening(gone), lambda text: None).frames(stop)]) == 1
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_source_that_never_gave_a_picture_fails() -> None:
    source = Reopened(Scripted(0, "no picture"), opening([]), lambda text: None)
    refusal_of(SourceError, lambda: [*source.frames(threading.Event())], "camera:0", "no picture")


# The thread that reads.


def read(source: Source, pace: Pace | None = None) -> tuple[Reader, threading.Condition]:
    wake = threading.Condition()
    return Reader(source, pace or Pace(), lambda image: np.asarray(image), wake), wake


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


def test_of_a_live_source_the_newest_frame_is_taken_and_the_others_are_counted() -> None:
    reader, wake = read(Scripted(50))
    until(lambda: not reader._thread.is_alive())
    with wake:
        frame = reader.take()
        assert reader.done
    assert (reader.ready(frame).frame.index, reader.dropped) == (49, 49)


def test_a_file_waits_for_the_engine_and_loses_nothing() -> None:
    source = Scripted(20, live=False)
    reader, wake = read(source, Pace(every=2))
    until(lambda: reader.has)
    time.sleep(0.05)
    found = []
    while True:
        with wake:
            wake.wait_for(lambda: reader.has or reader.done, 5)
            if reader.done:
                break
            assert len(reader._waiting) <= AHEAD
            found.append(reader.take())
    assert [reader.ready(frame).frame.index for frame in found] == [*range(0, 20, 2)]
    assert (reader.dropped, source.closed) == (0, True)


def test_a_reader_that_is_closed_ends_its_thread() -> None:
    reader, _ = read(Scripted(20, live=False))
    until(lambda: reader.has)
    reader.close()
    assert not reader._thread.is_alive()


# Which frames, and when they were taken.


@pytest.mark.parametrize(("fps", "wanted"), [(10, 10), (25, 25), (7, 7), (60, 25), (0.5, 1)])
def test_so_many_frames_of_a_second_are_wanted(fps: float, wanted: int) -> None:
    pace = Pace(fps=fps)
    assert sum(pace.wants(index, index / 25) for index in range(25)) == wanted


def test_a_pace_that_means_nothing_is_refused() -> None:
    for settings, word in (
        ({"every": 0}, "every is 0"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "nan"),
        ({"every": 2, "fps": 3.0}, "every and fps"),
    ):
        refusal_of(UsageError, partial(Pace, **settings), word)


def test_a_frame_is_as_late_as_it_comes_after_the_soonest_of_late() -> None:
    clock = Clock()
    for number in range(100):
        assert clock.captured_at(5 + number / 10, 1000 + number / 10) == pytest.approx(
            1000 + number / 10
        )
    assert clock.captured_at(15, 1012.5) == pytest.approx(1010)
    assert clock.late_s == pytest.approx(2.5)
    # What stays late for a minute is the way that the source takes now.
    for number in range(700):
        clock.captured_at(15 + number / 10, 1012.5 + number / 10)
    assert clock.late_s == pytest.approx(0)
    # A clock that was set tells nothing of before.
    assert clock.captured_at(3, 2000) == 2000


def test_the_clock_of_a_v4l2_driver_is_that_of_the_machine() -> None:
    clock = Clock(of_kernel=True)
    assert clock.captured_at(999.96, 1000) == 999.96
    assert clock.captured_at(1_700_000_000, 1000) == 1000


# What an argument means.


def test_streams_and_cameras_are_known_by_how_they_begin() -> None:
    for text in ("rtsp://a/b", "HTTP://a", "camera:0", "csi:1", "gst:videotestsrc"):
        assert is_live(text)
    for text in ("a.mp4", "cameras:0", "./camera:0", "C:/a.mp4", "folder/rtsp://"):
        assert not is_live(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [("camera:99", "/dev/video99"), ("camera:front", "'front'"), ("csi:", "csi:0"), ("gst: ", "pipeline"),
     ("foo://a/b", "Protocol not found"), ("rtsp://127.0.0.1:9/a", "Connection refused"),
     ("http://127.0.0.1:9/a", "Connection refused")],
)  # fmt: skip
def test_what_cannot_be_opened_is_refused_in_one_line(text: str, word: str) -> None:
    refusal_of(SourceError, lambda: opened(text, lambda line: None), text, word)


def test_without_an_opencv_with_gstreamer_a_pipeline_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    for text in ("csi:0", "gst:videotestsrc"):
        refusal_of(SourceError, partial(opened, text, lambda line: None), text, "python3-opencv")
