"""A sheet of images with the patches that a bundle and its reference kept of them, by Pillow alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gft_edge.bundle.specs import ModelSpec
from gft_edge.fidelity.disagreements import Comparison
from gft_edge.reporting.pictures import kept_patches, sheet
from gft_edge.runtime.classifier import load_pixels

PICTURED = 12
PICTURED_WHERE_ALL_AGREE = 4
PICTURE_PX = 192


def comparison_sheet(comparison: Comparison, model: ModelSpec) -> Image.Image:
    """Draw a row for each pictured image: itself, then per stage what reference and bundle kept of it.

    Raises ImageError.
    """
    scale = max(1, PICTURE_PX // model.preprocessing.image_size_px)
    split, rows = comparison.split, []
    stages = list(zip(comparison.reference_kept, comparison.kept, strict=True))
    for i in pictured(comparison):
        pixels = load_pixels(split.paths[i], model.preprocessing, split.crop_bottom_px)
        shown = [np.arange(model.patch_count), *(side[i] for both in stages for side in both)]
        row = comparison.row(i)
        overlaps = " / ".join(f"{overlap:.2f}" for overlap in row.kept_overlap)
        label = row.label or "no known class"
        title = f"{label}, reference: {row.reference}, bundle: {row.candidate}, overlap {overlaps}"
        rows.append(
            (title, [kept_patches(pixels, kept, model.patch_grid, scale) for kept in shown])
        )
    names = ("reference", "bundle")
    sides = [f"{side}, stage {n + 1}" for n in range(len(stages)) for side in names]
    return sheet(rows, ["image", *sides])


def pictured(comparison: Comparison) -> list[int]:
    """Return the images worth a look: where the two disagree, else where kept patches differ most."""
    order = comparison.by_overlap()
    differing = [i for i in order if comparison.differs(i)]
    return differing[:PICTURED] or order[:PICTURED_WHERE_ALL_AGREE]
