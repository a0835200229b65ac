"""What a caller may give as an image, or as several."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.errors import ImageError
from gft_edge.runtime.preprocess import (
    image_from_array,
    open_rgb,
    rgb_from_bytes,
    rgb_from_image,
    without_bottom,
)

ImageLike = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | npt.NDArray[np.uint8]
)
Made = TypeVar("Made")

_BYTES = (bytes, bytearray, memoryview)
_KINDS = (
    "give a path, the bytes of an image file, a file opened in binary, a PIL image, or a uint8 array (H,W,3) "
    "RGB or (H,W) grey"
)


def decoded_rgb(image: ImageLike, crop_bottom_px: int = 0) -> Image.Image:
    """Any image that a caller may give, as upright RGB less rows at its bottom.

    An open file is read from its beginning. Raises ImageError for one that cannot be decoded, and for
    anything else, such as a tensor.
    """
    if isinstance(image, (str, os.PathLike)):
        return open_rgb(os.fsdecode(image), crop_bottom_px)
    return without_bottom(_decoded(image), crop_bottom_px)


def images_of(given: ImageLike | Iterable[ImageLike]) -> tuple[list[ImageLike], bool]:
    """The images that were given, and whether it is one alone. Raises ImageError for what is neither."""
    one = (str, os.PathLike, *_BYTES, Image.Image, np.ndarray)
    if isinstance(given, one) or hasattr(given, "read"):
        return [given], True  # type: ignore[list-item]
    # A tensor is iterable too, and its rows are no images; a set has no order to answer in.
    if (
        _is_tensor(given)
        or isinstance(given, (Mapping, set, frozenset))
        or not isinstance(given, Iterable)
    ):
        raise _no_image(given)
    return [*given], False


def each_named(images: Sequence[ImageLike], make: Callable[[ImageLike], Made]) -> Iterator[Made]:
    """Make something of each image. Raises ImageError that says which of several it is about."""
    for number, image in enumerate(images, start=1):
        try:
            yield make(image)
        except ImageError as error:
            if len(images) == 1:
                raise
            raise ImageError(f"image {number} of {len(images)}: {error}") from error.__cause__


def _decoded(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray):
        return image_from_array(image)
    if isinstance(image, Image.Image):
        return rgb_from_image(image)
    if isinstance(image, _BYTES):
        return rgb_from_bytes(bytes(image))
    if hasattr(image, "read"):
        return rgb_from_bytes(_content(image))
    raise _no_image(image)


def _content(file: BinaryIO) -> bytes:
    """What an open file holds, from its beginning where it can be sought, as Pillow reads it."""
    name = getattr(file, "name", "the open file")
    # mmap has none before Python 3.13, nor has every answer of a server.
    seekable = getattr(file, "seekable", lambda: hasattr(file, "seek"))
    try:
        if seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    if isinstance(content, str):
        raise ImageError(f"{name} is open as text: open it in binary, with mode 'rb'")
    if isinstance(content, Coroutine):
        content.close()
        raise ImageError(f"{name} is read by a coroutine: give what `await file.read()` returns")
    if not isinstance(content, (bytes, bytearray)):
        raise ImageError(f"{name} gives a {type(content).__name__} when read: {_KINDS}")
    return bytes(content)


def _no_image(given: object) -> ImageError:
    kind = type(given)
    named = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if _is_tensor(given):
        return ImageError(
            f"a {named} is no image here: give a uint8 array (H,W,3) RGB, of a tensor (3,H,W) in 0 to 255 "
            "tensor.permute(1, 2, 0).cpu().numpy()"
        )
    return ImageError(f"a {named} is no image: {_KINDS}")


def _is_tensor(given: object) -> bool:
    """Whether it is an array of another library than NumPy: PyTorch, JAX, CuPy, TensorFlow."""
    return hasattr(given, "__dlpack__") and not isinstance(given, np.ndarray)
