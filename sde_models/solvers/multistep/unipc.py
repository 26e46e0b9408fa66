r"""UniPC: a predictor and a corrector that share their evaluations.

With :math:`h = \lambda_t - \lambda_s` in half log-SNR, :math:`r_j = (\lambda_j - \lambda_s) / h`,
:math:`D_j = (\hat x_0(t_j) - \hat x_0(s)) / r_j` and :math:`B = 1 - e^{-h}`,

.. math:: x_t = \frac{\sigma_t}{\sigma_s} x_s + \alpha_t \Big[(1 - e^{-h}) \hat x_0(s)
          + B \sum_j \rho_j D_j\Big] .

The predictor sums over past nodes, the corrector also over t itself. Where :math:`\rho` solves the
conditions of order, B drops out and the step is the exact integral of the polynomial through the
nodes; where there is one condition the paper takes :math:`\rho = 1/2`.

Reference:
    Zhao et al. 2023, UniPC, algorithms 5 to 8, arXiv:2302.04867.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_models.solvers.base import Solver
from sde_models.solvers.multistep.adams_weights import (
    corrector_weights,
    predictor_weights,
    starting_weights,
)
from sde_models.solvers.multistep.base import MultistepSolver, Weights, half_log_snr
from sde_models.solvers.multistep.exponential_adams import exponential_quadrature
from sde_models.solvers.problem import Scales


class UniPC(MultistepSolver):
    """UniPC-p with data prediction: a predictor of order p, corrected to order p + 1.

    One evaluation a step. ``unipc-3`` takes one more to start, without which the first step would
    reduce it to order 3.

    Options:
        variant: "bh2" (default), in which B is as above, or "bh1", in which it is h.

    Args:
        order: p, 2 or 3. The order of convergence is p + 1.
    """

    integrates = ("ODE",)
    option_names = ("variant",)

    def __init__(self, order: int, **options: Any) -> None:
        self.name = f"unipc-{order}"
        self.predictor_order = order
        self.order = order + 1
        super().__init__(**options)
        self.variant = self.options.get("variant", "bh2")
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be 'bh1' or 'bh2', got {self.variant!r}")

    def weights(self, scales: Scales, eta: float) -> Weights:
        order, quadrature = self.predictor_order, exponential_quadrature(scales)
        predictor = predictor_weights(quadrature, order)
        corrector = corrector_weights(quadrature, order + 1)
        two_nodes = self._two_nodes(scales)
        rows = slice(1, None) if order == 2 else slice(1, 2)
        predictor[rows] = 0
        predictor[rows, :2] = two_nodes[rows]
        if len(corrector):
            corrector[0, :2] = self._first_correction(scales)
        start = starting_weights(quadrature, order + 1)[1:]
        if start:
            start = (corrector[:1, :2], *start)
        return Weights(quadrature.state, predictor, corrector=corrector, start=start)

    def _b(self, h: Tensor) -> Tensor:
        return h if self.variant == "bh1" else -torch.expm1(-h)

    def _two_nodes(self, scales: Scales) -> Tensor:
        """Predictor from two estimates with rho = 1/2, shape ``(K, 2)``."""
        h = half_log_snr(scales).diff()
        past = torch.cat([h.new_zeros(1), 0.5 * self._b(h[1:]) * h[1:] / h[:-1]])
        weights = torch.stack([past - torch.expm1(-h), -past], 1)
        return scales.alpha[1:, None] * weights

    def _first_correction(self, scales: Scales) -> Tensor:
        """Corrector from the two ends of the first step with rho = 1/2, shape ``(2,)``."""
        h = half_log_snr(scales)[:2].diff()
        end = 0.5 * self._b(h)
        return scales.alpha[1] * torch.cat([end, -torch.expm1(-h) - end])


def unipc_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for each order, by name."""
    return {f"unipc-{order}": partial(UniPC, order) for order in (2, 3)}
