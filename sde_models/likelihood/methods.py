"""The ways to integrate a divergence: along a path that is known, or together with the path."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_models._utils.conditioning import of_some_samples
from sde_models._utils.split_batches import draw_rows
from sde_models._utils.streams import Source, Streams, of_some_rows
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
from sde_models.solvers.adaptive.batch_parts import time_precision

STEPS_IN_ERROR = 3.0
"""About how many times its tolerance in noise units, times the root of D, a path's error is."""
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
    """A way to compute log-densities; run again, it draws the same probes.

    Attributes:
        model: What gives the score.
        x: Data, shape ``(B, *event)``.
        solver: Solver of the path.
        estimator: Trace estimator.
        prior: Distribution at ``t_max``.
        fresh_source: Gives a source of the same probes each time.
        cond: Conditioning by name.
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
    cond: dict[str, Any]
    intervals: int
    decodes: bool = False

    @property
    def span(self) -> tuple[float, float]:
        """From the data to the noise, or back."""
        ends = self.model.sde.t_min, self.model.sde.t_max
        return ends[::-1] if self.decodes else ends

    @abstractmethod
    def run(self, *, callback: Callback | None = None, **arguments: Any) -> Estimate:
        """Compute the log-densities; the arguments are those of :func:`~sde_models.solve`."""

    def at_the_end(self, z: Tensor) -> Tensor:
        """Log-density of the latents under the prior.

        Raises:
            ValueError: If the prior gives one for each coordinate.
        """
        value = self.prior.log_prob(z.clone())
        if value.shape != z.shape[:1]:
            raise ValueError(
                f"prior.log_prob gave shape {tuple(value.shape)} for {len(z)} latents, wanted "
                f"({len(z)},): a torch distribution over coordinates becomes one over events by "
                f"torch.distributions.Independent(prior, {z.ndim - 1})"
            )
        return value


class AugmentedLikelihood(Likelihood):
    """The integral of the divergence is solved beside the path, with probes drawn once."""

    name = "augmented"

    def run(self, *, callback: Callback | None = None, **arguments: Any) -> Estimate:
        augmented = AugmentedFlow(
            ProbabilityFlow(self.model, **self.cond), tuple(self.x.shape[1:]), self.estimator,
            draw_rows(self.estimator.draw, self.x.clone(), self.fresh_source(), dim=1),
        )  # fmt: skip

        def tell(step: Step) -> None:
            if callback is not None:
                callback(replace(step, x=augmented.split(step.x)[0]))

        start = augmented.start(self.x)
        solution = solve(augmented, start, self.span, self.solver, callback=tell, **arguments)
        end, integrals = augmented.split(solution.x)
        z = self.x if self.decodes else end
        estimates = self.at_the_end(z)[:, None] + (-integrals if self.decodes else integrals)
        none = torch.zeros_like(estimates[:, 0].detach())
        stderr = self.estimator.spread_error(estimates.detach(), augmented.size)
        return Estimate(estimates.mean(dim=1), stderr, none, z, replace(solution, x=end))


class QuadratureLikelihood(Likelihood):
    """The divergence is integrated along a solved path, with fresh probes at each node."""

    name = "quadrature"

    def run(self, **arguments: Any) -> Estimate:
        solution = self.solve(**arguments)
        states, source = self.states(solution), self.fresh_source()
        if self.estimator.alternatives:
            target = STEPS_IN_ERROR * math.sqrt(self.x[0].numel()) * self._tolerance(arguments)
            traces = self.calm_traces(states, target, source)
        else:
            traces = self.traces(states, self.estimator, _all_pairs(states), source)
            traces = traces.reshaped(states.shape[:2])
        integral = integrate_traces(self.model, traces, self.x[0].numel())
        z = self.x if self.decodes else solution.x
        value = self.at_the_end(z) + integral.value
        return Estimate(value, integral.stderr, integral.error, z, solution)

    def _tolerance(self, arguments: dict[str, Any]) -> float:
        """Tolerance of the path in units of the noise."""
        names = ("rtol", "atol")
        given = [arguments.get(name) for name in names]
        usual = [getattr(self.solver, f"default_{name}", None) or 1e-4 for name in names]
        return sum(float(u if g is None else g) for g, u in zip(given, usual, strict=True))

    def solve(self, **arguments: Any) -> Solution:
        """Solve the path, and keep the states at the nodes."""
        times = node_times(self.model.sde, self.intervals)
        times = times.flip(0) if self.decodes else times
        flow = ProbabilityFlow(self.model, **self.cond)
        return solve(flow, self.x, self.span, self.solver, path=times, **arguments)

    def states(self, solution: Solution) -> Tensor:
        """States at the nodes from the data on, shape ``(M, B, *event)``."""
        path: Any = solution.path
        return path.flip(0) if self.decodes else path

    def calm_traces(
        self, states: Tensor, target: float, source: Source, known: Traces | None = None
    ) -> Traces:
        """Traces at all nodes with as many probes as bring their part of the error to a target.

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
                of_some_rows(source, samples), of_some_samples(self.cond, samples, len(self.x)),
            )  # fmt: skip

    def part(self, rows: Tensor) -> QuadratureLikelihood:
        """The same for some samples."""
        return replace(self, x=self.x[rows], cond=of_some_samples(self.cond, rows, len(self.x)))


def _all_pairs(states: Tensor) -> Pairs:
    return torch.ones(states.shape[:2], device=states.device).nonzero().unbind(1)


METHODS: dict[str, type[Likelihood]] = {
    way.name: way for way in (QuadratureLikelihood, AugmentedLikelihood)
}
