"""Image to array: the one definition of preprocessing after training, equal to timm's to the pixel."""

from __future__ import annotations

import io
import math
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from gft_edge.bundle.specs import InputDtype, Preprocessing
from gft_edge.errors import ImageError
from gft_edge.runtime.deep_pixels import DEEP_MODES, rgb_from_deep
from gft_edge.runtime.image_formats import no_image, readable_formats
from gft_edge.runtime.orientation import turn_of

# Pillow's own decompression-bomb limit: about 683 MiB decoded.
MAX_PIXELS = 2 * 89_478_485

# Pillow warns from half its limit on; only over it is an image refused. catch_warnings around each
# image would not be safe in threads. Damaged metadata that Pillow skips is no news either.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def open_rgb(path: str | Path, crop_bottom_px: int = 0) -> Image.Image:
    """Decode a file into upright RGB, the first frame of an animation, less rows at its bottom.

    Raises ImageError when the file is missing, unreadable, empty, no image, truncated or damaged, over
    MAX_PIXELS or has no more rows than are to go.
    """
    try:
        _refuse_no_file(path)
        return without_bottom(_rgb_from_file(path), crop_bottom_px)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error.__cause__


def rgb_from_bytes(data: bytes) -> Image.Image:
    """As `open_rgb`, for what an image file holds. Raises ImageError."""
    if not data:
        raise ImageError("the image bytes are empty")
    try:
        return _rgb_from_file(io.BytesIO(data))
    except ImageError as error:
        raise ImageError(f"image of {len(data):,} bytes: {error}") from error.__cause__


def _refuse_no_file(path: str | Path) -> None:
    """Raise ImageError for what cannot be opened, would block when opened, or is empty."""
    try:
        status = os.stat(path)
    # ValueError: a NUL, or a character that no file name here can have.
    except (OSError, ValueError) as error:
        raise _image_error(error) from error
    if stat.S_ISDIR(status.st_mode):
        listed = os.access(path, os.R_OK | os.X_OK)
        raise ImageError("it is a folder" if listed else "it is a folder that may not be listed")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is no plain file")
    if not status.st_size:
        raise ImageError("the file is empty (0 bytes)")


def _rgb_from_file(file: str | Path | io.BytesIO) -> Image.Image:
    try:
        with Image.open(file, formats=readable_formats()) as image:
            if image.format == "TIFF":
                _forget_inner_directories(image)
            return rgb_from_image(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(no_image(file)) from None
    except Exception as error:
        raise _image_error(error) from error


def _forget_inner_directories(image: Image.Image) -> None:
    """Keep Pillow from reading the directories inside a TIFF's metadata when it loads the pixels.

    One that lies at an offset of -1 would make a sound picture undecodable.
    """
    metadata = image.getexif()
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
        metadata.pop(tag, None)


def rgb_from_image(image: Image.Image) -> Image.Image:
    """Any PIL image to upright RGB: EXIF rotation applied, alpha dropped, 16 bits scaled to 8.

    An image that is so already is returned itself, its pixels loaded. Raises ImageError for an image
    without pixels, over MAX_PIXELS, or that turns out damaged.
    """
    try:
        return _upright_rgb(image)
    except ImageError:
        raise
    except Exception as error:
        raise _image_error(error) from error


def _image_error(error: Exception) -> ImageError:
    """What kept an image from being read, as one line.

    Damaged files make Pillow's decoders raise anything: RuntimeError of an AVIF, NotImplementedError
    of a DDS, struct.error, IndexError, MemoryError.
    """
    if isinstance(error, FileNotFoundError):
        return ImageError("no such file")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"more than {MAX_PIXELS:,} pixels: scale it down before classifying")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image Pillow can read")
    if isinstance(error, OSError) and error.strerror:
        return ImageError(f"cannot be read: {error.strerror}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"cannot be decoded: {reason}")


def _upright_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{width}x{height} image holds no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels, more than {MAX_PIXELS:,}: scale it down")
    opened = image
    # First of all: Pillow turns a TIFF while it loads it, and forgets its orientation.
    image.load()
    turn = turn_of(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGB":
        # convert would copy: 48 MB of a 12-megapixel photograph, a fifth of its decoding and resizing.
        return image
    if image.mode in DEEP_MODES:
        return rgb_from_deep(image, opened)
    if image.mode in ("P", "La"):
        # Through another mode: a palette with transparency has no direct way to RGB, nor has La.
        image = image.convert("RGBA" if image.mode == "P" else "LA")
    return image.convert("RGB")


def without_bottom(image: Image.Image, crop_bottom_px: int) -> Image.Image:
    """The image less so many rows at its bottom. Raises ImageError where none would be left."""
    if not crop_bottom_px:
        return image
    width, height = image.size
    if height <= crop_bottom_px:
        raise ImageError(
            f"{width}x{height} is no taller than the banner of {crop_bottom_px} px at its bottom"
        )
    return image.crop((0, 0, width, height - crop_bottom_px))


def image_from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    """A decoded frame, uint8 (H,W,3) RGB or (H,W) grey, as a PIL image. Raises ImageError."""
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    ):
        raise ImageError(
            f"array of {array.dtype} {array.shape}: expected uint8 (H,W,3) RGB or (H,W) grey"
        )
    if 0 in array.shape:
        raise ImageError(f"array of shape {array.shape} holds no pixels")
    return rgb_from_image(Image.fromarray(np.ascontiguousarray(array)))


def resize_and_crop(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """RGB image -> uint8 (S,S,3), S = image_size_px.

    The arithmetic is torchvision's Resize and CenterCrop as timm's evaluation transform composes
    them (timm.data.transforms_factory.transforms_imagenet_eval), bit for bit.
    Raises ImageError when the aspect ratio would make the resized image larger than MAX_PIXELS.
    """
    size = spec.image_size_px
    scale = math.floor(size / spec.crop_pct)
    width, height = image.size
    if spec.crop_mode == "squash":
        resized = (scale, scale)
    elif width <= height:
        resized = (scale, int(scale * height / width))
    else:
        resized = (int(scale * width / height), scale)
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ImageError(
            f"{width}x{height} would be resized to {resized[0]}x{resized[1]}: "
            "crop it to a less extreme aspect ratio"
        )
    image = image.resize(resized, Image.Resampling[spec.interpolation.upper()])
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def batch_from_pixels(
    pixels: npt.NDArray[np.uint8], spec: Preprocessing, dtype: InputDtype
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """uint8 (B,S,S,3) -> what the graph takes: the same for `uint8`, normalised NCHW for `float32`."""
    if dtype == "uint8":
        return pixels
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    # NCHW first, then in place: a ninth of the time at batch 1, a sixth at 16.
    normalised = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    normalised /= np.float32(255)
    normalised -= mean
    normalised /= std
    return normalised
