"""Pictures a person can look at: the classes of a data set, and the patches that survive each stage."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

MARGIN_PX = 6
CAPTION_PX = 18
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)


def sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], captions: Sequence[str]
) -> Image.Image:
    """Rows of equally large images, each row under its own title, columns under `captions`."""
    width, height = rows[0][1][0].size
    columns = max(len(images) for _, images in rows)
    row_height = height + CAPTION_PX + MARGIN_PX
    canvas = Image.new(
        "RGB",
        (
            columns * (width + MARGIN_PX) + MARGIN_PX,
            len(rows) * row_height + CAPTION_PX + MARGIN_PX,
        ),
        BACKGROUND,
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, caption in enumerate(captions):
        draw.text((MARGIN_PX + column * (width + MARGIN_PX), 3), caption, INK, font)
    for number, (title, images) in enumerate(rows):
        top = CAPTION_PX + number * row_height
        draw.text((MARGIN_PX, top + 2), plain(title), INK, font)
        for column, image in enumerate(images):
            canvas.paste(image, (MARGIN_PX + column * (width + MARGIN_PX), top + CAPTION_PX))
    return canvas


def plain(text: str) -> str:
    """A text in ASCII: accents go, other letters become question marks."""
    # Pillow's own font has ASCII alone and draws a box for anything else.
    letters = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    return "".join(letters).encode("ascii", "replace").decode()


def kept_patches(
    pixels: npt.NDArray[np.uint8],
    positions: npt.NDArray[np.int64],
    grid: tuple[int, int],
    scale: int,
) -> Image.Image:
    """One image (S,S,3) with the dropped patches darkened: the paper's figure 3.

    `positions` (K,) are the kept patches on the (rows, columns) `grid`.
    """
    rows, columns = grid
    kept = np.zeros(rows * columns, dtype=bool)
    kept[positions] = True
    size = len(pixels) // rows
    mask = np.kron(kept.reshape(grid), np.ones((size, size), dtype=bool))[..., None]
    faded = np.where(mask, pixels, pixels // 8 + 16).astype(np.uint8)
    image = Image.fromarray(faded)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
