r"""Coefficients of embedded Runge-Kutta pairs with dense output.

With slopes :math:`k_i = f(t + c_i h, x + h \sum_j a_{ij} k_j)`, the last of which stands at the end
of the step and is the first of the next,

.. math:: x(t + \theta h) = x + h \sum_i b_i(\theta)\, k_i, \qquad
          b_i(\theta) = \sum_j p_{ij}\, \theta^{j+1}, \qquad
          \mathrm{error} = h \sum_i e_i k_i .

References:
    Bogacki and Shampine 1989, A 3(2) pair of Runge-Kutta formulas; Dormand and Prince 1980, A
    family of embedded Runge-Kutta formulae; Shampine 1986, Some practical Runge-Kutta formulas
    (the dense output of the latter).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scipy.integrate import RK23, RK45
from torch import Tensor

from sde_models.sdes.system import add_scaled

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit pair whose last stage is the end of the step.

    Attributes:
        order: Order of the step taken, and of the error estimate in the step size.
        nodes: :math:`c_i`, one for each slope.
        stages: :math:`a_{ij}` of every slope except the first; the last row is the step itself.
        error: :math:`e_i`, one for each slope.
        dense: :math:`p_{ij}`, one row for each slope.
    """

    order: int
    nodes: Row
    stages: tuple[Row, ...]
    error: Row
    dense: tuple[Row, ...]

    def weights_at(self, theta: Any) -> tuple[Any, ...]:
        r"""The weights :math:`b_i(\theta)` of the dense output, at a number or a tensor."""
        return tuple(sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in self.dense)


def weighted_sum(weights: Row, slopes: list[Tensor]) -> Tensor:
    """The weighted sum of the slopes, in one pass over each with a weight."""
    (first, slope), *rest = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    total = first * slope
    for w, k in rest:
        total = add_scaled(total, w, k)
    return total


def _of_scipy(method: Any) -> Tableau:
    """The coefficients of an explicit method of SciPy."""
    inner = (tuple(row[:i]) for i, row in enumerate(method.A.tolist()) if i)
    return Tableau(
        order=method.order,
        nodes=(*method.C.tolist(), 1.0),
        stages=(*inner, tuple(method.B.tolist())),
        error=tuple((-method.E).tolist()),  # SciPy takes the smaller order minus the larger
        dense=tuple(map(tuple, method.P.tolist())),
    )


BOGACKI_SHAMPINE = _of_scipy(RK23)
"""Bogacki-Shampine 3(2) with the cubic through both ends and their slopes."""
DORMAND_PRINCE = _of_scipy(RK45)
"""Dormand-Prince 5(4) with Shampine's dense output of order 4."""
