"""Strategies to integrate a divergence: along a known path, or together with the path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sde_models._utils.conditions import Conditions
from sde_models._utils.randomness import Source, of_some_rows, rademacher_like
from sde_models._utils.shapes import time_precision
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Divergence
from sde_models.divergence.complement import Complement
from sde_models.divergence.exact import Exact
from sde_models.likelihood.augmented_flow import AugmentedFlow
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.paths import solve_path
from sde_models.likelihood.quadrature import integrate_traces
from sde_models.likelihood.traces import Points, Probes, Traces
from sde_models.models.base import Model
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes.priors import Prior
from sde_models.solvers import Solution, Solver, Step, solve
from sde_models.solvers.options import SolveOptions

PILOT = 8
"""Most nodes at which paths of several resolutions are compared."""
EXACT_DIFFERENCES = 4
"""Largest event whose differences between paths are computed with the exact trace."""
Callback = Callable[[Step], object]
Pairs = tuple[Tensor, ...]
"""Numbers of nodes and of samples."""


@dataclass(frozen=True)
class Estimate:
    """Log-densities with the errors of their traces.

    Attributes:
        value: Log-density of each sample in nats, shape ``(B,)``.
        stderr: Standard error from the probes, shape ``(B,)``.
        quadrature_error: Error of the quadrature, shape ``(B,)``.
        x: Data.
        z: Latents.
        solution: The solve; its ``x`` is where the paths end.
        states: States at the nodes, if there are any.
    """

    value: Tensor
    stderr: Tensor
    quadrature_error: Tensor
    x: Tensor
    z: Tensor
    solution: Solution
    states: Tensor | None = None


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
        shift_source: Gives a source of the same shifts of nodes each time.
        cond: Conditions of the batch.
        intervals: Number of nodes of a quadrature.
        decodes: Whether ``x`` are latents, and paths run from them down to data.
    """

    name: ClassVar[str]

    model: Model
    x: Tensor
    solver: Solver
    estimator: Divergence
    prior: Prior
    fresh_source: Callable[[], Source]
    shift_source: Callable[[], Source]
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

    @abstractmethod
    def compared(
        self, found: Estimate, coarser: Sequence[tuple[Tensor, SolveOptions]]
    ) -> list[Tensor]:
        """Parts of the log-densities of the data found, each ``(P, B)``, the coarsest solve first.

        All have the same probes, and may have another common error than the values found.

        Args:
            found: What :meth:`run` returned.
            coarser: Starts and options of coarser solves, the coarsest last.
        """

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
        x, z = (end, self.x) if self.decodes else (self.x, end)
        estimates = self.prior_log_prob(z)[:, None] + (-integrals if self.decodes else integrals)
        none = torch.zeros_like(estimates[:, 0].detach())
        stderr = self.estimator.spread_error(estimates.detach(), augmented.size)
        return Estimate(estimates.mean(dim=1), stderr, none, x, z, replace(solution, x=end))

    def compared(
        self, found: Estimate, coarser: Sequence[tuple[Tensor, SolveOptions]]
    ) -> list[Tensor]:
        upward = replace(self, decodes=False)
        runs = [replace(upward, x=start).run(options) for start, options in coarser[::-1]]
        runs.append(found)
        latents = [self.prior_log_prob(run.z) for run in runs]
        return [torch.stack([z, run.value - z]) for z, run in zip(latents, runs, strict=True)]


class QuadratureLikelihood(Likelihood):
    """The divergence is integrated along a solved path, with fresh probes at each node."""

    name = "quadrature"

    @cached_property
    def pilot(self) -> Nodes:
        """A few nodes, the same in each run."""
        count = next(n for n in range(PILOT, 0, -1) if self.intervals % n == 0)
        return Nodes.draw(self.model.sde, count, self.x, self.shift_source())

    @cached_property
    def pilot_probes(self) -> Tensor | None:
        """Probes at the pilot nodes, the same for all paths: shape ``(k, M, B, *event)``."""
        if self.size <= EXACT_DIFFERENCES:
            return None
        like, source = self.x.detach(), self.fresh_source()
        rows = like.expand(self.pilot.count, *like.shape).transpose(0, 1)
        drawn: Tensor = draw_rows(rademacher_like, rows, source)
        return drawn.transpose(0, 1)[None]

    @property
    def size(self) -> int:
        """Numbers in an event."""
        return self.x[0].numel()

    @property
    def flow(self) -> ProbabilityFlow:
        """The probability flow."""
        return ProbabilityFlow(self.model, cond=self.cond)

    def run(self, options: SolveOptions) -> Estimate:
        nodes = self.pilot.finer(self.intervals // self.pilot.count)
        path = solve_path(self.flow, self.x, nodes, self.solver, options, decodes=self.decodes)
        source = self.fresh_source()
        traces = self.all_traces(nodes, path.states, self.estimator, source).smoothed()
        integral = integrate_traces(nodes, traces, self.size)
        value = self.prior_log_prob(path.z) + integral.value
        return Estimate(
            value, integral.stderr, integral.error, path.x, path.z, path.solution, path.states
        )

    def compared(
        self, found: Estimate, coarser: Sequence[tuple[Tensor, SolveOptions]]
    ) -> list[Tensor]:
        assert found.states is not None  # as run() leaves them
        values = [self.pilot_parts(found.z, self.pilot.among(found.states))]
        for start, options in coarser:
            path = solve_path(self.flow, start, self.pilot, self.solver, options)
            values.append(self.pilot_parts(path.z, path.states))
        return values[::-1]

    def pilot_parts(self, z: Tensor, states: Tensor) -> Tensor:
        """What latents and pilot nodes add to the log-density, shape ``(1 + M, B)``.

        The probes are the same for all paths.
        """
        return self.pilot_sketches(z, states)[0]

    def pilot_sketches(self, z: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of :meth:`pilot_parts`, and sketches of the Jacobians, shape ``(M, B, D)``.

        These are products less their isotropic part, times the weights; none for small events.
        """
        with torch.inference_mode(False), torch.no_grad():
            states, count = states.detach(), states.shape[:2]
            weights, probes = self.pilot.weights.to(states.device), self.pilot_probes
            if probes is None:
                value = self.all_traces(self.pilot, states, Exact(), None).value
                sketches = value.new_zeros(0, count[1], self.size)
            else:
                pairs = torch.ones(count, device=states.device).nonzero().unbind(1)
                drawn = probes[0].flatten(0, 1).flatten(1).to(weights)
                points = self.points(self.pilot, states, pairs)
                forms, products = points.forms(drawn[None].to(points.x))
                value = forms[0].reshape(count)
                rest = products[0] - forms[0][:, None] / self.size * drawn
                sketches = weights[..., None] * rest.reshape(*count, -1)
            latents = self.prior_log_prob(z.detach()).to(value)
            return torch.cat([latents[None], weights.to(value) * value]), sketches

    def all_traces(
        self, nodes: Nodes, states: Tensor, estimator: Divergence, source: Source | Probes
    ) -> Traces:
        """Traces at all nodes, fields of shape ``(M, B)``."""
        pairs = torch.ones(states.shape[:2], device=states.device).nonzero().unbind(1)
        return self.traces(nodes, states, estimator, pairs, source).reshaped(states.shape[:2])

    def traces(
        self,
        nodes: Nodes,
        states: Tensor,
        estimator: Divergence,
        pairs: Pairs,
        source: Source | Probes,
        complement: Complement | None = None,
    ) -> Traces:
        """Traces at some nodes of some samples, fields of shape ``(n,)``.

        Args:
            nodes: The nodes.
            states: States at them, shape ``(M, B, *event)``.
            estimator: Trace estimator.
            pairs: Numbers of the nodes and of the samples, shape ``(n,)`` each.
            source: Source of the probes.
            complement: Directions to leave out, if any.
        """
        # A trace is a derivative, and cannot be taken in inference mode.
        with torch.inference_mode(False), torch.set_grad_enabled(states.requires_grad):
            own = source if isinstance(source, Probes) else of_some_rows(source, pairs[1])
            return self.points(nodes, states, pairs).estimate(estimator, own, complement)

    def points(self, nodes: Nodes, states: Tensor, pairs: Pairs) -> Points:
        """Some nodes of some samples."""
        times = nodes.times.to(states.device, time_precision(states))
        return Points(self.model, times[pairs], states[pairs], self.cond.take(pairs[1]))

    def part(self, rows: Tensor) -> QuadratureLikelihood:
        """The same for some samples."""
        part = replace(self, x=self.x[rows], cond=self.cond.take(rows))
        part.__dict__["pilot"] = self.pilot.of_rows(rows)
        probes = self.pilot_probes
        part.__dict__["pilot_probes"] = None if probes is None else probes[:, :, rows]
        return part


STRATEGIES: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (QuadratureLikelihood, AugmentedLikelihood)
}
