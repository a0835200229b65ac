"""Class folders are listed in order, and a folder that cannot be used says what is wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from gft_edge.datasets import images_per_class, read_split, split_digest, splits_of
from gft_edge.errors import DataError
from tests.support import unprivileged
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


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found"])
def test_a_folder_that_is_a_systems_own_is_no_class_and_gives_none_images(
    name: str, tmp_path: Path
) -> None:
    data = make(tmp_path, "train", apple=["a.png", f"{name}/b.png"], pear=["c.png"])
    make(data, "train", **{name: ["d.png"]})
    split = read_split(data, "train")
    assert split.labels == ("apple", "pear")
    assert names(split.paths) == ["a.png", "c.png"]
    assert not split.remarks


def test_what_is_left_out_is_counted_in_a_remark(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["a.png", "b.heic"], pear=["c.avif", "d.txt", "e.txt"])
    (data / "train" / "stray.jpg").touch()
    (data / "train" / "list.csv").touch()
    split = read_split(data, "train")
    assert names(split.paths) == ["a.png", "c.avif"]
    (remark,) = split.remarks
    for word in (str(data / "train"), "4 left out", "1 .heic", "2 .txt", "1 in no class folder"):
        assert word in remark
    assert "convert" in remark
    make(data, "train", lime=["f.heic"])
    line = refusal_of(DataError, partial(read_split, data, "train"), "lime", "1 .heic")
    assert "convert" in line


def test_classes_and_splits_may_be_links_but_not_to_what_they_lie_in(tmp_path: Path) -> None:
    store = make(tmp_path, "store", apple=["a.png"], pear=["b.png"]) / "store"
    data = tmp_path / "data"
    (data / "real").mkdir(parents=True)
    (data / "train").symlink_to("real")
    for label in ("apple", "pear"):
        (data / "real" / label).symlink_to(store / label)
    (data / "real" / "all").symlink_to("..")
    (store / "apple" / "up").symlink_to(store)
    split = read_split(data, "train")
    assert split.labels == ("apple", "pear")
    assert split.paths == tuple(data / "train" / name for name in ("apple/a.png", "pear/b.png"))
    assert "2 links that lead back" in split.remarks[0]


def test_two_classes_of_one_folder_are_refused(tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["a.png"], fig=["b.png"])
    (data / "train" / "pear").symlink_to("apple")
    refusal_of(DataError, partial(read_split, data, "train"), "train/apple", "train/pear")


@pytest.mark.parametrize("target", ["pear", "pear/deep"])
def test_a_link_in_a_class_that_leads_to_another_is_refused(tmp_path: Path, target: str) -> None:
    data = make(tmp_path, "train", apple=["a.png"], pear=["b.png", "deep/c.png"])
    link = data / "train" / "apple" / "more"
    link.symlink_to(data / "train" / target)
    refusal_of(DataError, lambda: read_split(data, "train"), str(link), "pear")
    link.unlink()
    link.symlink_to(make(tmp_path / "other", "val", apple=["d.png"]) / "val" / "apple")
    assert len(read_split(data, "train").paths) == 4


@pytest.mark.parametrize("place", ["train", "train/pear", "train/apple/x.png"])
def test_a_link_that_leads_nowhere_is_refused(place: str, tmp_path: Path) -> None:
    data = make(tmp_path, "train", apple=["a.png"], fig=["b.png"])
    if place == "train":
        (data / "train").rename(data / "other")
    (data / place).symlink_to(tmp_path / "nowhere")
    refusal_of(DataError, partial(read_split, data, "train"), str(data / place), "nowhere")


@pytest.mark.parametrize("place", ["", "train", "train/apple", "train/apple/x"])
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_folder_that_may_not_be_read_is_refused(place: str, mode: int, tmp_path: Path) -> None:
    data = make(tmp_path / "data", "train", apple=["a.png", "x/b.png"], pear=["c.png"])
    (data / place).chmod(mode)
    code = f"""
from pathlib import Path
from gft_edge.datasets import read_split, splits_of
from gft_edge.errors import DataError
splits_of(Path({str(data)!r}))
try:
    read_split(Path({str(data)!r}), "train")
except DataError as error:
    print(error)
"""
    try:
        done = unprivileged.python("-c", code)
    finally:
        (data / place).chmod(0o700)
    (line,) = done.stdout.splitlines()
    assert str(data / place) in line
    assert "Permission denied" in line


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_what_other_tools_call_val_is_val(name: str, tmp_path: Path) -> None:
    data = make(tmp_path, name, apple=["a.png"], pear=["b.png"])
    assert splits_of(data) == ("val",)
    split = read_split(data, "val")
    assert split.name == "val"
    assert names(split.paths) == ["a.png", "b.png"]
    assert read_split(data, name).name == name
    # A folder of the split's own name comes first.
    make(data, "val", apple=["c.png"], pear=["d.png"])
    split = read_split(data, "val")
    assert names(split.paths) == ["c.png", "d.png"]
    assert str(data / name) in split.remarks[0]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_a_name_in_another_form_of_unicode_is_the_same_class(tmp_path: Path) -> None:
    data = make(tmp_path, "train", **{DECOMPOSED: ["a.png"], "pear": ["b.png"], "cafz": ["c.png"]})
    make(data, "train", **{COMPOSED: ["d.png"]})
    split = read_split(data, "train")
    assert split.labels == (COMPOSED, "cafz", "pear") or split.labels == ("cafz", COMPOSED, "pear")
    cafes = [path.name for path, target in zip(split.paths, split.targets, strict=True)
             if split.labels[target] == COMPOSED]  # fmt: skip
    assert sorted(cafes) == ["a.png", "d.png"]
    for labels in ((COMPOSED, "cafz", "pear"), (DECOMPOSED, "cafz", "pear")):
        assert read_split(data, "train", labels).targets.count(0) == 2


def test_the_images_of_each_class_are_counted_and_classes_without_one_named(tmp_path: Path) -> None:
    make(tmp_path, "train", apple=["a.png", "b.png"], fig=[], pear=["c.png"])
    split = read_split(tmp_path, "train", ("apple", "fig", "pear"))
    first, second = images_per_class(split)
    for words in ("train: 3 images", "2 classes", "apple (2)", "pear (1)"):
        assert words in first
    assert second.endswith("1 of 3 classes: fig")
    make(tmp_path, "many", **{f"c{n:03d}": ["a.png"] for n in range(150)}, d=["a.png", "b.png"])
    (line,) = images_per_class(read_split(tmp_path, "many"))
    assert "152 images of 151 classes, 1 (c000) to 2 (d)" in line
    labels = (*sorted(path.name for path in (tmp_path / "many").iterdir()), "e", "f")
    _, without = images_per_class(read_split(tmp_path, "train", ("apple", "fig", "pear", *labels)))
    assert ": fig, c000, c001," in without
    assert "154 of 156 classes: " in without
    assert without.endswith(", c010 and 142 more")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one encoding of names")
def test_names_are_utf8_in_any_locale(tmp_path: Path) -> None:
    data = make(tmp_path, "train", **{COMPOSED: ["\u00e9.png"], "pear": ["b.png"]})
    code = f"""
import os
from pathlib import Path
from gft_edge.datasets import read_split, split_digest
split = read_split(Path(os.fsdecode({os.fsencode(data)!r})), "train")
print(ascii(split.labels), split_digest(split))
"""
    split = read_split(data, "train")
    expected = f"{split.labels!a} {split_digest(split)}\n"
    for locale in (
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
    ):
        environment = {**os.environ, **locale}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert done.stdout == expected
