"""Numbers as colours: the maps that a sheet draws, with NumPy and Pillow alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
Anchors = tuple[str, ...]

# Lightness rises, also without colour vision (viridis, van der Walt and Smith, CC0).
SEQUENTIAL: Anchors = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e",
    "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
)  # fmt: skip
# Blue under 0, red over it, equally dark at both ends (ColorBrewer's RdBu).
DIVERGING: Anchors = (
    "#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b",
)  # fmt: skip
ABSENT = (222, 222, 222)


def coloured(values: npt.ArrayLike, low: float, high: float, anchors: Anchors) -> Floats:
    """Colours (...,3) in 0..255 of values; `low` is the first anchor, `high` the last, NaN is ABSENT."""
    given = np.asarray(values, np.float32)
    spread = high - low
    place = np.clip((given - low) / spread, 0, 1) if spread > 0 else np.zeros_like(given)
    table = np.array([[int(a[i : i + 2], 16) for i in (1, 3, 5)] for a in anchors], np.float32)
    known = np.nan_to_num(place) * (len(table) - 1)
    channels = [np.interp(known, np.arange(len(table)), table[:, c]) for c in range(3)]
    found = np.stack(channels, axis=-1)
    return np.where(np.isnan(given)[..., None], np.array(ABSENT), found).astype(np.float32)


def heat_map(
    values: Floats, grid: tuple[int, int], side_px: int, low: float, high: float, anchors: Anchors
) -> Image.Image:
    """One value a patch (rows*columns,), row by row, as a square picture; NaN is grey."""
    cells = coloured(values.reshape(grid), low, high, anchors)
    return _enlarged(cells, side_px)


def overlay(
    pixels: npt.NDArray[np.uint8], values: Floats, grid: tuple[int, int], side_px: int
) -> Image.Image:
    """The image (S,S,3), paled, brighter and tinted where values in 0..1, one a patch, are large."""
    image = Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC)
    # Its own colours would pass for those of the map.
    image = Image.blend(image.convert("L").convert("RGB"), image, 0.2)
    strength = values.reshape(grid)[..., None]
    tint = coloured(strength[..., 0], 0, 1, SEQUENTIAL)
    share = np.asarray(_enlarged(np.broadcast_to(255 * 0.55 * strength, tint.shape), side_px)) / 255
    light = 0.5 + share
    mixed = (1 - share) * light * np.asarray(image) + share * np.asarray(_enlarged(tint, side_px))
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def colour_bar(width_px: int, height_px: int, anchors: Anchors) -> Image.Image:
    """The colours from the least value, on the left, to the largest."""
    ramp = coloured(np.linspace(0, 1, width_px), 0, 1, anchors).astype(np.uint8)
    return Image.fromarray(np.repeat(ramp[None], height_px, axis=0))


def _enlarged(cells: Floats, side_px: int) -> Image.Image:
    image = Image.fromarray(cells.astype(np.uint8))
    return image.resize((side_px, side_px), Image.Resampling.NEAREST)
