"""Traces at the nodes of paths, to which products are added until their errors are small enough."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sde_models._utils.randomness import Source
from sde_models.divergence.base import Divergence
from sde_models.divergence.exact import Exact
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.pilot import Pilot
from sde_models.likelihood.probe_allocation import needed_products
from sde_models.likelihood.probe_sequences import ProbeSequence
from sde_models.likelihood.quadrature import TraceIntegral, integrate_traces
from sde_models.likelihood.strategies import Pairs, QuadratureLikelihood
from sde_models.likelihood.traces import Probes, Traces

PROBES_SHARE = 0.85
"""Part of the error that probes are chosen for, so that their spread leaves it below its target."""
CHANCE = 3.0
"""The spectrum shows more than the noise of probes only where it exceeds it by so many standard
deviations: else estimates that look bad by chance would get more nodes."""
PAIR = 2
"""Products by which the variance of one is known."""


class TraceSampler:
    """Takes traces at nodes, and keeps them.

    Args:
        strategy: Gives the traces.
        nodes: The nodes.
        states: States at them, shape ``(M, B, *event)``.
        source: Source of the probes.
        pilot: Knows directions in which the trace is exact, if any.
        known: Traces that are known.
        probes: Their probes, where these are drawn without replacement.
    """

    def __init__(
        self,
        strategy: QuadratureLikelihood,
        nodes: Nodes,
        states: Tensor,
        source: Source,
        pilot: Pilot | None = None,
        known: Traces | None = None,
        probes: ProbeSequence | None = None,
    ) -> None:
        self.strategy, self.nodes, self.states, self.source = strategy, nodes, states, source
        self.pilot = pilot
        self.traces = Traces.none(states) if known is None else known
        if probes is None and strategy.estimator.without_replacement:
            probes = ProbeSequence.draw(states, source)
        self.probes = probes

    def finer(
        self,
        rows: Tensor,
        strategy: QuadratureLikelihood,
        states: Tensor,
        source: Source,
        pilot: Pilot | None,
    ) -> TraceSampler:
        """For some of the samples, at twice as many nodes.

        Args:
            rows: Which samples.
            strategy: Gives their traces.
            states: Their states at all nodes.
            source: Source of further probes.
            pilot: Their pilot.
        """
        nodes, probes = self.nodes.of_rows(rows), None
        if self.probes is not None:
            probes = self.probes.of_rows(rows).finer(nodes, 2, states, source)
        known = self.traces.at((slice(None), rows)).spread(nodes, 2)
        return TraceSampler(strategy, nodes.finer(2), states, source, pilot, known, probes)

    @property
    def exact(self) -> bool:
        """Whether all traces are exact."""
        return self.strategy.estimator.exact

    def integral(self) -> TraceIntegral:
        """The integral by the traces that are known."""
        return integrate_traces(self.nodes, self.traces, self.strategy.size, CHANCE)

    def begin(self, count: int) -> None:
        """Take so many products at each node that has none, or the exact trace."""
        new = torch.full_like(self.traces.products, math.inf if self.exact else count)
        self._add(new.masked_fill((self.traces.products > 0) | self.traces.exact, 0))

    def reach(self, target: Tensor) -> None:
        """Take as many products as bring the probes' part of the error at 95% to a target.

        Args:
            target: Shape ``(B,)``.
        """
        if self.probes is not None:  # from one product the variance is not known
            needed = self._needed(target)
            single = (self.traces.products == 1) & (needed > 0)
            self._add(torch.where(single, PAIR, 0).to(needed))
        self._add(self._needed(target))

    def _needed(self, target: Tensor) -> Tensor:
        variance = (PROBES_SHARE * target / 2).square()
        weights = self.nodes.weights.to(self.traces.value)
        return needed_products(weights, self.traces, variance, self.strategy.size, self._length)

    @property
    def _length(self) -> float:
        return math.inf if self.probes is None else self.probes.length

    def _add(self, needed: Tensor) -> None:
        """Take further products, shape ``(M, B)``; infinitely many for the exact trace."""
        for number in needed[needed > 0].unique().tolist():
            pairs = (needed == number).nonzero().unbind(1)
            before = self.traces.at(pairs)
            if math.isinf(number):
                found = self._take(Exact(), pairs, None)
                found = replace(found, unit=before.unit)
            else:
                found = self._pool(before, pairs, int(number))
            self.traces = self.traces.put(pairs, found)
        self.traces = self.traces.smoothed(self._length)

    def _pool(self, before: Traces, pairs: Pairs, count: int) -> Traces:
        if self.probes is None:
            return before.pooled(
                self._take(self.strategy.estimator.with_products(count), pairs, self.source)
            )
        drawn = self.probes.at(pairs, before.products.long(), count)
        found = self._take(Hutchinson(count), pairs, drawn)
        if count == 1:
            found = replace(found, unit=torch.where(before.products > 0, before.unit, found.unit))
        else:
            single = before.products == 1
            before = replace(before, unit=torch.where(single, found.unit, before.unit))
        return before.pooled(found)

    def _take(self, estimator: Divergence, pairs: Pairs, source: Source | Probes) -> Traces:
        nodes = self.nodes
        if self.pilot is None or estimator.exact:
            return self.strategy.traces(nodes, self.states, estimator, pairs, source)
        counts = self.pilot.found.count[pairs]
        parts, order = [], []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero().flatten()
            some = tuple(part[rows] for part in pairs)
            own = source.at(rows) if isinstance(source, Probes) else source
            complement, known = self.pilot.complement(some, int(count)) if count else (None, 0.0)
            found = self.strategy.traces(nodes, self.states, estimator, some, own, complement)
            parts.append(replace(found, value=found.value + known))
            order.append(rows)
        return Traces.joined(parts).at(torch.cat(order).argsort())
