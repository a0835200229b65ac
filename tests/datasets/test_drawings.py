"""The drawn data set: repeatable, split without overlap, and told apart by parts alone."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.datasets.drawings import AIRCRAFT, CLASSES, draw, write_drawings
from tests.support.files import contents

SIZE_PX = 48


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_generator_state_gives_the_same_pixels(name: str) -> None:
    first, second = (draw(name, random.Random("seed"), SIZE_PX) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("size_px", [48, 64, 96])
def test_a_drawing_is_square_rgb_of_the_size_asked_for(size_px: int) -> None:
    image = draw(CLASSES[0], random.Random(0), size_px)
    assert (image.mode, image.size) == ("RGB", (size_px, size_px))


def test_one_generator_state_draws_every_class_differently() -> None:
    drawings = {draw(name, random.Random(7), SIZE_PX).tobytes() for name in CLASSES}
    assert len(drawings) == len(CLASSES)


def test_classes_from_one_generator_state_share_pose_colours_and_background() -> None:
    low, high = (
        np.asarray(draw(name, random.Random(7), SIZE_PX), dtype=float)
        for name in ("twinprop-low-tail", "twinprop-t-tail")
    )
    assert (np.abs(low - high).max(axis=2) == 0).mean() > 0.8


def test_every_class_is_at_most_two_parts_from_another() -> None:
    def differences(one: str, other: str) -> int:
        a, b = (dataclasses.astuple(AIRCRAFT[name]) for name in (one, other))
        return sum(x != y for x, y in zip(a, b, strict=True))

    for name in CLASSES:
        assert min(differences(name, other) for other in CLASSES if other != name) in (1, 2)


def test_each_split_has_one_folder_a_class_with_the_images_asked_for(tmp_path: Path) -> None:
    write_drawings(tmp_path, {"train": 2, "test": 1}, SIZE_PX, seed=3)
    expected = {f"train/{name}/{i:04d}.png" for name in CLASSES for i in range(2)}
    expected |= {f"test/{name}/0000.png" for name in CLASSES}
    assert set(contents(tmp_path)) == expected
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (SIZE_PX, SIZE_PX))


def test_splits_and_seeds_share_no_drawing(tmp_path: Path) -> None:
    write_drawings(tmp_path / "3", {"train": 2, "val": 2, "test": 2}, SIZE_PX, seed=3)
    write_drawings(tmp_path / "4", {"train": 2}, SIZE_PX, seed=4)
    drawings = list(contents(tmp_path).values())
    assert len(set(drawings)) == len(drawings)


def test_files_depend_neither_on_order_nor_on_the_other_counts(tmp_path: Path) -> None:
    write_drawings(tmp_path / "a", {"train": 2, "test": 2}, SIZE_PX, seed=3)
    write_drawings(tmp_path / "b", {"test": 1, "train": 1}, SIZE_PX, seed=3)
    more, fewer = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert fewer == {path: more[path] for path in fewer}


def test_the_mean_colour_gives_no_class_away() -> None:
    means = np.array(
        [
            [
                np.asarray(draw(name, random.Random(f"{name}/{i}"), SIZE_PX)).mean(axis=(0, 1))
                for i in range(30)
            ]
            for name in CLASSES
        ]
    )
    between = means.mean(axis=1).std(axis=0)
    within = means.std(axis=1).mean(axis=0)
    assert (between < 0.5 * within).all()
