"""Which images: where they come from, those drawn from a split, and what is remembered of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CocoCategory = Literal["largest", "first"]


@dataclass(frozen=True)
class DataSource:
    """Where images come from: a folder, and the data set that is in it by its `--dataset` name.

    `coco_category` says which category an image of COCO has, that of its `largest` box or of its
    `first` annotation; None elsewhere, and for COCO the largest.
    """

    folder: Path
    dataset: str = "imagefolder"
    coco_category: CocoCategory | None = None


@dataclass(frozen=True)
class SplitRecord:
    """What a run remembers of a split: how many images and classes, and datasets.split_digest."""

    images: int
    classes: int
    digest: str


@dataclass(frozen=True)
class ImageRecord:
    """What a bundle remembers of an ImageSet."""

    count: int
    seed: int
    digest: str


@dataclass(frozen=True)
class ImageSet:
    """Images drawn from a split: paths, the seed that chose them, a digest of the contents.

    `targets[i]` is the class index of `paths[i]`, None where the class is unknown or the network was
    trained on the image: it then counts for agreement and kept patches, and not for the accuracy.
    `crop_bottom_px` rows at the bottom of every image are not part of the picture.
    """

    paths: tuple[str, ...]
    seed: int
    digest: str
    targets: tuple[int | None, ...]
    crop_bottom_px: int = 0

    @property
    def record(self) -> ImageRecord:
        """What a bundle remembers of the set."""
        return ImageRecord(len(self.paths), self.seed, self.digest)
