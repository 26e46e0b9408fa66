r"""Likelihoods by the instantaneous change of variables along the probability flow.

.. math:: \log p(x) = \log p_{t_{max}}(z)
          + \int_{t_{min}}^{t_{max}} \nabla \cdot \dot x(t, x_t)\,dt,

where x runs to the latent z. What is computed is the density that the flow defines: that of the
decoded prior.

References:
    Chen et al. 2018, Neural ordinary differential equations, arXiv:1806.07366; Song et al. 2021,
    appendix D.2, arXiv:2011.13456.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_models._shapes import Time, check_batch
from sde_models.base_sdes import SDE
from sde_models.base_systems import System
from sde_models.counting import count_evaluations
from sde_models.divergence import Divergence, find_divergence, standard_error
from sde_models.models import Model, check_model
from sde_models.randomness import check_generator
from sde_models.sampling import Prior
from sde_models.solvers import Solver, Step, solve
from sde_models.solvers import solver as find_solver
from sde_models.solvers.arguments import check_callback
from sde_models.systems import ProbabilityFlow


@dataclass(frozen=True)
class LogProb:
    """Log-densities, how far to trust them, and what they cost.

    Attributes:
        value: Log-density of each sample in nats, shape ``(B,)``.
        stderr: Standard error of ``value`` from the probes, shape ``(B,)``; 0 for the exact
            trace, NaN for a single probe, which cannot tell.
        solver_error: Difference in nats to a coarser solve with the same probes, shape ``(B,)``:
            an estimate of the error of that coarser solve, and so on the safe side for this one.
            NaN if it was not asked for, or where a single step leaves nothing coarser.
        z: Latents, shape of the data.
        nfe: Network forward passes, each on the whole batch, the coarser solve included.
        vjps: Vector-Jacobian products, each on the whole batch, likewise.
        accepted: Steps taken by the finer solve.
        rejected: Steps it tried and threw away; None where the library does not tell.
    """

    value: Tensor
    stderr: Tensor
    solver_error: Tensor
    z: Tensor
    nfe: int
    vjps: int
    accepted: int
    rejected: int | None


PROBES = "probes of the trace"
"""Under which name the probes stand beside the conditioning."""


class AugmentedFlow(System):
    """The probability flow with the integral of its divergence as further coordinates.

    The state is flat: D numbers of the sample, then one integral for each probe. Each part counts
    by itself in the error norm, so that D coordinates do not hide an error in the integral.

    Args:
        flow: The probability flow.
        event_shape: Shape of one sample.
        divergence: Trace estimator.
        probes: What it drew for this batch.
    """

    stochastic = False

    def __init__(
        self,
        flow: ProbabilityFlow,
        event_shape: tuple[int, ...],
        divergence: Divergence,
        probes: Tensor | None,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.sample_shape = event_shape
        self.size = torch.Size(event_shape).numel()
        self.divergence = divergence
        self.probes = probes
        self.event_shape = (self.size + divergence.probes,)
        self.t_min, self.t_max = flow.t_min, flow.t_max

    @property
    def sde(self) -> SDE:
        return self.flow.sde

    @property
    def cond(self) -> dict[str, Any]:  # type: ignore[override]
        """Conditioning, and the probes: a solver that parts the batch parts both."""
        if self.probes is None:
            return self.flow.cond
        return {**self.flow.cond, PROBES: self.probes.transpose(0, 1)}

    def conditioned(self, **cond: Any) -> AugmentedFlow:
        parted = cond.pop(PROBES, None)
        probes = self.probes if parted is None else parted.transpose(0, 1)
        flow = self.flow.conditioned(**cond)
        return AugmentedFlow(flow, self.sample_shape, self.divergence, probes)

    def start(self, x: Tensor) -> Tensor:
        """Samples with integrals of zero beside them."""
        return torch.cat([x.flatten(1), x.new_zeros(len(x), self.divergence.probes)], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(B, *event)`` and integrals ``(B, probes)``."""
        samples, integrals = state[:, : self.size], state[:, self.size :]
        return samples.reshape(-1, *self.sample_shape), integrals

    def drift(self, t: Time, x: Tensor) -> Tensor:
        samples, _ = self.split(x)
        velocity, trace = self.divergence(lambda y: self.flow(t, y), samples, self.probes)
        return torch.cat([velocity.flatten(1), trace], dim=1)

    def error_norm(self, error: Tensor) -> Tensor:
        samples, integrals = self.split(error)
        return torch.maximum(self.flow.error_norm(samples), integrals.abs().amax(dim=1))


def log_prob(
    model: Model,
    x: Tensor,
    solver: str | Solver = "ode:dopri5",
    *,
    divergence: str | Divergence = "exact",
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
        solver: An ODE solver in :func:`~sde_models.solvers`. Sample and integral of the
            divergence are solved together.
        divergence: "exact", "hutchinson", or an object such as
            ``sm.Hutchinson(probes=4, distribution="gaussian")``. Its probes are drawn once.
        prior: Distribution at ``t_max``, in place of the SDE's own.
        estimate_solver_error: Solve a second time at ten times the tolerance, or with half the
            steps, and report the difference.
        generator: Source of the probes; torch's global one if None.
        gradient: As in :func:`~sde_models.solve`.
        steps: Number of steps of a fixed-step solver.
        rtol: Relative tolerance of an adaptive solver, 1e-5 if None.
        atol: Absolute tolerance of an adaptive solver, in units of x and in nats, 1e-5 if None.
        grid: Nodes of a fixed-step solver, as in :func:`~sde_models.solve`.
        max_steps: Cap on the steps tried by an adaptive solver.
        progress: Show a progress bar.
        callback: Called with a :class:`~sde_models.Step` after each step, as by
            :func:`~sde_models.solve`; its ``x`` are the samples. The coarser solve calls nothing.
        **cond: Conditioning, handed to the network.

    Raises:
        ValueError: If the solver is for SDEs, for unknown names, and whatever
            :func:`~sde_models.solve` raises.
        TypeError: If ``x`` is not a floating tensor.

    Example:
        >>> mixture = sm.GaussianMixture([[-2.0], [2.0]], 0.5)
        >>> x = torch.tensor([[0.3]], dtype=torch.float64)
        >>> lp = log_prob(mixture.score_model(sm.VPSDE()), x)
        >>> bool((lp.value - mixture.log_prob(x)).abs() < 1e-3)
        True
    """
    check_model(model)
    check_generator(generator)
    check_callback(callback)
    method = find_solver(solver)
    estimator = find_divergence(divergence)
    check_batch(x, model.event_shape)
    event_shape = tuple(x.shape[1:])
    at_t_max = model.sde.prior(event_shape) if prior is None else prior
    augmented = AugmentedFlow(
        ProbabilityFlow(model, **cond), event_shape, estimator, estimator.draw(x, generator)
    )
    span = (model.sde.t_min, model.sde.t_max)
    control = {"steps": steps, "rtol": rtol, "atol": atol, "grid": grid, "max_steps": max_steps}

    def tell(step: Step) -> None:
        if callback is not None:
            callback(replace(step, x=augmented.split(step.x)[0]))

    def run(
        gradient: str | None, control: dict[str, Any], tell: Callable[[Step], None] | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        solution = solve(
            augmented, augmented.start(x), span, method,
            gradient=gradient, progress=progress, callback=tell, **control,
        )  # fmt: skip
        z, integrals = augmented.split(solution.x)
        return z, _at_the_end(at_t_max, z)[:, None] + integrals, solution

    with count_evaluations() as cost:
        z, estimates, solution = run(gradient, control, tell)
        value = estimates.mean(dim=1)
        solver_error = torch.full_like(value, torch.nan)
        coarser = method.coarser(**control) if estimate_solver_error else None
        if coarser is not None:
            with torch.no_grad():
                coarse = run(None, coarser)[1]
            solver_error = (coarse.mean(dim=1) - value.detach()).abs()
    return LogProb(
        value=value,
        stderr=torch.zeros_like(value) if estimator.exact else standard_error(estimates.detach()),
        solver_error=solver_error,
        z=z,
        nfe=cost.nfe,
        vjps=cost.vjps,
        accepted=solution.accepted,
        rejected=solution.rejected,
    )


def _at_the_end(prior: Prior, z: Tensor) -> Tensor:
    value = prior.log_prob(z)
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"prior.log_prob gave shape {tuple(value.shape)} for {len(z)} latents, wanted "
            f"({len(z)},): a torch distribution over coordinates becomes one over events by "
            f"torch.distributions.Independent(prior, {z.ndim - 1})"
        )
    return value
