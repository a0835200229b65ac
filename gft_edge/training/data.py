"""Splits as torch loaders: augmentation to train, the device's own preprocessing to evaluate."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from gft_edge.bundle.specs import Preprocessing
from gft_edge.datasets import Split
from gft_edge.errors import DataError, ImageError
from gft_edge.runtime.preprocess import batch_from_pixels, open_rgb, resize_and_crop
from gft_edge.training.recipes import Recipe

Transform = Callable[[Image.Image], Tensor]


class SplitDataset(Dataset[tuple[Tensor, int]]):
    """One split: item i is (transformed image (3,S,S), class index).

    With a `seed` the transform's randomness comes from it and i alone, so that an image is the same
    whichever process and worker prepares it. Raises DataError naming an image that cannot be
    decoded: skipping it would train on other data than was asked for.
    """

    def __init__(self, split: Split, transform: Transform, seed: tuple[int, ...] | None = None):
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self) -> int:
        return len(self.split.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = open_rgb(self.split.paths[index], self.split.crop_bottom_px)
        except ImageError as error:
            raise DataError(f"{error}: remove or replace the image") from None
        if self.seed is None:
            return self.transform(image), self.split.targets[index]
        with _seeded((*self.seed, index)):
            return self.transform(image), self.split.targets[index]


@contextmanager
def _seeded(entropy: tuple[int, ...]) -> Iterator[None]:
    """Every source of randomness that timm and torchvision use, seeded here and then put back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second = map(int, np.random.SeedSequence(entropy).generate_state(2))
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(first << 32 | second)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def evaluation_transform(spec: Preprocessing) -> Transform:
    """The device's own preprocessing, so that both sides run one definition."""

    def transform(image: Image.Image) -> Tensor:
        pixels = resize_and_crop(image, spec)[None]
        return torch.from_numpy(batch_from_pixels(pixels, spec, "float32")[0])

    return transform


def training_transform(spec: Preprocessing, recipe: Recipe) -> Transform:
    """Augmentation as the recipe names it, from timm and torchvision."""
    size = spec.image_size_px
    if recipe.augmentation == "none":
        return evaluation_transform(spec)
    if recipe.augmentation == "paper":
        composed: Any = transforms.Compose(
            [
                transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.RandomAutocontrast(),
                transforms.RandAugment(num_ops=2, magnitude=9),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )
    elif recipe.augmentation == "flip":
        evaluate = evaluation_transform(spec)
        composed = transforms.Compose([transforms.RandomHorizontalFlip(), evaluate])
    else:
        composed = create_transform(
            size,
            is_training=True,
            scale=(recipe.crop_scale, 1.0),
            hflip=0.5,
            color_jitter=0.2,
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
        )
    transform: Transform = composed
    return transform


def training_loader(
    split: Split, spec: Preprocessing, recipe: Recipe, batch_size: int, epoch: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of one epoch, without the last one when it is short.

    Order and augmentation depend on the recipe's seed and the epoch alone, so a resumed run sees
    what the uninterrupted one saw.
    """
    transform = training_transform(spec, recipe)
    return DataLoader(
        SplitDataset(split, transform, (recipe.seed, epoch)),  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(recipe.seed * 100_003 + epoch),
    )


def evaluation_loader(
    split: Split, spec: Preprocessing, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """All images in order."""
    return DataLoader(
        SplitDataset(split, evaluation_transform(spec)),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
    )


def targets_of(split: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The class indices of a split as an array."""
    return np.asarray(split.targets, dtype=np.int64)
