"""Data sets by name are read as they are downloaded, and what is wrong with a copy is said in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.bundle.specs import Preprocessing
from gft_edge.calibration.image_set import draw_image_set, read_calibration_folder
from gft_edge.cli import main
from gft_edge.datasets import Split, data_sets, read_split, split_digest, splits_of
from gft_edge.errors import DataError, ImageError, UsageError
from gft_edge.export.verify import pixels_of
from gft_edge.model.checkpoint import load_run
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.preprocess import open_rgb
from gft_edge.training.loop import read_run_config

VARIANTS = ("707-320", "A300B4", "Boeing 717", "F/A-18")
DISHES = ("apple_pie", "beef_carpaccio", "ceviche")
BANNER_PX = 20
SPEC = Preprocessing(32, 1.0, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)


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


@pytest.fixture
def aircraft(tmp_path: Path) -> Path:
    """The folder that fgvc-aircraft-2013b.tar.gz was unpacked in, with twelve images a variant."""
    data = tmp_path / "fgvc" / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "".join(f"{variant}\n" for variant in VARIANTS))
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for hue, variant in enumerate(VARIANTS):
        for n in range(12):
            image = f"{(hue * 12 + n) * 7919 % 10_000:07d}"
            draw(data / "images" / f"{image}.jpg", hue * 12 + n, hue)
            lines[("train", "val", "test")[n % 3]].append(f"{image} {variant}")
    for split, chosen in {**lines, "trainval": sorted(lines["train"] + lines["val"])}.items():
        write(data / f"images_variant_{split}.txt", "".join(f"{line}\n" for line in chosen))
    return tmp_path / "fgvc"


@pytest.fixture
def food(tmp_path: Path) -> Path:
    """The folder that food-101.tar.gz was unpacked in, with twenty images to train on a dish."""
    root = tmp_path / "food" / "food-101"
    listed = {"train": range(100, 120), "test": range(300, 304)}
    for split, numbers in listed.items():
        images = {dish: [f"{dish}/{dish[0]}{n}" for n in numbers] for dish in DISHES}
        write(root / "meta" / f"{split}.json", json.dumps(images))
        lines = [f"{image}\n" for dish in DISHES for image in images[dish]]
        write(root / "meta" / f"{split}.txt", "".join(lines))
        for line in lines:
            write(root / "images" / f"{line.strip()}.jpg")
    write(root / "meta" / "classes.txt", "".join(f"{dish}\n" for dish in DISHES))
    write(root / "meta" / "labels.txt", "Apple pie\nBeef carpaccio\nCeviche\n")
    return tmp_path / "food"


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


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO 2017 unpacked: 40 images to train on, and a val2017 whose boxes try every rule."""
    root = tmp_path / "coco"
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


# The official layouts, against torchvision's reading of them.


@pytest.mark.parametrize("split", ["train", "val", "test", "trainval"])
def test_aircraft_are_listed_as_torchvision_lists_them(aircraft: Path, split: str) -> None:
    from torchvision.datasets import FGVCAircraft

    expected = FGVCAircraft(aircraft, split=split)
    found = read_split(source(aircraft, "fgvc-aircraft"), split)
    assert found.labels == VARIANTS == tuple(expected.classes)
    assert [str(path) for path in found.paths] == expected._image_files
    assert list(found.targets) == expected._labels
    assert found.crop_bottom_px == BANNER_PX


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_food_is_listed_as_torchvision_lists_it(food: Path, split: str) -> None:
    from torchvision.datasets import Food101

    expected = Food101(food, split="test" if split == "test" else "train")
    found = read_split(source(food, "food-101"), split)
    assert found.labels == DISHES == tuple(expected.classes)
    assert list(found.paths) == expected._image_files
    assert list(found.targets) == expected._labels
    assert found.crop_bottom_px == 0


def test_coco_has_the_first_category_that_torchvision_meets(coco: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools reads COCO for torchvision")
    from torchvision.datasets import CocoDetection

    data = CocoDetection(coco / "val2017", str(coco / "annotations" / "instances_val2017.json"))
    expected = [
        (data.coco.loadImgs(image)[0]["file_name"], CATEGORIES[found[0]["category_id"]])
        for image in data.ids
        if (found := data._load_target(image))
    ]
    split = read_split(source(coco, "coco", "first"), "test")
    assert [(Path(path).name, label) for path, label in listed(split)] == expected


def test_coco_takes_the_largest_box_or_the_first_annotation(coco: Path) -> None:
    largest = read_split(source(coco, "coco"), "test")
    first = read_split(source(coco, "coco", "first"), "test")
    assert largest.labels == first.labels == ("person", "dog", "bottle")
    names = [f"val2017/{n:012d}.jpg" for n in (9, 11, 40, 52)]
    # A crowd's box counts where there is nothing else; of equal boxes the first.
    assert listed(largest) == list(zip(names, ("bottle", "person", "dog", "dog"), strict=True))
    assert listed(first) == list(zip(names, ("person", "person", "dog", "bottle"), strict=True))


def test_coco_images_without_annotation_are_counted(coco: Path) -> None:
    found = read_split(source(coco, "coco"), "test")
    remark = "instances_val2017.json: 1 of 5 images have no annotation and are left out"
    assert found.remarks == (remark,)
    assert read_split(source(coco, "coco"), "train").remarks == ()


def test_text_lists_of_food_say_what_json_says(food: Path) -> None:
    of_json = [listed(read_split(source(food, "food-101"), s)) for s in ("train", "val", "test")]
    for split in ("train", "test"):
        (food / "food-101" / "meta" / f"{split}.json").unlink()
    (food / "food-101" / "meta" / "classes.txt").unlink()
    assert of_json == [
        listed(read_split(source(food, "food-101"), s)) for s in ("train", "val", "test")
    ]


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


def test_the_classes_of_a_run_set_the_indices(food: Path) -> None:
    turned = DISHES[::-1]
    found = read_split(source(food, "food-101"), "test", turned)
    assert found.labels == turned
    assert listed(found) == listed(read_split(source(food, "food-101"), "test"))


def test_the_splits_that_are_there_are_named(aircraft: Path, food: Path, coco: Path) -> None:
    assert splits_of(source(aircraft, "fgvc-aircraft")) == ("train", "val", "test", "trainval")
    (coco / "annotations" / "instances_train2017.json").unlink()
    assert splits_of(source(coco, "coco")) == ("test",)
    assert splits_of(source(food, "coco")) == ()
    assert set(data_sets()) == {"imagefolder", "coco", "fgvc-aircraft", "food-101"}


def test_listing_opens_no_image(food: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    assert len(read_split(source(food, "food-101"), "test").paths) == 12


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
    with pytest.raises(ImageError, match=r"low\.png: 300x20 is no taller than the banner of 20 px"):
        open_rgb(tmp_path / "low.png", BANNER_PX)


def test_calibration_reads_the_data_set_that_the_network_was_trained_on(aircraft: Path) -> None:
    found = read_calibration_folder(aircraft, VARIANTS, "fgvc-aircraft")
    assert found == read_split(source(aircraft, "fgvc-aircraft"), "train")
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


def test_an_image_that_goes_away_meanwhile_is_named(aircraft: Path) -> None:
    split = read_split(source(aircraft, "fgvc-aircraft"), "train")
    split.paths[2].unlink()
    with pytest.raises(DataError, match=f"{split.paths[2].name}: No such file.*data changed"):
        split_digest(split)


# What is wrong with a copy.


def edit(file: Path, change: Callable[[str], str]) -> None:
    write(file, change(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("images_variant_train.txt", lambda t: t.replace(" A300B4", "", 1),
         r"images_variant_train\.txt line \d+ is '\d{7}': expected an image and its variant"),
        ("images_variant_train.txt", lambda t: t.replace("A300B4", "A300B9", 1),
         r"line \d+: 'A300B9' is not one of the 4 variants in variants\.txt"),
        ("images_variant_train.txt", lambda t: f"{t}{t.splitlines()[0]}",
         r"images/\d{7}\.jpg is in images_variant_train\.txt twice: an image belongs to one split"),
        ("images_variant_train.txt", lambda t: f"{t}7777777 F/A-18\n",
         r"is in both images_variant_train\.txt and images_variant_test\.txt"),
        ("images_variant_train.txt", lambda t: t + "9999999 F/A-18\n9999998 F/A-18\n",
         r"2 of 18 images of .*'s train split are missing, first images/9999999\.jpg: fetch "
         r"fgvc-aircraft-2013b\.tar\.gz from https://www\.robots.*unpack it so that \S+/images and"),
        ("images_variant_train.txt", lambda t: "../../etc/passwd A300B4\n",
         "which is not below the data set's folder"),
        ("images_variant_train.txt", lambda t: "", "its train split lists no image: fetch"),
        ("variants.txt", lambda t: t + "A300B4\n", "names 'A300B4' twice"),
    ],
)  # fmt: skip
def test_a_damaged_list_of_aircraft_is_refused(
    aircraft: Path, file: str, change: Callable[[str], str], words: str
) -> None:
    data = aircraft / "fgvc-aircraft-2013b" / "data"
    test = data / "images_variant_test.txt"
    draw(data / "images" / "7777777.jpg", 0, 0)
    edit(test, lambda text: text.replace(text.split()[0], "7777777", 1))
    edit(data / file, change)
    with pytest.raises(DataError, match=words):
        read_split(source(aircraft, "fgvc-aircraft"), "train")


def test_trainval_may_share_no_image_with_test(aircraft: Path) -> None:
    data = aircraft / "fgvc-aircraft-2013b" / "data"
    image = (data / "images_variant_val.txt").read_text().splitlines()[0]
    edit(data / "images_variant_test.txt", lambda text: f"{text}{image}\n")
    with pytest.raises(DataError, match=r"images_variant_trainval\.txt and images_variant_test"):
        read_split(source(aircraft, "fgvc-aircraft"), "trainval")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train.json", lambda t: t[:-5], r"train\.json is no JSON \(.*\): unpack"),
        ("train.json", lambda t: "[]", r"train\.json holds a list: expected an object of CLASS"),
        ("train.json", lambda t: '{"apple_pie": 5}', "'apple_pie' has no list of images: expected"),
        ("train.json", lambda t: t.replace('"ceviche/c100"', '"c100"'),
         "lists 'c100' under 'ceviche': expected an object"),
        ("train.json", lambda t: t.replace("ceviche", "chips"),
         r"classes\.txt and train\.json name other classes, first 'ceviche' \(class 3\) and 'chips'"),
        ("train.json", lambda t: t.replace("a100", "a300"),
         r"images/apple_pie/a300\.jpg is in both train\.json and test\.json"),
        ("test.json", lambda t: t.replace("a300", "a100"), r"a100\.jpg is in both train\.json and"),
        ("train.json", lambda t: t.replace("a100", "a999"),
         r"of .*'s train split are missing, first images/apple_pie/a999\.jpg: fetch food-101\.tar"),
        ("classes.txt", lambda t: t + "dumplings\n", r"classes\.txt and train\.json name other"),
    ],
)  # fmt: skip
def test_a_damaged_list_of_food_is_refused(
    food: Path, file: str, change: Callable[[str], str], words: str
) -> None:
    edit(food / "food-101" / "meta" / file, change)
    with pytest.raises(DataError, match=words):
        # Whichever of the two the missing image falls in.
        [read_split(source(food, "food-101"), split) for split in ("train", "val")]


def test_a_line_of_food_without_its_class_is_refused(food: Path) -> None:
    meta = food / "food-101" / "meta"
    (meta / "train.json").unlink()
    edit(meta / "train.txt", lambda text: text.replace("ceviche/", "", 1))
    with pytest.raises(DataError, match=r"train\.txt line 41 is 'c100': expected CLASS/IMAGE"):
        read_split(source(food, "food-101"), "train")


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
        (
            lambda c: [c],
            "is no file of COCO instances: it has no list 'images'; take the instances",
        ),
        (lambda c: {"images": c["images"]}, "it has no list 'annotations'"),
        (changed(annotations=[{"a": 1}]), "an entry of 'annotations' has no image_id"),
        (changed(images=[5]), "an entry of 'images' has no file_name"),
        (changed(images=[{"file_name": "a.jpg"}]), "image 'a.jpg' has no number as its id"),
        (changed(images=[{"file_name": "/a.jpg", "id": 9}]), "lists '/a.jpg', which is not below"),
        (first_annotation(category_id=None), "annotation 900 lacks one of image_id, category_id"),
        (first_annotation(bbox=[1, 2, 3]), "annotation 900 lacks one of image_id, category_id and"),
        (first_annotation(bbox=["a"] * 4), "annotation 900 lacks one of image_id, category_id and"),
        (first_annotation(category_id=7), "has the category 7, which is not listed"),
        (first_annotation(image_id=7), "an annotation is of image 7, which is not listed"),
        (first_annotation(image_id=[7]), "annotation 900 lacks one of image_id"),
        (changed(annotations=[]), "none of its 5 images has an annotation, so none has a category"),
        (changed(categories=[{"id": 1}]), "a category lacks its id or its name"),
        (changed(categories=[{"id": 1, "name": "a"}] * 2), "two categories have the same id or"),
        (lambda c: {**c, "images": c["images"] * 2}, "two images have the id 52"),
    ],
)
def test_a_file_that_holds_no_coco_instances_is_refused(
    coco: Path, change: Callable[[Any], Any], words: str
) -> None:
    file = coco / "annotations" / "instances_val2017.json"
    write(file, json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(DataError, match=words):
        read_split(source(coco, "coco"), "test")


def test_a_truncated_download_is_no_json(coco: Path) -> None:
    edit(coco / "annotations" / "instances_val2017.json", lambda text: text[:400])
    with pytest.raises(DataError, match=r"instances_val2017\.json is no JSON \(.*\): unpack it"):
        read_split(source(coco, "coco"), "test")


def test_the_years_of_coco_have_to_agree(coco: Path) -> None:
    file = coco / "annotations" / "instances_val2017.json"
    whole = file.read_text()
    write(file, whole.replace('"dog"', '"cat"'))
    words = r"train2017\.json and instances_val2017\.json have other categories, first 'dog' "
    with pytest.raises(DataError, match=words + r"\(class 2\) and 'cat'"):
        read_split(source(coco, "coco"), "train")
    write(file, whole.replace("000000000052", "000000001007"))
    with pytest.raises(DataError, match=r"1007\.jpg is in both instances_train2017\.json and inst"):
        read_split(source(coco, "coco"), "train")


def test_missing_images_of_coco_are_counted(coco: Path) -> None:
    shutil.rmtree(coco / "val2017")
    words = r"4 of 4 images of .*'s test split are missing, first val2017/000000000009\.jpg: fetch "
    with pytest.raises(DataError, match=words + ".*cocodataset.org.*/val2017 exist"):
        read_split(source(coco, "coco"), "test")


def test_the_classes_of_another_run_are_refused(food: Path) -> None:
    words = (
        r"has 3 classes and the model 2, first difference 'beef_carpaccio' \(class 2\) and "
        r"'ceviche': use the data it was trained for"
    )
    with pytest.raises(DataError, match=words):
        read_split(source(food, "food-101"), "test", ("apple_pie", "ceviche"))
    with pytest.raises(DataError, match=r"'ceviche' \(class 3\) and nothing"):
        read_split(source(food, "food-101"), "test", DISHES[:2])


def test_what_cannot_be_read_at_all_says_what_was_looked_for(
    aircraft: Path, food: Path, coco: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="there is no data set 'cifar': choose from imagefolder, "):
        read_split(source(food, "cifar"), "train")
    with pytest.raises(DataError, match="nowhere: no such data folder"):
        read_split(source(tmp_path / "nowhere", "coco"), "train")
    words = (
        r"holds no fgvc-aircraft \(looked for variants\.txt, data/variants\.txt, fgvc-aircraft-2013b/"
        r"data/variants\.txt\): fetch .*/data/images and .* exist; it looks like --dataset food-101"
    )
    with pytest.raises(DataError, match=words):
        read_split(source(food, "fgvc-aircraft"), "train")
    with pytest.raises(DataError, match=r"holds no food-101 \(looked for meta/train\.json.*coco$"):
        read_split(source(coco, "food-101"), "train")
    with pytest.raises(DataError, match=r"holds no coco \(looked for annotations/inst.*aircraft$"):
        read_split(source(aircraft, "coco"), "train")
    with pytest.raises(DataError, match=r"no train/ folder .*like --dataset fgvc-aircraft$"):
        read_split(aircraft, "train")
    with pytest.raises(DataError, match="food-101 has no dev split: choose from train, val, test"):
        read_split(source(food, "food-101"), "dev")
    (food / "food-101" / "meta" / "train.json").unlink()
    (food / "food-101" / "meta" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.json is missing: fetch food-101\.tar\.gz"):
        read_split(source(food, "food-101"), "train")


# Through the command line.


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refusal(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


MICRO = ("--model", "vit_tiny_patch16_224", "--image-size", 32, "--stages", "none", "--epochs", 1,
         "--batch-size", 8, "--workers", 0, "--device", "cpu", "--no-amp", "--lr", 1e-3)  # fmt: skip


def scribble(aircraft: Path) -> None:
    """Draw other banners; every file keeps its size."""
    for path in sorted(aircraft.rglob("*.jpg")):
        pixels = np.array(open_rgb(path))
        pixels[-BANNER_PX:] = 255 - pixels[-BANNER_PX:]
        Image.fromarray(pixels).save(path, format="PNG")


def test_a_network_of_aircraft_never_sees_the_banner(aircraft: Path, tmp_path: Path) -> None:
    given = ("--dataset", "fgvc-aircraft", "--data", aircraft)
    first, second, bundle = tmp_path / "first", tmp_path / "second", tmp_path / "bundle"
    run_json("train", *given, *MICRO, "--out", first)
    config = read_run_config(first)[1]
    assert config.source == DataSource(aircraft, "fgvc-aircraft")
    assert config.splits is not None
    assert {name: (s.images, s.classes) for name, s in config.splits.items()} == {
        "train": (16, 4),
        "val": (16, 4),
    }
    exported = run("export", first, "--target", "onnx", "--out", bundle)
    assert exported.exit_code == 0, exported.output
    assert "the val split of" in exported.stderr
    before = run_json("evaluate", first)
    assert before["images"] == 16
    assert run_json("evaluate", bundle, *given) == before
    differing = run_json("compare", first, bundle, *given)
    assert differing["max_abs"] < 1e-3
    assert run_json("verify", bundle, *given, "--reference", first)["top1"] == before["top1"]

    logits = run_logits(bundle, aircraft)
    scribble(aircraft)
    assert run_json("evaluate", first) == before
    np.testing.assert_array_equal(run_logits(bundle, aircraft), logits)
    run_json("train", *given, *MICRO, "--out", second)
    names = "model.safetensors"
    assert (second / names).read_bytes() == (first / names).read_bytes()


def run_logits(bundle: Path, aircraft: Path) -> Any:
    from gft_edge.fidelity.verify import split_outputs
    from gft_edge.runtime.classifier import Classifier

    with Classifier.load(bundle) as classifier:
        split = read_split(source(aircraft, "fgvc-aircraft"), "test", classifier.labels)
        return split_outputs(classifier, split)[0].logits


def test_a_run_is_resumed_on_the_images_it_began_with(aircraft: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_json("train", "--dataset", "fgvc-aircraft", "--data", aircraft, *MICRO, "--out", out)
    assert "there is nothing to resume" in refusal("train", "--resume", out)
    copy = tmp_path / "copy"
    shutil.copytree(aircraft, copy)
    assert "nothing to resume" in refusal("train", "--resume", out, "--data", copy)
    path = read_split(source(copy, "fgvc-aircraft"), "train").paths[0]
    path.write_bytes(path.read_bytes() + b"\0")
    error = refusal("train", "--resume", out, "--data", copy)
    assert "its train split is not what this run began with (16 images, 16 then;" in error
    shutil.rmtree(copy)
    shutil.copytree(aircraft, copy)
    config = json.loads((out / "train.json").read_text())
    del config["splits"]["val"]
    write(out / "train.json", json.dumps(config))
    error = refusal("train", "--resume", out, "--data", copy)
    assert "its val split is not what this run began with (16 images, 0 then;" in error
    assert "--dataset cannot change" in refusal("train", "--resume", out, "--dataset", "coco")


def test_a_run_older_than_data_sets_is_one_of_class_folders(aircraft: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_json("train", "--dataset", "fgvc-aircraft", "--data", aircraft, *MICRO, "--out", out)
    content = json.loads((out / "train.json").read_text())
    for name in ("dataset", "coco_category", "splits"):
        del content[name]
    write(out / "train.json", json.dumps(content))
    _, config = read_run_config(out)
    assert config.source == DataSource(aircraft)
    assert "it looks like --dataset fgvc-aircraft" in refusal("evaluate", out)
    assert run_json("evaluate", out, "--dataset", "fgvc-aircraft")["images"] == 16


def test_a_run_remembers_its_category_of_coco(coco: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(coco.rglob("*.jpg"))):
        draw(path, number, number % 3)
    out = tmp_path / "run"
    given = ("--dataset", "coco", "--data", coco)
    result = run("train", *given, "--coco-category", "first", *MICRO, "--out", out)
    assert result.exit_code == 0, result.output
    assert read_run_config(out)[1].source == DataSource(coco, "coco", "first")
    assert load_run(out)[0].labels == ("person", "dog", "bottle")
    first = run_json("evaluate", out)
    assert first == run_json("evaluate", out, *given, "--coco-category", "first")
    other = run_json("evaluate", out, "--coco-category", "largest")
    assert (first["images"], other["images"]) == (4, 4)
    assert first["recall_macro"] != other["recall_macro"] or first["top1"] != other["top1"]
    assert "--coco-category is for --dataset coco" in refusal(
        "evaluate", out, "--dataset", "food-101", "--coco-category", "first"
    )


def test_the_help_names_every_data_set() -> None:
    for command in ("train", "evaluate", "verify", "compare", "export", "sensitivity", "benchmark"):
        words = "".join(run(command, "--help").output.split())
        assert all(name in words for name in ("--dataset", "--coco-category", *data_sets()))


def test_options_that_do_not_go_together_are_refused(food: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    given = ("train", *MICRO, *out)
    assert "there is no data set 'food': choose from" in refusal(
        *given, "--dataset", "food", "--data", food
    )
    assert "--dataset food-101 lies where? give --data FOLDER" in refusal(
        *given, "--dataset", "food-101"
    )
    assert "--coco-category is for --dataset coco, not food-101: leave it out" in refusal(
        *given, "--dataset", "food-101", "--data", food, "--coco-category", "first"
    )
    assert "give --data FOLDER" in refusal(*given)
    assert not (tmp_path / "run").exists()


def test_sensitivity_and_benchmark_read_the_data_of_the_run(aircraft: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_json("train", "--dataset", "fgvc-aircraft", "--data", aircraft, *MICRO, "--out", out)
    assert run_json("sensitivity", out, "--images", 8)["images"] == 8
    quick = ("--targets", "onnx", "--precisions", "fp32", "--duration", 0.2, "--warmup-ms", 1,
             "--min-samples", 3, "--no-layers", "--percentiles", "50")  # fmt: skip
    result = run_json("benchmark", out, *quick, "--out", tmp_path / "bench")
    assert (result["data"], result["images"]) == (str(aircraft), 16)
    assert [row["status"] for row in result["rows"]] == ["done"]
