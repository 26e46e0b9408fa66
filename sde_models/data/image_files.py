"""Image files as their levels: none is rounded, and files that would lose some are refused.

Pillow reduces 16-bit colour to 8 bits when it opens a file, and clips 16-bit grey when it converts
it, both silently. So the depth is read from the file itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ImageTransform = Callable[[Any], Any]
"""From a ``PIL.Image`` to another."""

EIGHT_BITS = ("BMP", "GIF", "JPEG", "MPO", "WEBP")
"""Formats with 8 bits only."""

SIXTEEN = ("I;16", "I;16L", "I;16B", "I")
"""Modes of Pillow that keep 16 bits; which one is used differs between its versions."""

AS_ARRAY = "turn them into an array in an .npy file, or into tensors in a data set of your own"


def read_levels(path: str | os.PathLike[str], transform: ImageTransform | None = None) -> Tensor:
    """Read the levels of an image file, with one channel for grey and three for colour.

    A palette becomes its colours, an alpha channel that is opaque everywhere is left out, 1, 2 and
    4 bits are spread over 0 to 255, and the image is turned as its EXIF orientation says.

    Args:
        path: A PNG, JPEG, TIFF, BMP, PPM or WebP file.
        transform: Applied to the ``PIL.Image``, of the mode that the file has.

    Returns:
        Levels, shape ``(channels, height, width)``: dtype uint8, or uint16 for 16 bits.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If its levels cannot be kept: floats, 32-bit integers, CMYK, transparency,
            several pictures, or 16-bit colour in another format than PNG.
        TypeError: If the transform does not return a ``PIL.Image``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(f"{folder}/a.png")
        ...     read_levels(f"{folder}/a.png")
        tensor([[[    0, 65535]]], dtype=torch.uint16)
    """
    path = os.fspath(path)
    try:
        with Image.open(path) as opened:
            depth = _depth(opened, path)
            _check_kept(opened, depth, path)
            if depth > 8 and opened.mode not in (*SIXTEEN, "F"):
                if transform is not None:
                    raise ValueError(
                        f"{path} has 16-bit colour, which a PIL.Image cannot hold: leave out "
                        "transform=, and crop or convert the files instead"
                    )
                return _deep_colour(path)
            image: Any = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError) as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error
    if transform is not None:
        image = transform(image)
        if not isinstance(image, Image.Image):
            raise TypeError(f"transform= must return a PIL.Image, got {type(image).__name__}")
    return _levels_of(image, depth, path)


def _depth(image: Image.Image, path: str) -> int:
    """Bits of a sample in the file, for the formats in which they are known."""
    if image.format in EIGHT_BITS:
        return 8
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(258, (1,))))  # type: ignore[attr-defined]
    with open(path, "rb") as file:
        head = file.read(4096)
    if image.format == "PNG":
        return head[24]
    if image.format == "PPM":
        magic, _, _, *highest = re.sub(rb"#[^\r\n]*", b"", head).split()[:4]
        return 1 if magic in (b"P1", b"P4") else int(float(highest[0])).bit_length()
    raise ValueError(
        f"{path} is a {image.format} file, which may have more levels than Pillow reads: save it "
        "as PNG"
    )


def _check_kept(image: Image.Image, depth: int, path: str) -> None:
    """Refuse a file that Pillow does not read in full, or reads wrongly."""
    count = getattr(image, "n_frames", 1)
    if count > 1:
        raise ValueError(f"{path} holds {count} pictures: save each in a file of its own")
    grey = image.mode in SIXTEEN
    if depth > 8 and not (grey or image.mode == "F" or image.format == "PNG"):
        raise ValueError(
            f"{path} has colour of {depth} bits, which is read from PNG files only: save it as PNG"
        )
    if image.format == "TIFF" and grey and depth > 8:
        inverted = image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
        if depth < 16 or inverted:
            raise ValueError(
                f"{path} is a TIFF file of {depth} bits{' with 0 for white' * inverted}, which "
                "Pillow reads as 16 bits with 0 for black: save it as a 16-bit PNG"
            )


def _deep_colour(path: str) -> Tensor:
    """16 bits with several channels, of a PNG file.

    Pillow keeps one byte of each sample: the high one if it reads the numbers as big-endian, which
    they are, and the low one if it reads them as little-endian.
    """
    high, low = (_unpack(path, order).astype(np.uint16) for order in "BL")
    levels = 256 * high + low
    if bool((levels[..., 3:] < 65535).any()):
        raise ValueError(f"{path} is transparent in places: save it without an alpha channel")
    return torch.from_numpy(levels[..., :3].transpose(2, 0, 1).copy())


def _unpack(path: str, order: str) -> np.ndarray:
    with Image.open(path) as image:
        if "transparency" in image.info or image.tile[0][3] != f"{image.mode};16B":
            raise ValueError(f"{path} has transparency of 16 bits: save it without")
        image.tile = [(*image.tile[0][:3], f"{image.mode};16{order}")]  # type: ignore[list-item]
        return np.array(ImageOps.exif_transpose(image))


def _levels_of(image: Image.Image, depth: int, path: str) -> Tensor:
    """Levels of an image that came from a file of so many bits."""
    if image.mode in SIXTEEN and 8 < depth <= 16:
        levels = np.array(image)
        if "transparency" not in image.info and levels.min() >= 0 and levels.max() <= 65535:
            return torch.from_numpy(levels.astype(np.uint16))[None]
    if image.mode in ("I", "F") or image.mode in SIXTEEN:
        raise ValueError(
            f"{path} holds {_kind(image)}, which are no levels from 0 to 65535: {AS_ARRAY}"
        )
    if depth > 8:
        raise ValueError(
            f"transform= turns {path} of 16 bits into mode {image.mode}, in which Pillow clips "
            "them at 255: convert the files instead"
        )
    image = _without_alpha(image, path)
    if image.mode not in ("L", "RGB"):
        raise ValueError(
            f"{path} has the mode {image.mode}, neither grey nor RGB: convert it by transform=, as "
            "in lambda image: image.convert('RGB')"
        )
    levels = np.array(image)
    return torch.from_numpy(levels).reshape(*levels.shape[:2], -1).permute(2, 0, 1).contiguous()


def _kind(image: Image.Image) -> str:
    if "transparency" in image.info:
        return "transparent pixels"
    return "floats" if image.mode == "F" else "integers of 32 bits or with a sign"


def _without_alpha(image: Image.Image, path: str) -> Image.Image:
    """An image of one channel or three, if it is opaque everywhere."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        see_through = image.mode == "PA" or "transparency" in image.info
        grey = image.mode in ("1", "L")
        image = image.convert(("LA" if grey else "RGBA") if see_through else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("LA", "RGBA"):
        return image
    if image.getchannel("A").getextrema() != (255, 255):
        raise ValueError(
            f"{path} is transparent in places: lay it over a background by transform=, or drop its "
            "alpha channel, as in lambda image: image.convert('RGBA').convert('RGB')"
        )
    return image.convert(image.mode[:-1])


class AlikeLevels:
    """Reads image files that must all have the size, channels and bits of a first one."""

    def __init__(self, first: str, transform: ImageTransform | None) -> None:
        with torch.random.fork_rng(devices=[]):  # for a random transform
            levels = read_levels(first, transform)
        self.first, self.transform = first, transform
        self.dtype, self.shape = levels.dtype, levels.shape

    @property
    def levels(self) -> int:
        """Number of levels: 256, or 65,536."""
        return int(torch.iinfo(self.dtype).max) + 1

    def __call__(self, path: str) -> Tensor:
        """Levels of a file; errors as in :func:`read_levels`.

        Raises:
            ValueError: If it is of another kind than the first, naming both.
        """
        levels = read_levels(path, self.transform)
        same_depth = levels.dtype == self.dtype
        if same_depth and levels.shape == self.shape:
            return levels
        remedy = (
            "bring them to one kind by transform=, such as lambda image: image.convert('RGB') or "
            "torchvision.transforms.CenterCrop(32)" if same_depth else "convert the files"
        )  # fmt: skip
        raise ValueError(
            f"{path} has {_describe(levels.dtype, levels.shape)}, and {self.first} "
            f"{_describe(self.dtype, self.shape)}: {remedy}"
        )


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    bits = torch.iinfo(dtype).bits
    return f"{channels} channel{'s' * (channels > 1)} of {height} x {width} pixels of {bits} bits"
