r"""Heun's method in the noise scale, with noise added before steps: the sampler of Karras et al."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_models.sdes.system import System, as_coefficients
from sde_models.solvers.one_step.base import OneStepSolver, Stepper
from sde_models.solvers.problem import Problem

MOST_GAMMA = math.sqrt(2) - 1
"""A step does not more than double the variance of the noise before it begins."""


class HeunEDM(OneStepSolver):
    r"""Heun steps of :math:`d\hat x / d\hat\sigma = \hat\epsilon`, with optional added noise.

    Here :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha`, in which every
    diffusion looks alike. A step from noise scale :math:`\hat\sigma_k` first raises it to
    :math:`\tilde\sigma_k = (1 + \gamma_k)\hat\sigma_k` by fresh noise:

    .. math:: \tilde x &= \hat x_k + S \sqrt{\tilde\sigma_k^2 - \hat\sigma_k^2}\, \xi \\
              \hat x_{k+1} &= \tilde x + \tfrac12 (\hat\sigma_{k+1} - \tilde\sigma_k)
              \big[\hat\epsilon(\tilde x) + \hat\epsilon(\hat x'_{k+1})\big]

    with :math:`\hat x'_{k+1}` the Euler step, :math:`\gamma_k = \min(S_{churn}/K, \sqrt 2 - 1)` in
    K steps, and no :math:`\tilde\sigma` above that at ``t_max``. Two evaluations a step, order 2.
    Without churn it integrates the probability flow in either direction. With churn it draws
    noise, has the same marginals, and runs down only.

    Options:
        churn: Amount of noise added over all steps, :math:`S_{churn}`; 0 if left out.
        churn_min: Least :math:`\hat\sigma` at which noise is added, 0 if left out.
        churn_max: Greatest :math:`\hat\sigma` at which noise is added, no bound if left out.
        noise: Scale S of the added noise, 1 if left out; above 1 compensates for networks that
            remove too much noise.

    Reference:
        Karras et al. 2022, algorithm 2 and table 5, arXiv:2206.00364. There the last node is at
        noise 0 and its step is Euler's; here it is at ``t_min`` and a step like the others.
    """

    name = "heun-edm"
    integrates = ("ODE",)
    diffusion_only = True
    order = 2
    evaluations = 2
    default_steps = 25
    default_grid = "karras"
    option_names = ("churn", "churn_min", "churn_max", "noise")
    number_options = option_names
    may_be_zero = ("churn", "churn_min")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.churn = self.options.get("churn", 0.0)
        self.churn_min = self.options.get("churn_min", 0.0)
        self.churn_max = self.options.get("churn_max", math.inf)
        self.noise = self.options.get("noise", 1.0)
        unused = [key for key in self.option_names[1:] if key in self.options]
        if not self.churn and unused:
            raise ValueError(f"option {unused[0]!r} has no effect without churn: give churn= too")
        if self.churn_min >= self.churn_max:
            raise ValueError(
                f"option 'churn_min' must be below 'churn_max', got {self.churn_min:g} and "
                f"{self.churn_max:g}"
            )
        if self.churn:
            self.directions = (-1,)

    def draws_noise(self, system: System) -> bool:
        return self.churn > 0

    def stepper(self, problem: Problem) -> Stepper:
        # Even nodes are where steps begin, once noise is added; odd ones where they end.
        times = self._with_raised_times(problem)
        nodes, scales = problem.at_nodes(times), problem.scales(times)
        alpha, level = scales.alpha, scales.sigma / scales.alpha
        begin, end = slice(0, None, 2), slice(1, None, 2)
        of_x = as_coefficients(alpha[end] / alpha[begin])
        of_eps = as_coefficients(alpha[end] * (level[end] - level[begin]))
        stir = self._stirring(problem, alpha[begin], level[begin])

        def step(k: int, x: Tensor) -> Tensor:
            x = stir(k, x)
            eps = nodes.denoise(2 * k, x)[1]
            moved = of_x[k] * x
            ahead = nodes.denoise(2 * k + 1, moved + of_eps[k] * eps)[1]
            return moved + (0.5 * of_eps[k]) * (eps + ahead)

        return step

    def _with_raised_times(self, problem: Problem) -> Tensor:
        """Times at which each step begins and ends, one after the other."""
        times, sde = problem.times, problem.system.sde
        begin = times[:-1]
        if self.churn:
            log_snr = problem.scales().log_snr[:-1].detach()
            level = torch.exp(-0.5 * log_snr)
            gamma = min(self.churn / len(begin), MOST_GAMMA)
            raised = log_snr - 2 * math.log1p(gamma)
            raised = sde.t_from_log_snr(raised).clamp(max=sde.t_max).to(times)
            churned = (level >= self.churn_min) & (level <= self.churn_max)
            begin = torch.where(churned.to(times.device), torch.maximum(raised, begin), begin)
        return torch.stack([begin, times[1:]], dim=1).flatten()

    def _stirring(self, problem: Problem, alpha: Tensor, level: Tensor) -> Stepper:
        """The first part of a step: raise the noise to ``level`` at signal scale ``alpha``."""
        if not self.churn:
            return lambda k, x: x
        scales = problem.scales(problem.times[:-1])
        gained = level.square() - (scales.sigma / scales.alpha).square()
        raised = gained > 0
        churned = raised.tolist()
        of_x = as_coefficients(alpha / scales.alpha)
        of_noise = as_coefficients(self.noise * alpha * gained.where(raised, 1.0).sqrt())

        def stir(k: int, x: Tensor) -> Tensor:
            return of_x[k] * x + of_noise[k] * problem.noise() if churned[k] else x

        return stir
