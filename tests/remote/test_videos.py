"""Videos that travel, and streams that a device opens itself."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import run
from tests.support.http_camera import http_camera
from tests.support.ssh import Sshd
from tests.support.videos import numbered, write_video

pytestmark = pytest.mark.slow


def test_a_video_is_labelled_there_as_it_is_here(
    device: Sshd, onnx_bundle: Path, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "a clip.mp4", numbered(6))
    (tmp_path / "bad.mp4").write_text("none")
    words = ("predict", onnx_bundle, video, tmp_path / "bad.mp4", "--every", 2, "--json")
    here, there = run(*words), run(*words, "--on", device.host)
    assert here.exit_code == there.exit_code == 1, there.output
    expected, found = (
        [json.loads(line) for line in each.stdout.splitlines()] for each in (here, there)
    )
    assert len(found) == 4
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.pop("host") == device.host
        for line in (ours, theirs):
            line.pop("fps", None)
        assert theirs == ours


def test_a_stream_is_opened_by_the_device_until_ctrl_c(
    device: Sshd, onnx_bundle: Path, desk: Callable[..., subprocess.Popen[str]]
) -> None:
    with http_camera() as address:
        process = desk("predict", onnx_bundle, f"{address}/live", "--on", device.host, "--json")
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(10)]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert {(line["source"], line["host"]) for line in lines} == {(f"{address}/live", device.host)}
    assert [line["frame"] for line in lines] == sorted(line["frame"] for line in lines)
    assert process.returncode == 1
    assert "interrupted" in said
    assert "Traceback" not in said
