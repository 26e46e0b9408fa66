"""A pilot of the quadrature: how many nodes it needs, and in which directions Jacobians are large.

It has one probe for all nodes of a sample, so that its traces are as smooth as the Jacobian, and
they do not enter the estimate, so that what follows from them causes no bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_models._utils.fields import Fields
from sde_models.divergence.complement import Complement
from sde_models.likelihood.directions import Directions, find_directions
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.quadrature import TraceIntegral, integrate_traces
from sde_models.likelihood.strategies import Pairs, QuadratureLikelihood
from sde_models.likelihood.traces import Traces

ACTIVE = 0.25
"""Nodes with this part of the mean share of the noise, or more, are active."""


@dataclass(frozen=True)
class PilotTraces(Fields):
    """What the pilot finds at the nodes, fields of shape ``(M, B)``.

    Attributes:
        inside: Trace in the directions that are used.
        mean: Trace outside of them, by dimension.
        noise: Length of a product less its isotropic part, times the weight of the node.
        count: Number of directions that are used.
        taken: 1 where there is something.
    """

    inside: Tensor
    mean: Tensor
    noise: Tensor
    count: Tensor
    taken: Tensor


class Pilot:
    """Traces with one probe for all nodes, and exact ones in the directions that matter.

    Args:
        strategy: Gives the traces.
        nodes: The nodes.
        states: States at them, shape ``(M, B, *event)``.
        signs: The probe, shape ``(B, D)``.
        directions: The directions, none yet if None.
        found: What is known.
    """

    def __init__(
        self,
        strategy: QuadratureLikelihood,
        nodes: Nodes,
        states: Tensor,
        signs: Tensor,
        directions: Directions | None = None,
        found: PilotTraces | None = None,
    ) -> None:
        self.strategy, self.nodes, self.states, self.signs = strategy, nodes, states, signs
        zeros = Traces.none(states).value
        self.found = PilotTraces(*[zeros] * 5) if found is None else found
        self.directions = directions

    def begin(self, others: Tensor, probes: Tensor, variance: Tensor) -> None:
        """Take traces at all nodes, and find the directions.

        Args:
            others: Other sketches, shape ``(N, B, D)``.
            probes: Their probes.
            variance: Variance that probes may leave, shape ``(B,)``.
        """
        sketches = self._take_common().reshape(*self.states.shape[:2], -1)
        self.directions = find_directions(sketches, others, probes, variance, self.active)
        self._deflate()

    @property
    def active(self) -> Tensor:
        """Nodes that matter for the noise, shape ``(M, B)``."""
        noise = self.found.noise
        active = (noise >= ACTIVE * noise.mean(0)) & (noise > 0)
        return active if self.directions is None else active | (noise >= self.directions.pays)

    def integral(self) -> TraceIntegral:
        """The integral of its traces."""
        return integrate_traces(self.nodes, self.traces, self.strategy.size)

    @property
    def traces(self) -> Traces:
        """Its traces."""
        found = self.found
        value = found.inside + found.mean * (self.strategy.size - found.count)
        return replace(Traces.none(self.states), value=value)

    def finer(self, states: Tensor) -> Pilot:
        """At twice as many nodes, with the traces that are known.

        Args:
            states: States at them.
        """
        known = self.found.each(lambda value: self.nodes.spread(value, 2))
        known = replace(known, noise=known.noise / 2)
        nodes = self.nodes.finer(2)
        new = Pilot(self.strategy, nodes, states, self.signs, self.directions, known)
        new._take_common()
        new._deflate()
        return new

    def of_rows(self, rows: Tensor) -> Pilot:
        """For some of the samples."""
        directions = None if self.directions is None else self.directions.at(rows)
        return Pilot(
            self.strategy.part(rows), self.nodes.of_rows(rows), self.states[:, rows],
            self.signs[rows], directions, self.found.at((slice(None), rows)),
        )  # fmt: skip

    def complement(self, pairs: Pairs, count: int) -> tuple[Complement, Tensor]:
        """What is outside of the directions at some nodes; and the trace of the rest, ``(n,)``."""
        assert self.directions is not None
        found, nodes = self.found.at(pairs), self.nodes
        sigma = nodes.sde.sigma(nodes.sde.times(nodes.times[pairs[0].cpu(), pairs[1].cpu()]))
        mean = (found.mean / sigma.to(found.mean)).to(self.states)
        basis = self.directions.basis[pairs[1], :count].to(self.states)
        known = found.inside + found.mean * (self.strategy.size - count)
        return Complement(basis, mean), known

    def _take_common(self) -> Tensor:
        """Take a product at each node that has none; their sketches, shape ``(n, D)``."""
        pairs = (self.found.taken == 0).nonzero().unbind(1)
        probe = self.signs[pairs[1]].to(self.found.mean)
        forms, products = self.strategy.points(self.nodes, self.states, pairs).forms(probe[None])
        mean = forms[0] / self.strategy.size
        weights = self.nodes.weights.to(mean)[pairs]
        sketches = weights[:, None] * (products[0] - mean.detach()[:, None] * probe)
        none, noise = torch.zeros_like(mean), torch.linalg.vector_norm(sketches, dim=1)
        found = PilotTraces(none, mean, noise, none, torch.ones_like(mean))
        self.found = self.found.put(pairs, found)
        return sketches

    def _deflate(self) -> None:
        """Take the traces in the directions, at active nodes that have none."""
        assert self.directions is not None
        needed = self.active & (self.found.count == 0) & (self.found.taken > 0)
        pairs = (needed & (self.directions.count > 0)).nonzero().unbind(1)
        counts = self.directions.count[pairs[1]]
        for count in counts.unique().tolist():
            some = tuple(part[counts == count] for part in pairs)
            basis = self.directions.basis[some[1], :count]
            probe = self.signs[some[1]].to(basis)
            outside = Complement(basis, torch.zeros_like(probe[:, 0])).project(probe[None])
            vectors = torch.cat([basis.transpose(0, 1), outside])
            forms, _ = self.strategy.points(self.nodes, self.states, some).forms(vectors)
            found = self.found.at(some)
            found = replace(
                found,
                inside=forms[:-1].sum(0),
                mean=forms[-1] / outside[0].square().sum(1).clamp(min=1),
                count=torch.full_like(found.count, count),
            )
            self.found = self.found.put(some, found)
