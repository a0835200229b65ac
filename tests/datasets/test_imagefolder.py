"""Class folders are listed in order, and a folder that cannot be used says what is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from gft_edge.datasets import read_split
from gft_edge.errors import DataError
from tests.support.refusals import refusal_of


def make(data: Path, split: str, **images: Sequence[str]) -> Path:
    """DATA/SPLIT/CLASS/name for each class; listing opens no image, so the files are empty."""
    for label, names in images.items():
        for name in names:
            path = data / split / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (data / split / label).mkdir(parents=True, exist_ok=True)
    return data


def names(paths: Sequence[Path]) -> list[str]:
    return [path.name for path in paths]


def test_classes_and_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    split = read_split(make(tmp_path, "val", pear=["b.JPG", "a.png"], apple=["z.webp"]), "val")
    assert split.name == "val"
    assert split.labels == ("apple", "pear")
    assert names(split.paths) == ["z.webp", "a.png", "b.JPG"]
    assert split.targets == (0, 1, 1)


def test_given_labels_set_the_indices_and_may_lack_images_or_folders(tmp_path: Path) -> None:
    data = make(tmp_path, "test", apple=["a.png"], pear=["b.png"], lime=[])
    split = read_split(data, "test", ("pear", "fig", "lime", "apple"))
    assert split.labels == ("pear", "fig", "lime", "apple")
    assert split.targets == (3, 0)
    one = make(tmp_path, "val", pear=["b.png"])
    assert read_split(one, "val", ("apple", "pear")).targets == (1,)


def test_images_lie_at_any_depth_and_all_else_is_left_alone(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["x/y/a.png", "notes.txt"], pear=["b.gif", "Thumbs.db"])
    (data / "train" / "list.csv").touch()
    # macOS writes ._a.png beside a.png on foreign disks; it is no image.
    make(data, "train", apple=["x/y/._a.png"], **{".cache": ["c.png"]})
    (data / "train" / "apple" / "old.jpg").mkdir()
    assert names(read_split(data, "train").paths) == ["a.png", "b.gif"]


@pytest.mark.parametrize(
    ("images", "split", "labels", "words"),
    [
        ({"apple": ["a.png"]}, "test", None, ("test/", "train")),
        ({}, "train", None, ("train", "0 class folders")),
        ({"apple": ["a.png"]}, "train", None, ("train", "1 class folders")),
        ({"apple": ["a.png"], "pear": ["notes.txt"]}, "train", None, ("pear",)),
        (
            {"apple": ["a.png"], "pear": ["b.png"], "zebra": ["c.png"]},
            "train",
            ("apple",),
            ("2 classes", "pear", "1 classes"),
        ),
        ({"apple": ["notes.txt"]}, "train", ("apple", "pear"), ("train/CLASS",)),
    ],
)
def test_a_folder_that_cannot_be_used_says_what_is_wrong_with_it(
    tmp_path: Path,
    images: dict[str, Sequence[str]],
    split: str,
    labels: tuple[str, ...] | None,
    words: tuple[str, ...],
) -> None:
    (tmp_path / "train").mkdir()
    make(tmp_path, "train", **images)
    refusal_of(DataError, partial(read_split, tmp_path, split, labels), *words)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refusal_of(DataError, partial(read_split, tmp_path / "nowhere", "test"), "nowhere")
    refusal_of(DataError, partial(read_split, tmp_path, "train"), "train/")


@pytest.mark.parametrize("ending", ["\n", "\r", "\v", "\f", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_class_whose_name_holds_a_line_break_is_refused(tmp_path: Path, ending: str) -> None:
    for name in (f"pe{ending}ar", f"pear{ending}"):
        data = make(tmp_path / repr(name), "train", apple=["a.png"], **{name: ["b.png"]})
        refusal_of(DataError, partial(read_split, data, "train"), str(data / "train"), repr(name))
        # A network's own classes are asked at the door of the export.
        assert read_split(data, "train", ("apple", name)).labels == ("apple", name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["a.png"], **{os.fsdecode(b"caf\xe9"): ["b.png"]})
    refusal_of(DataError, partial(read_split, data, "train"), str(data / "train"), "udce9")
