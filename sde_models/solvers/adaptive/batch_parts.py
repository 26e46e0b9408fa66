"""Parts of a batch, for solvers in which each sample has its own time and leaves when done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import copied
from sde_models._utils.errors import StepLimitError, StepSizeError
from sde_models._utils.shapes import describe_rows, has_finite_sum, non_finite_rows
from sde_models.solvers.problem import Problem, check_drift, refuse_non_finite


def time_precision(x: Tensor) -> torch.dtype:
    """The dtype of times and steps: double precision, where the device has any."""
    return torch.float32 if x.device.type == "mps" else torch.float64


class PartOfBatch:
    """The equation for some samples of a batch.

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
        """The drift at a time for each sample, shape ``(n,)``.

        Raises:
            NonFiniteError: If any entry is NaN or infinite; with the rows of the full batch.
            ValueError: If the shape is not that of ``x``.
        """
        drift = self.system.drift(t.to(x.dtype, copy=True), x.clone())
        check_drift(self.system, drift, x)
        if not has_finite_sum(drift):
            bad = [*non_finite_rows(x), *non_finite_rows(drift), 0][0]
            recorder = self._problem.recorder
            refuse_non_finite("drift", float(t[bad]), self._whole(x), self._whole(drift), recorder)
        return drift.clone()

    def denoise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0, eps) of the system's model, at a time for each sample.

        Raises:
            NonFiniteError: If any entry is NaN or infinite; with the rows of the full batch.
        """
        model: Any = self.system.model
        given = copied(self.system.cond)
        x0, eps = model.denoise(t.to(x.dtype, copy=True), x.clone(), **given)
        if not has_finite_sum(eps):
            bad = [*non_finite_rows(x), *non_finite_rows(eps), 0][0]
            recorder = self._problem.recorder
            refuse_non_finite("estimate", float(t[bad]), self._whole(x), self._whole(eps), recorder)
        return x0.clone(), eps.clone()

    def _whole(self, values: Tensor) -> Tensor:
        """A batch with these values in their rows, and 0 elsewhere."""
        return torch.zeros_like(self._problem.x).index_copy(0, self.rows, values.detach())


class InnerStates:
    """States at the times of ``path=``, gathered as the steps of each sample pass them.

    Args:
        problem: The problem of the full batch.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        ends = problem.times[[0, -1]].tolist()
        asked = problem.recorder.save_at
        self._times = [] if asked is None else [t for t in asked.tolist() if t not in ends]
        x = problem.x
        self._asked = torch.tensor(self._times, device=x.device, dtype=time_precision(x))
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
        if not self._times:
            return
        sign, asked = self._problem.direction, self._asked[:, None]
        passed = (sign * (asked - start) > 0) & (sign * (asked - end) <= 0)
        which_time, which = passed.nonzero().unbind(1)
        if len(which):
            self._places.append(which_time * len(self._problem.x) + rows[which])
            self._states.append(at(self._asked[which_time], which))

    def save(self, last: Tensor) -> None:
        """Save all states asked for, in the order of the span, with ``last`` as the last."""
        recorder = self._problem.recorder
        if self._times:
            states = torch.cat(self._states)[torch.cat(self._places).argsort()]
            for t, x in zip(self._times, states.split(len(last)), strict=True):
                recorder.save(t, x)
        end = float(self._problem.times[-1])
        if recorder.keeps(end):
            recorder.save(end, last)


class StepLimits:
    """What ends a solve in which each sample has its own steps.

    Args:
        problem: The problem of the whole batch.
        name: Name of the solver.
    """

    def __init__(self, problem: Problem, name: str) -> None:
        self._problem, self._name = problem, name

    def slowest(self, t: Tensor) -> float:
        """The least advanced of the times reached, shape ``(B,)``."""
        sign = self._problem.direction
        return float((t * sign).min()) * sign

    def check_cap(self, t: Tensor, x: Tensor) -> None:
        """End a solve that has tried as many steps as it may.

        Raises:
            StepLimitError: With the times and states reached.
        """
        try:
            self._problem.recorder.check_cap(self.slowest(t), x)
        except StepLimitError as error:
            error.t = t
            raise

    def check_steps(
        self, t: Tensor, x: Tensor, failed: Tensor, clock: Tensor, step: Tensor
    ) -> None:
        """Refuse steps after a failure that the precision of the state does not resolve.

        Args:
            t: Times reached, shape ``(B,)``.
            x: States there.
            failed: The samples whose last step was rejected, shape ``(n,)``.
            clock: Where they are on the clock.
            step: Their next steps on it, signed.

        Raises:
            StepSizeError: With the times and states reached.
        """
        moved = (clock + step).to(x.dtype) != clock.to(x.dtype)
        stuck = failed[~moved].tolist()
        if stuck:
            problem, cost = self._problem, self._problem.recorder.cost
            raise StepSizeError(
                f"{self._name} cannot make its steps small enough at t={float(t[stuck[0]]):.6g} "
                f"after {cost}, in {describe_rows(stuck)}: loosen "
                f"rtol={problem.rtol:g} and atol={problem.atol:g}, or use float64 in place of "
                f"{x.dtype}",
                t=t, x=x.detach(), nfe=cost.nfe,
            )  # fmt: skip
