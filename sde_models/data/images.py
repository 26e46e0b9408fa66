"""Torchvision's image data sets, with integer levels instead of scaled numbers.

They are read from local files; only ``download=True`` uses the network.
"""

from __future__ import annotations

import os
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from sde_models.data.image_files import AlikeLevels, ImageTransform

Root = str | os.PathLike[str]


class LevelImages(Dataset[tuple[Tensor, int]]):
    """Images as levels, with their labels: a map-style data set.

    Args:
        dataset: A data set of torchvision that gives levels, shape ``(channels, height, width)``,
            and a label.
        levels: Number of levels.

    Attributes:
        dataset: The data set of torchvision.
        classes: Names of the classes.
        levels: Number of levels.
    """

    def __init__(self, dataset: Any, levels: int = 256) -> None:
        self.dataset, self.levels = dataset, levels
        self.classes: list[str] = list(dataset.classes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return cast(tuple[Tensor, int], self.dataset[index])

    def __repr__(self) -> str:
        return f"LevelImages({len(self)} of {type(self.dataset).__name__})"


def mnist(root: Root, *, train: bool = True, download: bool = False) -> LevelImages:
    """Handwritten digits: 60,000 images for training and 10,000 for testing, ``(1, 28, 28)``.

    Args:
        root: Folder that holds ``MNIST/raw``, with the four ``ubyte`` files.
        train: Those for training, or else for testing.
        download: Get the files first, where they are missing.

    Raises:
        FileNotFoundError: If a file is missing, saying how to get it.

    Reference:
        LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """
    return _open("MNIST", "mnist", root, "MNIST/raw", train=train, download=download)


def fashion_mnist(root: Root, *, train: bool = True, download: bool = False) -> LevelImages:
    """Pieces of clothing, in the numbers and the shape of :func:`mnist`.

    Args:
        root: Folder that holds ``FashionMNIST/raw``, with the four ``ubyte`` files.
        train: Those for training, or else for testing.
        download: Get the files first, where they are missing.

    Raises:
        FileNotFoundError: If a file is missing, saying how to get it.

    Reference:
        Xiao et al. 2017, Fashion-MNIST, arXiv:1708.07747.
    """
    folder = "FashionMNIST/raw"
    return _open("FashionMNIST", "fashion_mnist", root, folder, train=train, download=download)


def cifar10(root: Root, *, train: bool = True, download: bool = False) -> LevelImages:
    """Small photographs: 50,000 for training and 10,000 for testing, ``(3, 32, 32)``.

    Args:
        root: Folder that holds ``cifar-10-batches-py``. Its files are compared with their published
            checksums before they are read.
        train: Those for training, or else for testing.
        download: Get the files first, where they are missing.

    Raises:
        FileNotFoundError: If a file is missing or damaged, saying how to get it.

    Reference:
        Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    folder = "cifar-10-batches-py"
    return _open("CIFAR10", "cifar10", root, folder, train=train, download=download)


def image_folder(root: Root, transform: ImageTransform | None = None) -> LevelImages:
    """Image files in one folder for each class, as the levels that are in them.

    An image has shape ``(1, height, width)`` if it is grey and ``(3, height, width)`` if it is
    colour, of dtype uint8, or uint16 with 65,536 levels for files of 16 bits. All files must be
    of one kind. An alpha channel that is opaque everywhere is left out, a palette becomes its
    colours, and the EXIF orientation is applied.

    Args:
        root: Folder of the classes' folders.
        transform: Applied to each ``PIL.Image``, of the mode that its file has, such as
            ``torchvision.transforms.CenterCrop(32)`` for files of several sizes.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no images in folders.
        OSError: If a file cannot be read; this and the following are raised for the first file
            here, and for another one when it is read.
        ValueError: If the levels of a file cannot be kept, as those of floats, CMYK, transparent
            pixels or an animation, or it is of another kind than the first: another size, number
            of channels or number of bits.
    """
    from torchvision.datasets import ImageFolder

    try:
        dataset = ImageFolder(os.fspath(root))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{os.fspath(root)!r} holds no images: put them into one folder for each class, as in "
            f"{os.fspath(root)}/<class>/<name>.png. {error}"
        ) from error
    dataset.loader = alike = AlikeLevels(dataset.samples[0][0], transform)
    return LevelImages(dataset, alike.levels)


def _open(
    name: str, function: str, root: Root, folder: str, *, train: bool, download: bool
) -> LevelImages:
    """Open a data set of torchvision, which is slow to import."""
    from torchvision import datasets
    from torchvision.transforms import PILToTensor

    kind = getattr(datasets, name)
    try:
        dataset = kind(os.fspath(root), train=train, transform=PILToTensor(), download=download)
    except RuntimeError as error:
        if download:
            raise
        raise FileNotFoundError(
            f"no {name} under {os.path.join(os.fspath(root), folder)!r}, or its files are damaged: "
            f"sm.data.{function}(root, download=True) gets it, or copy the files there. {error}"
        ) from error
    return LevelImages(dataset)
