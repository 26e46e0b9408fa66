"""The record of a solve: its steps, its saved states, and the solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_models._utils.conditions import copied
from sde_models._utils.counting import Cost, EvaluationCounter, HasCost
from sde_models._utils.errors import StepLimitError
from sde_models.solvers.progress import SolveProgress


@dataclass(frozen=True)
class Solution(HasCost):
    """Result of a solve. Its tensors are copies, which share no memory with one another.

    Attributes:
        x: State at the end of the span, shape ``(B, *event)``.
        cost: What it cost; ``nfe`` and ``vjps`` are shorthands. A forward SDE has no network: 0.
        accepted: Steps taken.
        rejected: Steps rejected by an adaptive solver; None where the library that ran it does not
            report them.
        times: Times of the saved states, shape ``(T,)``, or ``(T, B)`` if they were given so; None
            unless ``path`` was asked for.
        path: Saved states, shape ``(T, B, *event)``; None unless ``path`` was asked for.
    """

    x: Tensor
    cost: Cost
    accepted: int
    rejected: int | None
    times: Tensor | None = None
    path: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """Argument of a callback, which is called after each step.

    Attributes:
        index: Steps taken so far, 1 after the first.
        t: Model time reached; shape ``(B,)`` for solvers in which each sample has its own.
        x: State there, shape ``(B, *event)``; a copy, which may be changed.
        nfe: Network forward passes so far for each sample, mean over the batch.
    """

    index: int
    t: float | Tensor
    x: Tensor
    nfe: float


class Recorder:
    """Counts steps, keeps the path, moves the progress bar and ends a solve that is too long.

    Args:
        times: Nodes of the solve; only the first and last for an adaptive solver.
        save_all: Keep the state at every step.
        save_at: Keep the state at these times.
        max_steps: Cap on tried steps, or None.
        progress: The bar to move, if any.
        callback: Called with a :class:`Step` after each step.
        counter: Counter that the evaluations of this solve go into.
        batch: Number of samples.
    """

    def __init__(
        self,
        times: Tensor,
        *,
        save_all: bool,
        save_at: Tensor | None,
        max_steps: int | None,
        progress: SolveProgress | None,
        callback: Callable[[Step], object] | None,
        counter: EvaluationCounter,
        batch: int,
    ) -> None:
        self.accepted = 0
        self.rejected: int | None = 0
        self.save_all = save_all
        self.save_at = save_at
        self._counter, self._batch = counter, batch
        self._max_steps = max_steps
        self._callback = callback
        self._saved: list[tuple[float | Tensor, Tensor]] = []
        self._start, self._end = float(times[0]), float(times[-1])
        self._progress = progress

    @property
    def cost(self) -> Cost:
        """What the solve has cost so far."""
        return self._counter.cost(self._batch)

    def save(self, t: float, x: Tensor) -> None:
        """Keep a state if that at this time was asked for."""
        at = self.save_at
        if self.save_all or (at is not None and at.ndim == 1 and bool((at == t).any())):
            self.keep(t, x)

    def keep(self, t: float | Tensor, x: Tensor) -> None:
        """Keep a state, at one time or at a time for each sample."""
        self._saved.append((t, x))

    def reach(self, t: float, x: Tensor) -> None:
        """Note a step that ended at ``t`` in the state ``x``, and keep the state if asked for."""
        self.accept(t)
        self.notify(t, x)
        self.save(t, x)

    def notify(self, t: float | Tensor, x: Tensor) -> None:
        """Call the user's callback."""
        if self._callback is not None:
            self._callback(Step(self.accepted, copied(t), x.clone(), self.cost.nfe))

    def accept(self, t: float) -> None:
        """Note a step that ended at ``t``."""
        self.accepted += 1
        if self._progress is not None:
            self._progress.reach(t, self.cost)

    def reject(self) -> None:
        """Note a rejected step."""
        self.rejected = (self.rejected or 0) + 1

    def check_cap(self, t: float, x: Tensor) -> None:
        """End a solve that has tried as many steps as it may."""
        tried = self.accepted + (self.rejected or 0)
        if self._max_steps is not None and tried >= self._max_steps:
            raise StepLimitError(
                f"{tried} steps tried and t={t:.6g} reached, from {self._start:g} to "
                f"{self._end:g} ({self.cost}): raise max_steps or loosen rtol and "
                "atol; the error has the state as .x and the time as .t",
                t=t, x=x.detach(), nfe=self.cost.nfe,
            )  # fmt: skip

    def complete(self) -> None:
        """Note that the solve has ended well."""
        if self._progress is not None:
            self._progress.complete()

    def close(self) -> None:
        """Close the progress bar."""
        if self._progress is not None:
            self._progress.close()

    def solution(self, x: Tensor) -> Solution:
        """Collect what was recorded."""
        times = path = None
        if self.save_all or self.save_at is not None:
            times = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t, _ in self._saved])
            path = torch.stack([state for _, state in self._saved])
        return Solution(x.clone(), self.cost, self.accepted, self.rejected, times, path)
