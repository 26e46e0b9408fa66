r"""DPM-Solver++, multistep: ``dpmpp-2m``, ``dpmpp-3m``, and both for the reverse SDE.

With :math:`h = \lambda_t - \lambda_s` in half log-SNR and the noise eta of the reverse SDE (0 for
the flow), one step from s to t is

.. math:: x_t = \frac{\sigma_t}{\sigma_s} e^{-\eta^2 h} x_s
          + \alpha_t \big(1 - e^{-(1 + \eta^2) h}\big) D
          + \sigma_t \sqrt{1 - e^{-2 \eta^2 h}}\, \xi

where D is made of the last two or three estimates of x0.

References:
    Lu et al. 2022, DPM-Solver++, algorithm 2 and appendices B and C, arXiv:2211.01095. Eta between
    0 and 1 as in Karras et al. 2022's and Lu et al.'s samplers: theirs are eta = 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_models.solvers.base import Solver
from sde_models.solvers.multistep.adams_weights import predictor_weights, starting_weights
from sde_models.solvers.multistep.base import MultistepSolver, Weights, exact_decay, half_log_snr
from sde_models.solvers.multistep.exponential_adams import exponential_quadrature
from sde_models.solvers.problem import Scales


class DPMSolver2M(MultistepSolver):
    r"""DPM-Solver++(2M): with :math:`r = h_{k-1} / h_k`,

    .. math:: D = \Big(1 + \frac{1}{2r}\Big) \hat x_0(t_k) - \frac{1}{2r} \hat x_0(t_{k-1}) .

    One evaluation a step, order 2 of the flow. ``dpmpp-2m-sde`` integrates the reverse SDE: strong
    order 1, with a smaller error than a method of one step.
    """

    def __init__(self, *, stochastic: bool = False) -> None:
        self.name = "dpmpp-2m-sde" if stochastic else "dpmpp-2m"
        self.integrates = ("SDE",) if stochastic else ("ODE",)
        self.order = 1 if stochastic else 2
        super().__init__()

    def weights(self, scales: Scales, eta: float) -> Weights:
        state, noise = exact_decay(scales, eta)
        return Weights(state, two_step_weights(scales, eta), noise)


class DPMSolver3M(MultistepSolver):
    r"""DPM-Solver++(3M): D is the exact integral of the parabola through three estimates.

    One evaluation a step, order 3 of the flow; to keep it, the first step is corrected when the
    second estimate is known. ``dpmpp-3m-sde`` integrates the reverse SDE, with strong order 1.

    Implementations in wide use take half of the parabola's second difference, and are of order 2.
    """

    def __init__(self, *, stochastic: bool = False) -> None:
        self.name = "dpmpp-3m-sde" if stochastic else "dpmpp-3m"
        self.integrates = ("SDE",) if stochastic else ("ODE",)
        self.order = 1 if stochastic else 3
        super().__init__()

    def weights(self, scales: Scales, eta: float) -> Weights:
        state, noise = exact_decay(scales, eta)
        quadrature = exponential_quadrature(scales, eta)
        start = () if self.stochastic else starting_weights(quadrature, 3)
        return Weights(state, predictor_weights(quadrature, 3), noise, start=start)


def two_step_weights(scales: Scales, eta: float) -> Tensor:
    """Weights of the last two estimates in DPM-Solver++(2M), shape ``(K, 2)``."""
    h = half_log_snr(scales).diff()
    total = -scales.alpha[1:] * torch.expm1(-(1 + eta**2) * h)
    past = torch.cat([h.new_zeros(1), 0.5 * h[1:] / h[:-1]])
    return total[:, None] * torch.stack([1 + past, -past], 1)


def dpm_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for each, by name."""
    return {
        "dpmpp-2m": DPMSolver2M,
        "dpmpp-3m": DPMSolver3M,
        "dpmpp-2m-sde": partial(DPMSolver2M, stochastic=True),
        "dpmpp-3m-sde": partial(DPMSolver3M, stochastic=True),
    }
