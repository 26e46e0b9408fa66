"""Base classes of solvers in which every sample has its own time and step, and leaves when done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sde_models._utils.conditions import copied
from sde_models._utils.errors import StepLimitError, StepSizeError
from sde_models._utils.fields import Fields
from sde_models._utils.shapes import (
    describe_rows,
    has_finite_sum,
    non_finite_rows,
    time_precision,
)
from sde_models.solvers.base import Solver
from sde_models.solvers.clocks import make_clock
from sde_models.solvers.problem import Problem, check_drift, refuse_non_finite


class PartOfBatch:
    """The equation for some samples of a batch, with a check: a NaN ends the solve.

    Args:
        problem: The problem of the full batch.
        rows: Which samples.

    Attributes:
        rows: Which samples, shape ``(n,)``.
        system: The equation for them.
    """

    def __init__(self, problem: Problem, rows: Tensor) -> None:
        self.rows = rows
        self._problem = problem
        some = len(rows) < len(problem.x)
        self.system = problem.system.of_rows(rows) if some else problem.system

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """The drift at a time for each sample, shape ``(n,)``."""
        drift = self.system.drift(t.to(x.dtype, copy=True), x.clone())
        check_drift(self.system, drift, x)
        self._check_finite("drift", t, x, drift)
        return drift.clone()

    def denoise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0, eps) of the system's model, at a time for each sample."""
        model: Any = self.system.model
        given = copied(self.system.cond)
        x0, eps = model.denoise(t.to(x.dtype, copy=True), x.clone(), **given)
        self._check_finite("estimate", t, x, eps)
        return x0.clone(), eps.clone()

    def _check_finite(self, what: str, t: Tensor, x: Tensor, values: Tensor) -> None:
        """Refuse NaN and infinity, with the rows of the full batch."""
        if not has_finite_sum(values):
            bad = [*non_finite_rows(x), *non_finite_rows(values), 0][0]
            before, after = (self._problem.spread(self.rows, part) for part in (x, values))
            refuse_non_finite(what, float(t[bad]), before, after, self._problem.recorder)


class InnerStates:
    """States at the times of ``path=``, gathered as the steps of each sample pass them.

    Args:
        problem: The problem of the full batch.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, x = problem, problem.x
        times = problem.inner_times.to(x.device, time_precision(x))
        self._times = times if times.ndim == 2 else times[:, None].expand(-1, len(x))
        self._places: list[Tensor] = []
        self._states: list[Tensor] = []

    def gather(
        self, rows: Tensor, start: Tensor, end: Tensor, at: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """Note steps from ``start`` to ``end``.

        Args:
            rows: The samples that took them, shape ``(n,)``.
            start: Model times, shape ``(n,)``.
            end: Model times, shape ``(n,)``.
            at: Gives the states at m times, of the samples with the m indices given with them.
        """
        if not len(self._times):
            return
        sign, asked = self._problem.direction, self._times[:, rows]
        passed = (sign * (asked - start) > 0) & (sign * (asked - end) <= 0)
        which_time, which = passed.nonzero().unbind(1)
        if len(which):
            self._places.append(which_time * len(self._problem.x) + rows[which])
            self._states.append(at(asked[which_time, which], which))

    def save(self, last: Tensor) -> None:
        """Save all states asked for, in the order of the span, with ``last`` as the last."""
        recorder = self._problem.recorder
        if len(self._times):
            states = torch.cat(self._states)[torch.cat(self._places).argsort()].split(len(last))
            for t, x in zip(self._problem.inner_times, states, strict=True):
                recorder.keep(t, x)
        recorder.save(float(self._problem.times[-1]), last)


@dataclass(frozen=True)
class Samples(Fields):
    """The samples that are still being solved; every field has one entry for each of them.

    Attributes:
        t: Model times reached.
        clock: The same on the clock.
        x: States.
        step: Steps to try next, on the clock, positive.
    """

    t: Tensor
    clock: Tensor
    x: Tensor
    step: Tensor


AnySamples = TypeVar("AnySamples", bound=Samples)


class BatchSolve(ABC, Generic[AnySamples]):
    """A solve: the samples that are still being solved, and the state of every sample of the batch.

    Args:
        problem: The problem of the full batch.
        name: Name of the solver.
        clock: Name of what steps are measured in.

    Attributes:
        samples: The samples that are still being solved.
        part: The equation for them.
        t: Model times reached by all samples, shape ``(B,)``.
        x: Their states.
    """

    samples: AnySamples

    def __init__(self, problem: Problem, name: str, clock: str | None) -> None:
        self.problem, self.recorder = problem, problem.recorder
        self.clock = make_clock(clock, problem.system)
        x = problem.x
        ends = problem.times[[0, -1]].to(x.device, time_precision(x))
        self.clock_start, self.clock_end = self.clock.read(ends)
        self.end, self.sign = ends[1], torch.sign(self.clock_end - self.clock_start)
        self.inner, self.name = InnerStates(problem), name
        self.part = PartOfBatch(problem, torch.arange(len(x), device=x.device))
        self.x, self.t = x, ends[0].expand(len(x))

    @abstractmethod
    def round(self) -> None:
        """Try a step of every sample that is still being solved."""

    def finish(self) -> Tensor:
        """Save the states that were asked for, and return the last."""
        self.inner.save(self.x)
        return self.x

    def next_steps(self) -> tuple[Tensor, Tensor]:
        """Lengths of the steps to try, on the clock, positive; and which of them end the span."""
        left = (self.clock_end - self.samples.clock).abs()
        landing = 1.001 * self.samples.step >= left  # rather a longer step than a tiny last one
        return torch.where(landing, left, self.samples.step), landing

    def advance(
        self,
        kept: Tensor,
        start: Tensor,
        t: Tensor,
        x: Tensor,
        landing: Tensor,
        between: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Note a round: which samples took a step, and which have arrived.

        ``samples`` are those after the round.

        Args:
            kept: Which samples took a step, shape ``(n,)``.
            start: Model times before it.
            t: Model times after it.
            x: States after it.
            landing: Whether it ends the span.
            between: Gives states inside the steps, as :meth:`InnerStates.gather` asks for them.
        """
        rows = self.part.rows
        which = kept.nonzero().flatten()
        if len(which) < len(kept):
            late = self.samples.at(~kept)
            ahead = self.sign * late.step
            self._check_steps(rows[~kept], late.clock, ahead)
        if len(which) == 0:
            self.recorder.reject()
            return
        self.x = self.x.index_copy(0, rows[which], x[which])
        self.t = self.t.index_copy(0, rows[which], t[which])
        self.inner.gather(rows, start, torch.where(kept, t, start), between)
        self.recorder.accept(self._slowest())
        self.recorder.notify(self.t, self.x)
        arrived = kept & landing
        if bool(arrived.any()):
            self.samples = self.samples.at(~arrived)
            self.part = PartOfBatch(self.problem, rows[~arrived])

    def check_cap(self) -> None:
        """End a solve that has tried as many steps as it may."""
        try:
            self.recorder.check_cap(self._slowest(), self.x)
        except StepLimitError as error:
            error.t = self.t
            raise

    def _slowest(self) -> float:
        """The least advanced of the times reached."""
        sign = self.problem.direction
        return float((self.t * sign).min()) * sign

    def _check_steps(self, failed: Tensor, clock: Tensor, step: Tensor) -> None:
        """Refuse steps after a failure that the precision of the state does not resolve.

        Args:
            failed: The samples whose last step was rejected, shape ``(n,)``.
            clock: Where they are on the clock.
            step: Their next steps on it, signed.
        """
        x, problem, cost = self.x, self.problem, self.recorder.cost
        moved = (clock + step).to(x.dtype) != clock.to(x.dtype)
        stuck = failed[~moved].tolist()
        if stuck:
            raise StepSizeError(
                f"{self.name} cannot make its steps small enough at "
                f"t={float(self.t[stuck[0]]):.6g} after {cost}, in {describe_rows(stuck)}: loosen "
                f"rtol={problem.rtol:g} and atol={problem.atol:g}, or use float64 in place of "
                f"{x.dtype}",
                t=self.t, x=x.detach(), nfe=cost.nfe,
            )  # fmt: skip


class BatchSolver(Solver):
    """Base class of solvers in which every sample has its own time and its own step."""

    own_steps = True

    @abstractmethod
    def begin(self, problem: Problem) -> BatchSolve[Any]:
        """All samples at the start of the span."""

    def integrate(self, problem: Problem) -> Tensor:
        if problem.recorder.save_all:
            raise ValueError(
                f"solver {self.name!r} cannot use path=True, since each sample has its own steps: "
                "give the times at which to keep the state, as path=torch.linspace(*t_span, 50), "
                "or callback=, which gets the time of every sample after each step"
            )
        solve = self.begin(problem)
        while len(solve.part.rows):
            solve.check_cap()
            solve.round()
        return solve.finish()
