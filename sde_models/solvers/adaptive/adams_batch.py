r"""Adaptive exponential Adams in the log-SNR clock, with a step for each sample: for densities.

Near the data a density varies on the scale of the noise: an error of x that is invisible in a
sample changes its log-density by many nats where :math:`\sigma(t)` is smaller still. In the clock
:math:`\lambda = \log(\alpha/\sigma)` the flow changes by about as much in each unit, and

.. math:: x_t = \frac{\alpha_t}{\alpha_s} x_s
          - \sigma_t \int_{\lambda_s}^{\lambda_t} e^{\lambda_t - \lambda} \hat\epsilon\, d\lambda
          \qquad\text{or}\qquad
          x_t = \frac{\sigma_t}{\sigma_s} x_s
          + \alpha_t \int_{\lambda_s}^{\lambda_t} e^{-(\lambda_t - \lambda)} \hat x_0\, d\lambda

leaves a smooth integrand: the first from data to noise, the second from noise to data.

References:
    Hairer, Norsett and Wanner 1993, Solving ordinary differential equations I, III.5 and III.7
    (Adams methods with variable steps, their error and order); Hochbruck and Ostermann 2010,
    Exponential integrators, section 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.integers import check_integer
from sde_models._utils.shapes import per_sample
from sde_models.solvers.adaptive.batch_solve import BatchSolve, BatchSolver, Samples
from sde_models.solvers.adaptive.step_control import StepControl, integral, is_accepted
from sde_models.solvers.multistep.adams_weights import known_integrals
from sde_models.solvers.problem import Problem

CONTROL = StepControl(safety=0.8, shrink=0.2, grow=2.0)
FIRST_STEP = 0.05
"""In units of the clock; steps grow from there with the order."""


class AdamsBatch(BatchSolver):
    r"""Adams predictor and corrector of variable order and step; one evaluation for each step.

    A step is predicted by the polynomial through the last p estimates, evaluated, and corrected by
    that through the last p and the new one. The difference of the two, in units of the noise, is
    the error that steps are chosen by:

    .. math:: \frac{\| x^{corrected} - x^{predicted} \|}{\sigma_t} \le a_{tol} + r_{tol} ,

    with the root mean square as norm. Tolerances are thus in units of the noise, whose estimate is
    itself of size 1. Every sample has its own time, step and order; it starts with order 1 and a
    small step.

    For latents and densities; for samples, whose errors count in units of x, ``rk-batch`` takes
    fewer steps. ``accepted``, ``rejected``, ``max_steps`` and callbacks are as for ``rk-batch``.

    Options:
        order: Most estimates that the predictor looks at, from 1 to 8; 5 if left out.
    """

    name = "adams-batch"
    integrates = ("ODE",)
    diffusion_only = True
    adaptive = True
    evaluations = 1
    in_noise_units = True
    default_rtol = 1e-4
    default_atol = 1e-4
    option_names = ("order",)
    integer_options = ("order",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.order = check_integer("order", self.options.get("order", 5), most=8)

    def begin(self, problem: Problem) -> _Solve:
        return _Solve(problem, int(self.order))


ROUNDINGS = 4.0
"""Roundings of the state that an error may be above the tolerance: no step lowers them."""


@dataclass(frozen=True)
class _Samples(Samples):
    """The samples that are still being solved.

    Attributes:
        alpha: Scale of the data at their times.
        sigma: Scale of the noise then.
        count: How many estimates are known.
        nodes: Where on the clock they were taken, the newest first, shape ``(n, p)``.
        estimates: The estimates, shape ``(n, p, *event)``.
    """

    alpha: Tensor
    sigma: Tensor
    count: Tensor
    nodes: Tensor
    estimates: Tensor


class _Solve(BatchSolve[_Samples]):
    def __init__(self, problem: Problem, order: int) -> None:
        super().__init__(problem, AdamsBatch.name, "log-snr")
        self.order = order
        self.rate = float(self.sign)  # eps from data to noise, x0 from noise to data
        x, clock = self.x, self.clock_start.expand(len(self.x))
        alpha, sigma = self._scales(self.t)
        estimate = self._estimate(self.t, x)
        self.samples = _Samples(
            t=self.t, clock=clock, x=x, step=torch.full_like(self.t, FIRST_STEP), alpha=alpha,
            sigma=sigma, count=torch.ones_like(self.t).long(),
            nodes=clock[:, None].expand(-1, order),
            estimates=estimate[:, None].expand(-1, order, *x.shape[1:]),
        )  # fmt: skip

    def round(self) -> None:
        samples = self.samples
        lengths, landing = self.next_steps()
        clock = torch.where(landing, self.clock_end, samples.clock + self.sign * lengths)
        t = torch.where(landing, self.end, self.clock.time(clock))
        alpha, sigma = self._scales(t)
        nodes = torch.cat([clock[:, None], samples.nodes], 1)
        old, new = self._both_weights(samples, nodes, clock)
        state, scale = self._factors(samples, alpha, sigma)
        kept_state = per_sample(state, samples.x).to(samples.x) * samples.x
        predicted = kept_state + _weighted(scale, old[:, 1:], samples.estimates)
        estimate = self._estimate(t, predicted)
        estimates = torch.cat([estimate[:, None], samples.estimates], 1)
        correction = _weighted(scale, new - old, estimates)
        corrected = predicted + correction
        difference = correction.detach() / per_sample(sigma, correction).to(correction)
        error = self.part.system.error_norm(difference).to(clock)
        rounding = ROUNDINGS * torch.finfo(corrected.dtype).eps
        size = self.part.system.error_norm(corrected.detach()).to(clock) / sigma
        allowed = self.problem.atol + self.problem.rtol + rounding * size
        error = (error / allowed).nan_to_num(nan=torch.inf)
        kept = is_accepted(error)
        count = torch.where(kept, (samples.count + 1).clamp(max=self.order), samples.count)
        keep, keeps = per_sample(kept, corrected), per_sample(kept, estimates)
        factor = CONTROL.factor(integral(error, 1 / (samples.count + 1)), kept)
        self.samples = _Samples(
            t=torch.where(kept, t, samples.t),
            clock=torch.where(kept, clock, samples.clock),
            x=torch.where(keep, corrected, samples.x),
            step=(clock - samples.clock).abs() * factor,
            alpha=torch.where(kept, alpha, samples.alpha),
            sigma=torch.where(kept, sigma, samples.sigma),
            count=count,
            nodes=torch.where(kept[:, None], nodes[:, :-1], samples.nodes),
            estimates=torch.where(keeps, estimates[:, :-1], samples.estimates),
        )
        between = partial(self._between, samples, nodes, estimates)
        self.advance(kept, samples.t, t, corrected, landing, between)

    def _estimate(self, t: Tensor, x: Tensor) -> Tensor:
        """What is interpolated: the estimate of the data, or of the noise."""
        x0, eps = self.part.denoise(t, x)
        return x0 if self.rate > 0 else eps

    def _both_weights(
        self, samples: _Samples, nodes: Tensor, clock: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights of predictor and corrector in steps to ``clock``, computed together.

        Args:
            samples: Where the steps begin.
            nodes: Of the new estimate and those before it, shape ``(n, 1 + p)``.
            clock: Where the steps end.
        """
        known = self._known(nodes, samples.count)
        earlier = known.clone()
        earlier[:, 0] = False  # a predictor has not seen the end of the step
        nodes, start, end = (torch.cat([part] * 2) for part in (nodes, samples.clock, clock))
        both = known_integrals(nodes, torch.cat([earlier, known]), start, end, self.rate)
        predictor, corrector = both.chunk(2)
        return predictor, corrector

    def _known(self, nodes: Tensor, count: Tensor) -> Tensor:
        """Which nodes a corrector uses: the new one, and as many as are known before it."""
        return torch.arange(nodes.shape[1], device=nodes.device) <= count[:, None]

    def _factors(self, start: _Samples, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the state and of the integral in steps to where alpha and sigma are these."""
        if self.rate > 0:
            return sigma / start.sigma, alpha
        return alpha / start.alpha, sigma

    def _between(
        self, samples: _Samples, nodes: Tensor, estimates: Tensor, t: Tensor, which: Tensor
    ) -> Tensor:
        """States inside the steps of some samples: the corrector's polynomial integrated so far."""
        own = samples.at(which)
        nodes = nodes[which]
        known, clock = self._known(nodes, own.count), self.clock.read(t)
        weights = known_integrals(nodes, known, own.clock, clock, self.rate)
        state, scale = self._factors(own, *self._scales(t))
        return per_sample(state, own.x).to(own.x) * own.x + _weighted(
            scale, weights, estimates[which]
        )

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at times, in the precision of these."""
        sde = self.problem.system.sde
        return sde.alpha(t).to(t), sde.sigma(t).to(t)


def _weighted(scale: Tensor, weights: Tensor, estimates: Tensor) -> Tensor:
    """The sum of each sample's estimates ``(n, p, *event)`` with its scaled weights ``(n, p)``."""
    own = (scale[:, None] * weights).to(estimates)[:, None]
    return (own @ estimates.flatten(2))[:, 0].reshape(len(estimates), *estimates.shape[2:])
