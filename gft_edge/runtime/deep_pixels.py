"""Grey pixels of more than 8 bits, made 8."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gft_edge.errors import ImageError

# Pillow's own convert to RGB clips these at 255, and turns most of the image white.
DEEP_MODES = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})

_BITS = 258  # TIFF's BitsPerSample
_SAMPLE_FORMAT = 339  # TIFF's SampleFormat, 2 for integers with a sign
_PHOTOMETRIC = 262  # TIFF's PhotometricInterpretation, 0 where 0 is white
# Of these files Pillow has scaled mode I to 16 bits, whatever they hold.
_SCALED_TO_16_BITS = ("PNG", "PPM")


def rgb_from_deep(image: Image.Image, opened: Image.Image) -> Image.Image:
    """A grey image of a mode in DEEP_MODES as 8-bit RGB. `opened` is the file it comes from, or itself.

    White is what the file's bits can hold: 4095 in a TIFF of 12 bits, 32767 in one of 16 with a sign, else
    65535; in mode I, whose 32 bits say nothing, 255 where no value is larger. Raises
    ImageError for floats and other values.
    """
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" or low < 0 or high > 65535:
        raise ImageError(
            f"pixel mode {image.mode} with values {low:g} to {high:g} has no defined 8-bit form: "
            "convert it to 8 or 16 bits"
        )
    tags = getattr(opened, "tag_v2", {})
    bits, signed = tuple(tags.get(_BITS, ())), tuple(tags.get(_SAMPLE_FORMAT, ())) == (2,)
    white = 65535
    if bits == (12,):
        white = 4095
    elif image.mode == "I" and high <= 255 and opened.format not in _SCALED_TO_16_BITS:
        white = 255
    elif bits == (16,) and signed:
        white = 32767
    # Pillow turns such pictures of 1 and of 8 bits itself.
    if image.mode != "I" and tags.get(_PHOTOMETRIC) == 0:
        values = white - values
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8)).convert("RGB")
