"""The exact divergence: every entry of the trace."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models.divergence.base import (
    MOST_NUMBERS,
    Divergence,
    Products,
    TraceEstimate,
    check_count,
    exact_trace,
)

LARGEST_EXACT = 4096
"""Numbers in an event above which the exact trace is not taken unasked."""


class Exact(Divergence):
    """The exact trace: one vector-Jacobian product for each coordinate.

    Args:
        chunk: Coordinates taken at once; fewer need less memory. If None as many as make a
            quarter of a million numbers.
        limit: Largest number of coordinates for which this is done.

    Raises:
        ValueError: If ``chunk`` or ``limit`` is below 1.

    Example:
        >>> value, trace = Exact()(lambda x: 3 * x, torch.ones(2, 4), None)
        >>> trace.value
        tensor([12., 12.])
    """

    exact = True

    def __init__(self, *, chunk: int | None = None, limit: int = LARGEST_EXACT) -> None:
        if chunk is not None:
            check_count("chunk", chunk)
        check_count("limit", limit)
        self.chunk, self.limit = chunk, limit

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        return None

    def estimate(self, products: Products, drawn: Tensor | None) -> TraceEstimate:
        x = products.point
        return exact_trace(products, self.chunk or max(1, MOST_NUMBERS // x.numel()))

    def products_for(self, size: int) -> int:
        return size

    def check_size(self, size: int) -> None:
        if size > self.limit:
            raise ValueError(
                f"the exact trace of events of {size} numbers takes {size} vector-Jacobian "
                f"products at every node of the path, and this one stops at {self.limit}: use "
                "divergence='xtrace' or sm.Hutchinson(8), whose error is told, or allow it with "
                f"sm.Exact(limit={size})"
            )

    def __repr__(self) -> str:
        return "Exact()"
