"""A folder gives its images: by name or content, through links, and nothing of it vanishes unsaid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.errors import UsageError
from gft_edge.runtime.image_formats import IMAGE_SUFFIXES, readable_formats
from gft_edge.runtime.preprocess import open_rgb
from gft_edge.runtime.sources.images import expanded, find_images, images_below
from tests.support import unprivileged
from tests.support.cli import run
from tests.support.refusals import refusal_of


def picture(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path


def names_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in images_below(folder)]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder of an image and of a subfolder that may not be listed."""
    folder = tmp_path / "photos"
    picture(folder / "a.png")
    picture(folder / "closed" / "b.png")
    (folder / "closed").chmod(0)
    yield folder
    (folder / "closed").chmod(0o700)


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/b.png", ".AppleDouble/b.png", ".git/annex/b.png", "._a.png", ".DS_Store",
        "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "@EADIR/b.png", "__MACOSX/b.png", "#recycle/b.png",
        "$RECYCLE.BIN/b.png", "System Volume Information/b.png", "lost+found/b.png", "Thumbs.db",
        "desktop.ini", "@Recycle/b.png", "b.jpg@SynoEAStream",
    ],
)  # fmt: skip
def test_what_is_hidden_or_a_systems_own_is_skipped_at_any_depth(
    hidden: str, tmp_path: Path
) -> None:
    picture(tmp_path / "x" / "y" / "a.png")
    for place in (tmp_path, tmp_path / "x" / "y"):
        picture(place / hidden)
    assert names_below(tmp_path) == ["x/y/a.png"]
    assert not find_images(tmp_path).left_out


def test_only_what_lies_below_the_given_folder_can_be_hidden(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "@eaDir" / "photos"
    picture(folder / "a.png")
    assert names_below(folder) == ["a.png"]
    assert names_below(tmp_path / ".cache" / "@eaDir") == ["photos/a.png"]
    assert list(expanded((str(folder / "*"),))) == [str(folder / "a.png")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.avif", "AVIF"), ("a.ppm", "PPM"), ("a.PGM", "PPM"),
        ("a.jp2", "JPEG2000"), ("a.j2k", "JPEG2000"), ("a.mpo", "MPO"), ("a.tga", "TGA"),
        ("a.qoi", "QOI"), ("a.dds", "DDS"), ("a.apng", "PNG"),
        # By content, where the name does not say.
        ("a", "JPEG"), ("a.1", "PNG"), ("a.jpg_large", "JPEG"), ("a.jpg!d", "WEBP"), ("a.txt", "GIF"),
        ("a.b.c", "AVIF"), ("a.", "TIFF"), ("a.bin", "JPEG2000"),
        # The name is one image's, the content another's.
        ("a.png", "JPEG"), ("a.tga", "PNG"), ("a.gif", "WEBP"),
        ("a.HEIC", "JPEG"), ("a.heif", "PNG"), ("a.jxl", "WEBP"), ("a.pdf", "JPEG"), ("a.dng", "AVIF"),
    ],
)  # fmt: skip
def test_what_pillow_decodes_is_found_by_its_name_or_else_by_its_content(
    name: str, kind: str, tmp_path: Path
) -> None:
    picture(tmp_path / name, kind)
    (found,) = images_below(tmp_path)
    assert found.name == name
    assert open_rgb(found).size == (16, 16)


def test_every_suffix_of_a_format_that_is_read_is_an_images_but_those_of_icons() -> None:
    formats = {*readable_formats(), "MPO"}
    theirs = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    assert theirs - IMAGE_SUFFIXES == {".ico", ".icns", ".cur", ".pfm"}
    assert theirs >= IMAGE_SUFFIXES


def test_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", "labels.csv"):
        (tmp_path / name).write_text("no image")
    # Copies of images that editors and downloads leave, and a raw file, which begins as a TIFF.
    for name in ("a.png~", "b.png.part", "c.bak", "d.nef"):
        picture(tmp_path / name, "TIFF")
    Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["a.png"]
    assert found.left_out == {
        ".heic": 2, ".txt": 1, "without a suffix": 1, ".csv": 1, ".png~": 1, ".part": 1, ".bak": 1,
        ".nef": 1, ".eps": 1, "neither files nor folders": 1,
    }  # fmt: skip
    said = list[str]()
    assert [*expanded((str(tmp_path),), said.append)] == [str(tmp_path / "a.png")]
    (line,) = said
    assert "11 left out" in line
    assert "2 .heic" in line


def test_a_folder_of_heic_says_what_to_convert(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    line = refusal_of(UsageError, lambda: [*expanded((str(tmp_path),))], str(tmp_path), ".heic")
    assert "convert" in line


def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "deep" / "b.png")
    picture(tmp_path / "elsewhere" / "c.png")
    folder = tmp_path / "photos"
    picture(folder / "sub" / "a.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "c.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    # Links to folders that they lie in, that lead to each other, and to one that is there anyway.
    (folder / "up").symlink_to("..")
    (folder / "sub" / "self").symlink_to(".")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "again").symlink_to("sub")
    expected = ["c.png", "linked/c.png", "linked/deep/b.png", "sub/a.png"]
    assert names_below(folder) == expected
    assert find_images(folder).left_out == {"links that lead back": 2}


def test_a_link_that_leads_nowhere_is_refused_or_stands_among_the_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name, target in (("gone.png", "nowhere.png"), ("folder", "/nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
        refusal_of(UsageError, partial(images_below, tmp_path), str(tmp_path / name))
        paths = [*expanded((str(tmp_path),))]
        assert paths == sorted(str(tmp_path / each) for each in ("a.png", name))
        (tmp_path / name).unlink()


def test_a_folder_that_may_not_be_listed_is_refused_or_stands_among_the_images(
    closed: Path,
) -> None:
    code = f"""
from pathlib import Path
from gft_edge.errors import UsageError
from gft_edge.runtime.sources.images import expanded, images_below
print(*expanded(({str(closed)!r},)))
try:
    images_below(Path({str(closed)!r}))
except UsageError as error:
    print(error)
"""
    done = unprivileged.python("-c", code)
    first, second = done.stdout.splitlines()
    assert first.split() == [str(closed / "a.png"), str(closed / "closed")]
    assert f"{closed / 'closed'} cannot be read (Permission denied)" in second


def test_predict_reports_what_it_cannot_read_and_classifies_the_rest(
    closed: Path, micro_bundles: dict[str, Path]
) -> None:
    (closed / "gone").symlink_to("nowhere")
    (closed / "notes.txt").write_text("none")
    shutil.copy(closed / "a.png", closed / "b")
    done = unprivileged.python("-m", "gft_edge", "predict", micro_bundles["onnx"], closed)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert f"Error: {closed / 'closed'}: " in errors[0]
    assert f"Error: {closed / 'gone'}: " in errors[1]
    assert "2 of 4 images could not be read" in done.stderr
    assert "1 .txt" in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("/")] == [
        str(closed / "a.png"),
        str(closed / "b"),
    ]


def test_a_glob_gives_images_and_the_images_of_folders_each_once(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/@eaDir/x.png", "b/y.avif", "b/.hidden/z.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("none")
    everything = [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "y.avif")]
    for pattern in ("*", "**", "**/*", "*/*.*"):
        assert [*expanded((str(tmp_path / pattern),))] == everything
    refusal_of(UsageError, lambda: [*expanded((str(tmp_path / "*.txt"),))], "*.txt")
    # A file of that very name is no pattern.
    picture(tmp_path / "a[1].png")
    assert [*expanded((str(tmp_path / "a[1].png"),))] == [str(tmp_path / "a[1].png")]


def test_predict_takes_any_image_of_a_folder(
    tmp_path: Path, micro_bundles: dict[str, Path]
) -> None:
    for name, kind in (
        ("a.jfif", "JPEG"),
        ("b", "PNG"),
        ("c.txt", "WEBP"),
        ("@eaDir/d.png", "PNG"),
    ):
        picture(tmp_path / name, kind)
    result = run("predict", micro_bundles["onnx"], tmp_path)
    assert result.exit_code == 0
    named = [line for line in result.stdout.splitlines() if line.startswith("/")]
    assert named == [str(tmp_path / name) for name in ("a.jfif", "b", "c.txt")]
