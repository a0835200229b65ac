"""Data sets by name are listed as they are downloaded, and their pictures read without the banner."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gft_edge.bundle.specs import Preprocessing
from gft_edge.calibration.image_set import draw_image_set, read_calibration_folder
from gft_edge.datasets import data_sets, read_split, split_digest, splits_of
from gft_edge.errors import ImageError
from gft_edge.model.reference import pixels_of
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.preprocess import open_rgb
from tests.support.data_sets import (
    BANNER_PX,
    DISHES,
    VARIANTS,
    draw,
    listed,
    source,
    write,
)
from tests.support.refusals import refusal_of

SPEC = Preprocessing(32, 1.0, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)


# The official layouts, against torchvision's reading of them.


@pytest.mark.parametrize(
    ("name", "split", "theirs"),
    [
        *(("fgvc-aircraft", split, split) for split in ("train", "val", "test", "trainval")),
        ("food-101", "trainval", "train"),
        ("food-101", "test", "test"),
    ],
)
def test_images_are_listed_as_torchvision_lists_them(
    data_sets_made: Path, name: str, split: str, theirs: str
) -> None:
    from torchvision.datasets import FGVCAircraft, Food101

    aircraft = name == "fgvc-aircraft"
    folder = data_sets_made / ("fgvc" if aircraft else "food")
    expected = (FGVCAircraft if aircraft else Food101)(folder, split=theirs)
    found = read_split(source(folder, name), split)
    assert found.labels == (VARIANTS if aircraft else DISHES) == tuple(expected.classes)
    assert [str(path) for path in found.paths] == [str(path) for path in expected._image_files]
    assert list(found.targets) == expected._labels
    assert found.crop_bottom_px == (BANNER_PX if aircraft else 0)


def test_coco_takes_the_largest_box_or_the_first_annotation(coco: Path) -> None:
    largest = read_split(source(coco, "coco"), "test")
    first = read_split(source(coco, "coco", "first"), "test")
    assert largest.labels == first.labels == ("person", "dog", "bottle")
    names = [f"val2017/{n:012d}.jpg" for n in (9, 11, 40, 52)]
    # A crowd's box counts where there is nothing else; of equal boxes the first.
    assert listed(largest) == list(zip(names, ("bottle", "person", "dog", "dog"), strict=True))
    assert listed(first) == list(zip(names, ("person", "person", "dog", "bottle"), strict=True))
    remark = "instances_val2017.json: 1 of 5 images have no annotation and are left out"
    assert largest.remarks == (remark,)
    assert read_split(source(coco, "coco"), "train").remarks == ()


@pytest.mark.parametrize(("name", "count"), [("food-101", 6), ("coco", 2)])
def test_a_val_split_is_held_out_of_train(request: Any, name: str, count: int) -> None:
    folder: Path = request.getfixturevalue(name.partition("-")[0])
    train, val, both, test = (
        set(listed(read_split(source(folder, name), s)))
        for s in ("train", "val", "trainval", "test")
    )
    assert len(val) == count
    assert train | val == both
    assert not train & val
    assert not both & test
    if name == "food-101":
        assert sorted(label for _, label in val) == sorted(2 * DISHES)
    else:
        held = {path for path, _ in listed(read_split(source(folder, name, "first"), "val"))}
        assert held == {path for path, _ in val}


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("fgvc-aircraft", "fgvc-aircraft-2013b"),
        ("fgvc-aircraft", "fgvc-aircraft-2013b/data"),
        ("food-101", "food-101"),
        ("coco", ".."),
    ],
)
def test_any_folder_of_the_archive_will_do(request: Any, name: str, inner: str) -> None:
    folder: Path = request.getfixturevalue(name.split("-")[1] if "fgvc" in name else name[:4])
    outer, within = (read_split(source(f, name), "test") for f in (folder, folder / inner))
    assert listed(outer) == listed(within)
    assert split_digest(outer) == split_digest(within)


def test_coco_is_read_alike_in_chunks_of_any_size(
    coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = listed(read_split(source(coco, "coco"), "test"))
    file = coco / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["file"] = 'not a key: "segmentation": [1, 2]'
    for size in (1, 7, 64, 1000):
        write(file, json.dumps(content, indent=size % 3 or None))
        monkeypatch.setattr("gft_edge.datasets.coco.CHUNK_BYTES", size)
        assert listed(read_split(source(coco, "coco"), "test")) == expected


def test_coco_images_may_lie_in_a_folder_of_images(coco: Path) -> None:
    before = read_split(source(coco, "coco"), "val")
    (coco / "images").mkdir()
    (coco / "train2017").rename(coco / "images" / "train2017")
    after = read_split(source(coco, "coco"), "val")
    assert [path.name for path in after.paths] == [path.name for path in before.paths]
    assert all(path.is_file() for path in after.paths)


def test_the_splits_that_are_there_are_named(aircraft: Path, food: Path, coco: Path) -> None:
    assert splits_of(source(aircraft, "fgvc-aircraft")) == ("train", "val", "test", "trainval")
    (coco / "annotations" / "instances_train2017.json").unlink()
    assert splits_of(source(coco, "coco")) == ("test",)
    assert splits_of(source(food, "coco")) == ()
    assert set(data_sets()) == {"imagefolder", "coco", "fgvc-aircraft", "food-101"}


def test_listing_opens_no_image_and_takes_the_classes_of_a_run(
    food: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", None)
    given = read_split(source(food, "food-101"), "test")
    turned = read_split(source(food, "food-101"), "test", DISHES[::-1])
    assert turned.labels == DISHES[::-1]
    assert listed(turned) == listed(given)
    assert len(given.paths) == 12


# The banner.


def test_the_banner_is_no_part_of_the_picture(aircraft: Path) -> None:
    split = read_split(source(aircraft, "fgvc-aircraft"), "test")
    whole = open_rgb(split.paths[0])
    assert whole.size == (40, 60)
    np.testing.assert_array_equal(
        open_rgb(split.paths[0], split.crop_bottom_px), np.asarray(whole)[:-BANNER_PX]
    )
    cut = load_pixels(np.asarray(whole)[:-BANNER_PX], SPEC)
    np.testing.assert_array_equal(load_pixels(split.paths[0], SPEC, BANNER_PX), cut)
    np.testing.assert_array_equal(load_pixels(np.asarray(whole), SPEC, BANNER_PX), cut)
    drawn = draw_image_set(split, 100, seed=0)
    place = drawn.paths.index(str(split.paths[0]))
    np.testing.assert_array_equal(pixels_of(drawn, SPEC)[place], cut)


def test_an_image_no_taller_than_the_banner_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (300, 20)).save(tmp_path / "low.png")
    work = partial(open_rgb, tmp_path / "low.png", BANNER_PX)
    refusal_of(ImageError, work, "low.png", "300x20", "20 px")


def test_calibration_reads_the_data_set_that_the_network_was_trained_on(aircraft: Path) -> None:
    found = read_calibration_folder(aircraft, VARIANTS, "fgvc-aircraft")
    split = read_split(source(aircraft, "fgvc-aircraft"), "train")
    assert vars(found) == vars(split)
    folder = aircraft / "mine"
    for label in VARIANTS[:2]:
        draw(folder / "train" / label / "a.png", 0, 0)
    mine = read_calibration_folder(folder, VARIANTS, "fgvc-aircraft")
    assert len(mine.paths) == 2
    assert mine.crop_bottom_px == 0


# Digests.


def test_a_digest_follows_names_labels_sizes_and_order(aircraft: Path, tmp_path: Path) -> None:
    given = source(aircraft, "fgvc-aircraft")
    digest = split_digest(read_split(given, "train"))
    shutil.copytree(aircraft, tmp_path / "copy")
    copy = source(tmp_path / "copy", "fgvc-aircraft")
    assert split_digest(read_split(copy, "train")) == digest
    assert split_digest(read_split(given, "train", VARIANTS[::-1])) == digest
    assert split_digest(read_split(given, "val")) != digest
    changed = read_split(copy, "train").paths[3]
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert split_digest(read_split(copy, "train")) != digest
    file = aircraft / "fgvc-aircraft-2013b" / "data" / "images_variant_train.txt"
    lines = file.read_text().splitlines()
    write(file, "\n".join(lines[::-1]))
    assert split_digest(read_split(given, "train")) != digest
    write(file, "\n".join([lines[0].replace(VARIANTS[0], VARIANTS[1]), *lines[1:]]))
    assert split_digest(read_split(given, "train")) != digest
