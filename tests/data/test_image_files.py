"""Levels of image files, at every pixel, and the files whose levels cannot be kept."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import CenterCrop, Grayscale, RandomCrop

import sde_models as sm
from sde_models.data.image_files import read_levels

Array = np.ndarray[Any, Any]

DEEP = np.random.default_rng(0).integers(0, 65536, (3, 5, 4)).astype(np.uint16)
DEEP[0, 0] = [0, 1, 65534, 65535]  # shape (H, W, C)
BYTES = (DEEP >> 8).astype(np.uint8)
OPAQUE = np.full((3, 5, 1), 65535, np.uint16)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def write_png(path: Path, image: Array, depth: int, *further: bytes) -> Path:
    """Write a PNG of any depth, which Pillow does not; image of shape (H, W, C)."""
    height, width, channels = image.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = image.reshape(height, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth)[::-1]) & 1
        packed = [np.packbits(row).tobytes() for row in bits.reshape(height, -1).astype(np.uint8)]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in packed))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(further)
        + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def write_tiff(path: Path, image: Array, depth: int, photometric: int) -> Path:
    """Write an uncompressed TIFF of any depth; image of shape (H, W, C), bytes as they go in."""
    height, width, channels = image.shape
    data = image.tobytes()
    width = width * image.itemsize * 8 // depth
    depths = struct.pack(f"<{max(2, channels)}H", *[depth] * max(2, channels))
    numbers = [
        (256, width), (257, height), (259, 1), (262, photometric), (273, 8 + len(depths)),
        (277, channels), (278, height), (279, len(data)),
    ]  # fmt: skip
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers}
    inline = struct.pack("<HHIHH", 258, 3, 1, depth, 0)
    entries[258] = inline if channels == 1 else struct.pack("<HHII", 258, 3, channels, 8)
    start = 8 + len(depths) + len(data)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + depths + data
        + struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
        + bytes(4)
    )  # fmt: skip
    return path


def save(path: Path, image: Any, **options: Any) -> Path:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(path, **options)
    return path


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def channels_first(image: Array) -> Tensor:
    return torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)


GREY, DEEP_GREY, RGB = BYTES[..., 0], DEEP[..., 0], BYTES[..., :3]
PALETTE = Image.fromarray(RGB).quantize(16)
OPAQUE_LA = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (5, 3), 255)])
OPAQUE_RGBA = Image.fromarray(RGB).convert("RGBA")
CMYK = Image.fromarray(RGB).convert("CMYK")
BIG_ENDIAN = DEEP_GREY.astype(">u2")

KEPT: dict[str, tuple[Callable[[Path], Path], Array]] = {
    "8-bit grey PNG": (lambda p: save(p / "a.png", GREY), GREY),
    "8-bit grey TIFF": (lambda p: save(p / "a.tif", GREY), GREY),
    "8-bit grey BMP": (lambda p: save(p / "a.bmp", GREY), GREY),
    "8-bit grey PGM": (lambda p: save(p / "a.pgm", GREY), GREY),
    "8-bit TIFF with 0 for white": (
        lambda p: write_tiff(p / "a.tif", 255 - BYTES[..., :1], 8, 0), GREY,
    ),
    "16-bit grey PNG": (lambda p: write_png(p / "a.png", DEEP[..., :1], 16), DEEP_GREY),
    "16-bit grey PNG of Pillow": (lambda p: save(p / "a.png", DEEP_GREY), DEEP_GREY),
    "16-bit grey TIFF": (lambda p: save(p / "a.tif", DEEP_GREY), DEEP_GREY),
    "16-bit grey TIFF, big-endian": (
        lambda p: save(p / "a.tif", Image.frombytes("I;16B", (5, 3), BIG_ENDIAN.tobytes())),
        DEEP_GREY,
    ),
    "16-bit grey PGM": (
        lambda p: write(p / "a.pgm", b"P5 # so\n5 3 65535\n" + BIG_ENDIAN.tobytes()),
        DEEP_GREY,
    ),
    "16-bit RGB PNG": (lambda p: write_png(p / "a.png", DEEP[..., :3], 16), DEEP[..., :3]),
    "16-bit RGB PNG with opaque alpha": (
        lambda p: write_png(p / "a.png", np.concatenate([DEEP[..., :3], OPAQUE], 2), 16),
        DEEP[..., :3],
    ),
    "8-bit RGB PNG": (lambda p: save(p / "a.png", RGB), RGB),
    "8-bit RGB TIFF": (lambda p: save(p / "a.tif", RGB), RGB),
    "8-bit RGB PPM": (lambda p: save(p / "a.ppm", RGB), RGB),
    "8-bit RGB WebP": (lambda p: save(p / "a.webp", RGB, lossless=True), RGB),
    "opaque RGBA": (lambda p: save(p / "a.png", OPAQUE_RGBA), RGB),
    "opaque LA": (lambda p: save(p / "a.png", OPAQUE_LA), GREY),
    "1-bit PNG": (lambda p: write_png(p / "a.png", BYTES[..., :1] >> 7, 1), (GREY >> 7) * 255),
    "2-bit PNG": (lambda p: write_png(p / "a.png", BYTES[..., :1] >> 6, 2), (GREY >> 6) * 85),
    "4-bit PNG": (lambda p: write_png(p / "a.png", BYTES[..., :1] >> 4, 4), (GREY >> 4) * 17),
    "palette PNG": (lambda p: save(p / "a.png", PALETTE), np.array(PALETTE.convert("RGB"))),
    "palette BMP": (lambda p: save(p / "a.bmp", PALETTE), np.array(PALETTE.convert("RGB"))),
    "palette TIFF": (lambda p: save(p / "a.tif", PALETTE), np.array(PALETTE.convert("RGB"))),
    "GIF by the name of a PNG": (
        lambda p: save(p / "a.png", PALETTE, format="GIF"), np.array(PALETTE.convert("RGB")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_levels_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    make, image = KEPT[kind]
    found = read_levels(make(tmp_path))
    assert found.dtype == (torch.uint16 if "16-bit" in kind else torch.uint8)
    assert torch.equal(found, channels_first(image))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpegs_are_read_as_pillow_decodes_them(mode: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB).convert(mode))
    with Image.open(path) as opened:
        assert opened.mode == mode
        assert torch.equal(read_levels(path), channels_first(np.array(opened)))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


TURNED: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What EXIF 2.32, section 4.6.4, says of the stored rows and columns."""


@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_as_their_orientation_says(orientation: int, tmp_path: Path) -> None:
    exif = exif_of(orientation)
    eight, deep = tmp_path / "8.png", tmp_path / "16.png"
    for path, image in ((eight, RGB), (deep, DEEP_GREY), (tmp_path / "8.tif", RGB)):
        save(path, image, exif=exif)
        turned = channels_first(TURNED[orientation](image).copy())
        assert torch.equal(read_levels(path), turned), path
    tag = chunk(b"eXIf", exif.tobytes()[6:])  # without the name that JPEG puts before it
    write_png(deep, DEEP[..., :3], 16, tag)
    assert torch.equal(read_levels(deep), channels_first(TURNED[orientation](DEEP[..., :3]).copy()))


def cut_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(RGB).convert(mode)
    image.putpixel((2, 1), (*image.getpixel((2, 1))[:-1], 254))  # type: ignore[index]
    return image


def several(path: Path) -> Path:
    pages = [Image.fromarray(GREY), Image.fromarray(GREY // 2)]
    return save(path, pages[0], save_all=True, append_images=pages[1:])


def transparent(depth: int, image: Array) -> Callable[[Path], Path]:
    key = struct.pack(f">{image.shape[2]}H", *image[1, 1].astype(int).tolist())
    return lambda p: write_png(p / "a.png", image, depth, chunk(b"tRNS", key))


FLOATS = (DEEP_GREY / 65535).astype(np.float32)
HALF = np.concatenate([DEEP[..., :3], OPAQUE - 1], 2)
SIGNED = (DEEP_GREY.astype(np.int64) - 32768).astype(np.int32)

REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "floats": (lambda p: save(p / "a.tif", FLOATS), r"floats.*no levels.*\.npy"),
    "32-bit integers": (
        lambda p: save(p / "a.tif", DEEP_GREY.astype(np.int32) * 30_000), r"32 bits.*\.npy",
    ),
    "integers with a sign": (lambda p: save(p / "a.tif", SIGNED), r"with a sign.*\.npy"),
    "16-bit RGB TIFF": (
        lambda p: write_tiff(p / "a.tif", DEEP[..., :3].copy(), 16, 2), "16 bits.*PNG files only",
    ),
    "12-bit grey TIFF": (
        lambda p: write_tiff(p / "a.tif", np.zeros((3, 6, 1), np.uint8), 12, 1),
        "12 bits.*16-bit PNG",
    ),
    "16-bit TIFF with 0 for white": (
        lambda p: write_tiff(p / "a.tif", DEEP[..., :1].copy(), 16, 0), "0 for white.*16-bit PNG",
    ),
    "16-bit RGB PPM": (
        lambda p: write(p / "a.ppm", b"P6\n5 3\n65535\n" + DEEP[..., :3].tobytes()),
        "16 bits.*PNG files only",
    ),
    "CMYK JPEG": (lambda p: save(p / "a.jpg", CMYK), r"CMYK.*convert\('RGB'\)"),
    "CMYK TIFF": (lambda p: save(p / "a.tif", CMYK), r"CMYK.*convert\('RGB'\)"),
    "Lab": (lambda p: save(p / "a.tif", Image.new("LAB", (5, 3))), r"LAB.*convert\('RGB'\)"),
    "RGBA": (lambda p: save(p / "a.png", cut_alpha("RGBA")), "transparent.*background"),
    "LA": (lambda p: save(p / "a.png", cut_alpha("LA")), "transparent.*background"),
    "RGBA of 16 bits": (lambda p: write_png(p / "a.png", HALF, 16), "transparent.*without"),
    "LA of 16 bits": (
        lambda p: write_png(p / "a.png", np.concatenate([DEEP[..., :1], OPAQUE], 2), 16),
        "transparency of 16 bits.*without",
    ),
    "a transparent grey": (transparent(8, BYTES[..., :1]), "transparent.*background"),
    "a transparent grey of 16 bits": (transparent(16, DEEP[..., :1]), "transparent pixels"),
    "a transparent colour": (transparent(8, BYTES[..., :3]), "transparent.*background"),
    "a transparent colour of 16 bits": (
        transparent(16, DEEP[..., :3]), "transparency of 16 bits.*without",
    ),
    "a transparent entry of a palette": (
        lambda p: save(p / "a.png", PALETTE, transparency=PALETTE.getpixel((1, 1))),
        "transparent.*background",
    ),
    "an animation": (lambda p: several(p / "a.png"), "2 pictures.*a file of its own"),
    "an animated WebP": (lambda p: several(p / "a.webp"), "2 pictures"),
    "pages": (lambda p: several(p / "a.tif"), "2 pictures"),
    "another format": (
        lambda p: save(p / "a.png", RGB, format="SGI"), "SGI file.*save it as PNG",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_files_whose_levels_are_not_kept_are_refused(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    (tmp_path / "a").mkdir()
    path = make(tmp_path / "a")
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        read_levels(path)
    with pytest.raises(ValueError, match=message):
        sm.data.image_folder(tmp_path)


@pytest.mark.parametrize("make", [
    lambda p: save(p, RGB), lambda p: write_png(p, DEEP[..., :3], 16), lambda p: save(p, DEEP_GREY),
])  # fmt: skip
def test_damaged_files_are_named(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a.png")
    content = path.read_bytes()
    for broken in (content[: len(content) // 2 + 20], b"no image"):
        path.write_bytes(broken)
        with pytest.raises(OSError, match=r"a\.png cannot be read as an image"):
            read_levels(path)


def test_transforms_are_given_the_mode_of_the_file(tmp_path: Path) -> None:
    deep, clear = save(tmp_path / "a.png", DEEP_GREY), save(tmp_path / "b.png", cut_alpha("RGBA"))
    assert torch.equal(read_levels(deep, CenterCrop(1)), channels_first(DEEP_GREY[1:2, 2:3]))
    dropped = read_levels(clear, lambda image: image.convert("RGBA").convert("RGB"))
    assert torch.equal(dropped, channels_first(RGB))
    converted = read_levels(save(tmp_path / "a.tif", CMYK), lambda image: image.convert("RGB"))
    assert torch.equal(converted, channels_first(np.array(CMYK.convert("RGB"))))
    turned = save(tmp_path / "c.png", RGB, exif=exif_of(6))
    seen: list[Any] = []
    read_levels(turned, lambda image: seen.append(image.size) or image)  # type: ignore[func-returns-value]
    assert seen == [(3, 5)]
    # Pillow clips 16 bits at 255 here.
    with pytest.raises(ValueError, match="16 bits into mode L, in which Pillow clips"):
        read_levels(deep, Grayscale())
    with pytest.raises(ValueError, match=r"a PIL\.Image cannot hold"):
        read_levels(write_png(tmp_path / "d.png", DEEP[..., :3], 16), CenterCrop(1))
    with pytest.raises(TypeError, match=r"must return a PIL\.Image, got Tensor"):
        read_levels(deep, lambda _: torch.zeros(1))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (RGB, r"3 channels of 3 x 5 pixels of 8 bits.*1 channel of.*convert\('RGB'\)"),
        (DEEP_GREY, "16 bits, and .* 8 bits: convert the files"),
        (GREY[:, :4], r"3 x 4 pixels.*3 x 5 pixels.*CenterCrop"),
    ],
)
def test_files_of_two_kinds_are_refused_by_their_names(
    other: Array, message: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    save(tmp_path / "one" / "a.png", GREY)
    save(tmp_path / "two" / "b.png", other)
    data = sm.data.image_folder(tmp_path)
    assert torch.equal(data[0][0], channels_first(GREY))
    with pytest.raises(ValueError, match=message) as caught:
        data[1]
    assert all(name in str(caught.value) for name in ("one/a.png", "two/b.png"))


def test_two_kinds_become_one_by_a_transform(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a.png", GREY)
    save(tmp_path / "one" / "b.png", RGB)
    data = sm.data.image_folder(tmp_path, lambda image: image.convert("RGB"))
    assert torch.equal(data[0][0], channels_first(GREY).expand(3, -1, -1))
    assert torch.equal(data[1][0], channels_first(RGB))


def test_all_levels_of_16_bits_reach_the_model(tmp_path: Path) -> None:
    """Every one of the 65,536 levels comes back from the numbers that a model is trained on."""
    (tmp_path / "one").mkdir()
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    save(tmp_path / "one" / "a.png", levels)
    data = sm.data.image_folder(tmp_path)
    assert (data.levels, data[0][0].dtype, data[0][0].shape) == (65536, torch.uint16, (1, 256, 256))
    (x, label) = sm.data.Dequantized(data, data.levels)[0]
    assert label == 0
    back = sm.data.quantize(x[None], data.levels)[0, 0]
    assert torch.equal(back, torch.from_numpy(levels.astype(np.int64)))


def test_reading_the_first_file_draws_no_random_numbers(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a.png", GREY)
    before = torch.random.get_rng_state()
    sm.data.image_folder(tmp_path, RandomCrop(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_table_of_orientations_is_that_of_pillow() -> None:
    for orientation, turn in TURNED.items():
        image = Image.fromarray(RGB)
        image.getexif()[0x0112] = orientation
        assert np.array_equal(np.array(ImageOps.exif_transpose(image)), turn(RGB))
