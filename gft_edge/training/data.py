"""Class folders as torch loaders: timm's augmentation to train, the device's preprocessing to evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from gft_edge.errors import DataError, ImageError
from gft_edge.image_folder import Split
from gft_edge.preprocess import batch_from_pixels, open_rgb, resize_and_crop
from gft_edge.specs import Preprocessing
from gft_edge.training.recipes import Recipe

Transform = Callable[[Image.Image], Tensor]


class FolderDataset(Dataset[tuple[Tensor, int]]):
    """One split: item i is (transformed image (3,S,S), class index).

    Raises DataError naming an image that cannot be decoded: skipping it would train on other data
    than was asked for.
    """

    def __init__(self, split: Split, transform: Transform):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = open_rgb(self.split.paths[index])
        except ImageError as error:
            raise DataError(f"{error}: remove or replace the image") from None
        return self.transform(image), self.split.targets[index]


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
    split: Split, spec: Preprocessing, recipe: Recipe, epoch: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of one epoch.

    Order and augmentation depend on the seed and the epoch alone, so a resumed run sees what the
    uninterrupted one saw. The last batch is dropped when it is short, unless it is the only one.
    """
    return DataLoader(
        FolderDataset(split, training_transform(spec, recipe)),  # type: ignore[arg-type]
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=len(split.paths) >= recipe.batch_size,
        num_workers=workers,
        generator=torch.Generator().manual_seed(recipe.seed * 100_003 + epoch),
    )


def evaluation_loader(
    split: Split, spec: Preprocessing, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """All images in order."""
    return DataLoader(
        FolderDataset(split, evaluation_transform(spec)),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
    )


def targets_of(split: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The class indices of a split as an array."""
    return np.asarray(split.targets, dtype=np.int64)
