"""Sources of batches: a tensor, a dataset or a function, in an order that the seed fixes.

The batch of a step follows from the seed and the step alone. Each process takes its own rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sde_models._utils.conditions import Conditions, as_conditions, stack_conditions
from sde_models._utils.seeds import generator_at, global_seed, seed_at
from sde_models._utils.shapes import check_batch
from sde_models.models.base import Model

Batch = Tensor | tuple[Tensor, dict[str, Any]]
"""Data, shape ``(B, *event)``, alone or with conditions for the network."""


CPU = torch.device("cpu")

MOST_STDS = 100.0
"""Largest distance of data from zero in standard deviations. Bytes as floats are far beyond."""


class BatchSource(Protocol):
    """Draws a batch; all its randomness comes from the generator."""

    def __call__(self, batch_size: int, generator: torch.Generator | None) -> Batch:
        """Draw ``batch_size`` samples."""


Rows = tuple[Tensor, Conditions]
"""Some rows of a batch: data, shape ``(B, *event)``, and their conditions."""

Source = Callable[[int], Iterator[Rows]]
"""Own rows of a given step, of the next, and so on without end."""


@dataclass(frozen=True)
class Order:
    """The rows of each process.

    Args:
        seed: Seed of the run.
        batch_size: Samples in the batch of all processes.
        rank: Index of this process.
        count: Number of processes.
    """

    seed: int
    batch_size: int
    rank: int = 0
    count: int = 1

    @property
    def own(self) -> slice:
        """The rows of a batch that this process takes."""
        first, last = (self.batch_size * k // self.count for k in (self.rank, self.rank + 1))
        return slice(first, last)

    def indices(self, length: int, step: int) -> Tensor:
        """This process's part of the indices of a step, drawn with replacement."""
        generator = generator_at(self.seed, "order", step)
        return torch.randint(length, (self.batch_size,), generator=generator)[self.own]


def read_tensor(data: Tensor, order: Order, step: int) -> Iterator[Rows]:
    """Rows of a tensor that holds all data."""
    while True:
        rows = order.indices(len(data), step)
        x0 = data[rows.to(data.device)]
        yield x0, as_conditions(None, len(x0))
        step += 1


def call_function(draw: BatchSource, order: Order, model: Model, step: int) -> Iterator[Rows]:
    """Rows of a function that draws the full batch, with the same arguments in every process."""
    size = order.batch_size
    while True:
        # Numbers from a global generator follow from the step, too.
        with global_seed(seed_at(order.seed, "draw", step), model.device):
            batch = draw(size, generator_at(order.seed, "order", step))
        x0, cond = _split(batch, f"the batch of step {step + 1}")
        # Reading numbers on an accelerator means waiting for it.
        if x0.device.type == "cpu":
            check_data(x0, model, f"the batch of step {step + 1}")
        if len(x0) != size:
            raise ValueError(
                f"the batch of step {step + 1} has {len(x0)} samples, expected {size}: "
                "draw(batch_size, generator) must return batch_size of them"
            )
        yield x0[order.own], as_conditions(cond, size).take(order.own)
        step += 1


def load_items(
    data: Dataset[Any], order: Order, model: Model, workers: int, step: int
) -> Iterator[Rows]:
    """Rows of a map-style dataset, read by worker processes if there are any."""
    loader: DataLoader[Any] = DataLoader(
        SeededItems(data, model),
        batch_sampler=_draw_items(len(data), order, step),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=partial(_collate, dtype=model.dtype),
        generator=generator_at(order.seed, "workers"),
        pin_memory=model.device.type == "cuda",
    )
    for x0, cond in loader:
        yield x0, as_conditions(cond, len(x0))


def _draw_items(length: int, order: Order, step: int) -> Iterator[list[tuple[int, int]]]:
    """The indices of each step, each with a seed of its own."""
    while True:
        yield [
            (row, seed_at(order.seed, "item", step, order.own.start + place))
            for place, row in enumerate(order.indices(length, step).tolist())
        ]
        step += 1


@dataclass(frozen=True)
class SeededItems(Dataset[Any]):
    """Items that are checked, and whose augmentations follow from the place in the run."""

    data: Dataset[Any]
    model: Model

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Mapping[str, Any]]:
        index, seed = place
        with global_seed(seed, CPU):
            item = self.data[index]
        name = f"item {index} of the dataset"
        x0, cond = _split(item, name)
        check_data(x0[None], self.model, name)
        return x0, cond


def _collate(
    items: list[tuple[Tensor, Mapping[str, Any]]], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Any]]:
    """A batch of items, whose floating conditions get a dtype."""
    data, conds = zip(*items, strict=True)
    return torch.stack(data), stack_conditions(conds, dtype)


def _split(given: Any, name: str) -> tuple[Tensor, Mapping[str, Any]]:
    """Data and their conditions; refuse what is neither ``x0`` nor ``(x0, cond)``."""
    if isinstance(given, tuple) and len(given) == 1:  # as of TensorDataset(x)
        given = given[0]
    x0, cond = given if isinstance(given, tuple | list) and len(given) == 2 else (given, {})
    if not isinstance(x0, Tensor) or not isinstance(cond, Mapping | None):
        raise TypeError(
            f"{name} is {_kind(given)}; expected x0, or (x0, cond) with cond a dictionary of "
            'conditions by name such as {"label": 3}'
        )
    return x0, cond or {}


def make_source(data: Any, order: Order, model: Model, workers: int = 0) -> Source:
    """Choose how to read data.

    Args:
        data: A tensor ``(N, *event)``, a map-style dataset, or a :class:`BatchSource`.
        order: The rows of each process.
        model: What is trained; it has the event shape and the standard deviation of the data.
        workers: Worker processes for a dataset.

    Raises:
        TypeError: If the data are none of these, or not floating.
        ValueError: If they are NaN, of another event shape, far out of range, or empty.
    """
    if isinstance(data, Tensor):
        check_data(data, model, "data")
        return partial(read_tensor, data, order)
    listed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if listed and not isinstance(data, tuple | np.ndarray):
        if len(data) == 0:
            raise ValueError("the dataset is empty: at least one item is needed")
        return partial(load_items, data, order, model, workers)
    if callable(data):
        return partial(call_function, data, order, model)
    raise TypeError(
        f"data is {_kind(data)}; expected a tensor (N, *event), as torch.as_tensor makes it of an "
        "array; a dataset with __len__ and __getitem__, such as a list of items "
        '(x0, {"label": y}); or a function draw(batch_size, generator)'
    )


def check_data(x: Tensor, model: Model, name: str) -> None:
    """Refuse data that do not fit the model; errors as in :func:`make_source`."""
    check_batch(x, model.event_shape, name)
    std = getattr(model.sde, "data_std", None)
    if std is None:
        return
    limit = MOST_STDS * float(std)
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if max(-low, high) > limit:
        row = int(x.abs().flatten(1).amax(1).argmax())
        raise ValueError(
            f"{name} runs from {low:g} to {high:g} (row {row}), and the SDE is for data of "
            f"standard deviation data_std={float(std):g}: scale the data, as in x / 127.5 - 1 for "
            f"bytes, or give the SDE the data_std of the data"
        )


def _kind(value: Any) -> str:
    held = isinstance(value, tuple | list)
    inner = f" of {', '.join(type(v).__name__ for v in value[:4])}" if held else ""
    return f"a {type(value).__name__}{inner}"
