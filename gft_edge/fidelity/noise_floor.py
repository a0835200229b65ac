"""Changes of a photograph that nobody sees, by which the changes of a lower precision are judged."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.bundle.reports import Change

NAMES: dict[Change, str] = {
    "noise": "Gaussian noise of one grey level",
    "jpeg75": "JPEG at quality 75",
    "brightness": "brightness + 2 %",
    "shift": "a move by one pixel",
}
SIGMA = 1.0
QUALITY = 75
GAIN = 1.02


def changed(pixels: npt.NDArray[np.uint8], change: Change) -> npt.NDArray[np.uint8]:
    """Return the network's own input, uint8 (images,S,S,3), after a change; the same at each call.

    After resize and crop, so that the size of the photograph makes no difference.
    """
    if change == "noise":
        return np.stack([_noisy(image) for image in pixels])
    if change == "brightness":
        return np.asarray(np.rint(pixels * GAIN).clip(0, 255), dtype=np.uint8)
    if change == "shift":
        # Down and to the right; the first row and column stay where they are too.
        return np.pad(pixels, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")[:, :-1, :-1]
    return np.stack([_compressed(image) for image in pixels])


def _noisy(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    # Seeded by the image itself: wherever it stands among others, its noise is the same.
    drawn = np.random.default_rng(zlib.crc32(image.tobytes()))
    noisy = image + drawn.normal(0, SIGMA, image.shape)
    return np.asarray(np.rint(noisy).clip(0, 255), dtype=np.uint8)


def _compressed(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    written = BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=QUALITY)
    with Image.open(written) as read:
        return np.asarray(read, dtype=np.uint8)
