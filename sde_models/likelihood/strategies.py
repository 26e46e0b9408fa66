"""Strategies to integrate a divergence: along a known path, or together with the path."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_models._utils.conditions import Conditions
from sde_models._utils.randomness import Source, Streams, of_some_rows
from sde_models._utils.shapes import time_precision
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Divergence
from sde_models.likelihood.augmented_flow import AugmentedFlow
from sde_models.likelihood.probe_allocation import Allocation, Pairs
from sde_models.likelihood.quadrature import (
    Traces,
    estimate_traces,
    integrate_traces,
    node_times,
    node_weights,
)
from sde_models.models.base import Model
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes.priors import Prior
from sde_models.solvers import Solution, Solver, Step, solve
from sde_models.solvers.options import SolveOptions

STEPS_IN_ERROR = 3.0
"""Ratio of a path's error to the root of D times its tolerance in noise units, roughly."""
Callback = Callable[[Step], object]


@dataclass(frozen=True)
class Estimate:
    """Log-densities with the errors of their traces.

    Attributes:
        value: Log-density of each sample in nats, shape ``(B,)``.
        stderr: Standard error from the probes, shape ``(B,)``.
        quadrature_error: Error of the quadrature, shape ``(B,)``.
        z: Latents.
        solution: The solve; its ``x`` is where the paths end.
    """

    value: Tensor
    stderr: Tensor
    quadrature_error: Tensor
    z: Tensor
    solution: Solution


@dataclass(frozen=True)
class Likelihood(ABC):
    """A strategy to compute log-densities. Each run draws the same probes.

    Attributes:
        model: What gives the score.
        x: Data, shape ``(B, *event)``.
        solver: Solver of the path.
        estimator: Trace estimator.
        prior: Distribution at ``t_max``.
        fresh_source: Gives a source of the same probes each time.
        cond: Conditions of the batch.
        intervals: Intervals between the nodes of a quadrature.
        decodes: Whether ``x`` are latents, and paths run from them down to data.
    """

    name: ClassVar[str]

    model: Model
    x: Tensor
    solver: Solver
    estimator: Divergence
    prior: Prior
    fresh_source: Callable[[], Source]
    cond: Conditions
    intervals: int
    decodes: bool = False

    @property
    def span(self) -> tuple[float, float]:
        """From the data to the noise, or back."""
        ends = self.model.sde.t_min, self.model.sde.t_max
        return ends[::-1] if self.decodes else ends

    @abstractmethod
    def run(self, options: SolveOptions) -> Estimate:
        """Compute the log-densities, with these options of :func:`~sde_models.solve`."""

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the latents under the prior.

        Raises:
            ValueError: If the prior gives one for each coordinate.
        """
        value = self.prior.log_prob(z.clone())
        if value.shape != z.shape[:1]:
            raise ValueError(
                f"prior.log_prob gave shape {tuple(value.shape)} for {len(z)} latents, expected "
                f"({len(z)},): a torch distribution over coordinates becomes one over events by "
                f"torch.distributions.Independent(prior, {z.ndim - 1})"
            )
        return value


class AugmentedLikelihood(Likelihood):
    """The integral of the divergence is solved together with the path, with probes drawn once."""

    name = "augmented"

    def run(self, options: SolveOptions) -> Estimate:
        callback = options.get("callback")
        augmented = AugmentedFlow(
            ProbabilityFlow(self.model, cond=self.cond), tuple(self.x.shape[1:]), self.estimator,
            draw_rows(self.estimator.draw, self.x.clone(), self.fresh_source(), dim=1),
        )  # fmt: skip

        def report(step: Step) -> None:
            if callback is not None:
                callback(replace(step, x=augmented.split(step.x)[0]))

        start, given = augmented.start(self.x), options.copy()
        given["callback"] = report
        solution = solve(augmented, start, self.span, self.solver, **given)
        end, integrals = augmented.split(solution.x)
        z = self.x if self.decodes else end
        estimates = self.prior_log_prob(z)[:, None] + (-integrals if self.decodes else integrals)
        none = torch.zeros_like(estimates[:, 0].detach())
        stderr = self.estimator.spread_error(estimates.detach(), augmented.size)
        return Estimate(estimates.mean(dim=1), stderr, none, z, replace(solution, x=end))


class QuadratureLikelihood(Likelihood):
    """The divergence is integrated along a solved path, with fresh probes at each node."""

    name = "quadrature"

    def run(self, options: SolveOptions) -> Estimate:
        solution = self.solve(options)
        states, source = self.states(solution), self.fresh_source()
        if self.estimator.alternatives:
            target = STEPS_IN_ERROR * math.sqrt(self.x[0].numel()) * self._tolerance(options)
            traces = self.traces_to_target(states, target, source)
        else:
            traces = self.traces(states, self.estimator, _all_pairs(states), source)
            traces = traces.reshaped(states.shape[:2])
        integral = integrate_traces(self.model, traces, self.x[0].numel())
        z = self.x if self.decodes else solution.x
        value = self.prior_log_prob(z) + integral.value
        return Estimate(value, integral.stderr, integral.error, z, solution)

    def _tolerance(self, options: SolveOptions) -> float:
        """Tolerance of the path in units of the noise."""
        names = ("rtol", "atol")
        given = [options.get("rtol"), options.get("atol")]
        usual = [getattr(self.solver, f"default_{name}", None) or 1e-4 for name in names]
        return sum(float(u if g is None else g) for g, u in zip(given, usual, strict=True))

    def solve(self, options: SolveOptions) -> Solution:
        """Solve the path, and keep the states at the nodes."""
        times = node_times(self.model.sde, self.intervals)
        times = times.flip(0) if self.decodes else times
        flow = ProbabilityFlow(self.model, cond=self.cond)
        given = options.copy()
        given["path"] = times
        return solve(flow, self.x, self.span, self.solver, **given)

    def states(self, solution: Solution) -> Tensor:
        """States at the nodes from the data on, shape ``(M, B, *event)``."""
        path: Any = solution.path
        return path.flip(0) if self.decodes else path

    def traces_to_target(
        self, states: Tensor, target: float, source: Source, known: Traces | None = None
    ) -> Traces:
        """Traces at all nodes, with as many probes as bring their part of the error to a target.

        Args:
            states: States at the nodes, shape ``(M, B, *event)``.
            target: Standard error in nats.
            source: Source of the probes.
            known: Traces at every other node, if they are known.
        """

        def estimate(estimator: Divergence, pairs: Pairs) -> Traces:
            return self.traces(states, estimator, pairs, source)

        weights = node_weights(self.model, len(states) - 1, states).detach()
        allocation = Allocation(
            estimate, self.estimator, weights, states[0, 0].numel(), target,
            separate=isinstance(source, Streams),
        )  # fmt: skip
        return allocation.run(states.shape[1], known)

    def traces(self, states: Tensor, estimator: Divergence, pairs: Pairs, source: Source) -> Traces:
        """Estimates of the divergence of eps, fields of shape ``(n,)``.

        Args:
            states: States at the nodes, shape ``(M, B, *event)``.
            estimator: Trace estimator.
            pairs: Numbers of the nodes and of the samples, shape ``(n,)`` each.
            source: Source of the probes.
        """
        sde: Any = self.model.sde
        nodes, samples = pairs
        times = sde.times(node_times(sde, len(states) - 1))
        times = times.to(states.device, time_precision(states))
        # A trace is a derivative, and cannot be taken in inference mode.
        with torch.inference_mode(False), torch.set_grad_enabled(states.requires_grad):
            return estimate_traces(
                self.model, times[nodes], states[nodes, samples], estimator,
                of_some_rows(source, samples), self.cond.take(samples),
            )  # fmt: skip

    def part(self, rows: Tensor) -> QuadratureLikelihood:
        """The same for some samples."""
        return replace(self, x=self.x[rows], cond=self.cond.take(rows))


def _all_pairs(states: Tensor) -> Pairs:
    return torch.ones(states.shape[:2], device=states.device).nonzero().unbind(1)


STRATEGIES: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (QuadratureLikelihood, AugmentedLikelihood)
}
