r"""Adaptive steps for SDEs, with a step size for each sample.

The error of a step is estimated from two proposals with the same noise, one of Euler-Maruyama and
one of the stochastic improved Euler method. Where it is too large, a shorter step is taken on the
same Brownian path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_models._utils.shapes import per_sample, time_precision
from sde_models.sdes.brownian import RememberedIncrements
from sde_models.solvers.adaptive.batch_solve import PartOfBatch
from sde_models.solvers.adaptive.step_control import StepControl, integral, is_accepted
from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem

SHRINK, GROW = 0.1, 1.2
"""Limits to the change of a step."""


class AdaptiveSDE(Solver):
    r"""Improved Euler steps of an SDE, each sample at its own pace.

    With one Brownian increment w over the step h of a sample, from t to s,

    .. math:: x' &= x + b\,\Delta t + c(t)\,w, \qquad
              x'' = x + \tfrac12 \big(b + b(s, x')\big)\Delta t + \tfrac12 (c(t) + c(s))\,w \\
              E &= \frac{\| x' - x'' \|}{\delta}, \qquad
              \delta = \min\Big(r_{tol} \sqrt{v_t},\; a_{tol} \frac{v_t}{\alpha_t d^2}\Big),
              \qquad v_t = \alpha_t^2 d^2 + \sigma_t^2

    with the root mean square as norm and d the standard deviation of the data. x'' is accepted
    where :math:`E \le 1`; the next step is :math:`\theta h E^{-r}`. A sample leaves the batch when
    it is done, and with it its rows of the conditions.

    Four things differ from the paper. The drift b(s, x') of an accepted step serves as b of the
    next one, so that a step costs one evaluation in place of two. A rejected step leaves its noise
    behind: the shorter one is drawn from the Brownian bridge, since drawing anew would favour small
    increments. The tolerance is relative to the state, and absolute in what is left at the data,
    :math:`\alpha_t d^2 / v_t` of an error at t if they are Gaussian; the paper's is the larger of
    both in the state itself, which takes most steps where nothing is left. And steps grow by no
    more than a fifth and aim lower, since a rejection that depends on the noise costs an order.

    All unfinished samples try a step together: ``accepted`` counts the tries in which some of them
    moved on, ``rejected`` those in which none did. Strong order 1. Gradients treat the step sizes
    as constants.

    Options:
        exponent: r, 0.9 if left out; from 0.5 to 1 make sense.
        safety: :math:`\theta`, below 1; 0.5 if left out.
        first_step: First step in model time, 1/50 of the span if left out.

    Reference:
        Jolicoeur-Martineau et al. 2021, Gotta go fast when generating data with score-based
        models, algorithm 1, arXiv:2105.14080.
    """

    name = "adaptive-sde"
    integrates = ("SDE",)
    diffusion_only = True
    order = 1.0
    adaptive = True
    evaluations = 1
    default_rtol = 0.2
    default_atol = 0.1
    option_names = ("exponent", "safety", "first_step")
    number_options = option_names

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.exponent = self.options.get("exponent", 0.9)
        self.safety = self.options.get("safety", 0.5)
        if self.safety >= 1:
            raise ValueError(f"option 'safety' must be below 1, got {self.safety:g}")
        self.control = StepControl(self.safety, SHRINK, GROW)

    def integrate(self, problem: Problem) -> Tensor:
        x, recorder, sign = problem.x, problem.recorder, problem.direction
        if recorder.save_all:
            raise ValueError(
                f"solver {self.name!r} cannot use path=True, since each sample takes steps of its "
                "own: give the times at which to keep the states, or callback="
            )
        # What every sample steps onto: the times of the path, and the end.
        stop_times = torch.cat([problem.inner_times, problem.times[-1:]])
        stops = stop_times.to(x.device, time_precision(x))
        kept = None if recorder.save_at is None else x.new_empty(len(stops), *x.shape)
        t = stops.new_full(x.shape[:1], float(problem.times[0]))
        span = abs(float(problem.times[-1] - problem.times[0]))
        step = torch.full_like(t, self.options.get("first_step", 0.02 * span))
        aim = torch.zeros_like(t, dtype=torch.long)
        paths = RememberedIncrements(problem.x, problem.generator)
        part = PartOfBatch(problem, torch.arange(len(x), device=x.device))
        slope = part.drift(t, x)
        while len(part.rows):
            rows = part.rows
            recorder.check_cap(float((t * sign).min() * sign), x)
            start, goal = t[rows], stops[aim[rows]]
            h = torch.minimum(step[rows], (goal - start).abs())
            landing = h == (goal - start).abs()
            end = torch.where(landing, goal, start + sign * h)
            w = paths.draw(rows, h)
            dt = per_sample((sign * h).to(x), x[rows])
            before = problem.noise_scale(start.to(x), x[rows])
            after = problem.noise_scale(end.to(x), x[rows])
            euler = x[rows] + slope[rows] * dt + before * w
            ahead = part.drift(end, euler)
            improved = x[rows] + 0.5 * (slope[rows] + ahead) * dt + 0.5 * (before + after) * w
            difference = problem.system.error_norm((euler - improved).detach()).to(h)
            error = difference / _tolerance(problem, start)
            accepted = is_accepted(error)
            step[rows] = h * self.control.factor(integral(error, self.exponent), accepted)
            paths.settle(rows, h, w, accepted)
            moved = rows[accepted]
            if not len(moved):
                recorder.reject()
                continue
            x = x.index_copy(0, moved, improved[accepted])
            slope = slope.index_copy(0, moved, ahead[accepted])
            t = t.index_copy(0, moved, end[accepted])
            recorder.accept(float((t * sign).min() * sign))
            recorder.notify(t, x)
            arrived = rows[accepted & landing]
            if len(arrived):
                if kept is not None:
                    kept[aim[arrived], arrived] = x[arrived]
                aim[arrived] += 1
                part = PartOfBatch(problem, (aim < len(stops)).nonzero().flatten())
        if kept is not None:
            for stop, state in zip(stop_times.tolist(), kept, strict=True):
                recorder.save(stop, state)
        return x


def _tolerance(problem: Problem, t: Tensor) -> Tensor:
    """How large the error of a step from ``t`` may be, shape ``(n,)``."""
    sde = problem.system.sde
    times = sde.times(t)
    alpha, sigma = sde.alpha(times).detach(), sde.sigma(times).detach()
    data = sde.data_std**2
    variance = alpha.square() * data + sigma.square()
    relative, absolute = variance.sqrt(), variance / (alpha * data)
    return torch.minimum(problem.rtol * relative, problem.atol * absolute).to(t)
