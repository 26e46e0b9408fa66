"""Log-densities by integrating the probability flow: the way, its errors and its cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditioning import usable
from sde_models._utils.counting import count_evaluations
from sde_models._utils.errors import nearest_names
from sde_models._utils.shapes import check_batch
from sde_models._utils.streams import Source, as_source, repeatable
from sde_models.divergence.base import Divergence
from sde_models.divergence.table import find_divergence
from sde_models.likelihood.methods import METHODS, Likelihood
from sde_models.likelihood.tolerance import ToAccuracy
from sde_models.models.base import Model, check_model
from sde_models.sdes.priors import Prior
from sde_models.solvers import Solution, Solver, Step, make_solver
from sde_models.solvers.arguments import check_callback, whole_number

DEFAULT_INTERVALS = 64
"""Intervals between the nodes of a quadrature that is told none."""


@dataclass(frozen=True)
class LogProb:
    """Log-densities, how far to trust them, and what they cost.

    Attributes:
        value: Log-density of each sample in nats, shape ``(B,)``.
        stderr: Standard error of ``value`` from the probes, shape ``(B,)``; 0 for the exact
            trace. NaN for a single probe that is fixed for the whole path, which cannot tell.
        solver_error: What the errors of the steps may have moved ``value`` by, in nats, shape
            ``(B,)``. For ``adams-batch`` the sum of what each step may have; for others the
            difference to a coarser solve with the same probes, an estimate of the error of that
            coarser solve. Both are on the safe side. NaN if it was not asked for, or where a
            single step leaves nothing coarser.
        quadrature_error: Difference in nats to the integral on every other node, shape ``(B,)``,
            on the safe side too; 0 where the integral was solved with the path.
        z: Latents, shape of the data.
        nfe: Network forward passes, each on the whole batch, the coarser solve included.
        vjps: Vector-Jacobian products, each on the whole batch, likewise.
        accepted: Steps taken by the finer solve.
        rejected: Steps it tried and threw away; None where the library does not tell.
        rows: Network forward passes of single samples.
        vjp_rows: Vector-Jacobian products of single samples.
    """

    value: Tensor
    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor
    z: Tensor
    nfe: int
    vjps: int
    accepted: int
    rejected: int | None
    rows: int = 0
    vjp_rows: int = 0

    @property
    def error(self) -> Tensor:
        """Within how many nats the truth lies at 95%: two standard errors and the other errors."""
        return 2 * self.stderr + self.solver_error + self.quadrature_error


def integrate_flow(
    model: Model,
    x: Tensor,
    solver: str | Solver,
    *,
    decodes: bool,
    method: str | None = None,
    divergence: str | Divergence | None = None,
    nodes: int | None = None,
    tol: float | None = None,
    prior: Prior | None = None,
    estimate_solver_error: bool = True,
    generator: Source = None,
    gradient: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    grid: Any = None,
    max_steps: int | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    **cond: Any,
) -> tuple[LogProb, Solution]:
    """Log-densities at data, or of what latents decode to, and the solve that found them.

    Args:
        decodes: Whether ``x`` are latents.

    The other arguments, and what is raised, are those of :func:`~sde_models.log_prob`.
    """
    control = {"steps": steps, "rtol": rtol, "atol": atol, "grid": grid, "max_steps": max_steps}
    further: dict[str, Any] = {"gradient": gradient, "progress": progress, "callback": callback}
    check_model(model)
    check_callback(callback)
    found = make_solver(solver)
    check_batch(x, model.event_shape)
    source = as_source(generator, len(x))
    if method is None:
        method = "quadrature" if found.diffusion_only else "augmented"
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; {nearest_names(method, METHODS)}")
    if method == "augmented" and nodes is not None:
        raise ValueError(
            "nodes= has no meaning for method='augmented', which solves the integral with the "
            "path: leave it out, or use method='quadrature'"
        )
    if divergence is None:
        divergence = "exact" if tol is None else "auto"
    estimator = find_divergence(divergence, x[0].numel(), method == "quadrature")
    if estimator.exact:  # draws nothing
        source = torch.Generator().manual_seed(0)
    way: Any = METHODS[method](
        model, x, found, estimator,
        model.sde.prior(tuple(x.shape[1:])) if prior is None else prior,
        repeatable(source, len(x), x.device),
        {name: usable(value) for name, value in cond.items()}, _check_nodes(nodes), decodes,
    )  # fmt: skip
    with count_evaluations() as cost:
        if tol is None:
            estimate = way.run(**further, **control)
            solver_error = estimate.solution.density_error
        else:
            _check_tol(tol, way, nodes, control)
            accuracy = ToAccuracy(float(tol), max_steps=max_steps, **further)
            estimate, solver_error = accuracy.run(way)
        if solver_error is None:
            solver_error = torch.full_like(estimate.value.detach(), torch.nan)
            coarser = found.coarser(**control) if estimate_solver_error else None
            if coarser is not None:
                with torch.no_grad():
                    coarse = way.run(progress=progress, **coarser)
                solver_error = (coarse.value - estimate.value.detach()).abs()
    log_prob = LogProb(
        value=estimate.value,
        stderr=estimate.stderr,
        solver_error=solver_error.to(estimate.value.dtype),
        quadrature_error=estimate.quadrature_error,
        z=estimate.z.clone(),
        nfe=cost.nfe,
        vjps=cost.vjps,
        accepted=estimate.solution.accepted,
        rejected=estimate.solution.rejected,
        rows=cost.rows,
        vjp_rows=cost.vjp_rows,
    )
    return log_prob, estimate.solution


def _check_tol(tol: Any, way: Likelihood, nodes: int | None, control: dict[str, Any]) -> None:
    """Refuse a tolerance that has no meaning, or what it chooses by itself.

    Raises:
        ValueError: With what to leave out.
    """
    if isinstance(tol, bool) or not isinstance(tol, float | int) or not 0 < tol < math.inf:
        raise ValueError(f"tol must be a positive number of nats, got {tol!r}")
    given = [name for name in ("steps", "rtol", "atol", "grid") if control[name] is not None]
    given += ["nodes"] if nodes is not None else []
    if given:
        raise ValueError(f"tol= chooses {given[0]} by itself: leave {given[0]}= or tol= out")
    if way.name != "quadrature" or not way.solver.in_noise_units:
        raise ValueError(
            f"tol= needs a solver that tells the error of a density, and method='quadrature': use "
            f"solver='adams-batch' in place of {way.solver.name!r}"
        )


def _check_nodes(intervals: int | None) -> int:
    """Intervals of the quadrature; refuse what has no half.

    Raises:
        ValueError: If they are odd or too few.
    """
    if intervals is None:
        return DEFAULT_INTERVALS
    count = whole_number("nodes", intervals)
    if count is None or count % 4 or count < 12:
        raise ValueError(
            f"nodes must be a number of intervals that 4 divides, 12 or more, got {intervals!r}: "
            "every other node, and every fourth, make the rules that tell the error"
        )
    return count
