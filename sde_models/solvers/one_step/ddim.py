r"""DDIM: deterministic or stochastic steps between any two noise levels."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models.sdes.system import add_scaled, as_coefficients
from sde_models.solvers.multistep.base import MultistepSolver, Weights
from sde_models.solvers.one_step.ancestral import variance_gained
from sde_models.solvers.one_step.base import Stepper
from sde_models.solvers.problem import Problem, Scales


class DDIM(MultistepSolver):
    r"""DDIM with stochasticity eta, for any alpha and sigma.

    .. math:: x_t = \alpha_t \hat x_0 + \sqrt{\sigma_t^2 - v}\, \hat\epsilon + \sqrt v\, \xi,
              \qquad v = \eta^2 \frac{\sigma_t^2}{\sigma_s^2}
              \Big(\sigma_s^2 - \frac{\alpha_s^2}{\alpha_t^2} \sigma_t^2\Big)

    One evaluation a step, order 1. With eta = 0 it integrates the probability flow, in either
    direction; with eta = 1 it is the ancestral sampler of DDPM; above 1, v is at most
    :math:`\sigma_t^2`.

    Reference:
        Song, Meng and Ermon 2020, equation 12, arXiv:2010.02502.
    """

    name = "ddim"
    integrates = ("ODE", "SDE")
    order = 1.0

    def weights(self, scales: Scales, eta: float) -> Weights:
        alpha, sigma = scales.alpha, scales.sigma
        gained = variance_gained(scales)
        variance = (eta**2 * sigma[1:].square() * gained).clamp(max=sigma[1:].square())
        if eta == 0:
            variance = torch.zeros_like(variance)
        state = (sigma[1:].square() - variance).sqrt() / sigma[:-1]
        of_x0 = alpha[1:] - state * alpha[:-1]
        return Weights(state, of_x0[:, None], variance.sqrt() if eta else None)

    def stepper(self, problem: Problem) -> Stepper:
        """The step by itself, with which it serves as the predictor of ``pc``."""
        nodes = problem.at_nodes()
        weights = self.weights(problem.scales(), problem.system.eta)
        of_state = as_coefficients(weights.state)
        of_x0 = as_coefficients(weights.estimates[:, 0])
        of_noise = None if weights.noise is None else as_coefficients(weights.noise)

        def step(k: int, x: Tensor) -> Tensor:
            mean = add_scaled(of_state[k] * x, of_x0[k], nodes.x0(k, x))
            return mean if of_noise is None else add_scaled(mean, of_noise[k], problem.noise())

        return step
