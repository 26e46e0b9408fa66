r"""The logit from the unit interval to all numbers, for bounded data.

.. math:: z = \mathrm{logit}(m + (1 - 2 m) y)

keeps a margin m away from 0 and 1, where the logit is infinite.

References:
    Dinh et al. 2017, Density estimation using Real NVP, arXiv:1605.08803; Papamakarios et al. 2017,
    Masked autoregressive flow, arXiv:1705.07057.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from sde_models._utils.arguments import check_not_negative


class LogitTransform(Transform):
    r"""The bijection :math:`z = \mathrm{logit}(m + (1 - 2 m) y)` from [0, 1], number by number.

    .. math:: \log \frac{dz}{dy} = \log(1 - 2 m) - \log s - \log(1 - s), \quad s = m + (1 - 2 m) y

    Args:
        margin: The margin m, from 0 up to but without 0.5.
        cache_size: As for every transform of torch.

    Raises:
        ValueError: If the margin is out of its range.

    Example:
        >>> logit = LogitTransform(margin=0.05)
        >>> logit(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-2.9444,  0.0000,  2.9444])
        >>> logit.inv(torch.tensor([0.0]))
        tensor([0.5000])
    """

    domain = constraints.unit_interval
    bijective = True
    sign = 1

    def __init__(self, margin: float = 1e-6, cache_size: int = 0) -> None:
        self.margin = check_not_negative("margin", margin, below=0.5)
        super().__init__(cache_size=cache_size)

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """All numbers that the margin leaves."""
        edge = math.log1p(-self.margin) - math.log(self.margin) if self.margin else math.inf
        return constraints.interval(-edge, edge)

    def with_cache(self, cache_size: int = 1) -> LogitTransform:
        """The same with another cache."""
        return self if self._cache_size == cache_size else LogitTransform(self.margin, cache_size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of dz/dy, where x and y of torch are y and z here; shape of ``x``."""
        return math.log1p(-2 * self.margin) - self._inner(x).log() - self._inner(1 - x).log()

    def _call(self, x: Tensor) -> Tensor:
        return self._inner(x).log() - self._inner(1 - x).log()

    def _inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin)

    def _inner(self, x: Tensor) -> Tensor:
        return self.margin + (1 - 2 * self.margin) * x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogitTransform) and other.margin == self.margin

    def __hash__(self) -> int:
        return hash((LogitTransform, self.margin))

    def __repr__(self) -> str:
        return f"LogitTransform(margin={self.margin:g})"
