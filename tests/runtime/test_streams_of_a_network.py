"""Streams over loopback: MJPEG over HTTP always, RTSP where the system has GStreamer's server."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gft_edge import Classifier
from gft_edge.errors import SourceError
from gft_edge.runtime.sources import live, video
from gft_edge.runtime.sources.open import opened
from gft_edge.runtime.stream import Labelled
from tests.support import rtsp_stamp
from tests.support.http_camera import http_camera
from tests.support.paths import ROOT
from tests.support.refusals import refusal_of
from tests.support.tools import lacking
from tests.support.videos import number_of, numbered, turned, write_video

FPS = 20


@pytest.fixture
def classifier(micro_bundles: dict[str, Path]) -> Iterator[Classifier]:
    with Classifier.load(micro_bundles["onnx"], spin=False) as loaded:
        yield loaded


def test_a_stream_that_ends_is_opened_again(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.01)
    told, seen = list[str](), []
    with (
        http_camera() as address,
        closing(classifier.stream(f"{address}/live", say=told.append)) as stream,
    ):
        for each in stream:
            seen.append(each)
            if len(told) == 2:
                break
    assert [each.frame for each in seen] == sorted({each.frame for each in seen})
    assert seen[-1].frame >= 12
    assert all(number_of(each.image) in range(6) for each in seen)
    assert all(each.latency_ms is not None and each.latency_ms >= 0 for each in seen)


def test_a_film_on_a_server_is_a_file_of_which_every_frame_counts(
    classifier: Classifier, tmp_path: Path
) -> None:
    options = {"movflags": "faststart"}
    film = write_video(tmp_path / "a.mp4", numbered(8), container_options=options)
    with http_camera(film.read_bytes()) as address:
        seen = [*classifier.stream(f"{address}/film.mp4")]
    assert [number_of(each.image) for each in seen] == [*range(8)]
    assert {each.latency_ms for each in seen} == {None}


# RTSP.


@contextmanager
def camera(port: int, key_every: int = FPS) -> Iterator[str]:
    """A camera with FPS frames a second; it ends with the block, or by itself."""
    server = ROOT / "tests" / "support" / "rtsp_server.py"
    words = ["/usr/bin/python3", str(server), str(port), str(FPS), str(key_every), "60"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": "/usr/bin"}
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            lacking(
                "no RTSP server: apt install python3-gi gir1.2-gst-rtsp-server-1.0 "
                "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
            )
        try:
            yield f"rtsp://127.0.0.1:{port}/live"
        finally:
            process.kill()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_a_label_is_never_older_than_two_frames_beyond_one_inference(
    port: int, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the engine is, and however long it goes on."""
    inference_s = 0.3
    run = classifier.session.run

    def slow(images: Any) -> Any:
        time.sleep(inference_s)
        return run(images)

    monkeypatch.setattr(classifier.session, "run", slow)
    seen: list[tuple[float, float, Labelled]] = []
    with camera(port) as url, closing(classifier.stream(url)) as stream:
        for each in stream:
            seen.append((time.monotonic(), rtsp_stamp.age_s(each.image), each))
            if len(seen) == 40:
                break
    # The first waits for the stream to be probed.
    for (before, _, _), (now, age_s, each) in pairwise(seen):
        assert int(age_s * FPS) <= math.ceil((now - before) * FPS) + 2
        assert each.latency_ms == pytest.approx(1000 * age_s, abs=500 / FPS)
    assert seen[-1][2].dropped > 39 * (inference_s * FPS - 1)


@pytest.mark.slow
def test_a_decoder_that_is_too_slow_skips_to_key_frames(
    port: int, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times too slow for 20 s it would be 13 s behind."""
    decode = video.Video._decoded

    def slow(source: video.Video, packet: Any) -> Any:
        frames = decode(source, packet)
        time.sleep(3 / FPS * len(frames))
        return frames

    monkeypatch.setattr(video.Video, "_decoded", slow)
    ages_s = []
    with camera(port) as url, closing(classifier.stream(url)) as stream:
        ends = time.monotonic() + 20
        for each in stream:
            ages_s.append(rtsp_stamp.age_s(each.image))
            if time.monotonic() > ends:
                break
    assert len(ages_s) > 10
    assert max(ages_s) < video.LATE_S + 2.5


@pytest.mark.slow
def test_a_camera_that_is_gone_for_a_while_is_seen_again_and_ctrl_c_ends_it(
    port: int, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "seen.mp4"
    with camera(port) as url:
        words = ["predict", micro_bundles["onnx"], url, "--fps", "5", "--save", out, "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gft_edge", *map(str, words)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        before = [json.loads(process.stdout.readline()) for _ in range(5)]
    with camera(port):
        after = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert f"{url}: " in said
    times_s = [line["time_s"] for line in (*before, *after)]
    assert times_s == sorted(times_s)
    assert times_s[5] - times_s[4] > 0.9
    import av

    with av.open(str(out)) as file:
        count = sum(1 for _ in file.decode(video=0))
    assert abs(count - 10 - len(rest.splitlines())) <= 1


@pytest.mark.slow
def test_several_cameras_share_one_engine(port: int, classifier: Classifier) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        other = int(free.getsockname()[1])
    with camera(port) as one, camera(other) as two:
        seen = []
        with closing(classifier.stream([one, two])) as stream:
            for each in stream:
                seen.append(each.source)
                if len(seen) == 60:
                    break
    assert min(seen.count(one), seen.count(two)) > 20


@pytest.mark.slow
def test_a_stream_without_a_key_frame_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "SILENT_S", 4.0)
    with camera(port, key_every=0) as url:
        source = opened(url, lambda text: None)
        refusal_of(SourceError, lambda: next(source.frames(threading.Event())), url, "came in 4 s")
        source.close()


@pytest.mark.slow
def test_memory_stays_as_it_is_over_many_frames(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """In a process of its own: that of the tests holds much that comes and goes."""
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 96, 3), np.uint8)
    path = write_video(tmp_path / "a.mp4", [Image.fromarray(each) for each in noise] * 20)
    turned(path, (0, 1, -1, 0))
    code = """
import sys, psutil
from gft_edge import Classifier
with Classifier.load(sys.argv[1], spin=False) as classifier:
    for number, _ in enumerate(classifier.stream([sys.argv[2]] * 20, smooth_s=2)):
        if number % 1000 == 999:
            print(psutil.Process().memory_info().rss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, micro_bundles["onnx"], path],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    held = [*map(int, done.stdout.split())]
    assert len(held) == 10
    assert held[-1] < 1.02 * held[1]
