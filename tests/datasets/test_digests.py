"""What decides is content: an image that changes in place changes the digest of its split."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from gft_edge.bundle.store import sha256_of
from gft_edge.datasets import digests, read_split, split_digest
from gft_edge.datasets.digests import file_digests
from gft_edge.errors import DataError
from gft_edge.runtime.user_cache import user_cache


@pytest.fixture
def data(tmp_path: Path, coloured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy whose files were written an hour ago, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(coloured, tmp_path / "data"))
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**9))  # as if an hour had passed since
    return folder


def digest(data: Path) -> str:
    return split_digest(read_split(data, "train"))


def kept_file() -> Path:
    folder = user_cache("digests")
    assert folder is not None
    (file,) = folder.glob("*.json")
    return file


def test_images_of_one_size_that_change_places_are_other_images(data: Path) -> None:
    """Bitmaps of one class under the name of another: the same names, labels and sizes."""
    first, second = data / "train" / "r" / "0.bmp", data / "train" / "g" / "0.bmp"
    for number, path in enumerate((first, second)):
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(path)
    before = digest(data)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert digest(data) != before


@pytest.mark.parametrize("sets_the_time_back", [False, True])
def test_one_byte_edited_in_place_is_seen(data: Path, sets_the_time_back: bool) -> None:
    """An orientation flag is one byte; some tools that write it set the modification time back."""
    path = data / "train" / "r" / "0.png"
    before, status = digest(data), path.stat()
    time.sleep(0.02)  # beyond a tick of the file system's clock
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    if sets_the_time_back:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert digest(data) != before


def test_what_is_known_is_not_read_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(digests, "sha256_of", counted)
    before = digest(data)
    assert len(read) == 36
    assert digest(data) == before
    assert len(read) == 36
    (data / "train" / "g" / "3.png").touch()
    assert digest(data) == before
    assert read[36:] == ["3.png"]
    assert split_digest(read_split(data, "train"), fresh=True) == before
    assert len(read) == 37 + 36


def test_a_file_that_was_written_just_now_is_read_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written again within the same tick of the clock."""
    monkeypatch.setattr(digests, "SETTLED_NS", 10**12)
    digest(data)
    assert json.loads(kept_file().read_bytes()) == {}


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"train/r/0.png": [1]}', b"\xff"])
def test_a_damaged_cache_is_no_answer(data: Path, damage: bytes) -> None:
    before = digest(data)
    kept_file().write_bytes(damage)
    assert digest(data) == before


def test_without_a_cache_every_file_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(data)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert digest(data) == before


def test_progress_counts_the_files_that_are_read(data: Path) -> None:
    told: list[tuple[int, int]] = []
    paths = sorted((data / "train").rglob("*.png"))
    file_digests(data, paths, lambda text, done, total: told.append((done, total)))
    assert told == [(n, 36) for n in range(1, 37)]


def test_an_image_that_goes_away_meanwhile_is_named(data: Path) -> None:
    split = read_split(data, "train")
    split.paths[2].unlink()
    with pytest.raises(DataError, match=split.paths[2].name):
        split_digest(split)
