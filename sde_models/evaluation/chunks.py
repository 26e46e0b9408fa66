"""A dataset, read in chunks of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Conditioning = Mapping[str, Tensor] | Callable[[Sequence[Any]], Mapping[str, Tensor]]
"""Tensors of one entry for each sample, by name; or a function from the items of a chunk to such
tensors for these items."""


class Chunks:
    """Consecutive stretches of a dataset, each read when it is wanted.

    Args:
        dataset: Data of shape ``(B, *event)``, or a map-style dataset whose items are tensors of
            the shape of an event, or tuples or lists that begin with one.
        size: Samples in each chunk; the last may be smaller.
        cond: Conditioning of each sample.

    Raises:
        TypeError: If the dataset has no length.
        ValueError: If it is empty, or conditioning has not one entry for each sample.

    Example:
        >>> chunks = Chunks(torch.randn(5, 2), size=2)
        >>> len(chunks), chunks.bounds(2)
        (3, (4, 5))
    """

    def __init__(
        self, dataset: Tensor | Dataset[Any], size: int, cond: Conditioning | None = None
    ) -> None:
        if not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
            raise TypeError(
                "dataset must be a tensor or a map-style torch Dataset, with a length and items "
                f"by index, got {type(dataset).__name__}: torch.utils.data.TensorDataset makes "
                "one of tensors"
            )
        self.dataset: Any = dataset
        self.samples = len(dataset)
        self.size = size
        self.cond = cond
        if self.samples == 0:
            raise ValueError("the dataset is empty: at least one sample is wanted")
        if isinstance(cond, Mapping):
            _check_lengths(cond, self.samples)

    def __len__(self) -> int:
        return -(-self.samples // self.size)

    def bounds(self, index: int) -> tuple[int, int]:
        """First sample of a chunk, and the one after its last."""
        return index * self.size, min((index + 1) * self.size, self.samples)

    def read(self, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Data and conditioning of one chunk."""
        first, last = self.bounds(index)
        if isinstance(self.dataset, Tensor):
            x = self.dataset[first:last].detach()
            items: Sequence[Any] = list(x)
        else:
            items = [self.dataset[i] for i in range(first, last)]
            x = torch.stack([_data_of(item) for item in items])
        if self.cond is None:
            return x, {}
        if isinstance(self.cond, Mapping):
            return x, {name: value[first:last] for name, value in self.cond.items()}
        cond = self.cond(items)
        _check_lengths(cond, last - first)
        return x, cond

    def describe_sample(self) -> str:
        """Dtype and shape of the first sample."""
        sample = _data_of(self.dataset[0])
        return f"{sample.dtype} of shape {tuple(sample.shape)}"


def _data_of(item: Any) -> Tensor:
    data = item[0] if isinstance(item, tuple | list) else item
    try:
        return torch.as_tensor(data).detach()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            "an item of the dataset must be a tensor, or a tuple or list that begins with one, got "
            f"{type(data).__name__}: turn it into a tensor in the dataset's transform"
        ) from error


def _check_lengths(cond: Mapping[str, Tensor], wanted: int) -> None:
    for name, value in cond.items():
        if not (isinstance(value, Tensor) and value.ndim and len(value) == wanted):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"cond[{name!r}] must be a tensor of one entry for each of {wanted} samples, got "
                f"{given}; what is the same for all samples is given as {name}= itself"
            )
