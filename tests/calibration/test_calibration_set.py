"""Calibration images: drawn alike for a seed, apart from the test split, and never noise or copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gft_edge.bundle.specs import Preprocessing
from gft_edge.calibration.image_set import (
    FEWEST_IMAGES,
    draw_calibration_set,
    read_calibration_folder,
    refuse_unfit_pixels,
)
from gft_edge.datasets import Split, read_split
from gft_edge.errors import DataError, UsageError
from gft_edge.runtime.preprocess import open_rgb, resize_and_crop

# Without images: no class "elm".
LABELS = ("ash", "birch", "café au lait", "elm")
# Few of one class: in turn it runs out first.
COUNTS = {"ash": 30, "birch": 6, "café au lait": 20}
SIZE_PX = 32


def smooth_pictures(count: int, seed: int = 0, size_px: int = SIZE_PX) -> npt.NDArray[np.uint8]:
    """Blots of a few pixels scaled up: as even from pixel to pixel as a photograph."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
                    (size_px, size_px), Image.Resampling.BICUBIC
                )
            )
            for _ in range(count)
        ]
    )


def names(count: int) -> list[str]:
    return [f"{number}.png" for number in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with three of four classes, test/ with other pictures."""
    folder = tmp_path_factory.mktemp("calibration")
    pictures = iter(smooth_pictures(100))
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
        assert Path(path).parent.name == LABELS[target]


def test_too_few_asked_for_are_refused(train: Split) -> None:
    message = "--subset-size 31 is too few to calibrate: give 32 or more"
    with pytest.raises(UsageError, match=message):
        draw_calibration_set(train, FEWEST_IMAGES - 1, seed=0, test=None)
    images, _ = draw_calibration_set(train, FEWEST_IMAGES, seed=0, test=None)
    assert len(images.paths) == FEWEST_IMAGES


def test_a_folder_with_too_few_is_refused(data: Path) -> None:
    few = read_split(data, "test", LABELS)
    with pytest.raises(DataError, match="holds 6 images: give 32 or more"):
        draw_calibration_set(few, 64, seed=0, test=None)


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
    drawn, _ = draw_calibration_set(read_split(tmp_path, "train", LABELS), 200, 0, test)
    assert len(drawn.paths) == 56
    shutil.copyfile(test.paths[0], shared)
    with pytest.raises(DataError, match=r"innocent\.png is an image of the run's test split"):
        draw_calibration_set(read_split(tmp_path, "train", LABELS), 200, 0, test)
    # The same bytes but for the last: another image.
    shared.write_bytes(shared.read_bytes()[:-1] + b"\0")
    draw_calibration_set(read_split(tmp_path, "train", LABELS), 200, 0, test)


def test_a_calibration_folder_may_be_a_data_folder_or_class_folders(data: Path) -> None:
    whole = read_calibration_folder(data, LABELS)
    alone = read_calibration_folder(data / "train", LABELS)
    assert whole.paths == alone.paths
    assert whole.targets == alone.targets
    assert len(whole.paths) == 56


def test_a_calibration_folder_may_be_where_one_stands(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data / "train")
    assert len(read_calibration_folder(Path("."), LABELS).paths) == 56


def test_a_calibration_folder_of_other_classes_or_nowhere_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such calibration folder"):
        read_calibration_folder(data / "nowhere", LABELS)
    with pytest.raises(DataError, match=r"classes the model does not know \(birch, \.\.\.\)"):
        read_calibration_folder(data, ("ash", "café au lait"))


def test_smooth_pictures_are_fit() -> None:
    refuse_unfit_pixels(smooth_pictures(FEWEST_IMAGES), names(FEWEST_IMAGES))


def test_photographs_are_fit(grocery: Path) -> None:
    split = read_split(grocery, "val")
    paths = split.paths[:: max(1, len(split.paths) // 40)][:40]
    spec = Preprocessing(64, 1.0, "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
    pixels = np.stack([resize_and_crop(open_rgb(path), spec) for path in paths])
    refuse_unfit_pixels(pixels, [str(path) for path in paths])


def test_white_noise_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"correlate by -?0\.0\d, .*this is noise"):
        refuse_unfit_pixels(noise, names(40))


def test_noise_scaled_up_to_twice_its_size_is_refused() -> None:
    generator = np.random.default_rng(0)
    half = (SIZE_PX // 2, SIZE_PX // 2, 3)
    pixels = np.stack(
        [
            np.asarray(
                Image.fromarray(generator.integers(0, 256, half, dtype=np.uint8)).resize(
                    (SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR
                )
            )
            for _ in range(40)
        ]
    )
    with pytest.raises(DataError, match=r"correlate by 0\.\d\d, .*this is noise"):
        refuse_unfit_pixels(pixels, names(40))


def test_pictures_among_noise_are_refused_when_they_are_the_fewer() -> None:
    pixels = smooth_pictures(60)
    generator = np.random.default_rng(0)
    pixels[:20] = generator.integers(0, 256, pixels[:20].shape, dtype=np.uint8)
    refuse_unfit_pixels(pixels, names(60))
    pixels[:40] = generator.integers(0, 256, pixels[:40].shape, dtype=np.uint8)
    with pytest.raises(DataError, match="this is noise"):
        refuse_unfit_pixels(pixels, names(60))


def test_images_of_one_colour_are_refused_and_a_single_one_is_not() -> None:
    pixels = smooth_pictures(40)
    pixels[7] = 0
    refuse_unfit_pixels(pixels, names(40))
    pixels[7:11] = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    message = r"4 of 40 calibration images are of one colour \(7\.png, \.\.\.\)"
    with pytest.raises(DataError, match=message):
        refuse_unfit_pixels(pixels, names(40))


def test_copies_of_one_image_are_refused() -> None:
    pixels = np.repeat(smooth_pictures(1), 40, axis=0)
    with pytest.raises(DataError, match="only 1 of 40 calibration images differ: give 32 or more"):
        refuse_unfit_pixels(pixels, names(40))
    pixels[:31] = smooth_pictures(31, seed=1)
    refuse_unfit_pixels(pixels, names(40))
    pixels[0] = pixels[39]
    with pytest.raises(DataError, match="only 31 of 40"):
        refuse_unfit_pixels(pixels, names(40))
