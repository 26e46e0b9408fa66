r"""Parallel in time: many steps of a multistep method at once, by Picard iteration.

The states :math:`x_0, \dots, x_K` that a multistep method would reach one after the other solve

.. math:: x_{j+1} = c_j x_j + \sum_i w_{ji}\, u(t_{j-i}, x_{j-i}) + s_j \xi_j ,

and are found here by iteration: the network is evaluated at the latest guesses of all states of a
window of nodes, in one batch, and with these estimates held the recurrence is run through the
window, which costs no evaluation. What is linear in the state is thereby solved and not iterated.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sde_models._shapes import adds_up
from sde_models.base_systems import System, add_scaled, as_coefficients
from sde_models.conditioning import of_each_sample
from sde_models.errors import nearest_names
from sde_models.solvers.arguments import whole_number
from sde_models.solvers.base import Solver
from sde_models.solvers.ddim import DDIM
from sde_models.solvers.dpm_solver import dpm_solvers
from sde_models.solvers.exponential_adams import exponential_adams_solvers
from sde_models.solvers.flow_adams import flow_adams_solvers
from sde_models.solvers.multistep import MultistepSolver, WeightedSum, Weights
from sde_models.solvers.problem import Problem, Scales, refuse_non_finite
from sde_models.solvers.unipc import unipc_solvers

HIGHEST_ORDER = 3
"""Methods of order 4 start with an evaluation more, whose result no window can wait for."""

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

    Each round evaluates a window of nodes for the whole batch, window times B rows in one pass
    with a time for each row. The front of the window then moves on to the first state that has
    changed by more than the tolerance, by one node at least, so that there are never more rounds
    than the method takes steps. Nodes that enter the window are guessed with the last estimate
    held. The answer is that of the method on the same nodes and with the same noise, to within a
    few tolerances; at 0.01 and above a sample may end in another mode.

    It is for a network that does not fill the accelerator: ``nfe`` counts rounds, and ``rows``
    the evaluations of single samples, of which there are more than the method by itself makes.
    Memory grows with the window, not with the steps, unless gradients are asked for.

    Conditioning tensors whose first dimension is B belong to the samples; give one that is shared,
    and happens to be that long, with a first dimension of 1.

    Options:
        method: Name or object of a multistep solver, of order 3 at most: "ddim" (default),
            "dpmpp-2m", "flow-adams-2", "dpmpp-2m-sde" and others. On mixtures "flow-adams" and
            "flow-abm" took the fewest rounds at equal tolerance, in both directions.
        window: Nodes evaluated at once, 16; 1 is the method by itself, and a number beyond the
            steps has them all at once.
        tolerance: Most that a state may still change where the network is evaluated: root mean
            square over the sample, for the worst sample of the batch, in units of
            :math:`\sqrt{s^2 \alpha_t^2 + \sigma_t^2}`, the spread of :math:`x_t` for data of
            standard deviation s. If left out :math:`0.01 \min(1, 10 / K)^p` for K steps of a method
            of order p, which falls as fast as the method's own error does: on mixtures the answer
            was off by less than a fifth of that. 0 iterates until nothing changes any more.

    Raises:
        ValueError: For a method that is not such a solver, a window that is no whole number, or a
            tolerance that is negative or not finite.

    Reference:
        Shih et al. 2023, Parallel sampling of diffusion models, arXiv:2305.16317.
    """

    name = "picard"
    diffusion_only = True
    adaptive = False
    evaluations = None
    default_steps = MultistepSolver.default_steps
    option_names = ("method", "window", "tolerance")
    may_be_zero = ("tolerance",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.method = _find_method(options.get("method", DDIM.name))
        self.window = whole_number("window", options.get("window")) or DEFAULT_WINDOW
        self.tolerance = options.get("tolerance")
        number = isinstance(self.tolerance, float | int) and not isinstance(self.tolerance, bool)
        if self.tolerance is not None and not (number and self.tolerance < math.inf):
            raise ValueError(f"tolerance must be a finite number, got {self.tolerance!r}")
        self.integrates = self.method.integrates
        self.directions = self.method.directions
        self.order = self.method.order

    def check_system(self, system: System) -> None:
        self.method.check_system(system)

    def integrate(self, problem: Problem) -> Tensor:
        recorder, scales = problem.recorder, problem.scales()
        weights = self.method.weights(scales, problem.system.eta)
        recurrence = _Recurrence(problem, weights)
        evaluate = _ManyNodes(problem, *self.method.estimate_factors(scales), self.window)
        allowed = self._allowed(scales)
        times = problem.times.tolist()
        steps, first, guesses = len(times) - 1, 0, [problem.x]
        while first < steps:
            estimates = evaluate(first, guesses)
            march = recurrence.march(first, guesses[0], estimates)
            reached = list(islice(march, len(guesses)))
            changed = self._changed(problem, guesses, [guess for _, guess in reached])
            moved = 1
            while moved < len(guesses) and changed[moved - 1] <= allowed[first + moved]:
                moved += 1
            for j, (x, _) in enumerate(reached[:moved], start=first):
                if j:
                    recorder.reach(times[j], x)
            # The next window begins at the last node passed: run on until it is full.
            end = moved - 1 + min(self.window, steps - first - moved)
            reached.extend(islice(march, max(0, end - len(reached))))
            x, guesses = reached[moved - 1][1], [guess for _, guess in reached[moved - 1 : end]]
            recurrence.settle(reached[moved - 1][0], estimates[:moved])
            first += moved
        recorder.reach(times[-1], x)
        return x

    def _allowed(self, scales: Scales) -> list[float]:
        """The most that the state at each node may still change."""
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 0.01 * min(1.0, 10 / (len(scales.sigma) - 1)) ** self.order
        spread = torch.hypot(scales.data_std * scales.alpha, scales.sigma)
        allowed: list[float] = (tolerance * spread.detach()).tolist()
        return allowed

    @staticmethod
    def _changed(problem: Problem, guesses: list[Tensor], found: list[Tensor]) -> list[float]:
        """How far the guesses after the first were off, for the worst sample."""
        if len(guesses) == 1:
            return []
        with torch.no_grad():
            change = torch.stack(found[:-1]) - torch.stack(guesses[1:])
            sizes = problem.system.error_norm(change.flatten(0, 1))
            worst: list[float] = sizes.unflatten(0, change.shape[:2]).amax(1).tolist()
        return worst


class _Recurrence:
    """The steps of a multistep method, once its estimates are given.

    It keeps what a window needs of the nodes before it, and the noise of each step in it.
    """

    def __init__(self, problem: Problem, weights: Weights) -> None:
        self._predictor = WeightedSum(weights.state, weights.estimates)
        self._corrector = WeightedSum(weights.state, weights.corrector)
        self._start = [WeightedSum(weights.state, again) for again in weights.start]  # one at most
        self._of_noise = None if weights.noise is None else as_coefficients(weights.noise)
        self._draw = problem.noise
        self._noise: deque[Tensor] = deque()
        self._past: deque[Tensor] = deque(maxlen=weights.longest)
        self._before = problem.x
        self._steps = len(weights.state)

    def march(self, first: int, x: Tensor, estimates: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Step from node ``first``, with the last estimate held when they have run out.

        Args:
            first: The first node.
            x: State there.
            estimates: Estimates at this node and at those after it, shape ``(n, B, *event)``.

        Yields:
            The state at each node, corrected, and that predicted for the next.
        """
        past, before = self._past.copy(), self._before
        given = estimates.unbind()
        for k in range(first, self._steps):
            past.appendleft(given[min(k - first, len(given) - 1)])
            if 0 < k <= len(self._start):
                x = self._start[0](0, before, past)
            elif 0 < k <= self._corrector.steps:
                x = self._corrector(k - 1, before, past)
            before, x = x, self._predictor(k, x, past)
            if self._of_noise is not None:
                x = add_scaled(x, self._of_noise[k], self._noise_of(k - first))
            yield before, x

    def settle(self, before: Tensor, estimates: Tensor) -> None:
        """Let the window begin later: with the state before it, and the estimates passed."""
        self._before = before
        for estimate in estimates:
            self._past.appendleft(estimate)
            if self._noise:
                self._noise.popleft()

    def _noise_of(self, step: int) -> Tensor:
        """The noise of a step of the window, drawn in the order of the steps, once."""
        if step == len(self._noise):
            self._noise.append(self._draw())
        return self._noise[step]


class _ManyNodes:
    """The estimate a x0 + b eps of a method at many nodes, in one pass of the network.

    Args:
        problem: The problem, whose system is that of a model.
        of_x0: a at each node.
        of_eps: b at each node.
        window: The most nodes that will be asked for.
    """

    def __init__(self, problem: Problem, of_x0: Tensor, of_eps: Tensor, window: int) -> None:
        x, system = problem.x, problem.system
        nodes = (-1, 1, *(1,) * (x.ndim - 1))
        self._of_x0, self._of_eps = (v.to(x).reshape(nodes) for v in (of_x0, of_eps))
        self._model: Any = system.model
        self._problem, self._batch = problem, len(x)
        self._t = problem.times.to(x)
        window = min(window, len(self._t) - 1)
        self._shared = dict(system.cond)
        self._own = {
            name: value.repeat(window, *(1,) * (value.ndim - 1))
            for name, value in of_each_sample(system.cond, self._batch).items()
        }

    def __call__(self, first: int, states: list[Tensor]) -> Tensor:
        """Estimates at the states of node ``first`` and those after it, ``(n, B, *event)``.

        Raises:
            NonFiniteError: If it is NaN or infinite at the first of them. The others are guesses,
                and are found again when they come first.
        """
        nodes = slice(first, first + len(states))
        rows = len(states) * self._batch
        own = {name: value[:rows] for name, value in self._own.items()}
        t = self._t[nodes].repeat_interleave(self._batch)
        both = self._model.denoise(t, torch.cat(states), **{**self._shared, **own})
        x0, eps = (values.unflatten(0, (len(states), self._batch)) for values in both)
        estimates: Tensor = self._of_x0[nodes] * x0 + self._of_eps[nodes] * eps
        if not adds_up(estimates):
            problem = self._problem
            t0, cost = float(problem.times[first]), problem.recorder.cost
            refuse_non_finite("estimate", t0, states[0], estimates[0], cost)
        return estimates


def _find_method(method: Any) -> MultistepSolver:
    """Return the multistep solver of this name, or the one given.

    Raises:
        ValueError: If it is none, or of too high an order.
    """
    found = METHODS[method]() if isinstance(method, str) and method in METHODS else method
    if isinstance(found, MultistepSolver) and found.order <= HIGHEST_ORDER:
        return found
    name = str(getattr(method, "name", method))
    why = "above order 3 a method starts with more evaluations, " if name in _MULTISTEP else ""
    raise ValueError(
        f"method must be a multistep solver of order {HIGHEST_ORDER} at most "
        f"({', '.join(METHODS)}), got {method!r}: {why}{nearest_names(name, METHODS)}"
    )
