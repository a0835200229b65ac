"""predict of videos: what is printed, what is saved, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gft_edge.bundle.store import read_manifest
from gft_edge.cli.predict_streams import Saving
from gft_edge.errors import UsageError
from gft_edge.runtime.sources.video import opened_file
from tests.support.cli import refused, run
from tests.support.refusals import refusal_of
from tests.support.videos import numbered, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    return write_video(path, numbered(12), options={"crf": "4"})


def lines_of(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def pictures_of(path: Path) -> list[Image.Image]:
    return [frame.rgb() for frame in opened_file(str(path)).frames(threading.Event())]


def test_a_frame_is_a_line_and_images_keep_theirs(
    video: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("none")
    image = micro_data / "test" / "apple" / "0.png"
    given = (video, image, tmp_path / "bad.mp4", "--every", 4, "--top-k", 2)
    result = run("predict", micro_bundles["onnx"], *given, "--json")
    assert result.exit_code == 1
    first, *rest = lines_of(result.stdout)
    assert [*first] == ["path", "label", "predictions"]
    assert first["path"] == str(image)
    *frames, failed = rest
    assert [*failed] == ["source", "error"]
    assert failed["source"] == str(tmp_path / "bad.mp4")
    assert [(line["source"], line["frame"], line["time_s"]) for line in frames] == [
        (str(video), 0, 0.0), (str(video), 4, 0.4), (str(video), 8, 0.8)
    ]  # fmt: skip
    for line in frames:
        assert {*line} == {
            "source",
            "frame",
            "time_s",
            "label",
            "predictions",
            "dropped",
            "latency_ms",
            "fps",
        }
        assert [*line["predictions"][0]] == ["label", "index", "probability"]
        assert len(line["predictions"]) == 2
    assert f"{video}: 3 frames" in result.stderr
    people = run("predict", micro_bundles["onnx"], *given)
    told = [line for line in people.stdout.splitlines() if line.startswith(str(video))]
    assert len(told) == 3
    for words, frame in zip(told, frames, strict=True):
        best = frame["predictions"][0]
        assert best["label"] in words
        assert f"{100 * best['probability']:.2f} %" in words
        assert words.endswith(" fps")


def test_a_glob_means_the_videos_it_matches(
    video: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).write_bytes(video.read_bytes())
    result = run("predict", micro_bundles["onnx"], tmp_path / "*.mp4", "--every", 12, "--json")
    assert [line["source"] for line in lines_of(result.stdout)] == [
        str(tmp_path / name) for name in ("a.mp4", "b.mp4")
    ]


def test_what_was_seen_is_saved_as_a_video(
    video: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "seen.mp4"
    assert run("predict", micro_bundles["onnx"], video, "--save", out).exit_code == 0
    found, given = pictures_of(out), pictures_of(video)
    assert len(found) == len(given)
    for ours, theirs in zip(found, given, strict=True):
        assert ours.size == theirs.size
        upper = [np.asarray(image, int)[:40] for image in (ours, theirs)]
        assert np.abs(upper[0] - upper[1]).mean() < 4
        assert np.asarray(ours.convert("L"))[-14:].min() < 40


def test_surviving_patches_stand_beside_each_frame(
    video: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    result = run(
        "predict", micro_bundles["onnx"], video, "--every", 4, "--save", tmp_path, "--show-kept"
    )
    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000.jpg", "000004.jpg", "000008.jpg"
    ]  # fmt: skip
    with Image.open(tmp_path / "000008.jpg") as picture:
        width, height = 96 * 480 // 64, 480
        assert (picture.height, picture.width > width) == (height, True)
        grey = 90
        strip = np.asarray(picture.convert("L"), int)[:, width:]
    # 16 patches in each of three panels: kept ones as grey as the frame, dropped ones dark.
    panel = strip.shape[1]
    shares = [
        (strip[top + 18 : top + 18 + panel] > grey - 25).mean()
        for top in (0, panel + 18, 2 * (panel + 18))
    ]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[2] < shares[0] < 1


def test_frames_of_several_sources_are_told_apart_in_a_folder(
    video: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "b.mp4"
    other.write_bytes(video.read_bytes())
    out = tmp_path / "out"
    run("predict", micro_bundles["onnx"], video, other, "--every", 12, "--save", out)
    assert sorted(path.name for path in out.iterdir()) == ["1-000000.jpg", "2-000000.jpg"]


def test_what_cannot_be_saved_or_means_nothing_is_refused(
    video: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    bundle, image = micro_bundles["onnx"], micro_data / "test" / "apple" / "0.png"
    other = tmp_path / "b.mp4"
    other.write_bytes(video.read_bytes())
    (tmp_path / "link.mp4").symlink_to(other)
    for given, words in (
        ((video, "--save", tmp_path / "a.avi"), ("--save", "a.avi")),
        ((video, other, "--save", tmp_path / "x.mp4"), ("--save", "2")),
        ((other, "--save", tmp_path / "link.mp4"), ("--save", "link.mp4")),
        ((video, "--save", tmp_path / "no" / "x.mp4"), ("--save", "x.mp4")),
        ((video, "--show-kept"), ("--show-kept", "--save")),
        ((video, "--every", 2, "--fps", 2), ("every", "fps")),
        ((image, "--fps", 2), ("--fps",)),
        ((image, "--smooth", 2), ("--smooth",)),
        ((image, "--save", tmp_path), ("--save",)),
        ((video, "--save", tmp_path, "--on", "board"), ("--save", "--on")),
    ):
        refused(run("predict", bundle, *given), *words)
    assert other.read_bytes() == video.read_bytes()


def test_a_network_that_drops_no_patch_has_none_to_show(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    manifest = read_manifest(micro_bundles["onnx"])
    saving = Saving(tmp_path / "x.mp4", True, ["a.mp4"])
    assert saving.checked(manifest)
    dense = dataclasses.replace(manifest, kept_outputs=())
    refusal_of(UsageError, lambda: saving.checked(dense), "--show-kept")


def test_ctrl_c_closes_what_is_saved_and_prints_a_summary(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10, 64, 96, 3), np.uint8)
    pictures = [Image.fromarray(each) for each in noise] * 150
    video = write_video(tmp_path / "long.mkv", pictures, options={"preset": "ultrafast"})
    out = tmp_path / "seen.mp4"
    words = ["predict", *map(str, (micro_bundles["onnx"], video, "--save", out)), "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "gft_edge", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(30)]
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    assert process.returncode == 1
    labelled = len(lines) + len(rest.splitlines())
    assert 30 <= labelled < 1500
    assert f"{video}: {labelled} frames" in said
    assert "Traceback" not in said
    assert labelled - 1 <= len(pictures_of(out)) <= labelled
