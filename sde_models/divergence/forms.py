"""Quadratic forms of a Jacobian with vectors that are given."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models.divergence.base import Divergence, Products, TraceEstimate, quadratic_forms


class Forms(Divergence):
    """The form of each of some vectors, as if it were an estimate; and the products themselves.

    Args:
        count: Number of vectors.
    """

    def __init__(self, count: int) -> None:
        self.probes = count
        self.found: list[Tensor] = []

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        return None

    def estimate(self, products: Products, drawn: Tensor | None) -> TraceEstimate:
        assert drawn is not None
        found = products(drawn)
        self.found.append(found.detach())
        forms = quadratic_forms(drawn, found)
        return TraceEstimate(forms, torch.zeros_like(forms[:, 0]))

    def count_products(self, size: int) -> int:
        return self.probes
