"""Which files are images: the formats that are read, by the name of a file and by its content."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

# What Pillow decodes by itself; MPO through JPEG's reader. Not EPS, for which it starts Ghostscript, nor
# what only a system's own library draws (WMF) or no decoder comes with (FITS, GRIB, HDF5, MPEG).
# Some of the others do not begin in any way of their own, TGA for one: they are tried last.
_BY_CONTENT = (
    "JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "PSD", "QOI", "DDS",
)  # fmt: skip
_OTHERS = (
    "BLP", "CUR", "DCX", "DIB", "FLI", "FTEX", "ICNS", "ICO", "IM", "MSP", "PCX", "PIXAR", "SGI", "SPIDER",
    "SUN", "TGA", "XBM", "XPM",
)  # fmt: skip

# Files of these names are images of a folder unopened. The list is no Pillow's own, so that a folder holds
# the same images on every machine. Files of other names are images where they begin as one of _BY_CONTENT;
# an icon (.ico, .icns, .cur) is a folder's, and is read when it is named.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".dcx", ".dds", ".dib", ".flc", ".fli", ".ftc", ".ftu",
    ".gif", ".icb", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".mpo", ".msp", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb",
    ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
})  # fmt: skip

# Pictures that are not read, unless they are something else by their content: a JPEG is named .HEIC by what
# shares a telephone's photographs.
UNREAD_PICTURES = frozenset({
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".erf", ".heic", ".heics", ".heif",
    ".hif", ".iiq", ".jxl", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pdf", ".pef", ".pfm", ".ps", ".raf",
    ".raw", ".rw2", ".sr2", ".srf", ".srw", ".svg", ".svgz", ".wmf", ".x3f",
})  # fmt: skip
# A camera's raw file begins as a TIFF does and holds a thumbnail; .pfm, of floats, is a PPM to Pillow.
_BEGIN_OTHERS = ("TIFF", "PPM")
# What editors and downloads leave beside an image.
_COPIES = frozenset(
    {".bak", ".crdownload", ".download", ".old", ".orig", ".part", ".partial", ".tmp"}
)

# How files begin that are taken for images and are none, in lower case.
_NO_IMAGES: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"version https://git-lfs",), "a pointer of Git LFS: git lfs pull fetches the image itself"),
    ((b"<!doctype html", b"<html"), "an HTML page, as a failed download leaves: fetch it again"),
    ((b"%pdf", b"%!ps", b"\xc5\xd0\xd3\xc6", b"<svg"), "a document: save its picture as PNG"),
    ((b"\xff\x0a", b"\x00\x00\x00\x0cjxl "), "JPEG XL: convert it to JPEG"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def readable_formats() -> list[str]:
    """The names of Pillow's formats to open a file as, in order: those above that this Pillow has.

    A plugin that the process registered itself, such as pillow-heif's, is wanted and comes last.
    """
    Image.init()
    ours = [name for name in (*_BY_CONTENT, *_OTHERS) if name in Image.OPEN]
    own = (name for name, (factory, _) in Image.OPEN.items() if not _is_pillows(factory))
    return [*ours, *own]


def _is_pillows(factory: Callable[..., object]) -> bool:
    return factory.__module__.startswith("PIL.")


def is_image(path: Path) -> bool:
    """Whether a file is an image of a folder, by its name, or by its content where the name does not say.

    Raises OSError for one that has to be opened and cannot be.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in _COPIES or path.name.endswith("~"):
        return False
    unsaid = (*_OTHERS, *_BEGIN_OTHERS) if suffix in UNREAD_PICTURES else _OTHERS
    known = [name for name in readable_formats() if name not in unsaid]
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=known):
                return True
        except Image.DecompressionBombError:
            return True
        # Arbitrary bytes make Pillow's plugins raise nearly anything.
        except Exception:
            return False


def no_image(file: str | Path | io.BytesIO) -> str:
    """Say what a file is that Pillow does not identify, by how it begins, and what to do about it."""
    if isinstance(file, io.BytesIO):
        head = file.getvalue()[:64]
    else:
        with open(file, "rb") as opened:
            head = opened.read(64)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "it is HEIC, whatever its name: convert it to JPEG"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((what for begins, what in _NO_IMAGES if start.startswith(begins)), None)
    return "not an image Pillow can read" if what is None else f"it is {what}"
