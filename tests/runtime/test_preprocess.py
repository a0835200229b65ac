"""Preprocessing equals timm's evaluation transform, and every kind of image file is read or refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gft_edge.bundle.specs import CropMode, Preprocessing
from gft_edge.errors import ImageError
from gft_edge.runtime.preprocess import (
    MAX_PIXELS,
    batch_from_pixels,
    image_from_array,
    open_rgb,
    resize_and_crop,
    rgb_from_bytes,
    rgb_from_image,
)
from tests.support.refusals import refusal_of

Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (width, height): square, landscape, portrait, odd, smaller and larger than the target, a strip.
SIZES = [(64, 64), (65, 64), (301, 199), (199, 301), (97, 33), (33, 97), (1, 1), (640, 11)]
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def spec(
    size: int = 64,
    crop_pct: float = 0.9,
    crop_mode: CropMode = "center",
    interpolation: Interpolation = "bicubic",
) -> Preprocessing:
    return Preprocessing(size, crop_pct, crop_mode, interpolation, MEAN, STD)


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def timm_pixels(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """What timm feeds a network just before it normalises, as (S,S,3)."""
    pixels = timm_transform(spec, use_prefetcher=True)(image)
    return np.asarray(pixels).transpose(1, 2, 0)


def timm_transform(spec: Preprocessing, **options: Any) -> Any:
    from timm.data import create_transform

    return create_transform(
        (3, spec.image_size_px, spec.image_size_px),
        is_training=False,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        mean=spec.mean,
        std=spec.std,
        **options,
    )


def refusal(path: Path) -> str:
    """The message `path` is refused with, which names it and is one line."""
    message = refusal_of(ImageError, lambda: open_rgb(path))
    assert message.startswith(f"{path}: ")
    return message


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """A 1-bit PNG of any declared size around `rows`."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_pixels_equal_timms_for_every_interpolation_crop_and_shape(
    interpolation: Interpolation, crop_mode: CropMode, crop_pct: float
) -> None:
    given = spec(64, crop_pct, crop_mode, interpolation)
    for width, height in SIZES:
        image = noise(width, height)
        np.testing.assert_array_equal(
            resize_and_crop(image, given), timm_pixels(image, given), err_msg=f"{width}x{height}"
        )


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_pixels_equal_timms_on_real_photographs(grocery: Path, crop_mode: CropMode) -> None:
    paths = sorted((grocery / "test").rglob("*.jpg"))[::100]
    assert len(paths) >= 8
    given = spec(224, 0.9 if crop_mode == "center" else 1.0, crop_mode)
    for path in paths:
        image = open_rgb(path)
        with Image.open(path) as original:
            expected = timm_pixels(original.convert("RGB"), given)
        np.testing.assert_array_equal(resize_and_crop(image, given), expected, err_msg=str(path))


def test_the_float_batch_equals_torchvisions_to_tensor_and_normalize() -> None:
    images = [noise(70, 90), noise(91, 64)]
    given = spec()
    pixels = np.stack([resize_and_crop(image, given) for image in images])
    batch = batch_from_pixels(pixels, given, "float32")
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    transform = timm_transform(given)
    np.testing.assert_array_equal(batch, np.stack([transform(image).numpy() for image in images]))


def test_the_pixel_batch_is_the_pixels() -> None:
    pixels = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    assert batch_from_pixels(pixels, spec(), "uint8") is pixels


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_the_bytes_of_a_file_are_read_as_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(20, 11).save(path)
    np.testing.assert_array_equal(rgb_from_bytes(path.read_bytes()), open_rgb(path))


def test_bytes_that_are_no_image_are_refused_with_their_length() -> None:
    half = jpeg(noise(64, 64))
    half = half[: len(half) // 2]
    for data, words in (
        (b"", ("empty",)),
        (b"not\nan image", ("12 bytes",)),
        (half, (f"{len(half):,} bytes",)),
        # The header alone: an attempt to decode would complain about missing pixels instead.
        (png(20_000, 20_000, b""), (f"{MAX_PIXELS:,} pixels",)),
    ):
        refusal_of(ImageError, partial(rgb_from_bytes, data), *words)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    image, exif = noise(20, 11), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    # 9 means nothing and turns nothing.
    upright = image.transpose(TRANSPOSED[orientation]) if orientation in TRANSPOSED else image
    np.testing.assert_array_equal(open_rgb(tmp_path / "a.png"), upright)


@pytest.mark.parametrize(
    ("mode", "suffix", "colours", "expected"),
    [
        ("CMYK", "tif", [(10, 20, 30, 40), (0, 0, 0, 255)], [(207, 198, 190), (0, 0, 0)]),
        ("LA", "png", [(77, 0), (9, 255)], [(77, 77, 77), (9, 9, 9)]),
        ("1", "png", [0, 1], [(0, 0, 0), (255, 255, 255)]),
        # Scaled, and not clipped at 255.
        ("I;16", "png", [257, 65535], [(1, 1, 1), (255, 255, 255)]),
        ("I;16", "png", [128, 32768], [(0, 0, 0), (128, 128, 128)]),
    ],
)
def test_each_mode_of_pixels_has_its_colours(
    tmp_path: Path, mode: str, suffix: str, colours: list[Any], expected: list[Any]
) -> None:
    image = Image.new(mode, (2, 1))
    for place, colour in enumerate(colours):
        image.putpixel((place, 0), colour)
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as original:
        assert original.mode == mode
    assert [tuple(pixel) for pixel in np.asarray(open_rgb(tmp_path / f"a.{suffix}"))[0]] == expected


def tiff(
    values: npt.NDArray[np.uint16], bits: int, white_is_zero: bool = False, signed: bool = False
) -> bytes:
    """A grey TIFF of (H,W) values in `bits` each: 12, two in three bytes, or 16."""
    height, width = values.shape
    if bits == 12:
        first, second = values.reshape(-1, 2).astype(int).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = values.astype("<u2").tobytes()
    tags = (
        (256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8),
        (277, 1), (278, height), (279, len(pixels)), (339, 2 if signed else 1),
    )  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(pixels)
    head = struct.pack("<2sHI", b"II", 42, start)
    return head + pixels + struct.pack("<H", len(tags)) + directory + bytes(4)


def greys(image: Image.Image) -> list[int]:
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return [int(value) for value in pixels[..., 0].ravel()]


def test_a_tiff_of_twelve_bits_has_its_greys() -> None:
    values = np.array([[0, 4095], [2048, 1024]], np.uint16)
    assert greys(rgb_from_bytes(tiff(values, 12))) == [0, 255, 128, 64]
    opened = Image.open(io.BytesIO(tiff(values, 12)))
    assert greys(rgb_from_image(opened)) == [0, 255, 128, 64]


def test_a_tiff_whose_zero_is_white_is_turned_over() -> None:
    values = np.array([[0, 65535], [257, 32768]], np.uint16)
    assert greys(rgb_from_bytes(tiff(values, 16))) == [0, 255, 1, 128]
    assert greys(rgb_from_bytes(tiff(values, 16, white_is_zero=True))) == [255, 0, 254, 127]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bits_have_their_greys_in_any_order_of_bytes(mode: str) -> None:
    kind = ">u2" if mode == "I;16B" else "<i4" if mode == "I" else "<u2"
    values = np.array([[0, 65535, 257], [32768, 514, 1028]]).astype(kind)
    image = Image.frombytes(mode, (3, 2), values.tobytes())
    assert greys(rgb_from_image(image)) == [0, 255, 1, 128, 2, 4]


def test_a_deep_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert greys(open_rgb(tmp_path / "a.png")) == [255, 0]


def test_values_of_eight_bits_in_mode_i_are_greys_as_they_are() -> None:
    values = np.array([[0, 255], [7, 128]], np.int32)
    assert greys(rgb_from_image(Image.fromarray(values))) == [0, 255, 7, 128]
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    assert greys(rgb_from_bytes(file.getvalue())) == [0, 255, 7, 128]
    # A PGM says how much is white, and Pillow has scaled it to 16 bits.
    dark = b"P5 2 1 65535\n" + struct.pack(">HH", 128, 255)
    assert greys(rgb_from_bytes(dark)) == [0, 1]
    assert greys(rgb_from_bytes(b"P5 2 1 4095\n" + struct.pack(">HH", 4095, 2048))) == [255, 128]


def test_sixteen_bits_with_a_sign_are_white_at_what_they_hold() -> None:
    values = np.array([[0, 32767], [16384, 129]], np.uint16)
    content = tiff(values, 16, signed=True)
    assert greys(rgb_from_bytes(content)) == [0, 255, 128, 1]


def test_signed_values_below_zero_have_no_defined_pixels() -> None:
    refusal_of(
        ImageError, lambda: rgb_from_image(Image.fromarray(np.array([[-1, 5]], np.int32))), "-1"
    )


@pytest.mark.parametrize(
    ("begin", "word"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"%PDF-1.7", "document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "document"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
    ],
)
def test_a_file_that_is_named_as_an_image_and_is_none_is_called_what_it_is(
    begin: bytes, word: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(begin)
    assert word in refusal(tmp_path / "a.jpg")
    refusal_of(ImageError, partial(rgb_from_bytes, begin), word)


def test_a_document_that_starts_a_program_is_refused(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.eps")
    assert "document" in refusal(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert "document" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "name",
    ["JPEG", "MPO", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI", "DDS", "ICO", "DIB"],
)
def test_what_pillow_decodes_by_itself_is_read_whatever_its_name(name: str) -> None:
    file = io.BytesIO()
    noise(16, 16).save(file, name)
    assert rgb_from_bytes(file.getvalue()).size == (16, 16)


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_a_palette_keeps_its_colours_under_any_transparency(
    tmp_path: Path, transparency: int | bytes | None
) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 30, 5, 250, 40])
    image.putpixel((1, 0), 1)
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    assert np.asarray(open_rgb(tmp_path / "a.png")).tolist() == [[[200, 10, 30], [5, 250, 40]]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_shows_its_first_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as original:
        assert getattr(original, "n_frames", 1) == 2
    assert (np.asarray(open_rgb(path)) == (255, 0, 0)).all()


def test_a_path_without_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not\nan image")
    assert "0 bytes" in refusal(tmp_path / "empty.jpg")
    for path in (tmp_path / "missing.jpg", tmp_path, tmp_path / "text.jpg"):
        refusal(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise(64, 64).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(content[: len(content) // 2])
    refusal(tmp_path / f"a.{suffix}")


# Pillow warns of metadata that it skips and goes on.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_damage_anywhere_is_refused_or_read_and_never_escapes_as_another_error(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        file = io.BytesIO()
        options = {} if name in ("GIF", "BMP") else {"exif": exif}
        noise(24, 16).save(file, name, **options)
        for _ in range(40):
            damaged = np.frombuffer(file.getvalue(), dtype=np.uint8).copy()
            near = min(len(damaged), 200)
            damaged[generator.integers(0, near, 3)] = generator.integers(0, 256, 3)
            (tmp_path / "a").write_bytes(damaged.tobytes())
            with contextlib.suppress(ImageError):
                assert open_rgb(tmp_path / "a").mode == "RGB"


# As a user's process has it: pytest puts its own warning filters before the module's.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_photograph_of_ninety_megapixels_is_read(tmp_path: Path) -> None:
    # Over Pillow's warning limit (89 478 485) and under ours.
    (tmp_path / "a.png").write_bytes(png(9_500, 9_500, bytes(9_500 * 1189)))
    assert open_rgb(tmp_path / "a.png").size == (9_500, 9_500)


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_strip_that_would_grow_beyond_the_limit_is_refused(size: tuple[int, int]) -> None:
    strip = Image.new("RGB", size)
    refusal_of(ImageError, lambda: resize_and_crop(strip, spec(224)), "30000")


def test_a_strip_is_squashed_whatever_its_aspect() -> None:
    assert resize_and_crop(Image.new("RGB", (1, 30_000)), spec(64, 1.0, "squash")).shape[0] == 64


def test_an_rgb_image_is_not_copied(tmp_path: Path) -> None:
    image = noise(20, 11)
    assert rgb_from_image(image) is image
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert rgb_from_image(opened) is opened
    np.testing.assert_array_equal(opened, image)  # its pixels outlive the file


def test_a_frame_that_changes_later_is_not_the_image_any_more() -> None:
    for shape in ((4, 5, 3), (4, 5)):
        frame = np.zeros(shape, dtype=np.uint8)
        image = image_from_array(frame)
        frame[:] = 255
        assert not np.asarray(image).any()


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="holds no pixels"):
        resize_and_crop(rgb_from_image(Image.new("RGB", (0, 5))), spec())


def test_floats_have_no_defined_pixels() -> None:
    refusal_of(ImageError, lambda: rgb_from_image(Image.new("F", (4, 4), 0.5)), "mode F")


def test_a_frame_is_rgb_or_grey() -> None:
    frame = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(image_from_array(frame), frame)
    grey = np.asarray(image_from_array(frame[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(frame[..., :1], 3, axis=2))
    np.testing.assert_array_equal(image_from_array(frame[:, ::-1]), frame[:, ::-1])


@pytest.mark.parametrize(
    ("dtype", "shape", "word"),
    [
        ("float32", (4, 5, 3), "(H,W,3)"),
        ("uint8", (4, 5, 4), "(H,W,3)"),
        ("uint8", (3, 4, 5), "(H,W,3)"),
        ("uint8", (1, 4, 5, 3), "(H,W,3)"),
        ("uint8", (5,), "(H,W,3)"),
        ("uint8", (0, 5, 3), "no pixels"),
        ("uint8", (5, 0), "no pixels"),
    ],
)
def test_an_array_that_is_no_frame_is_refused_with_its_shape(
    dtype: str, shape: tuple[int, ...], word: str
) -> None:
    array: Any = np.zeros(shape, dtype)
    refusal_of(ImageError, lambda: image_from_array(array), word, str(shape))
