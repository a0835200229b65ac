"""Video files as they come: frames in order, their times, their colours, and what is wrong with them."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.errors import MissingDependencyError, SourceError
from gft_edge.runtime.sources.frames import Decoded
from gft_edge.runtime.sources.open import is_video
from gft_edge.runtime.sources.video import opened_file
from tests.support.refusals import refusal_of
from tests.support.videos import SIZE, number_of, numbered, turned, write_video

LOSSLESS = {"codec": "ffv1", "pix_fmt": "bgr0"}


def frames_of(path: Path) -> list[Decoded]:
    return [*opened_file(str(path)).frames(threading.Event())]


def first_of(path: Path) -> Image.Image:
    return frames_of(path)[0].rgb()


def test_every_frame_comes_in_order_with_the_containers_time(tmp_path: Path) -> None:
    times_s = [0.0, 0.1, 0.5, 0.52, 2.0]
    path = write_video(tmp_path / "a.mp4", numbered(5), times_s=times_s)
    frames = frames_of(path)
    assert [frame.index for frame in frames] == [*range(5)]
    assert [frame.time_s for frame in frames] == pytest.approx(times_s)
    assert [number_of(frame.rgb()) for frame in frames] == [*range(5)]


def test_frames_without_times_have_those_of_the_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", numbered(4), fps=25)
    assert [frame.time_s for frame in frames_of(path)] == pytest.approx([0, 0.04, 0.08, 0.12])


@pytest.mark.parametrize(
    "settings",
    [
        LOSSLESS,
        {"codec": "ffv1", "pix_fmt": "yuv444p10le"},
        {"codec": "ffv1", "pix_fmt": "yuv444p", "colorspace": "ITU709"},
        {"codec": "ffv1", "pix_fmt": "yuv444p", "colorspace": "ITU601"},
        {"codec": "mjpeg", "pix_fmt": "yuvj444p", "options": {"q": "1"}},
    ],
    ids=["RGB", "10 bit", "BT.709", "BT.601", "full range"],
)
def test_colours_are_rgb_whatever_the_file_holds(settings: dict[str, str], tmp_path: Path) -> None:
    colours = np.array([[[200, 30, 20], [20, 180, 40]], [[10, 40, 210], [250, 240, 230]]], np.uint8)
    image = Image.fromarray(colours).resize(SIZE, Image.Resampling.NEAREST)
    found = first_of(write_video(tmp_path / "a.mkv", [image], **settings))  # type: ignore[arg-type]
    assert np.abs(np.asarray(found, int) - np.asarray(image, int)).mean() < 2.5


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0),
     (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
)  # fmt: skip
def test_a_video_is_turned_and_mirrored_as_its_file_says(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    greys = {(-1, -1): 20, (1, -1): 90, (-1, 1): 160, (1, 1): 230}  # (x, y) of a corner
    image = Image.new("L", SIZE)
    for (x, y), grey in greys.items():
        left, top = SIZE[0] // 2 * (x > 0), SIZE[1] // 2 * (y > 0)
        image.paste(grey, (left, top, left + SIZE[0] // 2, top + SIZE[1] // 2))
    path = write_video(tmp_path / "a.mp4", [image.convert("RGB")] * 2)
    found = first_of(turned(path, matrix)).convert("L")
    a, b, c, d = matrix
    assert found.size == (SIZE if a else SIZE[::-1])
    for (x, y), grey in greys.items():
        at = (a * x + c * y, b * x + d * y)
        pixel = found.getpixel(
            [size // 4 + size // 2 * (to > 0) for size, to in zip(found.size, at, strict=True)]
        )
        assert pixel == pytest.approx(grey, abs=6)


def test_of_an_interlaced_picture_one_field_is_seen(tmp_path: Path) -> None:
    from av.codec.context import Flags

    comb = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    comb[::2] = 200
    flags = int(Flags.interlaced_dct | Flags.interlaced_me)
    path = write_video(
        tmp_path / "a.mp4", [Image.fromarray(comb)] * 3, flags=flags, options={"crf": "4"}
    )
    found = np.asarray(first_of(path))
    assert found.shape == comb.shape
    assert found.std() < 20


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", numbered(2), options={"x264-params": "sar=4/3"})
    assert first_of(path).size == (128, 64)


def test_the_size_may_change_between_frames(tmp_path: Path) -> None:
    small, large = (
        write_video(tmp_path / f"{size[0]}.h264", numbered(3, size)).read_bytes()
        for size in ((96, 64), (160, 128))
    )
    (tmp_path / "both.h264").write_bytes(small + large)
    sizes = [frame.rgb().size for frame in frames_of(tmp_path / "both.h264")]
    assert sizes == [(96, 64)] * 3 + [(160, 128)] * 3


# What is wrong with a file.


def read_until_refused(path: Path) -> tuple[int, SourceError]:
    """How many frames come before the error."""
    count = 0
    try:
        for _ in opened_file(str(path)).frames(threading.Event()):
            count += 1
    except SourceError as error:
        return count, error
    raise AssertionError("it was read to its end")


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_file_that_ends_too_early_gives_its_frames_and_then_says_so(
    name: str, tmp_path: Path
) -> None:
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), np.uint8)
    pictures = [Image.fromarray(each) for each in noise]
    path = write_video(tmp_path / name, pictures, container_options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    count, error = read_until_refused(path)
    assert 5 < count < 15
    assert (error.source, error.exit_code) == (str(path), 2)
    assert "2.00 s" in error.reason


def test_a_frame_that_cannot_be_decoded_is_left_out_and_counted(tmp_path: Path) -> None:
    pictures = [*numbered(12)]
    path = write_video(tmp_path / "a.mkv", pictures, options={"x264-params": "keyint=1"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    source = opened_file(str(path))
    frames = [*source.frames(threading.Event())]
    assert len(frames) + source.damaged >= 11
    assert len(frames) >= 8


def test_what_holds_no_video_is_refused(tmp_path: Path) -> None:
    import av
    from av.stream import Disposition

    for name in ("audio", "cover"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as file:
            stream = file.add_stream("aac", rate=8000)
            if name == "cover":
                picture = file.add_stream("mjpeg", rate=1)
                picture.disposition = Disposition.attached_pic
                picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
                file.mux(picture.encode(av.VideoFrame(16, 16, "yuvj420p")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            file.mux([*stream.encode(frame), *stream.encode(None)])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    words = {
        "audio": "audio",
        "cover": "audio",
        "text": "no video",
        "empty": "no video",
        "gone": "no such file",
    }
    for name, word in words.items():
        path = str(tmp_path / f"{name}.mp4")
        refusal_of(SourceError, partial(opened_file, path), path, word)


def test_without_pyav_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    refusal_of(MissingDependencyError, lambda: opened_file("a.mp4"), "gft-edge[video]")


def test_a_video_is_known_by_its_name_or_how_it_begins(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(1))
    for name in ("plain", "a.download"):
        (tmp_path / name).write_bytes((tmp_path / "a.mkv").read_bytes())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "notes").write_text("none")
    (tmp_path / "folder.mp4").mkdir()
    names = ("a.mkv", "plain", "a.download", "gone.MP4", "a.png", "notes", "folder.mp4", "gone")
    assert [is_video(str(tmp_path / name)) for name in names] == [True] * 4 + [False] * 4
