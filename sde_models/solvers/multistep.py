r"""Linear multistep methods: each step a weighted sum of the state and of past estimates of x0.

.. math:: x_{k+1} = c_k x_k + \sum_j w_{kj}\, \hat x_0(t_{k-j}, x_{k-j}) + s_k \xi_k

The weights depend on the nodes alone, so they are computed once, in double precision; a method is
its table of weights, and all share one loop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models.base_systems import as_coefficients
from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem, Scales


@dataclass(frozen=True)
class Weights:
    """Weights of K steps.

    Attributes:
        state: Factor :math:`c_k` of the state, shape ``(K,)``.
        estimates: Factors :math:`w_{kj}` of the estimates of x0, the newest first, shape
            ``(K, p)``; zero where there is no such estimate yet.
        noise: Factor :math:`s_k` of the noise, shape ``(K,)``; None where there is none.
    """

    state: Tensor
    estimates: Tensor
    noise: Tensor | None = None


class MultistepSolver(Solver):
    """A linear multistep method of a diffusion model's equation."""

    diffusion_only = True
    adaptive = False
    evaluations = 1
    default_steps = 50

    @abstractmethod
    def weights(self, scales: Scales, eta: float) -> Weights:
        """The weights of every step on nodes with these scales.

        Args:
            scales: Alpha, sigma and log-SNR of K + 1 nodes.
            eta: Stochasticity of the system.
        """

    def integrate(self, problem: Problem) -> Tensor:
        nodes, recorder, x = problem.at_nodes(), problem.recorder, problem.x
        steps = StepWeights(self.weights(problem.scales(), problem.system.eta))
        history: deque[Tensor] = deque(maxlen=steps.length)
        for k, t in enumerate(problem.times[1:].tolist()):
            history.appendleft(nodes.denoise(k, x)[0])
            x = steps.combine(k, x, history)
            if steps.noise is not None:
                x = x + steps.noise[k] * problem.noise()
            recorder.reach(t, x)
        return x


class StepWeights:
    """Weights as numbers that a step multiplies by."""

    def __init__(self, weights: Weights) -> None:
        self.state = as_coefficients(weights.state)
        columns = weights.estimates.unbind(1)
        self.length = len(columns)
        self.estimates: list[Any] = [as_coefficients(column) for column in columns]
        noisy = weights.noise is not None and bool((weights.noise.detach() != 0).any())
        self.noise: Any = as_coefficients(weights.noise) if noisy else None  # type: ignore[arg-type]

    def combine(self, k: int, x: Tensor, history: deque[Tensor]) -> Tensor:
        """The weighted sum of state and estimates, the newest first."""
        x = self.state[k] * x
        for column, estimate in zip(self.estimates, history, strict=False):
            x = x + column[k] * estimate
        return x


def half_log_snr(scales: Scales) -> Tensor:
    r"""The clock of exponential integrators, :math:`\lambda = \log(\alpha/\sigma)`."""
    return 0.5 * scales.log_snr


def exact_decay(scales: Scales, eta: float) -> tuple[Tensor, Tensor]:
    r"""Factors of state and noise that solve the linear part exactly.

    With :math:`h = \lambda_t - \lambda_s`,

    .. math:: c = \frac{\sigma_t}{\sigma_s} e^{-\eta^2 h}, \qquad
              s = \sigma_t \sqrt{1 - e^{-2\eta^2 h}} .
    """
    h = half_log_snr(scales).diff()
    sigma = scales.sigma
    state = sigma[1:] / sigma[:-1] * torch.exp(-(eta**2) * h)
    return state, sigma[1:] * torch.sqrt(-torch.expm1(-2 * eta**2 * h)).nan_to_num()
