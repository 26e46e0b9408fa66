"""Handwritten digits bundled with scikit-learn: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits, split for training and testing.

    Attributes:
        train: Grey levels 0 to 16, dtype uint8, shape ``(1437, 1, 8, 8)``.
        test: The same, shape ``(360, 1, 8, 8)``.
        train_labels: Which digit each training image shows, dtype int64, shape ``(1437,)``.
        test_labels: The same of the test images, shape ``(360,)``.
        levels: Number of grey levels, 17.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    levels: int = 17


def digits() -> Digits:
    """Load the 1,797 digits of scikit-learn, with one fixed split.

    The split is the same on every machine and with every version of every library.

    Reference:
        Alpaydin and Kaynak 1998, Optical recognition of handwritten digits, UCI repository.

    Example:
        >>> digits().test.shape
        torch.Size([360, 1, 8, 8])
    """
    from sklearn.datasets import load_digits  # slow to import, and needed only here

    bunch = load_digits()
    # The legacy generator of NumPy is frozen, those of torch and scikit-learn may change.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    images = torch.from_numpy(bunch.images[order]).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target[order]).to(torch.int64)
    return Digits(
        train=images[:1437], test=images[1437:],
        train_labels=labels[:1437], test_labels=labels[1437:],
    )  # fmt: skip
