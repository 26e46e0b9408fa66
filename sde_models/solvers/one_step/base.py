"""Solvers whose step depends on the current state only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem

Stepper = Callable[[int, Tensor], Tensor]
"""Carries the state at node k to node k + 1."""


class OneStepSolver(Solver):
    """A fixed-step solver that is one function of node and state.

    Since the step needs no history, it also serves as the predictor of ``pc``.
    """

    adaptive = False

    @abstractmethod
    def stepper(self, problem: Problem) -> Stepper:
        """Compute what depends on the nodes alone, and return the step."""

    def integrate(self, problem: Problem) -> Tensor:
        step, x = self.stepper(problem), problem.x
        for k, t in enumerate(problem.times[1:].tolist()):
            x = step(k, x)
            problem.recorder.reach(t, x)
        return x
