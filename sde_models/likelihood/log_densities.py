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
from typing import Any, Unpack

import torch
from torch import Tensor

from sde_models._utils.conditions import as_conditions
from sde_models._utils.counting import Cost, HasCost, count_evaluations
from sde_models._utils.randomness import Source, as_source, repeatable
from sde_models.likelihood.settings import LogProbOptions, Settings
from sde_models.likelihood.strategies import (
    STRATEGIES,
    Estimate,
    Likelihood,
    QuadratureLikelihood,
)
from sde_models.likelihood.tolerance import AdaptiveLikelihood
from sde_models.models.base import Model
from sde_models.solvers import Solution, Solver
from sde_models.solvers.options import check_options


@dataclass(frozen=True)
class LogProb(HasCost):
    """Log-densities, their errors and their cost.

    Attributes:
        value: Log-density of each sample in nats, shape ``(B,)``.
        stderr: Standard error of ``value`` from the probes, shape ``(B,)``; 0 for the exact
            trace. NaN for a single probe that is fixed for the full path, which has no spread.
        solver_error: Estimated error of ``value`` from the errors of the steps, in nats, shape
            ``(B,)``. For ``adams-batch`` the sum over the steps; for other solvers the difference
            to a coarser solve with the same probes, which estimates the error of the coarser one.
            Both are upper estimates. NaN if it was not asked for, or where a single step leaves
            nothing coarser.
        quadrature_error: Difference in nats to the integral on every other node, shape ``(B,)``,
            an upper estimate too; 0 where the integral was solved with the path.
        z: Latents, shape of the data.
        cost: What they cost, the coarser solve included; ``nfe`` and ``vjps`` are shorthands.
        accepted: Steps taken by the finer solve.
        rejected: Steps it rejected; None where the library does not report them.
    """

    value: Tensor
    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor
    z: Tensor
    cost: Cost
    accepted: int
    rejected: int | None

    @property
    def error(self) -> Tensor:
        """Error in nats at 95%: two standard errors, plus the other errors."""
        return 2 * self.stderr + self.solver_error + self.quadrature_error


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
        generator: Source of the probes; torch's global one if None. With a sequence each sample
            has its own, and its probes do not depend on the others.
        trace: "quadrature" solves the path, then integrates the divergence along it, with fresh
            probes at each node; "augmented" solves both together, with probes drawn once. If None
            "quadrature" for solvers made for diffusion, which can solve nothing else, and
            "augmented" for those that take any equation.
        divergence: "exact", "hutchinson", "hutch++", "xtrace", an object such as
            ``sm.Hutchinson(probes=4, distribution="gaussian")``, or "auto": exact for small events,
            otherwise as many probes at each node as make their error equal to that of the path,
            which follows from its tolerance and the dimension. If None "auto" where ``tol`` is
            given, and "exact" elsewhere.
        intervals: Intervals between the nodes of the quadrature, a multiple of 4, 64 if None.
        tol: Total error to reach, in nats for each sample: two standard errors of the probes, plus
            the error of the steps and that of the quadrature. Tolerances, intervals and probes are
            then chosen; ``error`` of the result is the error that was reached.
        prior: Distribution at ``t_max``, in place of the SDE's own.
        estimate_solver_error: For solvers that do not report their error, solve a second time at
            ten times the tolerance, or with half the steps, and report the difference. True if left
            out.
        **options: Those of :func:`~sde_models.solve`, except ``path``. A ``callback`` gets steps
            whose ``x`` are the samples; the coarser solve calls nothing.

    Raises:
        ValueError: If the solver is for SDEs, for unknown names, for a number of intervals that
            has no half, and whatever :func:`~sde_models.solve` raises.
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
    if settings.estimator.exact:  # draws nothing
        source = torch.Generator().manual_seed(0)
    strategy = STRATEGIES[settings.trace](
        model, x, settings.solver, settings.estimator, settings.prior,
        repeatable(source, len(x), x.device), as_conditions(cond, len(x), x.device),
        settings.intervals, decodes,
    )  # fmt: skip
    with count_evaluations() as counter:
        if settings.tol is None:
            estimate = strategy.run(settings.options)
            solver_error = estimate.solution.density_error
        else:
            assert isinstance(strategy, QuadratureLikelihood)  # as the settings have checked
            adaptive = AdaptiveLikelihood(settings.tol, settings.options)
            estimate, solver_error = adaptive.run(strategy)
        if solver_error is None:
            solver_error = _change_of_coarser(strategy, settings, estimate)
    log_prob = LogProb(
        value=estimate.value,
        stderr=estimate.stderr,
        solver_error=solver_error.to(estimate.value.dtype),
        quadrature_error=estimate.quadrature_error,
        z=estimate.z.clone(),
        cost=counter.cost(len(x)),
        accepted=estimate.solution.accepted,
        rejected=estimate.solution.rejected,
    )
    return log_prob, estimate.solution


def _change_of_coarser(strategy: Likelihood, settings: Settings, estimate: Estimate) -> Tensor:
    """Difference to the same solve with larger steps; NaN if there is none, or it is not to be."""
    value = estimate.value.detach()
    coarser = settings.solver.coarser(settings.options) if settings.estimate_solver_error else None
    if coarser is None:
        return torch.full_like(value, torch.nan)
    coarser["progress"] = settings.options.get("progress", False)
    with torch.no_grad():
        return (strategy.run(coarser).value - value).abs()
