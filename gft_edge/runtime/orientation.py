"""How a photograph is to be turned: the orientation in its EXIF, whatever else is wrong there."""

from __future__ import annotations

import struct

from PIL import ExifTags, Image

# What each value asks for; 1, and any other, turns nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF 6.0, section 2: types of a directory's entries -> struct's; the value of such a small one lies in
# the entry itself.
_INTEGERS = {1: "B", 3: "H", 4: "I"}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What the orientation asks for; nothing where the metadata has none that can be read.

    ImageOps.exif_transpose also writes all the metadata again, which fails for a GPS latitude stored as
    text, and with it a sound photograph. Of an AVIF that its own box turns, Pillow 13 does so when it opens
    it: such a one stays refused.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    # Whatever is wrong with the metadata, the pixels are there.
    except Exception:
        value = None
    # Pillow stops reading at a tag whose value lies outside of the block.
    return _TURNS.get(value if isinstance(value, int) else _written(image.info.get("exif")))


def _written(block: object) -> int:
    """The orientation in an EXIF block, by its own directory entry alone; 1 where there is none."""
    if not isinstance(block, bytes):
        return 1
    tiff = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "<")
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == ExifTags.Base.Orientation and kind in _INTEGERS:
                return int(struct.unpack_from(f"{order}{_INTEGERS[kind]}", tiff, at + 8)[0])
    except struct.error:
        pass
    return 1
