"""The windows of nodes that Picard iteration moves along, and the pass of the network for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.randomness import standard_normal_like
from sde_models._utils.shapes import has_finite_sum
from sde_models.sdes.system import add_scaled, as_coefficients
from sde_models.solvers.multistep.base import WeightedSum, Weights
from sde_models.solvers.problem import Problem, refuse_non_finite


class Window:
    """The nodes at which some samples are evaluated at once.

    Args:
        problem: The problem of the full batch.
        rows: The samples, which move on together.
        generator: Source of their noise.
        weights: Weights of every step.
        size: The largest number of nodes.
        allowed: The largest change of the state at each node that counts as converged.

    Attributes:
        rows: Numbers of the samples, shape ``(b,)``.
        first: The first node.
        guesses: States of the samples at this node and at those after it.
        passed: States at the nodes that it has left behind, until they are removed.
    """

    def __init__(
        self,
        problem: Problem,
        rows: slice,
        generator: torch.Generator | None,
        weights: Weights,
        size: int,
        allowed: list[float],
    ) -> None:
        x = problem.x[rows]
        self.rows = torch.arange(len(problem.x), device=x.device)[rows]
        self.first, self.guesses = 0, [x]
        self.passed: deque[Tensor] = deque()
        self._problem, self._allowed, self._size = problem, allowed, size
        self._recurrence = _Recurrence(x, generator, weights)
        self._steps = len(allowed) - 1

    @property
    def arrived(self) -> bool:
        """Whether the samples are at the last node."""
        return self.first == self._steps

    def move(self, estimates: Tensor) -> None:
        """Move on to the first node whose state has changed too much, by one node at least.

        Args:
            estimates: Those at the guesses, shape ``(n, b, *event)``.
        """
        first, guesses = self.first, self.guesses
        march = self._recurrence.march(first, guesses[0], estimates)
        reached = list(islice(march, len(guesses)))
        changed = self._changed([guess for _, guess in reached])
        moved = 1
        while moved < len(guesses) and changed[moved - 1] <= self._allowed[first + moved]:
            moved += 1
        self.passed.extend(x for x, _ in reached[:moved])
        # The next window begins at the last node passed: run on until it is full.
        end = moved - 1 + min(self._size, self._steps - first - moved)
        reached.extend(islice(march, max(0, end - len(reached))))
        self.guesses = [guess for _, guess in reached[moved - 1 : end]]
        self._recurrence.settle(reached[moved - 1][0], estimates[:moved])
        self.first += moved
        if self.arrived:
            self.passed.append(reached[moved - 1][1])

    def _changed(self, found: list[Tensor]) -> list[float]:
        """How far the guesses after the first were off, for the worst sample."""
        if len(self.guesses) == 1:
            return []
        with torch.no_grad():
            change = torch.stack(found[:-1]) - torch.stack(self.guesses[1:])
            sizes = self._problem.system.error_norm(change.flatten(0, 1))
            worst: list[float] = sizes.unflatten(0, change.shape[:2]).amax(1).tolist()
        return worst


class _Recurrence:
    """The steps of a multistep method, once its estimates are given.

    It keeps what a window needs of the nodes before it, and the noise of each step in it.
    """

    def __init__(self, x: Tensor, generator: torch.Generator | None, weights: Weights) -> None:
        self._predictor = WeightedSum(weights.state, weights.estimates)
        self._corrector = WeightedSum(weights.state, weights.corrector)
        self._start = [WeightedSum(weights.state, again) for again in weights.start]  # one at most
        self._of_noise = None if weights.noise is None else as_coefficients(weights.noise)
        self._generator = generator
        self._noise: deque[Tensor] = deque()
        self._past: deque[Tensor] = deque(maxlen=weights.longest)
        self._before = x
        self._steps = len(weights.state)

    def march(self, first: int, x: Tensor, estimates: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Step from node ``first``, with the last estimate held when they have run out.

        Args:
            first: The first node.
            x: State there.
            estimates: Estimates at this node and at those after it, shape ``(n, b, *event)``.

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
            self._noise.append(standard_normal_like(self._before, self._generator))
        return self._noise[step]


class ManyNodes:
    """The estimate a x0 + b eps of a method at all guesses, in one pass of the network.

    Args:
        problem: The problem, whose system is that of a model.
        of_x0: a at each node.
        of_eps: b at each node.
    """

    def __init__(self, problem: Problem, of_x0: Tensor, of_eps: Tensor) -> None:
        x = problem.x
        nodes = (-1, 1, *(1,) * (x.ndim - 1))
        self._of_x0, self._of_eps = (v.to(x).reshape(nodes) for v in (of_x0, of_eps))
        self._problem, self._t = problem, problem.times.to(x)

    def __call__(self, windows: Sequence[Window]) -> list[Tensor]:
        """Estimates at the guesses of windows, shape ``(n, b, *event)`` for each.

        Raises:
            NonFiniteError: If it is NaN or infinite at the first of them. The others are guesses,
                and are found again when they come first.
        """
        nodes = [slice(w.first, w.first + len(w.guesses)) for w in windows]
        shapes = [(len(w.guesses), len(w.rows)) for w in windows]
        system: Any = self._problem.system
        t = torch.cat(
            [self._t[at].repeat_interleave(b) for at, (_, b) in zip(nodes, shapes, strict=True)]
        )
        rows = torch.cat([w.rows.repeat(len(w.guesses)) for w in windows])
        x = torch.cat([x for w in windows for x in w.guesses])
        at_once = len(x) if system.cond.repeatable else 1
        parts = zip(*(values.split(at_once) for values in (t, x, rows)), strict=True)
        both = zip(*(self._denoise(*part) for part in parts), strict=True)
        x0, eps = (torch.cat(values).split([n * b for n, b in shapes]) for values in both)
        found = []
        for window, at, shape, own_x0, own_eps in zip(windows, nodes, shapes, x0, eps, strict=True):
            estimates = self._of_x0[at] * own_x0.unflatten(0, shape)
            estimates = estimates + self._of_eps[at] * own_eps.unflatten(0, shape)
            if not has_finite_sum(estimates):
                self._refuse(window, estimates[0])
            found.append(estimates)
        return found

    def _denoise(self, t: Tensor, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        system: Any = self._problem.system
        found: tuple[Tensor, Tensor] = system.model.denoise(t, x, **system.cond.take(rows))
        return found

    def _refuse(self, window: Window, estimate: Tensor) -> None:
        """End the solve if the estimate at the first node of a window is not finite."""
        problem = self._problem
        x, values = (problem.spread(window.rows, part) for part in (window.guesses[0], estimate))
        t = float(problem.times[window.first])
        refuse_non_finite("estimate", t, x, values, problem.recorder)
