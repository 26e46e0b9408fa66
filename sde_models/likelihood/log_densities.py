r"""Likelihoods by the instantaneous change of variables along the probability flow.

.. math:: \log p(x) = \log p_{t_{max}}(z)
          + \int_{t_{min}}^{t_{max}} \nabla \cdot \dot x(t, x_t)\,dt,

where x runs to the latent z. This is the density that the flow defines: that of the decoded prior.
The path is solved first, and the divergence integrated along it afterwards; or, with
``trace="augmented"``, the two are solved together.

References:
    Chen et al. 2018, Neural ordinary differential equations, arXiv:1806.07366; Song et al. 2021,
    appendix D.2, arXiv:2011.13456.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from sde_models._utils.conditions import as_conditions
from sde_models._utils.counting import Cost, HasCost, count_evaluations
from sde_models._utils.randomness import Source, as_source, repeatable
from sde_models.likelihood.errors import HasError
from sde_models.likelihood.paths import moved
from sde_models.likelihood.refinement import error_of_finest, least_error
from sde_models.likelihood.settings import LogProbOptions, Settings
from sde_models.likelihood.strategies import (
    STRATEGIES,
    Estimate,
    Likelihood,
    QuadratureLikelihood,
)
from sde_models.likelihood.tolerance import estimate_to
from sde_models.models.base import Model
from sde_models.solvers import Solution, Solver
from sde_models.solvers.options import SolveOptions, check_options


@dataclass(frozen=True)
class LogProb(HasCost, HasError):
    """Log-densities, their errors and their cost.

    Attributes:
        value: Log-density of each sample in nats, shape ``(B,)``.
        stderr: Standard error of ``value`` from the probes, shape ``(B,)``; 0 for the exact
            trace. NaN for a single probe that is fixed for the full path, which has no spread.
        solver_error: Error of ``value`` from the steps, in nats, shape ``(B,)``, from the changes
            between three solves. NaN if it was not asked for, or is not known: see ``reason``.
        quadrature_error: Error of the quadrature at 95%, in nats, shape ``(B,)``, from the spectrum
            of the divergence at the nodes; 0 where the integral was solved with the path.
        z: Latents, shape of the data.
        cost: What they cost, the coarser solve included; ``nfe`` and ``vjps`` are shorthands.
        accepted: Steps taken by the finer solve.
        rejected: Steps it rejected; None where the library does not report them.
        reason: Why errors are NaN, and what to do; empty if none is.
    """

    value: Tensor
    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor
    z: Tensor
    cost: Cost
    accepted: int
    rejected: int | None
    reason: str = ""


def log_prob(
    model: Model,
    x: Tensor,
    solver: str | Solver | None = None,
    *,
    cond: Mapping[str, Any] | None = None,
    generator: Source = None,
    **options: Unpack[LogProbOptions],
) -> LogProb:
    """Compute log-densities under the probability flow, in nats.

    Args:
        model: What gives the score.
        x: Data, shape ``(B, *event)``, floating.
        solver: An ODE solver in :func:`~sde_models.list_solvers`. If None "adams-batch", which
            controls errors in units of the noise, as densities need, while most solvers do so in
            units of x; or "rk-batch" for an SDE without a Gaussian kernel.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        generator: Source of the probes and of the shifts of the nodes. With a sequence each sample
            has its own, which do not depend on the others. If None torch's global one for
            the probes; the shifts are the same in each call.
        trace: "quadrature" solves the path, then integrates the divergence along it, with fresh
            probes at each node; "augmented" solves both together, with probes drawn once. If None
            "quadrature" for solvers made for diffusion, which can solve nothing else, and
            "augmented" for those that take any equation.
        divergence: "exact", "hutchinson", "hutch++", "xtrace", an object such as
            ``sm.Hutchinson(probes=4, distribution="gaussian")``, or "auto": exact for small events,
            otherwise as many probes at each node as ``tol`` needs; without that, two. If None
            "auto" where ``tol`` is given, and "exact" elsewhere.
        intervals: Number of nodes of the quadrature, a multiple of 4, 12 or more; 64 if None.
        tol: Error at 95% to reach, in nats for each sample. Tolerances, intervals and probes are
            then chosen; ``error`` of the result is the error that was reached.
        prior: Distribution at ``t_max``, in place of the SDE's own.
        estimate_solver_error: Solve twice more, at ten and a hundred times the tolerance, or with
            half and a quarter of the steps, and report an error from the differences. True if left
            out.
        **options: Those of :func:`~sde_models.solve`, except ``path``. A ``callback`` gets steps
            whose ``x`` are the samples; the coarser solve calls nothing.

    Raises:
        ValueError: If the solver is for SDEs, for unknown names, for a number of intervals that
            is no multiple of 4, and whatever :func:`~sde_models.solve` raises.
        TypeError: If ``x`` is not a floating tensor, or for an unknown option.

    Example:
        >>> mixture = sm.GaussianMixture([[-2.0], [2.0]], 0.5)
        >>> x = torch.tensor([[0.3]], dtype=torch.float64)
        >>> lp = log_prob(mixture.score_model(sm.VPSDE()), x)
        >>> bool((lp.value - mixture.log_prob(x)).abs() < 1e-3)
        True
    """
    given = check_options(log_prob, options, LogProbOptions)
    settings = Settings.of(model, x, solver, given)
    return _integrate_flow(model, x, settings, cond, generator, decodes=False)[0]


def decode_with_log_prob(
    model: Model,
    z: Tensor,
    solver: str | Solver | None = None,
    *,
    cond: Mapping[str, Any] | None = None,
    generator: Source = None,
    **options: Unpack[LogProbOptions],
) -> tuple[LogProb, Solution]:
    """Carry latents down the probability flow to data, with the log-densities of these.

    Args:
        model: What gives the score.
        z: Latents at ``t_max``, shape ``(B, *event)``.
        solver: As in :func:`log_prob`.
        cond: Conditions by name.
        generator: Source of the probes.
        **options: Those of :func:`log_prob` except ``tol``.

    Returns:
        The log-densities, and the solve with the data as its ``x``; its cost is part of theirs.

    Raises:
        ValueError: If ``tol`` is given, and what :func:`log_prob` raises.
    """
    if options.get("tol") is not None:
        raise ValueError(
            "tol= chooses the steps for given data: draw the samples first, then use "
            "sm.log_prob(model, out.x, tol=...)"
        )
    given = check_options(decode_with_log_prob, options, LogProbOptions)
    settings = Settings.of(model, z, solver, given)
    return _integrate_flow(model, z, settings, cond, generator, decodes=True)


def _integrate_flow(
    model: Model,
    x: Tensor,
    settings: Settings,
    cond: Mapping[str, Any] | None,
    generator: Source,
    *,
    decodes: bool,
) -> tuple[LogProb, Solution]:
    """Log-densities at data, or at decoded latents, and the solve that found them.

    Args:
        model: What gives the score.
        x: Data or latents, shape ``(B, *event)``.
        settings: How.
        cond: Conditions by name.
        generator: Source of the probes.
        decodes: Whether ``x`` are latents.

    Raises:
        ValueError, TypeError: As :func:`~sde_models.log_prob`.
    """
    source = as_source(generator, len(x))
    probes = repeatable(source, len(x), x.device)
    # Without a generator the nodes are the same in each call, so that an exact trace draws nothing.
    shifts = probes if generator is not None else partial(torch.Generator().manual_seed, 0)
    strategy = STRATEGIES[settings.trace](
        model, x, settings.solver, settings.estimator, settings.prior, probes, shifts,
        as_conditions(cond, len(x), x.device), settings.intervals, decodes,
    )  # fmt: skip
    with count_evaluations() as counter:
        if settings.tol is None:
            estimate = strategy.run(settings.options)
            solver_error, reason = _solver_error(strategy, settings, estimate)
        else:
            assert isinstance(strategy, QuadratureLikelihood)  # as the settings have checked
            estimate, solver_error = estimate_to(settings.tol, strategy, settings.options)
            reason = _unknown(solver_error, "a larger tol= or float64")
    dtype = estimate.z.dtype  # sums were taken in double precision
    log_prob = LogProb(
        value=estimate.value.to(dtype),
        stderr=estimate.stderr.to(dtype),
        solver_error=solver_error.to(dtype),
        quadrature_error=estimate.quadrature_error.to(dtype),
        z=estimate.z.clone(),
        cost=counter.cost(len(x)),
        accepted=estimate.solution.accepted,
        rejected=estimate.solution.rejected,
        reason=(reason + _unknown_spread(estimate.stderr)).strip(),
    )
    return log_prob, estimate.solution


def _solver_error(
    strategy: Likelihood, settings: Settings, estimate: Estimate
) -> tuple[Tensor, str]:
    """The error from the steps by two coarser solves, and why it is NaN where it is."""
    nothing = torch.full_like(estimate.value.detach(), torch.nan)
    if not settings.estimate_solver_error:
        return nothing, "The error of the steps was not asked for (estimate_solver_error=False). "
    finer = "smaller rtol= and atol=" if settings.solver.adaptive else "more steps="
    coarser: list[SolveOptions] = []
    options = settings.options
    while len(coarser) < 2:
        further = settings.solver.coarser(options)
        if further is None:
            return nothing, (
                "The error of the steps is not known, since there are no two coarser solves to "
                f"compare with: use {finer}. "
            )
        coarser.append(further)
        options = further
    x, solver = estimate.x.detach(), settings.solver
    in_x = (0.0, 0.0) if solver.in_noise_units or not solver.adaptive else settings.tolerances
    with torch.no_grad():
        starts = moved(x, *in_x), x
        resolutions = strategy.compared(estimate, list(zip(starts, coarser, strict=True)))
    error = error_of_finest(resolutions, solver)
    if solver.in_noise_units:
        error = torch.maximum(error, least_error(sum(settings.tolerances), x[0].numel()))
    return error, _unknown(error, finer)


def _unknown(error: Tensor, remedy: str) -> str:
    count = int(error.isnan().sum())
    return (
        f"The error of the steps of {count} of {len(error)} samples is not known, since finer "
        f"steps change the log-density by more than coarser ones do: use {remedy}. "
        if count
        else ""
    )


def _unknown_spread(stderr: Tensor) -> str:
    return (
        "The error of the probes is not known, since a single probe that is fixed for the path has "
        "no spread: use two or more, or trace='quadrature'."
        if bool(stderr.isnan().any())
        else ""
    )
