"""Log-densities to a tolerance in nats: as many steps, nodes and probes as each sample needs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sde_models.likelihood.adaptive_paths import PathSolver
from sde_models.likelihood.adaptive_traces import integrate_to
from sde_models.likelihood.strategies import Estimate, QuadratureLikelihood
from sde_models.solvers.options import SolveOptions

FEW, MORE, FROM = 3, 4, 0.5
"""Nodes that the quadrature begins with, in units of the pilot's, for tolerances from FROM nats on
and below."""
LEAST = 0.4
"""Part of the tolerance that is left to probes and nodes where the error of the paths is large."""


def estimate_to(
    tol: float, strategy: QuadratureLikelihood, options: SolveOptions
) -> tuple[Estimate, Tensor]:
    """Log-densities whose reported error is below a tolerance, and the errors of their steps.

    Args:
        tol: Tolerance in nats, for each sample.
        strategy: Solves paths and takes traces.
        options: Further options of :func:`~sde_models.solve`.
    """
    solver = PathSolver(options, FEW if tol >= FROM else MORE)
    paths = solver.refine(strategy, tol)
    target = (tol - paths.error).nan_to_num(0).clamp(min=LEAST * tol)
    integral = integrate_to(target, strategy, paths, solver, strategy.fresh_source())
    solution = replace(
        solver.solutions[0],
        accepted=sum(s.accepted for s in solver.solutions),
        rejected=sum(s.rejected or 0 for s in solver.solutions),
    )
    value = strategy.prior_log_prob(paths.z) + integral.value
    estimate = Estimate(value, integral.stderr, integral.error, strategy.x, paths.z, solution)
    return estimate, paths.error
