r"""Likelihoods by the instantaneous change of variables along the probability flow.

.. math:: \log p(x) = \log p_{t_{max}}(z)
          + \int_{t_{min}}^{t_{max}} \nabla \cdot \dot x(t, x_t)\,dt,

where x runs to the latent z. What is computed is the density that the flow defines: that of the
decoded prior. The path is solved alone, and the divergence integrated along it afterwards; or, with
``method="augmented"``, the two are solved together.

References:
    Chen et al. 2018, Neural ordinary differential equations, arXiv:1806.07366; Song et al. 2021,
    appendix D.2, arXiv:2011.13456.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models._shapes import check_batch
from sde_models.base_divergence import Divergence
from sde_models.conditioning import usable
from sde_models.counting import count_evaluations
from sde_models.divergence import find_divergence
from sde_models.errors import nearest_names
from sde_models.likelihood_accuracy import ToAccuracy
from sde_models.likelihood_methods import METHODS, Likelihood
from sde_models.models import Model, check_is_function, check_model
from sde_models.priors import Prior
from sde_models.randomness import check_generator, entropy_from
from sde_models.solvers import Solution, Solver, Step
from sde_models.solvers import solver as find_solver
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


def log_prob(
    model: Model,
    x: Tensor,
    solver: str | Solver = "adams-batch",
    *,
    method: str | None = None,
    divergence: str | Divergence | None = None,
    nodes: int | None = None,
    tol: float | None = None,
    prior: Prior | None = None,
    estimate_solver_error: bool = True,
    generator: torch.Generator | None = None,
    gradient: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    grid: Any = None,
    max_steps: int | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    **cond: Any,
) -> LogProb:
    """Compute log-densities under the probability flow, in nats.

    Args:
        model: What gives the score.
        x: Data, shape ``(B, *event)``, floating.
        solver: An ODE solver in :func:`~sde_models.solvers`. "adams-batch" keeps its errors small
            in units of the noise, as densities want them; most others do so in units of x.
        method: "quadrature" solves the path, then integrates the divergence along it, with fresh
            probes at each node; "augmented" solves both together, with probes drawn once. If None
            "quadrature" for solvers made for diffusion, which can solve nothing else, and
            "augmented" for those that take any equation.
        divergence: "exact", "hutchinson", "hutch++", "xtrace", an object such as
            ``sm.Hutchinson(probes=4, distribution="gaussian")``, or "auto": exact for small events,
            else as many probes at each node as bring their error to that of the path, which
            follows from its tolerance and the dimension. If None "auto" where ``tol`` is given, and
            "exact" elsewhere.
        tol: Total error that is asked for, in nats for each sample: two standard errors of the
            probes, the error of the steps and that of the quadrature. Tolerances, nodes and
            probes are then chosen; ``error`` of the result says what was reached.
        nodes: Intervals between the nodes of the quadrature, a multiple of 4, 64 if None.
        prior: Distribution at ``t_max``, in place of the SDE's own.
        estimate_solver_error: For solvers that do not tell their error, solve a second time at
            ten times the tolerance, or with half the steps, and report the difference.
        generator: Source of the probes; torch's global one if None.
        gradient: As in :func:`~sde_models.solve`.
        steps: Number of steps of a fixed-step solver.
        rtol: Relative tolerance of an adaptive solver; if None what is usual for it.
        atol: Absolute tolerance of an adaptive solver, likewise.
        grid: Nodes of a fixed-step solver, as in :func:`~sde_models.solve`.
        max_steps: Cap on the steps tried by an adaptive solver.
        progress: Show a progress bar.
        callback: Called with a :class:`~sde_models.Step` after each step, as by
            :func:`~sde_models.solve`; its ``x`` are the samples. The coarser solve calls nothing.
        **cond: Conditioning, handed to the network.

    Raises:
        ValueError: If the solver is for SDEs, for unknown names, for a number of nodes that
            will not do, and whatever :func:`~sde_models.solve` raises.
        TypeError: If ``x`` is not a floating tensor.

    Example:
        >>> mixture = sm.GaussianMixture([[-2.0], [2.0]], 0.5)
        >>> x = torch.tensor([[0.3]], dtype=torch.float64)
        >>> lp = log_prob(mixture.score_model(sm.VPSDE()), x)
        >>> bool((lp.value - mixture.log_prob(x)).abs() < 1e-3)
        True
    """
    found, _ = _integrate(
        model, x, solver,
        decodes=False, method=method, divergence=divergence, nodes=nodes, tol=tol, prior=prior,
        estimate_solver_error=estimate_solver_error, generator=generator, cond=cond,
        control={"steps": steps, "rtol": rtol, "atol": atol, "grid": grid, "max_steps": max_steps},
        further={"gradient": gradient, "progress": progress, "callback": callback},
    )  # fmt: skip
    return found


def decode_with_log_prob(
    model: Model, z: Tensor, solver: str | Solver = "adams-batch", **arguments: Any
) -> tuple[LogProb, Solution]:
    """Carry latents down the probability flow to data, with the log-densities of these.

    Args:
        model: What gives the score.
        z: Latents at ``t_max``, shape ``(B, *event)``.
        solver: As in :func:`log_prob`.
        **arguments: Those of :func:`log_prob` but for ``tol``, and conditioning.

    Returns:
        The log-densities, and the solve with the data as its ``x``.

    Raises:
        ValueError: If ``tol`` is given, and what :func:`log_prob` raises.
    """
    if arguments.get("tol") is not None:
        raise ValueError(
            "tol= chooses steps by what is needed at given data: draw the samples first, then "
            "use sm.log_prob(model, out.x, tol=...)"
        )
    names = ("steps", "rtol", "atol", "grid", "max_steps")
    control = {name: arguments.pop(name, None) for name in names}
    further = {name: arguments.pop(name, None) for name in ("gradient", "progress", "callback")}
    further["progress"] = bool(further["progress"])
    own = inspect.signature(log_prob).parameters
    rest = {name: arguments.pop(name) for name in list(arguments) if name in own}
    return _integrate(
        model, z, solver, decodes=True, control=control, further=further, cond=arguments, **rest
    )


def _integrate(
    model: Model,
    x: Tensor,
    solver: str | Solver,
    *,
    decodes: bool,
    control: dict[str, Any],
    further: dict[str, Any],
    cond: dict[str, Any],
    method: str | None = None,
    divergence: str | Divergence | None = None,
    nodes: int | None = None,
    tol: float | None = None,
    prior: Prior | None = None,
    estimate_solver_error: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[LogProb, Solution]:
    """Log-densities at data, or of what latents decode to; arguments as in :func:`log_prob`."""
    check_model(model)
    check_is_function(model)
    check_generator(generator)
    check_callback(further["callback"])
    found = find_solver(solver)
    check_batch(x, model.event_shape)
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
    way: Any = METHODS[method](
        model, x, found, estimator,
        model.sde.prior(tuple(x.shape[1:])) if prior is None else prior,
        0 if estimator.exact else entropy_from(generator),
        {name: usable(value) for name, value in cond.items()}, _check_nodes(nodes), decodes,
    )  # fmt: skip
    with count_evaluations() as cost:
        if tol is None:
            estimate = way.run(**further, **control)
            solver_error = estimate.solution.density_error
        else:
            _check_tol(tol, way, nodes, control)
            accuracy = ToAccuracy(float(tol), max_steps=control["max_steps"], **further)
            estimate, solver_error = accuracy.run(way)
        if solver_error is None:
            solver_error = torch.full_like(estimate.value.detach(), torch.nan)
            coarser = found.coarser(**control) if estimate_solver_error else None
            if coarser is not None:
                with torch.no_grad():
                    coarse = way.run(progress=further["progress"], **coarser)
                solver_error = (coarse.value - estimate.value.detach()).abs()
    log_prob = LogProb(
        value=estimate.value,
        stderr=estimate.stderr,
        solver_error=solver_error.to(estimate.value.dtype),
        quadrature_error=estimate.quadrature_error,
        z=estimate.z,
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
