"""Paths whose steps are fine enough for a log-density to a tolerance, for each sample.

The path is solved to tolerances that fall by factors of ten, and the log-density of each solve
computed at a few nodes with the same probes, until it changes by less than a share of the
tolerance. Every other solve starts from data that are moved by a few roundings, so that the changes
show what rounding does; steps that are finer than rounding are of no use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_models._utils.fields import Fields
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.paths import Path, moved, solve_path
from sde_models.likelihood.refinement import error_of_finest, least_error
from sde_models.likelihood.strategies import QuadratureLikelihood
from sde_models.solvers import Solution, Solver
from sde_models.solvers.options import SolveOptions

SHARE = 0.3
"""Part of the tolerance that the steps may take."""
FIRST, LOOSEST = 0.01, 0.3
"""The first paths have the tolerance FIRST tol / sqrt(D) in units of the noise, at most LOOSEST."""
FINE_ENOUGH = 0.1
"""Looser paths are no evidence."""
MOST_SOLVES = 7
AT_ROUNDING, WITH_ROUNDING = 10.0, 2.0
"""Tolerances are no smaller than about the rounding of the state in units of the noise; and the
factor on the last change where they are below AT_ROUNDING times that."""
KEPT = 4
"""States are kept at so many times the nodes that the quadrature begins with: they cost little."""


@dataclass(frozen=True)
class Paths(Fields):
    """Solved paths, an entry for each sample.

    Attributes:
        states: At the nodes that are kept, shape ``(B, M, *event)``.
        z: Latents.
        error: Of the steps, in nats.
        tolerance: That of the solve, in noise units.
        sketches: Of the Jacobians at the pilot's nodes, shape ``(B, N, D)``.
    """

    states: Tensor
    z: Tensor
    error: Tensor
    tolerance: Tensor
    sketches: Tensor


class PathSolver:
    """Solves paths, and keeps what was solved.

    Args:
        options: Further options of :func:`~sde_models.solve`.
        first: Nodes that the quadrature begins with, in units of the pilot's.
    """

    def __init__(self, options: SolveOptions, first: int) -> None:
        self.options, self.first = options, first
        self.solutions: list[Solution] = []

    def kept(self, strategy: QuadratureLikelihood) -> Nodes:
        """The nodes at which states are kept."""
        return strategy.pilot.finer(KEPT * self.first)

    def refine(self, strategy: QuadratureLikelihood, tol: float) -> Paths:
        """Solve to smaller tolerances, until errors are a share of ``tol`` or no longer fall."""
        tolerance = min(LOOSEST, FIRST * tol / math.sqrt(strategy.size))
        rows = torch.arange(len(strategy.x), device=strategy.x.device)
        paths: Paths | None = None
        resolutions: list[Tensor] = []
        for number in range(MOST_SOLVES):
            part = strategy.part(rows)
            start = replace(part, x=moved(part.x)) if number % 2 else part
            path = self._solve(start, self.kept(part), tolerance)
            parts, sketches = part.pilot_sketches(path.z, part.pilot.among(path.states))
            resolutions = [*resolutions[-2:], parts]
            error, last = _error_of_steps(resolutions, part.solver)
            error = torch.maximum(error, least_error(tolerance, part.size))
            finest = tolerance <= AT_ROUNDING * _rounding(part)
            error = torch.where(finest, torch.maximum(error, WITH_ROUNDING * last), error)
            states = path.states.transpose(0, 1)
            same = torch.full_like(error, tolerance)
            found = Paths(states, path.z, error, same, sketches.transpose(0, 1))
            paths = found if paths is None else paths.put((rows,), found)
            small = (error <= SHARE * tol) & (tolerance <= FINE_ENOUGH)
            late = ~(small | finest) | torch.isinf(error)
            rows, resolutions = rows[late], [parts[:, late] for parts in resolutions]
            if not len(rows):
                break
            tolerance /= 10
        assert paths is not None
        return paths

    def states(self, strategy: QuadratureLikelihood, paths: Paths, nodes: Nodes) -> Tensor:
        """States of the paths at nodes, solved again where they are more than were kept."""
        if nodes.count <= self.kept(strategy).count:
            return nodes.among(paths.states.transpose(0, 1))
        found: list[Tensor] = []
        order: list[Tensor] = []
        for tolerance in paths.tolerance.unique().tolist():
            rows = (paths.tolerance == tolerance).nonzero().flatten()
            found.append(self._solve(strategy.part(rows), nodes.of_rows(rows), tolerance).states)
            order.append(rows)
        return torch.cat(found, 1)[:, torch.cat(order).argsort()]

    def _solve(self, strategy: QuadratureLikelihood, nodes: Nodes, tolerance: float) -> Path:
        half = 0.5 * tolerance  # rtol and atol add in units of the noise
        options: SolveOptions = {**self.options, "rtol": half, "atol": half}
        path = solve_path(strategy.flow, strategy.x, nodes, strategy.solver, options)
        self.solutions.append(path.solution)
        return path


def _rounding(strategy: QuadratureLikelihood) -> Tensor:
    """Rounding of the data in units of the noise at ``t_min``, shape ``(B,)``."""
    sigma = float(strategy.pilot.sde.sigma(strategy.pilot.sde.times(strategy.pilot.sde.t_min)))
    size = strategy.x.detach().flatten(1).square().mean(1).sqrt()
    return torch.finfo(strategy.x.dtype).eps * size.clamp(min=sigma) / sigma


def _error_of_steps(resolutions: list[Tensor], solver: Solver) -> tuple[Tensor, Tensor]:
    """Error of the last of results at falling tolerances, and the norm of the last change."""
    if len(resolutions) == 1:
        unknown = torch.full_like(resolutions[0][0], math.inf)
        return unknown, unknown
    last = torch.linalg.vector_norm(resolutions[-1] - resolutions[-2], dim=0)
    return error_of_finest(resolutions, solver), last
