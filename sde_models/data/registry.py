"""Data sets by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import TensorDataset

from sde_models._utils.errors import find_by_name
from sde_models.data.handwritten_digits import digits
from sde_models.data.images import Root, cifar10, fashion_mnist, mnist
from sde_models.data.photograph_patches import patches
from sde_models.data.toys import TOYS, toy
from sde_models.data.training_data import TrainingData

TOY_POINTS = 50_000, 1_000
"""Points of a toy data set for training and for testing."""


def find_data(name: str, root: Root | None = None) -> TrainingData:
    """Look up a data set by its name.

    Random data are the same in every call.

    Args:
        name: "digits", "patches", one of ``sm.data.TOYS``, "mnist", "fashion-mnist" or "cifar10".
        root: Folder of the files of the last three, which are never downloaded here.

    Raises:
        ValueError: For an unknown name, with the nearest ones, or if there is no root.
        TypeError: For what is no name.
        FileNotFoundError: If files are missing, saying how to get them.

    Example:
        >>> data = find_data("digits")
        >>> data.event_shape, len(data.train), data.levels, data.classes
        ((1, 8, 8), 1437, 17, 10)
    """
    return find_by_name("data set", name, DATA)(root)


def _digits(root: Root | None) -> TrainingData:
    found = digits()
    return TrainingData(
        TensorDataset(found.train, found.train_labels),
        TensorDataset(found.test, found.test_labels),
        levels=found.levels,
        classes=10,
    )


def _patches(root: Root | None) -> TrainingData:
    found = patches(generator=torch.Generator().manual_seed(0))
    return TrainingData(found.train, found.test, levels=found.levels)


def _toy(root: Root | None, name: str) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    train, test = (toy(name, count, generator=generator) for count in TOY_POINTS)
    return TrainingData(train, test)


def _images(root: Root | None, name: str) -> TrainingData:
    if root is None:
        raise ValueError(f"{name} is read from files: root must be their folder")
    train, test = (FROM_FILES[name](root, train=part) for part in (True, False))
    return TrainingData(train, test, levels=train.levels, classes=len(train.classes))


FROM_FILES = {"mnist": mnist, "fashion-mnist": fashion_mnist, "cifar10": cifar10}
DATA: dict[str, Callable[[Root | None], TrainingData]] = {
    "digits": _digits,
    "patches": _patches,
    **{name: partial(_toy, name=name) for name in TOYS},
    **{name: partial(_images, name=name) for name in FROM_FILES},
}
