"""The law of what an SDE solver returns, computed instead of sampled: no Monte-Carlo error.

Both ways drive the solver itself and replace the noise it draws. On Gaussian data every step is
linear in the state and in each noise, so the variance at the end is a sum of squares of responses.
In one dimension a step with one noise is a Gaussian kernel, and a density on a fine grid of points
can be carried through it by quadrature.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers import Problem, Solver
from sde_models.solvers.one_step.base import Stepper

Moves = Callable[[Problem], list[tuple[int, Stepper]]]
"""The moves of a step, each with how far ahead of its node it acts."""


def variance_ratio(
    solver: Solver | str,
    sde: sm.GaussianSDE,
    data_std: float,
    span: tuple[float, float],
    *,
    draws: int,
    eta: float = 1.0,
    **arguments: Any,
) -> float:
    """Variance that a solver ends with on Gaussian data, over the true one; it starts exact.

    Row 0 of the batch answers to the state, row j to the j-th of at most ``draws`` noises.
    """
    mean = torch.zeros(1, 1, dtype=torch.float64)
    model = sm.GaussianMixture(mean, data_std).score_model(sde)
    times = torch.tensor(span, dtype=torch.float64)
    start, end = (sde.alpha(times) * data_std).square() + sde.sigma(times).square()
    x = torch.zeros(draws + 1, 1, dtype=torch.float64)
    x[0] = start.sqrt()
    drawn = 0

    def noise(problem: Problem, like: Tensor | None = None) -> Tensor:
        nonlocal drawn
        drawn += 1
        unit = torch.zeros_like(x)
        unit[drawn] = 1
        return unit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "noise", noise)
        got = sm.solve(sm.ReverseSDE(model, (1,), eta), x, span, solver, **arguments).x
    return float(got.square().sum() / end)


class Quadrature(Solver):
    """Carries a density through the moves of a solver, at points that are the state."""

    name = "quadrature"
    integrates = ("SDE",)
    order = 1.0
    adaptive = False
    evaluations = None

    def __init__(self, moves: Moves, density: Tensor) -> None:
        super().__init__()
        self.moves = moves
        self.density = density

    def integrate(self, problem: Problem) -> Tensor:
        moves, density = self.moves(problem), self.density
        for k in range(len(problem.times) - 1):
            for ahead, move in moves:
                density = _carried(problem, density, lambda x, a=ahead, m=move, k=k: m(k + a, x))
        return density[:, None]


def _carried(problem: Problem, density: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    points = problem.x
    problem.noise = lambda like=None: torch.zeros_like(points)  # type: ignore[method-assign]
    mean = move(points)[:, 0]
    problem.noise = lambda like=None: torch.ones_like(points)  # type: ignore[method-assign]
    std = move(points)[:, 0] - mean
    kernel = torch.exp(-0.5 * ((points - mean) / std).square()) / (std * math.sqrt(2 * math.pi))
    return kernel @ density * float(points[1] - points[0])


def one_step(solver: Any) -> Moves:
    """The moves of a solver that is one function of node and state."""
    return lambda problem: [(0, solver.stepper(problem))]


def density_error(
    moves: Moves,
    sde: sm.GaussianSDE,
    span: tuple[float, float],
    *,
    steps: int,
    reach: float,
    eta: float = 1.0,
    points: int = 401,
) -> float:
    """L1 distance of the density at the end to the true one, of a start that is exact."""
    exact = ProductMixture(sde, (1,))
    x = torch.linspace(-reach, reach, points, dtype=torch.float64)[:, None]
    start, end = (exact.mixture.diffuse(sde, t).log_prob(x).exp() for t in span)
    system = sm.ReverseSDE(exact.model, (1,), eta)
    got = sm.solve(system, x, span, Quadrature(moves, start), steps=steps).x[:, 0]
    return float((got - end).abs().sum() * (x[1] - x[0]))


def live_tensors() -> int:
    """Tensors that are alive now."""
    return sum(type(thing) is Tensor for thing in gc.get_objects())
