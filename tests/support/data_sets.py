"""The paper's data sets in small, in the folders that their archives are unpacked to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.datasets import Split

VARIANTS = ("707-320", "A300B4", "Boeing 717", "F/A-18")
DISHES = ("apple_pie", "beef_carpaccio", "ceviche")
BANNER_PX = 20


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def draw(path: Path, number: int, hue: int) -> None:
    """A picture of 40x60 px whose lowest 20 rows are noise. PNG inside, so that no row blurs another."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 130, (60, 40, 3), dtype=np.uint8)
    pixels[:-BANNER_PX, :, hue % 3] += 40 + 20 * hue
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def make_aircraft(folder: Path) -> Path:
    """The folder that fgvc-aircraft-2013b.tar.gz was unpacked in, with twelve images a variant."""
    data = folder / "fgvc" / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "".join(f"{variant}\n" for variant in VARIANTS))
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for hue, variant in enumerate(VARIANTS):
        for n in range(12):
            image = f"{(hue * 12 + n) * 7919 % 10_000:07d}"
            draw(data / "images" / f"{image}.jpg", hue * 12 + n, hue)
            lines[("train", "val", "test")[n % 3]].append(f"{image} {variant}")
    for split, chosen in {**lines, "trainval": sorted(lines["train"] + lines["val"])}.items():
        write(data / f"images_variant_{split}.txt", "".join(f"{line}\n" for line in chosen))
    return folder / "fgvc"


def make_food(folder: Path) -> Path:
    """The folder that food-101.tar.gz was unpacked in, with twenty images to train on a dish."""
    root = folder / "food" / "food-101"
    for split, numbers in {"train": range(100, 120), "test": range(300, 304)}.items():
        images = {dish: [f"{dish}/{dish[0]}{n}" for n in numbers] for dish in DISHES}
        write(root / "meta" / f"{split}.json", json.dumps(images))
        for image in (each for listed in images.values() for each in listed):
            write(root / "images" / f"{image}.jpg")
    write(root / "meta" / "classes.txt", "".join(f"{dish}\n" for dish in DISHES))
    write(root / "meta" / "labels.txt", "Apple pie\nBeef carpaccio\nCeviche\n")
    return folder / "food"


# Ids have gaps, as COCO's 80 of 90 have; the file's order is another.
CATEGORIES = {18: "dog", 1: "person", 44: "bottle"}


def box(category: int, width: float, height: float, crowd: bool = False) -> dict[str, Any]:
    outline = {"counts": [3, 4], "size": [48, 64]} if crowd else [[1.5, 2.5, 9.0, 8.25, 3.0, 3.0]]
    return {
        "segmentation": outline,
        "area": width * height / 2,
        "iscrowd": int(crowd),
        "bbox": [1.0, 2.0, width, height],
        "category_id": category,
    }


def instances(root: Path, year: str, boxes: Mapping[int, Sequence[dict[str, Any]]]) -> Path:
    """annotations/instances_YEAR.json with an image for each id, and the (empty) images."""
    images, annotations = [], []
    for image in boxes:
        name = f"{image:012d}.jpg"
        write(root / year / name)
        images.append({"license": 1, "file_name": name, "height": 48, "width": 64, "id": image})
        annotations += [{**given, "image_id": image} for given in boxes[image]]
    for number, annotation in enumerate(annotations):
        annotation["id"] = 900 - number
    content = {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "none"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"supercategory": "x", "id": n, "name": c} for n, c in CATEGORIES.items()],
    }
    return write(root / "annotations" / f"instances_{year}.json", json.dumps(content))


def make_coco(folder: Path) -> Path:
    """COCO 2017 unpacked: 40 images to train on, and a val2017 whose boxes try every rule."""
    root = folder / "coco"
    order = [(7 * n) % 40 + 1000 for n in range(40)]
    instances(root, "train2017", {n: [box([1, 18, 44][n % 3], 9, 9)] for n in order})
    instances(
        root,
        "val2017",
        {
            52: [box(44, 5, 5), box(18, 30, 20), box(1, 10, 10)],
            9: [box(1, 60, 40, crowd=True), box(44, 2, 2)],
            30: [],
            11: [box(1, 50, 40, crowd=True)],
            40: [box(18, 6, 6), box(1, 9, 4)],
        },
    )
    return root


def listed(split: Split) -> list[tuple[str, str]]:
    return [
        (path.relative_to(split.root).as_posix(), split.labels[target])
        for path, target in zip(split.paths, split.targets, strict=True)
    ]


def source(folder: Path, name: str, category: CocoCategory | None = None) -> DataSource:
    return DataSource(folder, name, category)
