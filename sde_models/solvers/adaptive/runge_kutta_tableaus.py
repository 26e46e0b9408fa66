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
from fractions import Fraction
from typing import Any

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


def _row(text: str) -> Row:
    return tuple(float(Fraction(number)) for number in text.split())


def _rows(text: str) -> tuple[Row, ...]:
    return tuple(map(_row, text.strip().splitlines()))


BOGACKI_SHAMPINE = Tableau(
    order=3,
    nodes=_row("0 1/2 3/4 1"),
    stages=_rows("""
        1/2
        0 3/4
        2/9 1/3 4/9
    """),
    error=_row("-5/72 1/12 1/9 -1/8"),
    dense=_rows("""
        1 -4/3 5/9
        0 1 -2/3
        0 4/3 -8/9
        0 -1 1
    """),
)
"""Bogacki-Shampine 3(2) with the cubic through both ends and their slopes."""

DORMAND_PRINCE = Tableau(
    order=5,
    nodes=_row("0 1/5 3/10 4/5 8/9 1 1"),
    stages=_rows("""
        1/5
        3/40 9/40
        44/45 -56/15 32/9
        19372/6561 -25360/2187 64448/6561 -212/729
        9017/3168 -355/33 46732/5247 49/176 -5103/18656
        35/384 0 500/1113 125/192 -2187/6784 11/84
    """),
    error=_row("71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40"),
    dense=_rows("""
        1 -8048581381/2820520608 8663915743/2820520608 -12715105075/11282082432
        0 0 0 0
        0 131558114200/32700410799 -68118460800/10900136933 87487479700/32700410799
        0 -1754552775/470086768 14199869525/1410260304 -10690763975/1880347072
        0 127303824393/49829197408 -318862633887/49829197408 701980252875/199316789632
        0 -282668133/205662961 2019193451/616988883 -1453857185/822651844
        0 40617522/29380423 -110615467/29380423 69997945/29380423
    """),
)
"""Dormand-Prince 5(4) with Shampine's dense output of order 4."""
