"""Adams methods over any clock: explicit, and with a corrector without an extra evaluation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from sde_models.solvers.multistep.adams_weights import (
    Quadrature,
    corrector_weights,
    predictor_weights,
    starting_weights,
)
from sde_models.solvers.multistep.base import MultistepSolver, Weights
from sde_models.solvers.problem import Scales


class _Adams(MultistepSolver):
    """An Adams method of order p for the probability flow."""

    integrates = ("ODE",)
    family: ClassVar[str]

    def __init__(self, order: int, **options: Any) -> None:
        self.name = f"{self.family}-{order}"
        self.order = order
        super().__init__(**options)

    @abstractmethod
    def quadrature(self, scales: Scales) -> Quadrature:
        """The integral that remains when the linear part of the flow is solved exactly."""

    def estimate_factors(self, scales: Scales) -> tuple[Tensor, Tensor]:
        quadrature = self.quadrature(scales)
        return quadrature.of_x0, quadrature.of_eps


class AdamsBashforth(_Adams):
    """Adams-Bashforth: the polynomial through the last p estimates, integrated exactly.

    The first steps use the estimates that exist, and are taken again once more are known, so that
    the start keeps the order; order 4 needs one more evaluation for this.
    """

    def weights(self, scales: Scales, eta: float) -> Weights:
        quadrature, order = self.quadrature(scales), int(self.order)
        return Weights(
            quadrature.state,
            predictor_weights(quadrature, order),
            start=starting_weights(quadrature, order),
        )


class AdamsMoulton(_Adams):
    r"""Adams-Bashforth-Moulton: predicted by p - 1 estimates, then corrected by p.

    The correction of a step uses the estimate at its end, which the next step needs anyway.

    Where steps grow, the polynomial through past nodes is a poor guess of the future: its weights
    become large and of both signs. The predictor takes as many of the nodes as keep
    :math:`\sum_j |w_j| \le A |\sum_j w_j|`, with A = 5 up to order 4 and 10 for order 5, where
    equal steps have 3.7 and 6.7. The grid may then be as uneven as the model needs.
    """

    def weights(self, scales: Scales, eta: float) -> Weights:
        quadrature, order = self.quadrature(scales), int(self.order)
        amplification = self.options.get("amplification", 5.0 if order < 5 else 10.0)
        return Weights(
            quadrature.state,
            predictor_weights(quadrature, order - 1, amplification=amplification),
            corrector=corrector_weights(quadrature, order),
            start=starting_weights(quadrature, order),
        )
