"""Photographs of any class are listed, with the network's classes where they have them, and the rest told."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import read_split, reporting_split, verification_split
from gft_edge.datasets.photographs import photographs_split, read_photographs
from gft_edge.errors import DataError
from tests.support.data_sets import DISHES, VARIANTS, make_aircraft, make_coco, make_food, source
from tests.support.refusals import refusal_of

LABELS = ("apple", "pear", "caf\u00e9")


def touched(folder: Path, *names: str) -> Path:
    """Make empty files: listing opens no image."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_flat_folder_gives_every_image_and_no_class(tmp_path: Path) -> None:
    data = touched(tmp_path / "shots", "b.jpg", "a.png", "2024/c.jpg", ".hidden/d.jpg", "notes.txt")
    found = read_photographs(data, None, LABELS)
    assert found.name == "shots"
    assert [path.relative_to(data).as_posix() for path in found.paths] == [
        "2024/c.jpg", "a.png", "b.jpg",
    ]  # fmt: skip
    assert found.targets == (None,) * 3
    assert found.labelled == 0
    left_out, unknown = found.remarks
    assert "1 .txt" in left_out
    for words in (str(data), "3 of 3", "in no class folder, 2024"):
        assert words in unknown


def test_images_of_the_networks_classes_keep_them_and_the_others_are_counted(
    tmp_path: Path,
) -> None:
    data = touched(
        tmp_path, "val/pear/a.jpg", "val/kiwi/b.jpg", "val/kiwi/c.jpg", "val/d.jpg",
        "val/cafe\u0301/x/e.jpg", "val/lime/f.jpg", "val/plum/g.jpg", "train/apple/h.jpg",
    )  # fmt: skip
    found = read_photographs(data, "val", LABELS)
    targets = dict(zip([path.name[0] for path in found.paths], found.targets, strict=True))
    assert targets == {"a": 1, "b": None, "c": None, "d": None, "e": 2, "f": None, "g": None}
    assert found.labelled == 2
    (remark,) = found.remarks
    for words in (str(data / "val"), "5 of 7", "kiwi, in no class folder, lime, ..."):
        assert words in remark


@pytest.mark.parametrize("name", ["aple", "Apple", "apples"])
def test_a_misspelt_class_is_asked_about(name: str, tmp_path: Path) -> None:
    touched(tmp_path, f"test/{name}/a.jpg", "test/pear/b.jpg")
    assert f"is {name} meant to be apple?" in read_photographs(tmp_path, "test", LABELS).remarks[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_of_any_name_is_told_in_a_line_of_utf8(tmp_path: Path) -> None:
    touched(tmp_path, "test/two\nlines/a.jpg", os.fsdecode(b"test/caf\xe9/b.jpg"))
    (remark,) = read_photographs(tmp_path, "test", LABELS).remarks
    assert remark.isprintable()
    refused = refusal_of(DataError, partial(read_split, tmp_path, "test", LABELS), "2 classes")
    assert refused.isprintable()


def test_a_split_of_the_networks_classes_alone_is_read_as_for_training(tmp_path: Path) -> None:
    data = touched(tmp_path, "valid/pear/b.JPG", "valid/apple/x/z.png", "valid/apple/a.png")
    data = touched(data, "valid/pear/list.csv", "validation/pear/y.png")
    strict = read_split(data, "val", LABELS)
    assert len(strict.remarks) == 2
    assert vars(read_photographs(data, "val", LABELS)) == vars(strict)


def test_without_splits_the_whole_folder_is_taken_and_with_them_one(tmp_path: Path) -> None:
    flat = touched(tmp_path / "flat", "apple/a.jpg", "b.jpg")
    split = touched(tmp_path / "split", "train/a.jpg", "val/b.jpg")
    assert photographs_split(flat, None, verification_split) is None
    assert photographs_split(split, None, verification_split) == "val"
    assert photographs_split(split, None, reporting_split) == "val"
    assert photographs_split(split, "train", reporting_split) == "train"
    assert photographs_split(flat, "val", verification_split) == "val"
    assert read_photographs(flat, None, LABELS).targets == (0, None)
    assert len(read_photographs(split, "val", LABELS).paths) == 1


def test_a_folder_that_cannot_be_used_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    empty = touched(tmp_path / "empty", "notes.txt")
    refusal_of(DataError, partial(read_photographs, empty, None, LABELS), str(empty), "1 .txt")
    refusal_of(DataError, partial(read_photographs, empty, "val", LABELS), "val/")
    refusal_of(DataError, partial(read_photographs, empty / "no", None, LABELS), str(empty / "no"))
    dangling = touched(tmp_path / "dangling", "a.jpg")
    (dangling / "b.jpg").symlink_to(tmp_path / "nowhere")
    refusal_of(DataError, partial(read_photographs, dangling, None, LABELS), "b.jpg", "nowhere")
    # A data set that says which images are to be left out is not taken for a heap of them.
    coco = make_coco(tmp_path)
    refusal_of(DataError, partial(read_photographs, coco, None, LABELS), "--dataset coco")


def test_a_folder_that_is_linked_to_counts_once_but_not_for_two_classes(tmp_path: Path) -> None:
    data = touched(tmp_path, "a/2024/b.jpg", "a/c.jpg")
    (data / "a" / "latest").symlink_to("2024")
    assert len(read_photographs(data / "a", None, LABELS).paths) == 2
    touched(data, "b/apple/c.jpg")
    (data / "b" / "pear").symlink_to("apple")
    refusal_of(DataError, partial(read_photographs, data / "b", None, LABELS), "apple", "pear")


def test_a_published_data_set_serves_a_network_of_other_classes(tmp_path: Path) -> None:
    food = source(make_food(tmp_path), "food-101")
    found = read_photographs(food, "test", ("ceviche", "kiwi"))
    assert found.targets.count(0) == 4
    assert found.targets.count(None) == 8
    assert "8 of 12" in found.remarks[-1]
    assert vars(read_photographs(food, "test", DISHES)) == vars(read_split(food, "test", DISHES))
    aircraft = DataSource(make_aircraft(tmp_path), "fgvc-aircraft")
    planes = read_photographs(aircraft, "val", ("kiwi", *VARIANTS))
    # Rows that are no part of the picture are left out whatever the classes are.
    assert planes.crop_bottom_px == 20
    assert set(planes.targets) == {1, 2, 3, 4}
