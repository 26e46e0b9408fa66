r"""Linear multistep methods: each step a weighted sum of the state and of past estimates.

.. math:: x_{k+1} = c_k x_k + \sum_j w_{kj}\, u(t_{k-j}, x_{k-j}) + s_k \xi_k

where the estimate u is that of x0, or another sum of x0 and eps.

A corrector may take the same step once more when the estimate at its end is known, which costs no
evaluation, since the next step needs that estimate anyway:

.. math:: x_{k+1} \leftarrow c_k x_k + \sum_j v_{kj}\, u(t_{k+1-j}, x_{k+1-j}) .

The weights depend on the nodes alone, so they are computed once, in double precision; a method is
its table of weights, and all share one loop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models.sdes.system import add_scaled, as_coefficients, linear_sum
from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem, Scales


@dataclass(frozen=True)
class Weights:
    """Weights of K steps.

    Attributes:
        state: Factor :math:`c_k` of the state, shape ``(K,)``.
        estimates: Factors :math:`w_{kj}` of the estimates, the newest first, shape
            ``(K, p)``; zero where there is no such estimate yet.
        noise: Factor :math:`s_k` of the noise, shape ``(K,)``; None where there is none.
        corrector: Factors :math:`v_{kj}` of the estimates, that at the end of the step first,
            shape ``(R, q)``: the first R steps are corrected, at most K - 1.
        start: For m = 1, 2, ...: factors of the estimates at nodes m to 0 in steps 1 to m, shape
            ``(m, m + 1)``. When node m is reached these steps are taken again, and after all
            rounds except the last the estimates at their ends are evaluated anew, so that the first
            steps, of low order, do not reduce the order of the method.
    """

    state: Tensor
    estimates: Tensor
    noise: Tensor | None = None
    corrector: Tensor | None = None
    start: tuple[Tensor, ...] = ()

    @property
    def longest(self) -> int:
        """The largest number of estimates that a step uses."""
        corrected = 0 if self.corrector is None else self.corrector.shape[1]
        return max(self.estimates.shape[1], corrected, len(self.start) + 1)


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

    def estimate_factors(self, scales: Scales) -> tuple[Tensor, Tensor]:
        """Factors of x0 and eps in the estimate, shape ``(K + 1,)`` each; by default x0 itself."""
        return torch.ones_like(scales.alpha), torch.zeros_like(scales.alpha)

    def integrate(self, problem: Problem) -> Tensor:
        recorder, x, scales = problem.recorder, problem.x, problem.scales()
        weights = self.weights(scales, problem.system.eta)
        estimate = problem.at_nodes().weighted(*self.estimate_factors(scales))
        predictor = WeightedSum(weights.state, weights.estimates)
        corrector = WeightedSum(weights.state, weights.corrector)
        rounds = [WeightedSum(weights.state, again) for again in weights.start]
        noise = None if weights.noise is None else as_coefficients(weights.noise)
        times = problem.times.tolist()
        history: deque[Tensor] = deque(maxlen=weights.longest)
        start = before = x
        for k in range(len(times) - 1):
            history.appendleft(estimate(k, x))
            if 0 < k <= len(rounds):
                x = start
                for j in range(k):
                    x = rounds[k - 1](j, x, history)
                    if k < len(rounds):
                        history[k - 1 - j] = estimate(j + 1, x)
            elif 0 < k <= corrector.steps:
                x = corrector(k - 1, before, history)
            if k:
                recorder.reach(times[k], x)
            before, x = x, predictor(k, x, history)
            if noise is not None:
                x = add_scaled(x, noise[k], problem.noise())
        recorder.reach(times[-1], x)
        return x


class WeightedSum:
    """A step as a weighted sum, with its weights as numbers.

    Args:
        state: Factors of the state, shape ``(K,)``.
        estimates: Factors of the estimates, shape ``(K, p)``; None for no steps.
    """

    def __init__(self, state: Tensor, estimates: Tensor | None) -> None:
        estimates = state.new_zeros(0, 0) if estimates is None else estimates
        self.steps = len(estimates)
        self._state = as_coefficients(state)
        columns = [as_coefficients(column) for column in estimates.unbind(1)]
        self._factors: list[tuple[Any, ...]] = list(zip(*columns, strict=True))

    def __call__(self, k: int, x: Tensor, history: Sequence[Tensor]) -> Tensor:
        """Step ``k`` from the state ``x`` with these estimates, the newest first."""
        return linear_sum(self._state[k], x, self._factors[k], history)


def half_log_snr(scales: Scales) -> Tensor:
    r"""The clock of exponential integrators, :math:`\lambda = \log(\alpha/\sigma)`."""
    return 0.5 * scales.log_snr


def exact_decay(scales: Scales, eta: float) -> tuple[Tensor, Tensor | None]:
    r"""Factors of state and noise that solve the linear part exactly.

    With :math:`h = \lambda_t - \lambda_s`,

    .. math:: c = \frac{\sigma_t}{\sigma_s} e^{-\eta^2 h}, \qquad
              s = \sigma_t \sqrt{1 - e^{-2\eta^2 h}} .
    """
    h = half_log_snr(scales).diff()
    sigma = scales.sigma
    state = sigma[1:] / sigma[:-1] * torch.exp(-(eta**2) * h)
    return state, sigma[1:] * torch.sqrt(-torch.expm1(-2 * eta**2 * h)) if eta else None
