"""What is wrong with a copy of a data set is said in one line that names the file and the entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gft_edge.datasets import read_split
from gft_edge.errors import DataError, UsageError
from tests.support.data_sets import DISHES, draw, source, write
from tests.support.refusals import refusal_of

TextChange = Callable[[str], str]


def edit(file: Path, change: TextChange) -> None:
    write(file, change(file.read_text(encoding="utf-8")))


def refused(
    folder: Path, name: str, split: str, *words: str, labels: tuple[str, ...] | None = None
) -> None:
    refusal_of(DataError, partial(read_split, source(folder, name), split, labels), *words)


TRAIN, TEST = "images_variant_train.txt", "images_variant_test.txt"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (TRAIN, lambda t: t.replace(" A300B4", "", 1), (TRAIN, "line 5 ")),
        (TRAIN, lambda t: t.replace("A300B4", "A300B9", 1), ("line 5", "'A300B9'", "variants.txt")),
        (TRAIN, lambda t: f"{t}{t.splitlines()[0]}", (TRAIN, "twice")),
        (TRAIN, lambda t: f"{t}7777777 F/A-18\n", ("7777777.jpg", TRAIN, TEST)),
        (TRAIN, lambda t: t + "9999999 F/A-18\n9999998 F/A-18\n",
         ("2 of 18", "images/9999999.jpg", "fgvc-aircraft-2013b.tar.gz", "https://www.robots")),
        (TRAIN, lambda t: "../../etc/passwd A300B4\n", ("../../etc/passwd",)),
        (TRAIN, lambda t: "", ("train",)),
        ("variants.txt", lambda t: t + "A300B4\n", ("variants.txt", "'A300B4'")),
    ],
)  # fmt: skip
def test_a_damaged_list_of_aircraft_is_refused(
    aircraft: Path, file: str, change: TextChange, words: tuple[str, ...]
) -> None:
    data = aircraft / "fgvc-aircraft-2013b" / "data"
    draw(data / "images" / "7777777.jpg", 0, 0)
    edit(data / TEST, lambda text: text.replace(text.split()[0], "7777777", 1))
    edit(data / file, change)
    refused(aircraft, "fgvc-aircraft", "train", *words)


def test_trainval_may_share_no_image_with_test(aircraft: Path) -> None:
    data = aircraft / "fgvc-aircraft-2013b" / "data"
    image = (data / "images_variant_val.txt").read_text().splitlines()[0]
    edit(data / TEST, lambda text: f"{text}{image}\n")
    refused(aircraft, "fgvc-aircraft", "trainval", "images_variant_trainval.txt", TEST)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train.json", lambda t: t[:-5], ("train.json",)),
        ("train.json", lambda t: "[]", ("train.json", "list")),
        ("train.json", lambda t: '{"apple_pie": 5}', ("'apple_pie'",)),
        ("train.json", lambda t: t.replace('"ceviche/c100"', '"c100"'), ("'c100'", "'ceviche'")),
        ("train.json", lambda t: t.replace("ceviche", "chips"),
         ("classes.txt", "train.json", "'ceviche' (class 3)", "'chips'")),
        ("train.json", lambda t: t.replace("a100", "a300"), ("a300.jpg", "train.json", "test.json")),
        ("test.json", lambda t: t.replace("a300", "a100"), ("a100.jpg", "train.json", "test.json")),
        ("train.json", lambda t: t.replace("a100", "a999"),
         ("train split", "images/apple_pie/a999.jpg", "food-101.tar")),
        ("classes.txt", lambda t: t + "dumplings\n", ("classes.txt", "train.json")),
    ],
)  # fmt: skip
def test_a_damaged_list_of_food_is_refused(
    food: Path, file: str, change: TextChange, words: tuple[str, ...]
) -> None:
    edit(food / "food-101" / "meta" / file, change)
    # Whichever of the two the missing image falls in.
    refusal_of(
        DataError,
        lambda: [read_split(source(food, "food-101"), split) for split in ("train", "val")],
        *words,
    )


@pytest.mark.parametrize("name", ["train.json", "classes.txt"])
def test_a_list_of_food_that_is_missing_is_refused(food: Path, name: str) -> None:
    (food / "food-101" / "meta" / name).unlink()
    refused(food, "food-101", "train", name, "food-101.tar.gz")


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, **values}


def first_annotation(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        first, *others = content["annotations"]
        kept = {key: value for key, value in {**first, **values}.items() if value is not None}
        return {**content, "annotations": [kept, *others]}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: [c], ("instances_val2017.json", "'images'")),
        (lambda c: {"images": c["images"]}, ("'annotations'",)),
        (changed(annotations=[{"a": 1}]), ("'annotations'", "image_id")),
        (changed(images=[5]), ("'images'", "file_name")),
        (changed(images=[{"file_name": "a.jpg"}]), ("'a.jpg'", "id")),
        (changed(images=[{"file_name": "/a.jpg", "id": 9}]), ("'/a.jpg'",)),
        (first_annotation(category_id=None), ("annotation 900", "category_id")),
        (first_annotation(bbox=[1, 2, 3]), ("annotation 900", "bbox")),
        (first_annotation(bbox=["a"] * 4), ("annotation 900", "bbox")),
        (first_annotation(category_id=7), ("category 7",)),
        (first_annotation(image_id=7), ("image 7",)),
        (first_annotation(image_id=[7]), ("annotation 900", "image_id")),
        (changed(annotations=[]), ("none of its 5 images",)),
        (changed(categories=[{"id": 1}]), ("category", "name")),
        (changed(categories=[{"id": 1, "name": "a"}] * 2), ("two categories",)),
        (lambda c: {**c, "images": c["images"] * 2}, ("id 52",)),
    ],
)
def test_a_file_that_holds_no_coco_instances_is_refused(
    coco: Path, change: Callable[[Any], Any], words: tuple[str, ...]
) -> None:
    file = coco / "annotations" / "instances_val2017.json"
    write(file, json.dumps(change(json.loads(file.read_text()))))
    refused(coco, "coco", "test", *words)


def test_the_files_of_coco_have_to_agree(coco: Path) -> None:
    train, test = "instances_train2017.json", "instances_val2017.json"
    file = coco / "annotations" / test
    whole = file.read_text()
    write(file, whole.replace('"dog"', '"cat"'))
    refused(coco, "coco", "train", train, test, "'dog' (class 2)", "'cat'")
    write(file, whole.replace("000000000052", "000000001007"))
    refused(coco, "coco", "train", "1007.jpg", train, test)
    write(file, whole[:400])
    refused(coco, "coco", "test", test, "JSON")
    write(file, whole)
    shutil.rmtree(coco / "val2017")
    words = ("4 of 4", "val2017/000000000009.jpg", "cocodataset.org")
    refused(coco, "coco", "test", *words)


def test_the_classes_of_another_run_are_refused(food: Path) -> None:
    for labels in (("apple_pie", "ceviche"), DISHES[:2]):
        refused(food, "food-101", "test", "3 classes", "model 2", "'ceviche'", labels=labels)


def test_what_cannot_be_read_at_all_says_what_was_looked_for(
    aircraft: Path, food: Path, coco: Path, tmp_path: Path
) -> None:
    refusal_of(
        UsageError, partial(read_split, source(food, "cifar"), "train"), "'cifar'", "imagefolder"
    )
    refused(tmp_path / "nowhere", "coco", "train", "nowhere")
    looked = (f"data/{TRAIN}", f"fgvc-aircraft-2013b/data/{TRAIN}", "/images")
    refused(food, "fgvc-aircraft", "train", *looked, "--dataset food-101")
    refused(coco, "food-101", "train", "meta/train.json", "--dataset coco")
    refused(aircraft, "coco", "train", "annotations/inst", "--dataset fgvc-aircraft")
    refused(aircraft, "imagefolder", "train", "train/", "--dataset fgvc-aircraft")
    refused(food, "food-101", "dev", "dev", "train, val, test")
