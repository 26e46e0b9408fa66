r"""Hutchinson's estimate of the divergence of a vector field.

.. math:: \nabla \cdot f = \mathrm{tr}\,\frac{\partial f}{\partial x}
          = E\,[\,e^\top \frac{\partial f}{\partial x} e\,], \qquad E\,[e e^\top] = I .

Estimators for Jacobians that are large in few directions are in
:mod:`~sde_models.divergence.low_rank`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models._utils.errors import find_by_name
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import rademacher_like, sphere_like, standard_normal_like
from sde_models.divergence.base import Divergence, Products, TraceEstimate, quadratic_forms


class Hutchinson(Divergence):
    r"""Hutchinson's unbiased estimator :math:`e^\top J e` with random probes.

    With S the symmetric part of J its variance is :math:`2 \|S\|^2` for Gaussian probes, the same
    without the diagonal of S for Rademacher probes, and about the same without the trace for probes
    on the sphere. The products estimate it by :math:`E \|J^\top e\|^2 = \|J\|^2 \ge \|S\|^2`, far
    better than the spread of a few estimates does, so that a single probe has an error too. For
    Gaussian probes and those on the sphere the error is exact on average where J is symmetric, as
    that of a score is. For other J, and for few Rademacher probes, from which the diagonal is not
    known, it is an upper estimate.

    Args:
        probes: Number of independent probes.
        distribution: "rademacher" (entries -1 or +1: no error from the diagonal), "gaussian", or
            "sphere" (directions of length :math:`\sqrt{D}`: no error from a multiple of the
            identity).

    Raises:
        ValueError: If ``probes`` is below 1 or the distribution is unknown.

    Reference:
        Hutchinson 1989; Grathwohl et al. 2019, FFJORD, arXiv:1810.01367.

    Example:
        >>> trace = Hutchinson(probes=3)
        >>> x = torch.ones(2, 4)
        >>> trace(lambda x: 3 * x, x, trace.draw(x))[1].estimates.shape
        torch.Size([2, 3])
    """

    def __init__(self, probes: int = 1, distribution: str = "rademacher") -> None:
        drawers = {
            "rademacher": rademacher_like,
            "gaussian": standard_normal_like,
            "sphere": sphere_like,
        }
        self.probes = check_integer("probes", probes)
        self.distribution = distribution
        self.without_replacement = distribution == "rademacher"
        self._draw = find_by_name("probe distribution", distribution, drawers)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        flat = x.detach().flatten(1)
        drawn = self._draw(flat.expand(self.probes, *flat.shape), generator)
        return drawn.reshape(self.probes, *x.shape)

    def estimate(self, products: Products, drawn: Tensor | None) -> TraceEstimate:
        if drawn is None:
            raise ValueError("Hutchinson needs the probes that draw() returns")
        found = products(drawn)
        variance = self._variance((drawn * found).detach(), found.detach())
        return TraceEstimate(quadratic_forms(drawn, found), (variance / self.probes).sqrt())

    def _variance(self, diagonals: Tensor, found: Tensor) -> Tensor:
        """Variance of one estimate, shape ``(B,)``.

        Args:
            diagonals: Estimates of the diagonal entries, ``(probes, B, D)``.
            found: The products.
        """
        if self.distribution == "rademacher" and self.probes > 1:
            return 2 * diagonals.var(0).sum(1)
        total = found.square().sum(2).mean(0)
        if self.distribution == "gaussian":
            return 2 * total
        size = found.shape[2]
        part = size / (size + 2) if self.distribution == "sphere" else 1.0
        return 2 * part * (total - diagonals.sum(2).mean(0).square() / size).clamp(min=0)

    def count_products(self, size: int) -> int:
        return self.probes

    def with_products(self, count: int) -> Hutchinson:
        return Hutchinson(count, self.distribution)

    def __repr__(self) -> str:
        return f"Hutchinson(probes={self.probes}, distribution={self.distribution!r})"
