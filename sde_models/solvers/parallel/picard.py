r"""Parallel in time: many steps of a multistep method at once, by Picard iteration.

The states :math:`x_0, \dots, x_K` that a multistep method would reach one after the other solve

.. math:: x_{j+1} = c_j x_j + \sum_i w_{ji}\, u(t_{j-i}, x_{j-i}) + s_j \xi_j ,

and are found here by iteration: the network is evaluated at the latest guesses of all states of a
window of nodes, in one batch, and with these estimates held the recurrence is run through the
window, which costs no evaluation. What is linear in the state is thereby solved and not iterated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.errors import nearest_names
from sde_models._utils.randomness import independent_parts
from sde_models.sdes.system import System
from sde_models.solvers.base import Solver
from sde_models.solvers.multistep.base import MultistepSolver
from sde_models.solvers.multistep.dpm_solver import dpm_solvers
from sde_models.solvers.multistep.exponential_adams import exponential_adams_solvers
from sde_models.solvers.multistep.flow_adams import flow_adams_solvers
from sde_models.solvers.multistep.unipc import unipc_solvers
from sde_models.solvers.one_step.ddim import DDIM
from sde_models.solvers.parallel.windows import ManyNodes, Window
from sde_models.solvers.problem import Problem, Scales

HIGHEST_ORDER = 3
"""Methods of order 4 need one more evaluation at the start, which does not fit a window."""

DEFAULT_WINDOW = 16

_MULTISTEP: dict[str, Callable[..., Solver]] = {
    DDIM.name: DDIM,
    **dpm_solvers(),
    **unipc_solvers(),
    **exponential_adams_solvers(),
    **flow_adams_solvers(),
}
METHODS = {name: make for name, make in _MULTISTEP.items() if make().order <= HIGHEST_ORDER}


class Picard(Solver):
    r"""A multistep method whose steps are taken in parallel: fewer, larger passes of the network.

    Each round evaluates a window of nodes for the full batch, window times B rows in one pass
    with a time for each row. The front of the window then moves on to the first state that has
    changed by more than the tolerance, by one node at least, so that there are never more rounds
    than steps of the method. Nodes that enter the window are guessed with the last estimate
    held. The result is that of the method on the same nodes and with the same noise, to within a
    few tolerances; at 0.01 and above a sample may end in another mode.

    With a generator for each sample, each has a window of its own, so that its result does not
    depend on the others. All windows are evaluated in one pass.

    It pays where the network does not fill the accelerator: ``calls`` of the cost counts rounds,
    and ``nfe`` the evaluations of each sample, more than the method by itself makes. Memory grows
    with the window, not with the steps, unless gradients are needed.

    Options:
        method: Name or object of a multistep solver, of order 3 at most: "ddim" (default),
            "dpmpp-2m", "flow-adams-2", "dpmpp-2m-sde" and others. On mixtures "flow-adams" and
            "flow-abm" took the fewest rounds at equal tolerance, in both directions.
        window: Nodes evaluated at once, 16; 1 is the method by itself, and a number beyond the
            steps has them all at once.
        tolerance: Largest change of a state between rounds that counts as converged: root mean
            square over the sample, for the worst sample of the batch, in units of
            :math:`\sqrt{s^2 \alpha_t^2 + \sigma_t^2}`, the spread of :math:`x_t` for data of
            standard deviation s. If left out :math:`0.01 \min(1, 10 / K)^p` for K steps of a method
            of order p, which falls as fast as the method's own error does: on mixtures the
            difference was less than a fifth of that error. 0 iterates until nothing changes.

    Raises:
        ValueError: For a method that is not such a solver, a window that is no positive integer, or
            a tolerance that is negative or not finite.

    Reference:
        Shih et al. 2023, Parallel sampling of diffusion models, arXiv:2305.16317.
    """

    name = "picard"
    diffusion_only = True
    adaptive = False
    evaluations = None
    default_steps = MultistepSolver.default_steps
    option_names = ("method", "window", "tolerance")
    number_options = ("tolerance",)
    integer_options = ("window",)
    may_be_zero = ("tolerance",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.method = _find_method(self.options.get("method", DDIM.name))
        self.window: int = self.options.get("window") or DEFAULT_WINDOW
        self.tolerance = self.options.get("tolerance")
        if self.tolerance is not None and self.tolerance == math.inf:
            raise ValueError(f"tolerance must be a finite number, got {self.tolerance!r}")
        self.integrates = self.method.integrates
        self.directions = self.method.directions
        self.order = self.method.order

    def check_system(self, system: System) -> None:
        self.method.check_system(system)

    def integrate(self, problem: Problem) -> Tensor:
        recorder, scales = problem.recorder, problem.scales()
        weights, allowed = self.method.weights(scales, problem.system.eta), self._allowed(scales)
        evaluate = ManyNodes(problem, *self.method.estimate_factors(scales))
        windows = [
            Window(problem, rows, source, weights, self.window, allowed)
            for rows, source in independent_parts(problem.generator, len(problem.x))
        ]
        nodes = enumerate(problem.times.tolist())
        while moving := [window for window in windows if not window.arrived]:
            for window, estimates in zip(moving, evaluate(moving), strict=True):
                window.move(estimates)
            while all(window.passed for window in windows):
                states = [window.passed.popleft() for window in windows]
                x = states[0] if len(states) == 1 else torch.cat(states)
                k, t = next(nodes)
                if k:
                    recorder.reach(t, x)
        return x

    def _allowed(self, scales: Scales) -> list[float]:
        """The largest change of the state at each node that counts as converged."""
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 0.01 * min(1.0, 10 / (len(scales.sigma) - 1)) ** self.order
        spread = torch.hypot(scales.data_std * scales.alpha, scales.sigma)
        allowed: list[float] = (tolerance * spread.detach()).tolist()
        return allowed


def _find_method(method: Any) -> MultistepSolver:
    """Return the multistep solver of this name, or the one given; refuse any other."""
    found = METHODS[method]() if isinstance(method, str) and method in METHODS else method
    if isinstance(found, MultistepSolver) and found.order <= HIGHEST_ORDER:
        return found
    name = str(getattr(method, "name", method))
    why = "above order 3 a method starts with more evaluations, " if name in _MULTISTEP else ""
    raise ValueError(
        f"method must be a multistep solver of order {HIGHEST_ORDER} at most "
        f"({', '.join(METHODS)}), got {method!r}: {why}{nearest_names(name, METHODS)}"
    )
