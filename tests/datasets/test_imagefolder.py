"""Class folders are listed in order, and a folder that cannot be used says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gft_edge.datasets import read_split
from gft_edge.errors import DataError


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


def test_given_labels_set_the_indices_and_may_lack_images(tmp_path: Path) -> None:
    data = make(tmp_path, "test", apple=["a.png"], pear=["b.png"])
    split = read_split(data, "test", ("pear", "fig", "apple"))
    assert split.labels == ("pear", "fig", "apple")
    assert split.targets == (2, 0)


def test_given_labels_may_have_an_empty_folder(tmp_path: Path) -> None:
    data = make(tmp_path, "test", apple=["a.png"], pear=[])
    assert read_split(data, "test", ("apple", "pear")).targets == (0,)


def test_one_class_is_enough_when_the_labels_are_given(tmp_path: Path) -> None:
    data = make(tmp_path, "test", pear=["b.png"])
    assert read_split(data, "test", ("apple", "pear")).targets == (1,)


def test_images_lie_at_any_depth_and_other_files_are_left_alone(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["x/y/a.png", "notes.txt"], pear=["b.gif", "Thumbs.db"])
    (data / "train" / "list.csv").touch()
    assert names(read_split(data, "train").paths) == ["a.png", "b.gif"]


def test_hidden_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    # macOS writes ._a.png beside a.png on foreign disks; it is no image.
    data = make(tmp_path, "train", apple=["a.png", "._a.png"], pear=["b.png"])
    make(data, "train", **{".cache": ["c.png"]})
    assert names(read_split(data, "train").paths) == ["a.png", "b.png"]


def test_a_folder_named_like_an_image_is_none(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["a.png"], pear=["b.png"])
    (data / "train" / "apple" / "old.jpg").mkdir()
    assert names(read_split(data, "train").paths) == ["a.png", "b.png"]


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such data folder"):
        read_split(tmp_path / "nowhere", "test")


def test_a_missing_split_says_which_there_are(tmp_path: Path) -> None:
    make(tmp_path, "train", apple=["a.png"])
    make(tmp_path, "val", apple=["a.png"])
    with pytest.raises(DataError, match=r"has no test/ folder \(found: train, val\): expected"):
        read_split(tmp_path, "test")


def test_an_empty_data_folder_is_said_to_have_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train/ folder \(found: no folder\)"):
        read_split(tmp_path, "train")


def test_an_empty_split_holds_no_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has 0 class folders: classification needs at least two"):
        read_split(tmp_path, "train")


def test_one_class_is_too_few_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 1 class folders: classification needs at least two"):
        read_split(make(tmp_path, "train", apple=["a.png"]), "train")


def test_a_class_without_an_image_cannot_be_learnt(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["a.png"], pear=["notes.txt"])
    with pytest.raises(DataError, match="pear holds no image: add some or remove the folder"):
        read_split(data, "train")


def test_classes_the_model_does_not_know_are_counted(tmp_path: Path) -> None:
    data = make(tmp_path, "test", apple=["a.png"], pear=["b.png"], zebra=["c.png"])
    message = r"has 2 classes the model does not know \(pear, \.\.\.\): the model has 1 classes"
    with pytest.raises(DataError, match=message):
        read_split(data, "test", ("apple",))


def test_a_split_without_any_image_is_refused(tmp_path: Path) -> None:
    data = make(tmp_path, "test", apple=["notes.txt"])
    with pytest.raises(DataError, match="holds no image: expected test/CLASS/image files"):
        read_split(data, "test", ("apple", "pear"))


def test_real_photographs_are_all_found(grocery: Path) -> None:
    split = read_split(grocery, "test")
    assert len(split.paths) == len(list((grocery / "test").glob("*/*.jpg")))
    assert {path.parent.name for path in split.paths} == set(split.labels)
    assert [split.labels[target] for target in split.targets] == [
        path.parent.name for path in split.paths
    ]
