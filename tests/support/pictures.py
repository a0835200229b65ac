"""Folders of small seeded pictures, a class folder each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

# A space and a letter outside ASCII: labels are text, not identifiers.
MICRO_LABELS = ("apple", "brown bread", "café", "dill")


def write_noisy(folder: Path, labels: Sequence[str] = MICRO_LABELS, count: int = 3) -> None:
    """Write test/ with blots under noise, `count` images a class, not square."""
    generator = np.random.default_rng(0)
    for label in labels:
        (folder / "test" / label).mkdir(parents=True)
        for number in range(count):
            size = (90 + 7 * number, 80)
            blots = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(blots.resize(size, Image.Resampling.BICUBIC))
            noisy = np.clip(smooth + generator.normal(0, 25, smooth.shape), 0, 255)
            path = folder / "test" / label / f"{number}.png"
            Image.fromarray(noisy.astype(np.uint8)).save(path)


def write_smooth(folder: Path, labels: Sequence[str] = MICRO_LABELS, count: int = 12) -> None:
    """Write val/ and test/ with smooth pictures of (80, 90) pixels, and train/ with twice as many."""
    generator = np.random.default_rng(8)  # no image of val/ is a near tie for calm_run
    for split in ("train", "val", "test", "more"):
        for label in labels:
            into = folder / ("train" if split == "more" else split) / label
            into.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                picture = small.resize((80, 90), Image.Resampling.BICUBIC)
                picture.save(into / f"{number + count * (split == 'more')}.png")


def write_coloured(folder: Path) -> None:
    """Write three classes, `r`, `g` and `b`, that differ in hue, 48 px, with noise; val/ has two."""
    generator = np.random.default_rng(0)
    for split, count, classes in (("train", 12, 3), ("val", 4, 2), ("test", 6, 3)):
        for index in range(classes):
            (folder / split / "rgb"[index]).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (48, 48, 3), dtype=np.uint8)
                pixels[..., index] += 100
                Image.fromarray(pixels).save(folder / split / "rgb"[index] / f"{number}.png")


def smooth_pixels(count: int, size_px: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return blots of a few pixels scaled up, (count,S,S,3): as even as photographs."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    size = (size_px, size_px)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in small]
    )
