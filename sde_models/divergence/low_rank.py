r"""Trace estimators for Jacobians that are large in few directions.

With a projector P onto directions found by some probes, and a probe e that these do not depend on,

.. math:: \mathrm{tr} J = \mathrm{tr}(P J P)
          + E\,[\,((I - P) e)^\top J\, (I - P) e\,] , \qquad E\,[e e^\top] = I ,

so that only the part outside of P is estimated. The projected probes are scaled to their average
length, so that a multiple of the identity outside of P causes no error.

References:
    Meyer, Musco, Musco and Woodruff 2021, Hutch++: optimal stochastic trace estimation,
    arXiv:2010.09649; Epperly, Tropp and Webber 2024, XTrace: making the most of every sample in
    stochastic trace estimation, SIAM J. Matrix Anal. Appl. 45, arXiv:2301.07825.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import standard_normal_like
from sde_models.divergence.base import (
    Divergence,
    Products,
    TraceEstimate,
    exact_trace,
    quadratic_forms,
)

SHARED = 1.15
"""Estimates that share products have correlated errors, so that their spread understates the error
of their mean: on random matrices of flat and of decaying spectra by up to this factor, which grows
with the share of all directions that they have in common."""


class LowRank(Divergence):
    """What both estimators have in common.

    Attributes:
        drawn_each: Probes that are drawn for each estimate.
        products_each: Products that are taken for each.
    """

    drawn_each: int
    products_each: int

    def __init__(self, probes: int = 4) -> None:
        self.probes = check_integer("probes", probes, least=2)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count = self.drawn_each * self.probes
        return standard_normal_like(x.detach().expand(count, *x.shape), generator)

    def estimate(self, products: Products, drawn: Tensor | None) -> TraceEstimate:
        if drawn is None:
            raise ValueError(f"{type(self).__name__} needs the probes that draw() returns")
        size = drawn.shape[2]
        if self.count_products(size) >= size:
            return exact_trace(products, size, self.probes)
        estimates = self._estimates(products, drawn)
        return TraceEstimate(estimates, self.spread_error(estimates.detach(), size))

    @abstractmethod
    def _estimates(self, products: Products, drawn: Tensor) -> Tensor:
        """Estimates ``(B, probes)`` from fewer products than there are directions."""

    def count_products(self, size: int) -> int:
        return min(self.products_each * self.probes, size)

    @property
    def degrees(self) -> int:
        return self.probes - 1

    def with_products(self, count: int) -> Divergence:
        return type(self)(max(2, math.ceil(count / self.products_each)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(probes={self.probes})"


class HutchPlusPlus(LowRank):
    r"""Hutch++: the trace in the range of :math:`J S`, and Hutchinson's estimate outside of it.

    Exact for Jacobians of rank up to ``probes``. Takes ``3 * probes`` products.

    Args:
        probes: Number of probes S of the range, and of independent estimates outside of it.

    Raises:
        ValueError: If ``probes`` is below 2.

    Example:
        >>> trace = HutchPlusPlus(probes=2)
        >>> x = torch.ones(1, 6)
        >>> trace(lambda x: x.sum(1, keepdim=True).expand_as(x), x, trace.draw(x))[1].value
        tensor([6.0000])
    """

    drawn_each, products_each = 2, 3

    def _estimates(self, products: Products, drawn: Tensor) -> Tensor:
        sketch, probes = drawn.chunk(2)
        basis = torch.linalg.qr(products(sketch).detach().permute(1, 2, 0))[0]
        directions = basis.permute(2, 0, 1)
        inside = quadratic_forms(directions, products(directions)).sum(1, keepdim=True)
        probes = probes.permute(1, 2, 0)
        outside = (probes - basis @ (basis.mT @ probes)).permute(2, 0, 1)
        rest = drawn.shape[2] - self.probes
        lengths = math.sqrt(rest) / torch.linalg.vector_norm(outside, dim=2)
        outside = outside * lengths[..., None]
        return inside + quadratic_forms(outside, products(outside))


class XTrace(LowRank):
    r"""XTrace: Hutchinson's estimate with each probe, outside of the directions of all others.

    The directions are those of the probes :math:`\Omega` and of :math:`J \Omega`, so that the trace
    of any multiple of the identity and a rank below ``probes`` is exact: the directions in which
    it differs from that multiple are among them, whatever the multiple. All estimates come from the
    same ``2 * probes`` products.

    Args:
        probes: Number of probes, 2 or more.

    Raises:
        ValueError: If ``probes`` is below 2.

    Example:
        >>> trace = XTrace(probes=2)
        >>> x = torch.ones(1, 6)
        >>> trace(lambda x: 3 * x + x.mean(1, keepdim=True), x, trace.draw(x))[1].value
        tensor([19.0000])
    """

    drawn_each, products_each = 1, 2

    def _estimates(self, products: Products, drawn: Tensor) -> Tensor:
        count, _, size = drawn.shape
        images = products(drawn)
        both = torch.cat([drawn, images.detach()]).permute(1, 2, 0)
        both = both / torch.linalg.vector_norm(both, dim=1, keepdim=True).clamp(min=_tiny(both))
        basis, found = torch.linalg.qr(both)
        # The products with the first half of the basis follow from those with the probes.
        lengths = torch.linalg.vector_norm(drawn, dim=2).T[:, None]
        first = torch.linalg.solve_triangular(
            found[:, :count, :count] * lengths, images.permute(1, 2, 0), upper=True, left=False
        )
        second = products(basis[:, :, count:].permute(2, 0, 1)).permute(1, 2, 0)
        compressed = basis.mT @ torch.cat([first, second], 2)  # J in the basis
        return self._leave_one_out(found, compressed, size)

    def spread_error(self, estimates: Tensor, size: int) -> Tensor:
        products = self.count_products(size)
        enlarged = SHARED / math.sqrt(1 - products / size) if products < size else 1.0
        return enlarged * super().spread_error(estimates, size)

    def _leave_one_out(self, found: Tensor, compressed: Tensor, size: int) -> Tensor:
        """Estimates ``(B, probes)`` from coefficients of probes and images in the basis."""
        count = self.probes
        others = [[i for i in range(2 * count) if i % count != left] for left in range(count)]
        inside, ranks = _gram_schmidt(found[:, :, torch.tensor(others)].permute(0, 2, 1, 3))
        own = found[:, :, :count].mT[..., None]
        for _ in range(2):
            own = own - inside @ (inside.mT @ own)
        own = own / torch.linalg.vector_norm(own, dim=2, keepdim=True)
        matrix = compressed[:, None]
        within = (inside * (matrix @ inside)).sum((2, 3))
        return within + (size - ranks) * (own * (matrix @ own)).sum((2, 3))


def _gram_schmidt(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns that span unit columns, zero for dependent ones; and the rank."""
    basis = torch.zeros_like(columns)
    threshold = 100 * torch.finfo(columns.dtype).eps
    for i, column in enumerate(columns.unbind(-1)):
        rest, before = column[..., None], basis[..., :i]
        for _ in range(2 if i else 0):  # once is not enough for nearly dependent columns
            rest = rest - before @ (before.mT @ rest)
        length = torch.linalg.vector_norm(rest, dim=-2, keepdim=True)
        new = torch.where(length > threshold, rest / length.clamp(min=_tiny(rest)), 0.0)
        basis[..., i] = new[..., 0]
    return basis, basis.square().sum((-2, -1))


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
