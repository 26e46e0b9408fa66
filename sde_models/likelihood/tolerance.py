r"""Log-densities to a tolerance in nats: as many steps, nodes and probes as each sample needs.

The reported error has three parts: of the steps, of the quadrature, and two standard errors of
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

from sde_models._utils.randomness import Source, of_some_rows
from sde_models.likelihood.quadrature import TraceIntegral, Traces, integrate_traces
from sde_models.likelihood.strategies import STEPS_IN_ERROR, Estimate, QuadratureLikelihood
from sde_models.solvers import Solution
from sde_models.solvers.options import SolveOptions

PATH_SHARE, QUADRATURE_SHARE = 0.35, 0.25
"""Parts of the tolerance; the rest is for the probes."""
FIRST_INTERVALS, SOLVED_INTERVALS, MOST_INTERVALS = 24, 96, 768
"""States are kept at more nodes than the quadrature begins with, since they cost little."""
MOST_ROUNDS = 6


@dataclass(frozen=True)
class _Paths:
    """Solved paths, an entry for each sample.

    Attributes:
        states: At the nodes, shape ``(B, M, *event)``.
        z: Latents.
        error: Of the steps, in nats.
        tolerance: That of the solve, in noise units.
    """

    states: Tensor
    z: Tensor
    error: Tensor
    tolerance: Tensor


class AdaptiveLikelihood:
    """Log-densities whose reported error is below a tolerance for each sample.

    Args:
        tol: Tolerance in nats.
        options: Further options of :func:`~sde_models.solve`.
    """

    def __init__(self, tol: float, options: SolveOptions) -> None:
        self.tol, self.options = tol, options
        self.solutions: list[Solution] = []

    def run(self, strategy: QuadratureLikelihood) -> tuple[Estimate, Tensor]:
        """The estimates, and the errors of the steps."""
        strategy = replace(strategy, intervals=SOLVED_INTERVALS)
        first = self.tol * PATH_SHARE / (STEPS_IN_ERROR * math.sqrt(strategy.x[0].numel()))
        paths = self._paths(strategy, first, MOST_ROUNDS)
        integral = self._integral(strategy, paths, FIRST_INTERVALS, strategy.fresh_source())
        solution = replace(
            self.solutions[0],
            accepted=sum(s.accepted for s in self.solutions),
            rejected=sum(s.rejected or 0 for s in self.solutions),
        )
        value = strategy.prior_log_prob(paths.z) + integral.value
        return Estimate(value, integral.stderr, integral.error, paths.z, solution), paths.error

    def _paths(self, strategy: QuadratureLikelihood, tolerance: float, rounds: int) -> _Paths:
        """Solve, and solve the samples of too large an error again, with a quarter of it."""
        half = 0.5 * tolerance  # rtol and atol add in units of the noise
        solution = strategy.solve({**self.options, "rtol": half, "atol": half})
        self.solutions.append(solution)
        error: Any = solution.density_error
        paths = _Paths(
            strategy.states(solution).transpose(0, 1), solution.x, error.to(strategy.x),
            torch.full_like(error, tolerance),
        )  # fmt: skip
        late = (paths.error > PATH_SHARE * self.tol).nonzero().flatten()
        if len(late) and rounds:
            paths = _put(
                paths, late, self._paths(strategy.part(late), 0.25 * tolerance, rounds - 1)
            )
        return paths

    def _integral(
        self,
        strategy: QuadratureLikelihood,
        paths: _Paths,
        intervals: int,
        source: Source,
        known: Traces | None = None,
    ) -> TraceIntegral:
        """Integrate with the probes that it needs, and with more nodes where these are too few.

        Args:
            strategy: The strategy, with the first estimator and the intervals of the known states.
            paths: The paths of its samples.
            intervals: Intervals between the nodes.
            source: Source of the probes of its samples.
            known: Traces at every other node, if they are known.
        """
        if intervals > strategy.intervals:
            strategy, paths = self._denser(strategy, paths, intervals)
        states = paths.states[:, :: strategy.intervals // intervals].transpose(0, 1)
        target = 0.5 * (1 - PATH_SHARE - QUADRATURE_SHARE) * self.tol
        traces = strategy.traces_to_target(states, target, source, known)
        integral = integrate_traces(strategy.model, traces, strategy.x[0].numel())
        rough = (integral.error > QUADRATURE_SHARE * self.tol).nonzero().flatten()
        if len(rough) and intervals < MOST_INTERVALS:
            kept = traces.at((slice(None), rough))
            part = self._integral(
                strategy.part(rough), _part(paths, rough), 2 * intervals,
                of_some_rows(source, rough), kept,
            )  # fmt: skip
            integral = _put(integral, rough, part)
        return integral

    def _denser(
        self, strategy: QuadratureLikelihood, paths: _Paths, intervals: int
    ) -> tuple[QuadratureLikelihood, _Paths]:
        """The same paths, each to its tolerance, with states at more nodes."""
        strategy = replace(strategy, intervals=intervals)
        solved, states = [], []
        for tolerance in paths.tolerance.unique():
            rows = (paths.tolerance == tolerance).nonzero().flatten()
            half = 0.5 * float(tolerance)
            solution = strategy.part(rows).solve({**self.options, "rtol": half, "atol": half})
            self.solutions.append(solution)
            solved.append(rows)
            states.append(strategy.states(solution).transpose(0, 1))
        order = torch.cat(solved).argsort()
        return strategy, replace(paths, states=torch.cat(states)[order])


def _part(values: Any, rows: Tensor) -> Any:
    """The entries of these samples."""
    return type(values)(*(getattr(values, field.name)[rows] for field in fields(values)))


def _put(values: Any, rows: Tensor, part: Any) -> Any:
    """The same with the entries of these samples replaced."""
    return type(values)(
        *(
            getattr(values, f.name).index_copy(0, rows, getattr(part, f.name))
            for f in fields(values)
        )
    )
