"""The equation as a function of time, fast at the times of a fixed-step method of a library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_models.solvers.problem import Problem


class KnownTimes:
    """Drift and noise scale at a time, with everything that depends on time alone computed once.

    A method of a library evaluates at the same fractions of every step. Those times are prepared;
    at any other the equation is evaluated as it stands.

    Args:
        problem: The problem, with the nodes of the solve.
        fractions: Fractions of a step at which the method evaluates.

    Attributes:
        callback_step: What torchdiffeq calls before each step.
    """

    callback_step: Callable[[Tensor, Tensor, Tensor], None]

    def __init__(self, problem: Problem, fractions: Sequence[float]) -> None:
        self._problem = problem
        nodes = problem.times
        inner = nodes[:-1, None] + nodes.diff()[:, None] * nodes.new_tensor(fractions)
        times = torch.cat([inner.flatten(), nodes[-1:]])
        # torchdiffeq asks for times that are rounded like the state, torchsde for exact ones.
        keys = (*times.to(problem.x.dtype).tolist(), *times.tolist())
        self._index = {t: k % len(times) for k, t in enumerate(keys)}
        low, high = nodes.min(), nodes.max()  # a fraction of 1 may round to a time beyond the span
        self._nodes = problem.at_nodes(times.clamp(low, high))

    def __call__(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The drift at model time ``t``; raises as that at nodes does."""
        k = self._index.get(float(t))
        return self._problem.drift(self._time(t), x) if k is None else self._nodes.drift(k, x)

    def noise_scale(self, t: Tensor | float, x: Tensor) -> Any:
        """The noise scale at model time ``t``: a number, or broadcastable against ``x``."""
        k = self._index.get(float(t))
        if k is None:
            return self._problem.noise_scale(self._time(t), x)
        return self._problem.check_noise_scale(self._nodes.noise_scale(k, x), x)

    def _time(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t).to(self._problem.x)
