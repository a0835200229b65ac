"""Calibration images: drawn alike for a seed, apart from the test split, and never noise or copies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import Preprocessing
from gft_edge.calibration.image_set import (
    FEWEST_IMAGES,
    draw_calibration_set,
    draw_judges,
    read_calibration_folder,
    unfit_pixels,
)
from gft_edge.datasets import Split, read_split
from gft_edge.errors import DataError, UsageError
from gft_edge.runtime.preprocess import open_rgb, resize_and_crop
from tests.support.pictures import smooth_pixels
from tests.support.refusals import refusal_of

# Without images: no class "elm".
LABELS = ("ash", "birch", "café au lait", "elm")
# Few of one class: in turn it runs out first.
COUNTS = {"ash": 30, "birch": 6, "café au lait": 20}
SIZE_PX = 32


def names(count: int) -> list[str]:
    return [f"{number}.png" for number in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with three of four classes, test/ with other pictures."""
    folder = tmp_path_factory.mktemp("calibration")
    pictures = iter(smooth_pixels(100, SIZE_PX))
    for split, counts in (("train", COUNTS), ("test", {"ash": 3, "birch": 3})):
        for label, count in counts.items():
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                path = folder / split / label / f"{number}.png"
                Image.fromarray(next(pictures)).save(path)
    return folder


@pytest.fixture(scope="module")
def train(data: Path) -> Split:
    return read_split(data, "train", LABELS)


def test_the_same_seed_draws_the_same_images(train: Split) -> None:
    first, _ = draw_calibration_set(train, 40, seed=3, test=None)
    again, _ = draw_calibration_set(train, 40, seed=3, test=None)
    other, _ = draw_calibration_set(train, 40, seed=4, test=None)
    assert first == again
    assert first.digest != other.digest
    assert first.paths != other.paths


def test_the_classes_are_drawn_in_turn(train: Split) -> None:
    images, _ = draw_calibration_set(train, 36, seed=0, test=None)
    assert [images.targets.count(n) for n in range(4)] == [15, 6, 15, 0]
    assert len(set(images.paths)) == 36
    for path, target in zip(images.paths, images.targets, strict=True):
        assert target is not None
        assert Path(path).parent.name == LABELS[target]


def test_too_few_are_refused(train: Split, data: Path) -> None:
    def draw(split: Split, count: int) -> ImageSet:
        return draw_calibration_set(split, count, seed=0, test=None)[0]

    fewer = FEWEST_IMAGES - 1
    refusal_of(UsageError, lambda: draw(train, fewer), f"--subset-size {fewer}", "32")
    assert len(draw(train, FEWEST_IMAGES).paths) == FEWEST_IMAGES
    few = read_split(data, "test", LABELS)
    refusal_of(DataError, lambda: draw(few, 64), "6 images", "32")


def test_less_than_asked_for_is_said(train: Split) -> None:
    images, remarks = draw_calibration_set(train, 200, seed=0, test=None)
    assert len(images.paths) == 56
    assert remarks[0] == "the calibration folder has 56 images, 200 were asked for"


def test_classes_without_an_image_are_said(train: Split, data: Path) -> None:
    _, remarks = draw_calibration_set(train, 32, seed=0, test=None)
    assert remarks == ["1 of 4 classes are not among the calibration images (elm, ...)"]
    complete = read_split(data, "train", LABELS[:3])
    assert draw_calibration_set(complete, 32, seed=0, test=None)[1] == []


def test_an_image_of_the_test_split_is_refused_under_any_name(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    test = read_split(data, "test", LABELS)
    shared = tmp_path / "train" / "birch" / "innocent.png"

    def draw() -> ImageSet:
        return draw_calibration_set(read_split(tmp_path, "train", LABELS), 200, 0, test)[0]

    assert len(draw().paths) == 56
    shutil.copyfile(test.paths[0], shared)
    refusal_of(DataError, draw, "innocent.png", "test split")
    # The same bytes but for the last: another image.
    shared.write_bytes(shared.read_bytes()[:-1] + b"\0")
    draw()


def test_a_calibration_folder_may_be_a_data_folder_class_folders_or_where_one_stands(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_calibration_folder(data, LABELS)
    alone = read_calibration_folder(data / "train", LABELS)
    assert whole.paths == alone.paths
    assert whole.targets == alone.targets
    assert len(whole.paths) == 56
    monkeypatch.chdir(data / "train")
    assert len(read_calibration_folder(Path("."), LABELS).paths) == 56


def test_a_calibration_folder_of_other_classes_or_of_none_serves(
    data: Path, tmp_path: Path
) -> None:
    partly = read_calibration_folder(data, ("ash", "café au lait"))
    assert len(partly.paths) == 56
    assert partly.labelled == 50
    assert "6 of 56" in partly.remarks[-1]
    assert "birch" in partly.remarks[-1]
    for number, path in enumerate(partly.paths):
        shutil.copyfile(path, tmp_path / f"{number}.png")
    flat = read_calibration_folder(tmp_path, LABELS)
    images, remarks = draw_calibration_set(flat, 40, seed=0, test=read_split(data, "test"))
    assert images.targets == (None,) * 40
    assert len(set(images.paths)) == 40
    # That no class has an image the folder's own remark says.
    assert remarks == []


def test_images_without_a_class_are_drawn_from_their_folders_in_turn(data: Path) -> None:
    images, _ = draw_calibration_set(read_calibration_folder(data, ("oak", "fir")), 36, 0, None)
    folders = [Path(path).parent.name for path in images.paths]
    assert [folders.count(label) for label in COUNTS] == [15, 6, 15]


def test_a_calibration_folder_that_is_nowhere_is_refused(data: Path) -> None:
    nowhere = data / "nowhere"
    refusal_of(DataError, lambda: read_calibration_folder(nowhere, LABELS), str(nowhere))


def test_a_calibration_folder_of_splits_without_train_is_refused(
    data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "test", tmp_path / "test")
    refusal_of(DataError, lambda: read_calibration_folder(tmp_path, LABELS), "train/", "test")
    assert len(read_calibration_folder(tmp_path / "test", LABELS).paths) == 6


def test_photographs_are_fit(grocery: Path) -> None:
    split = read_split(grocery, "val")
    paths = split.paths[:: max(1, len(split.paths) // 40)][:40]
    spec = Preprocessing(64, 1.0, "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
    pixels = np.stack([resize_and_crop(open_rgb(path), spec) for path in paths])
    assert unfit_pixels(pixels, [str(path) for path in paths]) == []


def remarked(pixels: npt.NDArray[np.uint8], *words: str) -> None:
    """Check that one remark on pixels which are named 0.png, 1.png and so on has those words."""
    assert any(
        all(word in remark for word in words) for remark in unfit_pixels(pixels, names(len(pixels)))
    )


def test_noise_is_remarked_and_scaled_up_to_twice_its_size_too() -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (40, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    remarked(noise, "correlate by", "photographs")
    size = (SIZE_PX, SIZE_PX)
    scaled_up = [
        Image.fromarray(one[::2, ::2]).resize(size, Image.Resampling.BILINEAR) for one in noise
    ]
    remarked(np.stack([np.asarray(one) for one in scaled_up]), "correlate by")


def test_pictures_among_noise_are_remarked_when_they_are_the_fewer() -> None:
    pixels = smooth_pixels(60, SIZE_PX)
    generator = np.random.default_rng(0)
    pixels[:20] = generator.integers(0, 256, pixels[:20].shape, dtype=np.uint8)
    assert unfit_pixels(pixels, names(60)) == []
    pixels[:40] = generator.integers(0, 256, pixels[:40].shape, dtype=np.uint8)
    remarked(pixels, "correlate by")


def test_images_of_one_colour_are_remarked_and_a_single_one_is_not() -> None:
    pixels = smooth_pixels(40, SIZE_PX)
    pixels[7] = 0
    assert unfit_pixels(pixels, names(40)) == []
    pixels[7:11] = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    remarked(pixels, "4 of 40", "one colour", "7.png")


def test_copies_of_one_image_are_remarked() -> None:
    pixels = np.repeat(smooth_pixels(1, SIZE_PX), 40, axis=0)
    remarked(pixels, "1 of 40")
    pixels[:31] = smooth_pixels(31, SIZE_PX, seed=1)
    assert unfit_pixels(pixels, names(40)) == []
    pixels[0] = pixels[39]
    remarked(pixels, "31 of 40")


def test_judges_are_even_over_the_decisions_and_only_the_first_split_has_targets(
    data: Path, train: Split
) -> None:
    asked: list[int] = []

    def decisions(paths: Sequence[Path], crop_bottom_px: int) -> list[int]:
        """Call every second ash a birch."""
        asked.append(len(paths))
        return [
            1
            if path.parent.name == "ash" and int(path.stem) % 2
            else LABELS.index(path.parent.name)
            for path in paths
        ]

    test = read_split(data, "test", LABELS)
    drawn = draw_judges([test, train], 30, 0, decisions)
    assert len(set(drawn.paths)) == 30
    assert [target is None for target in drawn.targets] == [False] * 6 + [True] * 24
    found = decisions([Path(path) for path in drawn.paths], 0)
    assert max(map(found.count, range(3))) - min(map(found.count, range(3))) <= 2
    # No more are asked for their class than half as many again.
    assert asked[:2] == [6, 36]
    assert draw_judges([test], 30, 0, None).targets == draw_judges([test], 6, 0, None).targets
    assert draw_judges([test, train], 4, 0, decisions).targets.count(None) == 0
