"""Patches of the two photographs bundled with scikit-learn: natural images without a download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import drawn_on

TRAIN_SHARE = 0.8
"""Part of each photograph, from its left edge, that training patches come from."""


@dataclass(frozen=True)
class Patches:
    """Patches of photographs, split for training and testing so that no pixel is in both.

    Attributes:
        train: Levels 0 to 255, dtype uint8, shape ``(n, 3, size, size)``.
        test: The same, from other parts of the photographs.
        levels: Number of levels, 256.
    """

    train: Tensor
    test: Tensor
    levels: int = 256


def patches(
    train: int = 4096,
    test: int = 512,
    *,
    size: int = 32,
    generator: torch.Generator | None = None,
) -> Patches:
    """Cut patches out of scikit-learn's photographs of a temple and of a flower.

    Each has 640 x 427 pixels. Training patches come from the left four fifths, test patches from
    the right fifth, at places that are drawn at random; those of one kind may overlap.

    Args:
        train: Number of training patches.
        test: Number of test patches.
        size: Height and width of a patch, up to 128.
        generator: Source of the places; torch's global one if None.

    Raises:
        ValueError: If a number is no positive integer, or the patches are too large.

    Example:
        >>> patches(10, 5, size=16).train.shape
        torch.Size([10, 3, 16, 16])
    """
    train, test = check_integer("train", train), check_integer("test", test)
    size = check_integer("size", size)
    from sklearn.datasets import load_sample_images  # slow to import, and needed only here

    photographs = torch.from_numpy(np.stack(load_sample_images().images))
    photographs = photographs.permute(0, 3, 1, 2)
    height, width = photographs.shape[2:]
    border = int(TRAIN_SHARE * width)
    largest = min(height, width - border)
    if size > largest:
        raise ValueError(f"patches have {largest} x {largest} pixels at most, got size={size}")
    return Patches(
        train=_cut(photographs[..., :border], train, size, generator),
        test=_cut(photographs[..., border:], test, size, generator),
    )


def _cut(images: Tensor, count: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Cut patches at random places, shape ``(count, channels, size, size)``."""
    where = drawn_on(generator, None)
    places = [
        torch.randint(choices, (count,), generator=generator, device=where).tolist()
        for choices in (len(images), images.shape[2] - size + 1, images.shape[3] - size + 1)
    ]
    return torch.stack(
        [images[i, :, y : y + size, x : x + size] for i, y, x in zip(*places, strict=True)]
    )
