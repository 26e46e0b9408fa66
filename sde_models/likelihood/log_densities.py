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

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sde_models._utils.streams import Source
from sde_models.divergence.base import Divergence
from sde_models.likelihood.flow_density import LogProb, integrate_flow
from sde_models.models.base import Model
from sde_models.sdes.priors import Prior
from sde_models.solvers import Solution, Solver, Step

__all__ = ["LogProb", "decode_with_log_prob", "log_prob"]


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
) -> LogProb:
    """Compute log-densities under the probability flow, in nats.

    Args:
        model: What gives the score.
        x: Data, shape ``(B, *event)``, floating.
        solver: An ODE solver in :func:`~sde_models.list_solvers`. "adams-batch" keeps its errors
            small in units of the noise, as densities need them; most others do so in units of x.
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
        generator: Source of the probes; torch's global one if None. With a sequence each sample
            has its own, and its probes do not depend on the others.
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
    found, _ = integrate_flow(
        model, x, solver,
        decodes=False, method=method, divergence=divergence, nodes=nodes, tol=tol, prior=prior,
        estimate_solver_error=estimate_solver_error, generator=generator, gradient=gradient,
        steps=steps, rtol=rtol, atol=atol, grid=grid, max_steps=max_steps, progress=progress,
        callback=callback, **cond,
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
    return integrate_flow(model, z, solver, decodes=True, **arguments)
