"""Damaged files and metadata: an image is read as Pillow reads it, or refused by one line that names it."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from gft_edge.errors import ImageError
from gft_edge.runtime.preprocess import open_rgb, rgb_from_bytes
from tests.support.refusals import refusal_of

# Name -> Pillow's format, its options, and the mode that it takes.
FORMATS: dict[str, tuple[str, dict[str, Any], str]] = {
    "jpg": ("JPEG", {"exif": True, "progressive": True}, "RGB"),
    "cmyk.jpg": ("JPEG", {}, "CMYK"),
    "png": ("PNG", {"exif": True}, "RGBA"),
    "palette.png": ("PNG", {}, "P"),
    "deep.png": ("PNG", {}, "I;16"),
    "animated.png": ("PNG", {"save_all": True}, "RGB"),
    "webp": ("WEBP", {"exif": True}, "RGB"),
    "lossless.webp": ("WEBP", {"lossless": True, "save_all": True}, "RGBA"),
    "avif": ("AVIF", {"exif": True}, "RGB"),
    "gif": ("GIF", {"save_all": True}, "P"),
    "tif": ("TIFF", {"exif": True}, "RGB"),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}, "RGB"),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}, "RGB"),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate", "save_all": True}, "I;16"),
    "bmp": ("BMP", {}, "P"),
    "ppm": ("PPM", {}, "RGB"),
    "jp2": ("JPEG2000", {}, "RGB"),
    "j2k": ("JPEG2000", {"no_jp2": True}, "L"),
    "mpo": ("MPO", {"save_all": True, "exif": True}, "RGB"),
    "ico": ("ICO", {}, "RGBA"),
    "icns": ("ICNS", {}, "RGBA"),
    "dds": ("DDS", {}, "RGBA"),
    "dxt.dds": ("DDS", {"pixel_format": "DXT5"}, "RGBA"),
    "tga": ("TGA", {"compression": "tga_rle"}, "RGB"),
    "pcx": ("PCX", {}, "P"),
    "sgi": ("SGI", {}, "RGB"),
    "qoi": ("QOI", {}, "RGB"),
    "blp": ("BLP", {}, "P"),
    "xbm": ("XBM", {}, "1"),
}  # fmt: skip

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def encoded(name: str) -> bytes:
    """One small picture in a format, with metadata and more frames where it has them."""
    kind, asked, mode = FORMATS[name]
    generator = np.random.default_rng(len(name))
    picture = Image.fromarray(generator.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    picture = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
    options = dict(asked)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "A maker of cameras"
        exif.get_ifd(0x8825)[2] = (48.0, 8.0, 11.5)
        options["exif"] = exif.tobytes()
    if options.get("save_all"):
        options["append_images"] = [picture.copy().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return saved(picture, kind, **options)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file damaged as disks, cards and half transfers damage one."""
    data = bytearray(content)
    near = len(data) if chance.random() < 0.5 else min(len(data), 256)
    start = chance.randrange(near)
    how = chance.randrange(6)
    if how == 0:
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    elif how == 1:
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(near)] = chance.choice(
                (0, 1, 127, 128, 255, chance.randrange(256))
            )
    elif how == 2:
        del data[start:]
    elif how == 3:
        del data[start : start + chance.randint(1, 40)]
    elif how == 4:
        data[start:start] = chance.randbytes(chance.randint(1, 40))
    else:
        value = chance.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        width = 4 if value > 0xFFFF else 2
        data[start : start + width] = value.to_bytes(width, chance.choice(("little", "big")))
    return bytes(data)


@pytest.mark.parametrize(
    "each", [pytest.param(12, id="few"), pytest.param(400, id="many", marks=pytest.mark.slow)]
)
def test_a_damaged_file_is_read_or_refused_by_its_name(tmp_path: Path, each: int) -> None:
    refused: set[str] = set()
    read: set[str] = set()
    with warnings.catch_warnings():
        # As in a user's process, where a warning is no exception.
        warnings.simplefilter("ignore")
        for name in FORMATS:
            chance = random.Random(name)
            whole, path = encoded(name), tmp_path / f"a.{name}"
            path.write_bytes(whole)
            assert open_rgb(path).mode == "RGB"
            for _ in range(each):
                path.write_bytes(mutated(whole, chance))
                refusal = ""
                try:
                    assert open_rgb(path).mode == "RGB"
                except ImageError as error:
                    refusal = str(error)
                (refused if refusal else read).add(name)
                assert not refusal or refusal.startswith(f"{path}: ")
                assert "\n" not in refusal
    assert len(refused) > len(FORMATS) * 0.8
    assert len(read) > len(FORMATS) * 0.6


Entry = tuple[int, int, int, bytes]  # tag, type, count, value


def block(entries: list[Entry], order: str, pixels: bytes = b"") -> bytes:
    """A directory of tags as TIFF and EXIF write one; `pixels` follow, at the offset in tag 273."""
    at, values = 8 + 2 + 12 * len(entries) + 4, b""
    ends = at + sum(len(value) for *_, value in entries if len(value) > 4)
    rows = []
    for tag, kind, count, value in entries:
        if tag == 273:
            value = struct.pack(f"{order}L", ends)
        if len(value) > 4:
            rows.append(struct.pack(f"{order}HHLL", tag, kind, count, at + len(values)))
            values += value
        else:
            rows.append(struct.pack(f"{order}HHL", tag, kind, count) + value.ljust(4, b"\0"))
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return (
        head + struct.pack(f"{order}H", len(entries)) + b"".join(rows) + bytes(4) + values + pixels
    )


def wild_entry(tag: int, order: str, chance: random.Random) -> Entry:
    """A tag of some type, seldom its own, with any value."""
    kind = chance.choice([*_SIZES, 0, 99])
    count = chance.choice((0, 1, 1, 1, 2, 3, 9))
    value = chance.choice((b"6\0", b"N/A\0", bytes(72), b"\xff" * 72, chance.randbytes(72)))
    return tag, kind, count, value.ljust(72, b" ")[: count * _SIZES.get(kind, 1)]


def wild_blocks(count: int, with_pixels: bool) -> Iterator[bytes]:
    """EXIF blocks, or whole TIFFs of 3x2 pixels, most with orientation 6 and tags that are wrong."""
    chance = random.Random(6)
    tags = [0x010E, 0x011A, 0x0128, 0x0132, 0x0213, 0x8298, 0x8769, 0x8825, 0xA005, 0xC4A5, 2, 4]
    for _ in range(count):
        order = chance.choice("<>")
        short = struct.Struct(f"{order}H").pack
        entries: list[Entry] = [(0x0112, 3, 1, short(chance.choice((6, 6, 6, 8, 2, 0, 77))))]
        if with_pixels:
            entries += [(256, 3, 1, short(3)), (257, 3, 1, short(2)), (258, 3, 3, short(8) * 3),
                        (259, 3, 1, short(1)), (262, 3, 1, short(2)), (273, 4, 1, bytes(4)),
                        (277, 3, 1, short(3)), (278, 3, 1, short(2)),
                        (279, 4, 1, struct.pack(f"{order}L", 18))]  # fmt: skip
        elif chance.random() < 0.2:
            entries = [wild_entry(0x0112, order, chance)]
        entries += [wild_entry(tag, order, chance) for tag in chance.sample(tags, 2)]
        made = block(sorted(entries, key=lambda entry: entry[0]), order, bytes(range(18)))
        how = chance.random()
        if with_pixels or how < 0.7:
            yield made
        elif how < 0.8:
            yield made[: chance.randrange(len(made))]
        elif how < 0.9:
            yield (b"MM" if order == "<" else b"II") + made[2:]
        else:
            yield mutated(made, chance)


# AVIF is turned by a box of its own, and its writer refuses such metadata.
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photograph_is_turned_as_pillow_turns_it_whatever_its_metadata_hold(kind: str) -> None:
    pixels = np.arange(18 * 64, dtype=np.uint8).reshape(16, 24, 3)
    unread = turned = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for exif in wild_blocks(250, kind == "TIFF"):
            content = (
                exif
                if kind == "TIFF"
                else saved(Image.fromarray(pixels), kind, exif=b"Exif\0\0" + exif)
            )
            ours = rgb_from_bytes(content)
            try:
                with Image.open(io.BytesIO(content)) as image:
                    read = image.getexif().get(0x0112)
                    theirs = ImageOps.exif_transpose(image).convert("RGB")
            except Exception:
                unread += 1
                continue
            if not isinstance(read, int) and ours.size != theirs.size:
                # Pillow stopped before it; it is turned all the same.
                continue
            turned += theirs.size in ((16, 24), (2, 3))
            np.testing.assert_array_equal(ours, theirs)
    assert turned > 20
    assert unread


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_latitude_stored_as_text_turns_the_pixels_all_the_same(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 11.5)
    # Type 5, a rational, three times -> type 2, 24 letters.
    whole = exif.tobytes()
    damaged = whole.replace(struct.pack(">HHL", 2, 5, 3), struct.pack(">HHL", 2, 2, 24))
    assert damaged != whole
    image = Image.fromarray(np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3))
    expected = rgb_from_bytes(saved(image, kind, exif=whole))
    assert expected.size == (16, 24)
    np.testing.assert_array_equal(rgb_from_bytes(saved(image, kind, exif=damaged)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("type_of_orientation", [1, 3, 4])
def test_a_tag_that_points_out_of_the_metadata_loses_no_orientation(
    kind: str, order: str, type_of_orientation: int
) -> None:
    value = struct.pack(order + {1: "B", 3: "H", 4: "L"}[type_of_orientation], 6)
    maker = (0x010F, 2, 5000, b"cut!")
    # Pillow stops at the maker, whose 5000 letters are not there.
    exif = block([maker, (0x0112, type_of_orientation, 1, value)], order)
    exif = exif.replace(b"cut!", struct.pack(f"{order}L", 60000))
    image = Image.fromarray(np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = rgb_from_bytes(saved(image, kind, exif=b"Exif\0\0" + exif))
    assert turned.size == (16, 24)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image in a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, pipes and names")
def test_a_path_that_cannot_be_opened_is_refused_by_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "file").touch()
    try:
        for path in (
            tmp_path / "pipe.jpg",  # opening it would wait for a writer
            tmp_path / "closed" / "a.jpg",
            tmp_path / ("a" * 300 + ".jpg"),
            tmp_path / "loop.jpg",
            tmp_path / "file" / "a.jpg",
            tmp_path / "nul\0.jpg",
            tmp_path / "\ud800.jpg",
            tmp_path,
        ):
            refusal_of(ImageError, partial(open_rgb, path), str(path))
            refusal_of(ImageError, partial(open_rgb, str(path)), str(path))
    finally:
        (tmp_path / "closed").chmod(0o700)
