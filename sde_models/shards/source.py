"""A dataset that is read in ranges of samples when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sde_models._utils.conditions import Conditions, as_conditions
from sde_models.shards.fingerprints import describe, describe_data

Given = Mapping[str, Any] | Callable[[Sequence[Any]], Mapping[str, Any]]
"""Conditions by name, or a function from the items of a range to their conditions."""

Part = Callable[[int, int], dict[str, Tensor]]
"""Results by name, each of shape ``(B, ...)``, of the samples from a first one up to a last one,
that one excluded."""

Work = Callable[[int, Tensor, Conditions], dict[str, Tensor]]
"""The same of some data with their conditions, given also the index of the first."""


class Source:
    """A dataset and the conditions of its samples.

    Args:
        dataset: Data of shape ``(B, *event)``, or a map-style dataset whose items are tensors of
            the shape of an event, or tuples or lists that begin with one.
        cond: Conditions of the samples.
        out: Where the results go.

    Attributes:
        numbers: How many the first sample holds.
        dtype: Their dtype.
        settings: Text on the content of the samples and their conditions, on which the results
            depend.

    Raises:
        TypeError: If the dataset has no length.
        ValueError: If it is empty, conditions have another number of rows, or the results would
            be written over the shards that are read.

    Example:
        >>> source = Source(torch.randn(5, 2), None, "results")
        >>> x, cond = source.read(3, 5)
        >>> len(source), x.shape, cond
        (5, torch.Size([2, 2]), {})
    """

    def __init__(
        self, dataset: Tensor | Dataset[Any], cond: Given | None, out: str | os.PathLike[str]
    ) -> None:
        if not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
            raise TypeError(
                "dataset must be a tensor or a map-style torch Dataset, with a length and items "
                f"by index, got {type(dataset).__name__}: use torch.utils.data.TensorDataset for "
                "tensors"
            )
        self.dataset: Any = dataset
        self.samples = len(dataset)
        if self.samples == 0:
            raise ValueError("the dataset is empty: at least one sample is needed")
        self.cond = cond if callable(cond) else as_conditions(cond, self.samples)
        path = getattr(dataset, "path", None)
        if isinstance(path, Path) and path.resolve() == Path(out).resolve():
            raise ValueError(f"{out} holds the shards that are read: choose another folder")
        first = _data_of(self.dataset[0])
        self.numbers, self.dtype = first.numel(), first.dtype
        self.settings = {
            "sample": f"{first.dtype} of shape {tuple(first.shape)}",
            "data": describe_data(dataset),
            "cond": describe(self.cond or None),
        }

    def __len__(self) -> int:
        return self.samples

    def read(self, first: int, last: int) -> tuple[Tensor, Conditions]:
        """Data and conditions of the samples from ``first`` up to ``last``, that one excluded."""
        if isinstance(self.dataset, Tensor):
            x = self.dataset[first:last].detach()
            items: Sequence[Any] = list(x.clone())
        else:
            items = [self.dataset[i] for i in range(first, last)]
            x = torch.stack([_data_of(item) for item in items])
        if isinstance(self.cond, Conditions):
            return x, self.cond.take(slice(first, last))
        return x, as_conditions(self.cond(items), last - first)

    def each(self, work: Work) -> Callable[[int, int], Part]:
        """A function that reads a range once, and returns one that works on any part of it.

        Args:
            work: Called with the index of the first sample of the part, its data, and its
                conditions; returns results by name.
        """

        def prepare(start: int, end: int) -> Part:
            x, cond = self.read(start, end)

            def part(first: int, last: int) -> dict[str, Tensor]:
                rows = slice(first - start, last - start)
                return work(first, x[rows], cond.take(rows))

            return part

        return prepare


def _data_of(item: Any) -> Tensor:
    data = item[0] if isinstance(item, tuple | list) else item
    try:
        return torch.as_tensor(data).detach()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            "an item of the dataset must be a tensor, or a tuple or list that begins with one, got "
            f"{type(data).__name__}: turn it into a tensor in the dataset's transform"
        ) from error
