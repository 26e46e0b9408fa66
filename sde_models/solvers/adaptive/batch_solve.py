"""Base classes of solvers in which every sample has its own time and its own step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from sde_models.solvers.adaptive.batch_parts import (
    InnerStates,
    PartOfBatch,
    StepLimits,
    time_precision,
)
from sde_models.solvers.base import Solver
from sde_models.solvers.clocks import make_clock
from sde_models.solvers.problem import Problem


@dataclass(frozen=True)
class Samples:
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

    def only(self, which: Tensor) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))


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
        self.inner, self.steps = InnerStates(problem), StepLimits(problem, name)
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
            late = self.samples.only(~kept)
            ahead = self.sign * late.step
            self.steps.check_steps(self.t, self.x, rows[~kept], late.clock, ahead)
        if len(which) == 0:
            self.recorder.reject()
            return
        self.x = self.x.index_copy(0, rows[which], x[which])
        self.t = self.t.index_copy(0, rows[which], t[which])
        self.inner.gather(rows, start, torch.where(kept, t, start), between)
        self.recorder.accept(self.steps.slowest(self.t))
        self.recorder.notify(self.t, self.x)
        arrived = kept & landing
        if bool(arrived.any()):
            self.samples = self.samples.only(~arrived)
            self.part = PartOfBatch(self.problem, rows[~arrived])


class BatchSolver(Solver):
    """Base class of solvers in which every sample has its own time and its own step."""

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
            solve.steps.check_cap(solve.t, solve.x)
            solve.round()
        return solve.finish()
