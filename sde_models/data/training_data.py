"""Training data: images as levels, or numbers, with or without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from sde_models._utils.shapes import check_batch
from sde_models.data.dequantization import DATA_RANGE, check_levels, dequantize

IMAGE_STD = 0.5
"""The ``data_std`` for images on [-1, 1], as in Karras et al. 2022, arXiv:2206.00364."""

MEASURED = 10_000
"""Number of samples from which the standard deviation of other data is computed."""

SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Dtypes of the same size that more functions of torch support."""

USUAL_RANGES = ((0.0, 1.0), DATA_RANGE, (0.0, 255.0))
"""Ranges that images are scaled to."""

FARTHEST = 10.0
"""Largest factor between the scale of data and one."""

Samples = Tensor | Dataset[Any]
"""Samples: a tensor ``(N, *event)``, or a map-style data set with items x or ``(x, label)``."""


@dataclass(frozen=True)
class TrainingData:
    """Samples for training and testing.

    Args:
        train: For training: numbers, or integers if there are levels.
        test: For testing, of the same kind, if there are any.
        levels: Number of levels, None for numbers that are not dequantised.
        classes: Number of classes of the labels, None where there are no labels.

    Raises:
        ValueError: If a tensor for training holds NaN, or a number that is no level.
        TypeError: If it holds no numbers.

    Example:
        >>> images = torch.tensor([[[[0, 16]]], [[[3, 4]]]])
        >>> data = TrainingData(TensorDataset(images, torch.tensor([1, 0])), levels=17, classes=2)
        >>> x0, cond = data.batches(labels=True)(5, torch.Generator())
        >>> data.event_shape, x0.shape, cond["label"].shape
        ((1, 1, 2), torch.Size([5, 1, 1, 2]), torch.Size([5]))
    """

    train: Samples
    test: Samples | None = None
    levels: int | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.train, Tensor | TensorDataset):
            return  # read item by item, and checked then
        x = _tensors(self.train)[0]
        if self.levels is None:
            check_batch(x, name="data")
        else:
            check_levels(x, self.levels)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(_split(self.train[0])[0].shape)

    @property
    def data_std(self) -> float:
        """Standard deviation of a coordinate, to three digits, for the ``data_std`` of an SDE.

        For images as levels it is the usual 0.5, which is below the true one and so puts more
        weight on small noise; for others it is the root mean square of the data.

        Raises:
            ValueError: If it is far from one, the scale for which SDEs and training are made.
        """
        if self.levels is not None:
            return IMAGE_STD
        x, _ = _first_of(self.train, MEASURED)
        std = float(x.double().square().mean().sqrt())
        if not 1 / FARTHEST <= std <= FARTHEST:
            raise ValueError(
                f"the root mean square of the data is {std:.3g}, expected a number near 1: "
                "subtract their mean and divide by their standard deviation, or give data_std to "
                "train on them as they are"
            )
        return float(f"{std:.3g}")

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Lowest and highest number of the data, None if they are all the same.

        Levels are spread over -1 to 1. For other data it is the first of 0 to 1, -1 to 1 and 0 to
        255 that contains the data and of which they cover more than three quarters; otherwise
        their own lowest and highest number. Tensors are read in full, of other data the first
        10,000 samples.
        """
        if self.levels is not None:
            return DATA_RANGE
        if isinstance(self.train, Tensor | TensorDataset):
            x = _tensors(self.train)[0]
        else:
            x, _ = _first_of(self.train, MEASURED)
        low, high = (float(value) for value in torch.aminmax(x))
        for bottom, top in USUAL_RANGES:
            if bottom <= low and high <= top and high - low > 0.75 * (top - bottom):
                return bottom, top
        return (low, high) if low < high else None

    def batches(self, labels: bool = False, dtype: torch.dtype = torch.float32) -> Any:
        """The training samples as ``data`` of :func:`~sde_models.fit`.

        Images are dequantised anew each time.

        Args:
            labels: Whether each sample comes with ``{"label": ...}`` for the network.
            dtype: Floating dtype of the samples.

        Raises:
            ValueError: If labels are asked for where there are none.
        """
        if labels and self.classes is None:
            raise ValueError("the data have no labels to train with: leave out labels")
        if not isinstance(self.train, Tensor | TensorDataset):
            return Items(self.train, self.levels, labels, dtype)
        x, *rest = _tensors(self.train)
        if self.levels is None and not labels:
            return x.to(dtype)
        return Batches(x, rest[0] if labels else None, self.levels, dtype)

    def held_out(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The first samples for testing, and their labels if there are any.

        Raises:
            ValueError: If there are no samples for testing.
        """
        if self.test is None:
            raise ValueError("the data have no part for testing")
        return _first_of(self.test, count)


@dataclass(frozen=True)
class Batches:
    """Draws batches from tensors, with replacement, for :func:`~sde_models.fit`."""

    x: Tensor
    labels: Tensor | None
    levels: int | None
    dtype: torch.dtype

    def __call__(self, batch_size: int, generator: torch.Generator | None) -> Any:
        """Draw samples, shape ``(batch_size, *event)``, alone or with their labels."""
        rows = torch.randint(len(self.x), (batch_size,), generator=generator)
        x0 = _as_numbers(_rows_of(self.x, rows), self.levels, self.dtype, generator)
        return x0 if self.labels is None else (x0, {"label": self.labels[rows]})


@dataclass(frozen=True)
class Items(Dataset[Any]):
    """Another data set, in the form that :func:`~sde_models.fit` takes.

    Noise comes from torch's global generator, which ``fit`` seeds for each item.
    """

    dataset: Dataset[Any]
    levels: int | None
    labels: bool
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        x, label = _split(self.dataset[index])
        x0 = _as_numbers(x[None], self.levels, self.dtype, None)[0]
        return (x0, {"label": int(label)}) if self.labels else x0


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor; unsigned dtypes by their bits, since older torch cannot index them."""
    signed = SIGNED.get(x.dtype)
    return x[rows] if signed is None else x.view(signed)[rows].view(x.dtype)


def _as_numbers(
    x: Tensor, levels: int | None, dtype: torch.dtype, generator: torch.Generator | None
) -> Tensor:
    if levels is None:
        return x.to(dtype)
    return dequantize(x, levels, generator=generator, dtype=dtype)


def _tensors(samples: Tensor | TensorDataset) -> tuple[Tensor, ...]:
    return (samples,) if isinstance(samples, Tensor) else samples.tensors


def _split(item: Any) -> tuple[Tensor, Any]:
    """A sample and its label, None if it has none."""
    x, *rest = item if isinstance(item, tuple | list) else (item,)
    return x, rest[0] if rest else None


def _first_of(samples: Samples, count: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(samples, Tensor):
        return samples[:count], None
    length = len(samples)  # type: ignore[arg-type]
    items = [_split(samples[index]) for index in range(min(count, length))]
    x = torch.stack([x for x, _ in items])
    return x, None if items[0][1] is None else torch.tensor([int(label) for _, label in items])
