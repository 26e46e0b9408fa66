r"""Adaptive Runge-Kutta in which every sample has its own time and its own step.

A batch that shares its steps takes those of its hardest sample. Here the times of a batch are a
vector: each sample tries its own step, keeps it or not, and leaves the batch at the end of the
span, so that the cost and the result of a sample do not depend on its batch-mates.

References:
    Hairer, Norsett and Wanner 1993, Solving ordinary differential equations I, sections II.4 (first
    step, control of steps) and II.6 (dense output).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.errors import nearest_names
from sde_models._utils.shapes import per_sample
from sde_models.sdes.system import System
from sde_models.solvers.adaptive.batch_solve import BatchSolve, BatchSolver, Samples
from sde_models.solvers.adaptive.runge_kutta_tableaus import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    Tableau,
    weighted_sum,
)
from sde_models.solvers.adaptive.step_control import (
    StepControl,
    is_accepted,
    proportional_integral,
)
from sde_models.solvers.clocks import CLOCKS, Rates, has_gaussian_clock
from sde_models.solvers.problem import Problem

TABLEAUS: dict[Any, Tableau] = {3: BOGACKI_SHAMPINE, 5: DORMAND_PRINCE}
ROUNDINGS = 4.0
"""Least relative tolerance, in roundings of the state: smaller steps do not lower these."""
CONTROL = StepControl(safety=0.6, shrink=0.2, grow=4.0)
"""Long steps have errors that the estimate misses, hence the safety. In single precision the error
estimate of a small first step is mere rounding. The step then grows to the limit, so that rounding
does not choose the next one."""


class BatchRungeKutta(BatchSolver):
    r"""Embedded Runge-Kutta with a time, a step and an error for each sample.

    Takes any ODE whose drift takes times of shape ``(B,)``. Conditions with a row for each sample
    leave the batch with it. Tolerances are in units of x, whatever the clock.

    ``accepted`` counts rounds of the batch in which a sample advanced, ``rejected`` those in which
    none did; ``max_steps`` caps their sum. A callback gets the times of all samples, shape
    ``(B,)``, after each round: a sample's steps end where its time has changed. Errors about steps
    carry the same vector as ``.t``.

    Options:
        order: 5 for Dormand-Prince 5(4), 6 evaluations for each step tried and dense output of
            order 4; 3 for Bogacki-Shampine 3(2), 3 evaluations and dense output of order 3.
        clock: What steps are measured in: "angle" for :math:`\arctan(\sigma / (s \alpha))`,
            "log-snr" for :math:`\log(\alpha / \sigma)`, or "t". If left out "angle" where the
            system has alpha and sigma, else "t".
    """

    name = "rk-batch"
    integrates = ("ODE",)
    adaptive = True
    option_names = ("order", "clock")
    integer_options = ("order",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        order: Any = self.options.get("order", 5)
        clock: Any = self.options.get("clock")
        if order not in TABLEAUS:
            raise ValueError(f"order must be 3 or 5, got {order!r}")
        if clock not in (None, *CLOCKS):
            raise ValueError(f"unknown clock {clock!r}; {nearest_names(clock, CLOCKS)}")
        self.tableau = TABLEAUS[order]
        self.order = self.tableau.order
        self.evaluations = len(self.tableau.stages)
        self.clock = clock

    def check_system(self, system: System) -> None:
        super().check_system(system)
        if self.clock not in (None, "t") and not has_gaussian_clock(system):
            raise ValueError(
                f"clock={self.clock!r} needs alpha and sigma, which {type(system).__name__} "
                "does not have: use clock='t', or leave it out"
            )

    def begin(self, problem: Problem) -> _Solve:
        return _Solve(problem, self.tableau, self.clock)


@dataclass(frozen=True)
class _Samples(Samples):
    """The samples that are still being solved.

    Attributes:
        slope: Slopes on the clock of the rescaled states.
        error: Errors of the last steps kept, in units of tolerance.
        kept: Whether the last step tried was kept.
    """

    slope: Tensor
    error: Tensor
    kept: Tensor


@dataclass(frozen=True)
class _Trial:
    """One step of each sample, not yet accepted or rejected.

    Attributes:
        t: Model times at the end.
        clock: The same on the clock.
        landing: Whether the end is that of the span.
        x: States at the end.
        error: Errors in units of tolerance.
        start: Rescaled states at the start.
        step: Lengths on the clock, signed, shaped like the state.
        slopes: Slopes of all stages.
    """

    t: Tensor
    clock: Tensor
    landing: Tensor
    x: Tensor
    error: Tensor
    start: Tensor
    step: Tensor
    slopes: list[Tensor]


class _Solve(BatchSolve[_Samples]):
    def __init__(self, problem: Problem, tableau: Tableau, clock: str | None) -> None:
        super().__init__(problem, BatchRungeKutta.name, clock)
        self.tableau = tableau
        self.nodes = torch.tensor(tableau.nodes, device=self.x.device, dtype=self.t.dtype)[:, None]
        one, rates = torch.ones_like(self.t), self._rates(self.t)
        slope = _slope(self.part.drift(self.t, self.x), self.x / rates.scale, rates)
        self.samples = _Samples(
            t=self.t, clock=self.clock_start.expand(len(self.x)), x=self.x, slope=slope, step=one,
            error=one, kept=one.bool(),
        )  # fmt: skip
        self.samples = replace(self.samples, step=self._first_steps())

    def round(self) -> None:
        samples, trial = self.samples, self._try()
        kept = is_accepted(trial.error)
        self.samples = self._judged(trial, kept)
        between = partial(self._between, samples, trial)
        self.advance(kept, samples.t, trial.t, trial.x, trial.landing, between)

    def _try(self) -> _Trial:
        samples, x = self.samples, self.samples.x
        lengths, landing = self.next_steps()
        signed = self.sign * lengths
        clock = samples.clock + self.nodes * signed
        t = torch.cat([samples.t[None], self.clock.time(clock[1:])])
        t = torch.where(landing & (self.nodes == 1), self.end, t)
        rates = self._rates(t).unbind()
        step = per_sample(signed, x).to(x.dtype)
        start = y = x / rates[0].scale
        slopes = [samples.slope]
        for i, weights in enumerate(self.tableau.stages, start=1):
            y = start + step * weighted_sum(weights, slopes)
            drift = self.part.drift(t[i], rates[i].scale * y)
            slopes.append(_slope(drift, y, rates[i]))
        end = rates[-1].scale * y
        error = rates[-1].scale * step * weighted_sum(self.tableau.error, slopes)
        error = self._size(error, torch.maximum(x.abs(), end.abs())).nan_to_num(nan=torch.inf)
        return _Trial(t[-1], clock[-1], landing, end, error, start, step, slopes)

    def _judged(self, trial: _Trial, kept: Tensor) -> _Samples:
        """The samples after their steps."""
        samples, keep = self.samples, per_sample(kept, trial.x)
        suggested = proportional_integral(trial.error, samples.error, self.tableau.order)
        factor = CONTROL.factor(suggested, kept & samples.kept)
        return _Samples(
            t=torch.where(kept, trial.t, samples.t),
            clock=torch.where(kept, trial.clock, samples.clock),
            x=torch.where(keep, trial.x, samples.x),
            slope=torch.where(keep, trial.slopes[-1], samples.slope),
            step=(trial.clock - samples.clock).abs() * factor,
            error=torch.where(kept, trial.error, samples.error),
            kept=kept,
        )

    @torch.no_grad()
    def _first_steps(self) -> Tensor:
        """First steps after Hairer II.4, for one more evaluation."""
        samples, x = self.samples, self.samples.x
        span = (self.clock_end - samples.clock).abs()
        rates = self._rates(samples.t)
        size = self._size(x, x.abs())
        speed = self._size(rates.scale * samples.slope, x.abs())
        step = torch.where(size < 1e-5, 1e-6 * span, 0.01 * size / speed).minimum(span)
        signed = self.sign * step
        t = self.clock.time(samples.clock + signed)
        there = self._rates(t)
        y = x / rates.scale + per_sample(signed, x).to(x.dtype) * samples.slope
        change = _slope(self.part.drift(t, there.scale * y), y, there) - samples.slope
        bend = self._size(rates.scale * change, x.abs()) / step
        wanted = (0.01 / torch.maximum(speed, bend)) ** (1 / self.tableau.order)
        return torch.minimum(100 * step, wanted).minimum(span)

    def _between(self, samples: _Samples, trial: _Trial, t: Tensor, which: Tensor) -> Tensor:
        """States inside the steps of some samples, by the dense output."""
        start = samples.clock[which]
        theta = (self.clock.read(t) - start) / (trial.clock[which] - start)
        weights = self.tableau.weights_at(per_sample(theta, trial.x[which]).to(trial.x))
        moved = sum(w * slope[which] for w, slope in zip(weights, trial.slopes, strict=True))
        return self._rates(t).scale * (trial.start[which] + trial.step[which] * moved)

    def _rates(self, t: Tensor) -> Rates:
        """Rates at times whose last dimension is the samples, to multiply states by."""
        x = self.problem.x
        return self.clock.rates(t).shaped((*t.shape, *(1,) * (x.ndim - 1)), x.dtype)

    @torch.no_grad()
    def _size(self, error: Tensor, x: Tensor) -> Tensor:
        """Size of each sample's error in units of tolerance."""
        rtol = max(self.problem.rtol, ROUNDINGS * torch.finfo(x.dtype).eps)
        allowed = self.problem.atol + rtol * x
        return self.part.system.error_norm(error / allowed).to(self.t.dtype)


def _slope(drift: Tensor, y: Tensor, rates: Rates) -> Tensor:
    """Slope of the rescaled state on the clock."""
    return rates.pace / rates.scale * drift - rates.growth * y
