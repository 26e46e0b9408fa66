r"""Samplers that step by the exact transition kernel between neighbouring nodes.

From a node t up to a noisier node s, the forward SDE has the kernel

.. math:: p(x_s | x_t) = N(a x_t, G^2 I), \qquad a = \frac{\alpha_s}{\alpha_t}, \qquad
          G^2 = \sigma_s^2 - a^2 \sigma_t^2 ,

whatever its alpha and sigma. Undone step by step, it gives the samplers of the discrete-time
models: of DDPM where the SDE is VP, of noise-conditional score networks where it is VE.

Reference:
    Song et al. 2021, Score-based generative modeling through SDEs, arXiv:2011.13456.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models.sdes.system import System, add_scaled, as_coefficients
from sde_models.solvers.one_step.base import OneStepSolver, Stepper
from sde_models.solvers.problem import Problem, Scales


class ReverseDiffusion(OneStepSolver):
    r"""Reverse diffusion: the reverse SDE, discretised as the forward one is.

    .. math:: x_t = (2 - a)\, x_s + \frac{1 + \eta^2}{2} G^2\, \nabla \log p_s(x_s) + \eta G \xi

    with a and G of the transition kernel from t to s. For VP it is equation 46 of the reference,
    with :math:`a = \sqrt{1 - \beta}` and :math:`G^2 = \beta`; for VE a is 1.

    One evaluation a step, weak order 1. Where a step leaves little signal, as the first ones from
    ``t_max`` do with few steps, 2 - a falls far short of 1/a: ``ancestral`` and ``ddim``, whose
    linear part is exact, are the better choice there.

    Reference:
        Song et al. 2021, equation 46 and appendix E, arXiv:2011.13456.
    """

    name = "reverse-diffusion"
    integrates = ("SDE",)
    diffusion_only = True
    directions = (-1,)
    order = 1.0
    evaluations = 1

    def stepper(self, problem: Problem) -> Stepper:
        nodes, scales, eta = problem.at_nodes(), problem.scales(), problem.system.eta
        gained, sigma = variance_gained(scales), scales.sigma[:-1]
        of_state = as_coefficients(2 - scales.alpha[:-1] / scales.alpha[1:])
        of_eps = as_coefficients(-0.5 * (1 + eta**2) * gained * sigma)
        of_noise = as_coefficients(eta * gained.sqrt() * sigma)

        def step(k: int, x: Tensor) -> Tensor:
            eps = nodes.denoise(k, x)[1]
            mean = add_scaled(of_state[k] * x, of_eps[k], eps)
            return add_scaled(mean, of_noise[k], problem.noise())

        return step


class Ancestral(OneStepSolver):
    r"""Ancestral sampling: the cleaner state is drawn given the noisier one and the estimate of x0.

    .. math:: p(x_t | x_s, \hat x_0) = N\Big(
              a \frac{\sigma_t^2}{\sigma_s^2}\, x_s + \alpha_t \frac{G^2}{\sigma_s^2}\, \hat x_0,\;
              \frac{\sigma_t^2}{\sigma_s^2} G^2 I \Big)

    with a and G of the transition kernel from t to s. One evaluation a step, weak order 1. It is
    ``ddim`` at eta = 1, the only eta there is. Of DDPM's two variances this is the posterior's;
    the other, :math:`G^2`, is what Song et al. use for VP.

    Reference:
        Ho et al. 2020, equation 7, arXiv:2006.11239; Song et al. 2021, equation 4 and appendix F,
        arXiv:2011.13456.
    """

    name = "ancestral"
    integrates = ("SDE",)
    diffusion_only = True
    directions = (-1,)
    order = 1.0
    evaluations = 1

    def check_system(self, system: System) -> None:
        super().check_system(system)
        refuse_other_eta(self.name, system, "'ddim', which takes every eta and is the same at 1")

    def stepper(self, problem: Problem) -> Stepper:
        nodes, scales = problem.at_nodes(), problem.scales()
        alpha, sigma, gained = scales.alpha, scales.sigma, variance_gained(scales)
        of_state = as_coefficients(alpha[:-1] / alpha[1:] * (sigma[1:] / sigma[:-1]).square())
        of_x0 = as_coefficients(alpha[1:] * gained)
        of_noise = as_coefficients(sigma[1:] * gained.sqrt())

        def step(k: int, x: Tensor) -> Tensor:
            mean = add_scaled(of_state[k] * x, of_x0[k], nodes.x0(k, x))
            return add_scaled(mean, of_noise[k], problem.noise())

        return step


def variance_gained(scales: Scales) -> Tensor:
    r"""The share :math:`G^2 / \sigma_s^2` of the variance that is new at s, for each step.

    It is :math:`1 - \mathrm{SNR}_s / \mathrm{SNR}_t`, here without cancellation.
    """
    return -torch.expm1(scales.log_snr[:-1] - scales.log_snr[1:])


def refuse_other_eta(name: str, system: System, instead: str) -> None:
    """Refuse a stochasticity other than 1, for a solver that has no other."""
    if system.eta != 1:
        raise ValueError(
            f"solver {name!r} is for eta=1 and this {type(system).__name__} has "
            f"eta={system.eta:g}: leave eta out, or use {instead}"
        )
