"""Every method of torchdiffeq, as ``ode:<method>``.

Adaptive methods run in model time with the worst sample's error norm, step exactly onto the end of
the span instead of beyond it, and stop at a cap of steps. Fixed-step methods take the grid's nodes
as their steps, whatever their spacing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from sde_models._utils.errors import StepSizeError
from sde_models._utils.shapes import time_precision
from sde_models.solvers.base import Solver
from sde_models.solvers.external.known_times import KnownTimes
from sde_models.solvers.problem import Problem

THIRDS = (1 / 3, 2 / 3)
"""Where torchdiffeq's Heun3 and RK4 evaluate within a step; RK4 starts its Adams methods."""


class TorchdiffeqSolver(Solver):
    """Base class of both kinds, with the call of the library, directly or by the adjoint."""

    library = "torchdiffeq"
    integrates = ("ODE",)
    adjoint = True

    def __init__(self, method: str, order: float, evaluations: int | None, **options: Any) -> None:
        self.name = f"ode:{method}"
        self.method = method
        self.order = order
        self.evaluations = evaluations
        super().__init__(**options)

    def _odeint(
        self,
        problem: Problem,
        drift: Any,
        times: Tensor,
        options: dict[str, Any],
        adjoint_options: dict[str, Any],
    ) -> Tensor:
        """The states at some times.

        Args:
            problem: What is solved.
            drift: Its drift.
            times: The times.
            options: Options of the library for this solve, besides the user's.
            adjoint_options: Those of the adjoint, for which torchdiffeq has made the clock rise.
        """
        arguments: dict[str, Any] = {
            "method": self.method,
            "options": {**options, **self.options},
            **self._tolerances(problem),
        }
        if not problem.adjoint:
            return torchdiffeq.odeint(drift, problem.x, times, **arguments)
        return torchdiffeq.odeint_adjoint(
            drift, problem.x, times, adjoint_options=adjoint_options, **arguments
        )

    def _tolerances(self, problem: Problem) -> dict[str, float]:
        return {"rtol": problem.rtol, "atol": problem.atol}


class AdaptiveTorchdiffeq(TorchdiffeqSolver):
    """An adaptive Runge-Kutta method of torchdiffeq.

    Options: ``first_step``, ``min_step``, ``max_step``, ``safety``, ``ifactor``, ``dfactor``, as
    torchdiffeq documents them.

    Args:
        method: torchdiffeq's name.
        order: Order of convergence.
        evaluations: Evaluations for each step tried.
        understated: How much smaller the method's error estimate is than its error. The
            tolerances are divided by it.
        **options: Passed on.
    """

    adaptive = True
    option_names = ("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor")
    number_options = option_names

    def __init__(
        self,
        method: str,
        order: float,
        evaluations: int,
        understated: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(method, order, evaluations, **options)
        self.understated = understated

    def _tolerances(self, problem: Problem) -> dict[str, float]:
        share = 1 / self.understated
        return {"rtol": problem.rtol * share, "atol": problem.atol * share}

    def integrate(self, problem: Problem) -> Tensor:
        drift, recorder = problem.drift, problem.recorder
        reached, notified = (float(problem.times[0]), problem.x), 0

        def trying(t: Tensor, x: Tensor, dt: Tensor) -> None:
            nonlocal reached, notified
            reached = (float(t.detach()), x)
            if recorder.accepted > notified:  # a step's end is known when the next one is tried
                recorder.notify(*reached)
                notified = recorder.accepted
            recorder.check_cap(*reached)

        def accepting(t: Tensor, x: Tensor, dt: Tensor) -> None:
            if recorder.save_all and recorder.accepted:
                recorder.save(float(t.detach()), x)
            recorder.accept(float((t + problem.direction * dt).detach()))

        def rejecting(t: Tensor, x: Tensor, dt: Tensor) -> None:
            recorder.reject()

        drift.callback_step = trying  # type: ignore[assignment]
        drift.callback_accept_step = accepting  # type: ignore[assignment]
        drift.callback_reject_step = rejecting  # type: ignore[assignment]

        output_times = torch.cat([problem.times[:1], problem.inner_times, problem.times[-1:]])
        times = output_times.to(problem.x.device, time_precision(problem.x))
        control = {"norm": problem.worst_error, "step_t": times[-1:], "dtype": times.dtype}
        adjoint = {"step_t": problem.direction * times[:1], "dtype": times.dtype}
        try:
            states = self._odeint(problem, drift, times, control, adjoint)
        except AssertionError as error:
            if "underflow in dt" not in str(error):
                raise
            raise StepSizeError(
                f"{self.name} cannot make its steps small enough at t={reached[0]:.6g} after "
                f"{recorder.cost} ({error}): loosen rtol={problem.rtol:g} and "
                f"atol={problem.atol:g}, or use float64 in place of {problem.x.dtype}",
                t=reached[0], x=reached[1].detach(), nfe=recorder.cost.nfe,
            ) from error  # fmt: skip
        recorder.notify(float(problem.times[-1]), states[-1])
        for t, x in zip(output_times[1:].tolist(), states[1:], strict=True):
            recorder.save(t, x)
        return states[-1]


class FixedTorchdiffeq(TorchdiffeqSolver):
    """A fixed-step method of torchdiffeq on the nodes of a grid.

    Options: ``perturb``, as torchdiffeq documents it.

    Args:
        method: torchdiffeq's name.
        order: Order of convergence.
        evaluations: Evaluations for each step.
        fractions: Fractions of a step at which it evaluates.
        **options: Passed on.
    """

    adaptive = False
    option_names = ("perturb",)

    def __init__(
        self,
        method: str,
        order: float,
        evaluations: int | None,
        fractions: tuple[float, ...],
        **options: Any,
    ) -> None:
        super().__init__(method, order, evaluations, **options)
        self.fractions = fractions
        self.library_options: dict[str, Any] = {}

    def integrate(self, problem: Problem) -> Tensor:
        recorder = problem.recorder
        nodes = problem.times.to(problem.x.device, time_precision(problem.x))
        reached: Iterator[float | None] = iter([None, *problem.times.tolist()[1:-1]])

        def stepping(t: Tensor, x: Tensor, dt: Tensor) -> None:
            ended = next(reached)
            if ended is not None:
                recorder.reach(ended, x)

        # The adjoint needs a module, and differentiates what is computed beforehand many times.
        drift: Any = problem.drift if problem.adjoint else KnownTimes(problem, self.fractions)
        drift.callback_step = stepping
        back = problem.direction * nodes.flip(0)
        options = {"grid_constructor": lambda func, x, t: nodes, **self.library_options}
        adjoint = {"grid_constructor": lambda func, x, t: back, **self.library_options}
        x = self._odeint(problem, drift, nodes[[0, -1]], options, adjoint)[-1]
        recorder.reach(float(problem.times[-1]), x)
        return x


class AdamsTorchdiffeq(FixedTorchdiffeq):
    """A multistep Adams method of torchdiffeq, whose weights hold for equal steps only.

    It starts with steps of RK4. The length of the history is that of order 4, which the starting
    steps keep and whose region of stability is still useful. The implicit methods correct once:
    more iterations cost evaluations, gain no order, and at their default tolerance stop too early
    to keep it.
    """

    equal_steps = True

    def __init__(
        self, method: str, order: float, evaluations: int | None, max_order: int, **options: Any
    ) -> None:
        super().__init__(method, order, evaluations, (0.0, *THIRDS), **options)
        self.library_options = {"max_order": max_order}

    def integrate(self, problem: Problem) -> Tensor:
        if problem.x.device.type == "mps":
            raise ValueError(
                f"solver {self.name!r} cannot run on {problem.x.device}: torchdiffeq keeps its "
                "weights in float64, which this device lacks; use 'ode:rk4' or 'flow-adams-4'"
            )
        return super().integrate(problem)

    def _tolerances(self, problem: Problem) -> dict[str, float]:
        return {"rtol": 0.0, "atol": math.inf}  # the first correction counts as converged


def torchdiffeq_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for every torchdiffeq method that is offered, by name."""
    makers: dict[str, Callable[..., Solver]] = {}
    # method: (order, evaluations for each step tried)
    adaptive = {
        "dopri8": (8, 13), "dopri5": (5, 6), "bosh3": (3, 3), "adaptive_heun": (2, 1),
    }  # fmt: skip
    for method, (order, evaluations) in adaptive.items():
        makers[f"ode:{method}"] = partial(AdaptiveTorchdiffeq, method, order, evaluations)
    # Its estimate is 1/512 of a difference of slopes; the neglected terms are of higher order but
    # larger at every tolerance in use.
    makers["ode:fehlberg2"] = partial(AdaptiveTorchdiffeq, "fehlberg2", 2, 2, 100.0)
    # method: (order, evaluations, fractions of a step at which it evaluates)
    fixed: dict[str, tuple[int, int, tuple[float, ...]]] = {
        "euler": (1, 1, (0.0,)), "midpoint": (2, 2, (0.0, 0.5)), "heun2": (2, 2, (0.0, 1.0)),
        "heun3": (3, 3, (0.0, *THIRDS)), "rk4": (4, 4, (0.0, *THIRDS)),
    }  # fmt: skip
    for method, declared in fixed.items():
        makers[f"ode:{method}"] = partial(FixedTorchdiffeq, method, *declared)
    makers["ode:explicit_adams"] = partial(AdamsTorchdiffeq, "explicit_adams", 4, 1, 5)
    makers["ode:implicit_adams"] = partial(AdamsTorchdiffeq, "implicit_adams", 4, 2, 4)
    makers["ode:fixed_adams"] = partial(AdamsTorchdiffeq, "fixed_adams", 4, 2, 4)
    return makers
