"""The exact divergence: every entry of the trace."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models._utils.integers import check_integer
from sde_models.divergence.base import (
    MOST_NUMBERS,
    Divergence,
    Products,
    TraceEstimate,
    exact_trace,
)

LARGEST_EXACT = 4096
"""Numbers in an event above which the exact trace must be allowed by ``limit``."""


class Exact(Divergence):
    """The exact trace: one vector-Jacobian product for each coordinate.

    Args:
        chunk: Coordinates taken at once; fewer need less memory. If None as many as make a
            quarter of a million numbers.
        limit: Largest number of coordinates that is allowed.

    Raises:
        ValueError: If ``chunk`` or ``limit`` is below 1.

    Example:
        >>> value, trace = Exact()(lambda x: 3 * x, torch.ones(2, 4), None)
        >>> trace.value
        tensor([12., 12.])
    """

    exact = True

    def __init__(self, *, chunk: int | None = None, limit: int = LARGEST_EXACT) -> None:
        self.chunk = None if chunk is None else check_integer("chunk", chunk)
        self.limit = check_integer("limit", limit)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        return None

    def estimate(self, products: Products, drawn: Tensor | None) -> TraceEstimate:
        x = products.point
        return exact_trace(products, self.chunk or max(1, MOST_NUMBERS // x.numel()))

    def count_products(self, size: int) -> int:
        return size

    def check_size(self, size: int) -> None:
        if size > self.limit:
            raise ValueError(
                f"the exact trace of events of {size} numbers takes {size} vector-Jacobian "
                f"products at every node of the path, and the limit is {self.limit}: use "
                "divergence='xtrace' or sm.Hutchinson(8), which report their error, or allow it "
                f"with sm.Exact(limit={size})"
            )

    def __repr__(self) -> str:
        return "Exact()"
