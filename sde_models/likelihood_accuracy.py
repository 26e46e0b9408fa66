r"""Log-densities to a tolerance in nats: as many steps, nodes and probes as each sample needs.

The error that is told has three parts: of the steps, of the quadrature, and two standard errors of
the probes. Each is given a share of the tolerance, and what exceeds it is done again with more
effort, for the samples that need it: the path with a quarter of its tolerance, the quadrature with
twice the nodes, the trace with as many probes as its variance asks for, or exactly where those
would cost as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sde_models.divergence import Divergence, Exact, Hutchinson
from sde_models.likelihood_methods import Estimate, QuadratureLikelihood
from sde_models.solvers import Solution
from sde_models.trace_quadrature import TraceIntegral, integrate_traces

PATH_SHARE, QUADRATURE_SHARE = 0.35, 0.25
"""Parts of the tolerance; the rest is that of the probes, or with an exact trace spare."""
STEPS_IN_ERROR = 3.0
"""About how many times its tolerance in noise units, times the root of D, a path's error is."""
FIRST_INTERVALS, MOST_INTERVALS = 24, 768
MOST_ROUNDS = 6
WORTH_OF_EXACT = 0.7
"""From this part of D probes on, the exact trace is taken instead."""


@dataclass(frozen=True)
class _Paths:
    """Solved paths, an entry for each sample.

    Attributes:
        states: At the nodes, shape ``(B, M, *event)``.
        z: Latents.
        error: Of the steps, in nats.
        tolerance: What they were solved with, in noise units.
    """

    states: Tensor
    z: Tensor
    error: Tensor
    tolerance: Tensor


class ToAccuracy:
    """Log-densities whose error, as it is told, is below a tolerance for each sample.

    Args:
        tol: Tolerance in nats.
        arguments: Further arguments of :func:`~sde_models.solve`.
    """

    def __init__(self, tol: float, **arguments: Any) -> None:
        self.tol, self.arguments = tol, arguments
        self.solutions: list[Solution] = []

    def run(self, way: QuadratureLikelihood) -> tuple[Estimate, Tensor]:
        """The estimates, and the errors of the steps."""
        way = replace(way, intervals=FIRST_INTERVALS)
        first = self.tol * PATH_SHARE / (STEPS_IN_ERROR * math.sqrt(way.x[0].numel()))
        paths = self._paths(way, first, MOST_ROUNDS)
        integral = self._integral(way, paths, MOST_ROUNDS)
        solution = replace(
            self.solutions[0],
            accepted=sum(s.accepted for s in self.solutions),
            rejected=sum(s.rejected or 0 for s in self.solutions),
        )
        value = way.at_the_end(paths.z) + integral.value
        return Estimate(value, integral.stderr, integral.error, paths.z, solution), paths.error

    def _paths(self, way: QuadratureLikelihood, tolerance: float, rounds: int) -> _Paths:
        """Solve, and solve again with a quarter of the tolerance what is not good enough."""
        half = 0.5 * tolerance  # rtol and atol add in units of the noise
        solution = way.solve(rtol=half, atol=half, **self.arguments)
        self.solutions.append(solution)
        error: Any = solution.density_error
        paths = _Paths(
            way.states(solution).transpose(0, 1), solution.x, error.to(way.x),
            torch.full_like(error, tolerance),
        )  # fmt: skip
        late = (paths.error > PATH_SHARE * self.tol).nonzero().flatten()
        if len(late) and rounds:
            paths = _put(paths, late, self._paths(way.part(late), 0.25 * tolerance, rounds - 1))
        return paths

    def _integral(
        self, way: QuadratureLikelihood, paths: _Paths, rounds: int, known: Tensor | None = None
    ) -> TraceIntegral:
        """Integrate, with more probes and then with more nodes where it is not good enough.

        Args:
            way: With the estimator and the nodes to begin with.
            paths: The paths of its samples, with states at its nodes.
            rounds: How often more may be done.
            known: Exact traces at every other node, where they are known.
        """
        states = paths.states.transpose(0, 1)
        estimates = way.traces(states, known)
        integral = integrate_traces(way.model, estimates, way.x[0].numel(), way.estimator.exact)
        share = 1 - PATH_SHARE - QUADRATURE_SHARE
        calm = 2 * integral.stderr <= share * self.tol
        noisy = (~calm).nonzero().flatten()
        if len(noisy) and rounds:
            needed = (2 * integral.stderr[noisy] / (share * self.tol)).square().max()
            stronger = replace(way.part(noisy), estimator=_stronger(way, float(needed)))
            again = self._integral(stronger, _part(paths, noisy), rounds - 1)
            integral = _put(integral, noisy, again)
        rough = (calm & (integral.error > QUADRATURE_SHARE * self.tol)).nonzero().flatten()
        if len(rough) and way.intervals < MOST_INTERVALS:
            finer = replace(way.part(rough), intervals=2 * way.intervals)
            solution = finer.solve(
                rtol=0.5 * float(paths.tolerance[rough].min()),
                atol=0.5 * float(paths.tolerance[rough].min()),
                **self.arguments,
            )
            self.solutions.append(solution)
            own = replace(_part(paths, rough), states=finer.states(solution).transpose(0, 1))
            kept = estimates[:, rough] if way.estimator.exact else None
            integral = _put(integral, rough, self._integral(finer, own, rounds, kept))
        return integral


def _stronger(way: QuadratureLikelihood, factor: float) -> Divergence:
    """An estimator with so many times the probes, or the exact one."""
    size, probes = way.x[0].numel(), way.estimator.probes
    wanted = 2 * probes if math.isnan(factor) else math.ceil(1.2 * factor * probes)
    if wanted >= WORTH_OF_EXACT * size:
        return Exact()
    distribution = getattr(way.estimator, "distribution", "rademacher")
    return Hutchinson(max(wanted, 2 * probes), distribution)


def _part(whole: Any, rows: Tensor) -> Any:
    """The entries of these samples."""
    return type(whole)(*(getattr(whole, field.name)[rows] for field in fields(whole)))


def _put(whole: Any, rows: Tensor, part: Any) -> Any:
    """The whole with the entries of these samples replaced."""
    return type(whole)(
        *(getattr(whole, f.name).index_copy(0, rows, getattr(part, f.name)) for f in fields(whole))
    )
