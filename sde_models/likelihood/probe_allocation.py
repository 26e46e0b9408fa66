r"""Probes where they are needed: at the nodes and for the samples whose traces are noisy.

With weights :math:`w_i` and variances :math:`v_i / n_i` for :math:`n_i` products, the sum
:math:`\sum_i w_i^2 v_i / n_i` is :math:`V` with the fewest products for

.. math:: n_i = w_i \sqrt{v_i}\; \frac{\sum_j w_j \sqrt{v_j}}{V} .

Where this is the number of dimensions or more, the exact trace is taken, which leaves more of V
to the other nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_models.divergence.base import Divergence
from sde_models.divergence.exact import LARGEST_EXACT, Exact
from sde_models.likelihood.quadrature import Traces, probe_error

Pairs = tuple[Tensor, ...]
"""Numbers of nodes and of samples."""
Estimate = Callable[[Divergence, Pairs], Traces]

WORTH_OF_EXACT = 0.7
"""From this fraction of D products on, the exact trace is taken instead."""
ENOUGH = 1.2
"""An estimate is repeated only if it needs more than this factor times its products."""
MOST_ROUNDS = 8
A_FEW, BETTER = 32, 0.5
"""At so many places an alternative must have at most this fraction of the variance per product."""
SMOOTHING = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Few probes hardly determine a variance: it is averaged with those of the next nodes."""


@dataclass(frozen=True)
class Allocation:
    """Estimates traces until their part of the error is below a target for each sample.

    Attributes:
        estimate: Gives traces at some nodes of some samples, fields of shape ``(n,)``.
        estimator: Trace estimator to begin with.
        weights: Weight of each node in the integral, shape ``(M,)``.
        size: Numbers in an event.
        target: Standard error in nats.
        separate: Whether alternatives are compared for each sample by itself; if False, for all
            together, which takes fewer trials.
    """

    estimate: Estimate
    estimator: Divergence
    weights: Tensor
    size: int
    target: float
    separate: bool = False

    def run(self, count: int, known: Traces | None = None) -> Traces:
        """Traces at all nodes.

        Args:
            count: Number of samples B.
            known: Traces at every other node, if they are known.
        """
        first = self.estimator
        traces = self._first(first, count, known)
        families, unit, untried = [first], [_unit(traces)], list(first.alternatives)
        for _ in range(MOST_ROUNDS):
            needed = self._needed(traces, torch.stack(unit).amin(0))
            noisy = needed > 0
            if not bool(noisy.any()):
                break
            if untried:
                trial = untried.pop(0)
                pairs = self._worth_trying(trial, needed, traces, unit[0])
                if len(pairs[0]):
                    families.append(trial)
                    traces = traces.replaced(pairs, self.estimate(trial, pairs))
                    unknown = torch.full_like(unit[0], math.inf)
                    unit.append(unknown.index_put(pairs, _unit(traces.at(pairs))))
                    # Where it was tried, the need is computed again in the next round.
                    needed[:, pairs[1] if self.separate else slice(None)] = 0
            cheapest = torch.stack(unit).argmin(0)
            for number, family in enumerate(families):
                traces = self._more(traces, family, needed * (cheapest == number))
        return traces

    def _first(self, estimator: Divergence, count: int, known: Traces | None) -> Traces:
        """Traces with few probes at the nodes where none are known."""
        shape, device = (len(self.weights), count), self.weights.device
        new = torch.ones(shape, dtype=torch.bool, device=device)
        traces = Traces(*(self.weights.new_zeros(shape) for _ in range(4)))
        if known is not None:
            new[::2] = False
            old = (~new).nonzero().unbind(1)
            traces = traces.replaced(old, known.reshaped((-1,)))
        pairs = new.nonzero().unbind(1)
        found = self.estimate(estimator, pairs)
        traces = traces.replaced(pairs, found)
        if not estimator.exact:
            smooth = (_smoothed(_unit(traces)) / traces.products).sqrt()
            traces = replace(traces, stderr=torch.where(new, smooth, traces.stderr))
        return traces

    def _worth_trying(
        self, trial: Divergence, needed: Tensor, traces: Traces, unit: Tensor
    ) -> Pairs:
        """Where an alternative is tried: nowhere if it is no better at a few of these places."""
        products = trial.count_products(self.size)
        open_places = needed > products
        if products >= WORTH_OF_EXACT * self.size:
            open_places = torch.zeros_like(open_places)
        # One column if all samples are compared together.
        places = open_places if self.separate else open_places.reshape(-1, 1)
        number = places.cumsum(0) - 1
        stride = (places.sum(0) / A_FEW).ceil().clamp(min=1)
        few = (places & (number % stride == 0)).reshape(needed.shape)
        pairs = few.nonzero().unbind(1)
        if not len(pairs[0]):
            return pairs
        found = torch.zeros_like(unit).index_put(pairs, _unit(self.estimate(trial, pairs)))
        known = unit.where(few, 0.0)
        worse = found.reshape(places.shape).sum(0) > BETTER * known.reshape(places.shape).sum(0)
        return (places & ~worse).reshape(needed.shape).nonzero().unbind(1)

    def _needed(self, traces: Traces, unit: Tensor) -> Tensor:
        """Products needed for a new estimate: 0 where the old one may stay, infinite for exact."""
        weights = self.weights.detach().abs()[:, None]
        own = weights * traces.stderr
        error = probe_error(weights[:, 0], traces)
        late = error > self.target
        # The target is for the enlarged error; this is the part for the plain one.
        target = self.target * own.square().sum(0).sqrt() / error.clamp(min=1e-30)
        share = weights * unit.sqrt()
        share = share.masked_fill(traces.stderr == 0, 0)
        exact = self._better_exact(share, target)
        needed = share * share.masked_fill(exact, 0).sum(0) / target.square().clamp(min=1e-30)
        needed = needed.masked_fill(exact, math.inf)
        needed = needed.masked_fill(needed <= ENOUGH * traces.products, 0)
        # Where all have about the products they need and it is not enough, the worst get more.
        stuck = late & ~(needed.masked_fill(traces.stderr == 0, 0) > 0).any(0)
        worst = own >= 0.5 * own.amax(0)
        needed = torch.where(stuck & worst, 2 * traces.products, needed)
        return needed.masked_fill(~late | (traces.stderr == 0), 0)

    def _better_exact(self, share: Tensor, target: Tensor) -> Tensor:
        """The largest shares, taken exactly where the rest then needs fewer products.

        With the k largest exact, the next needs its share times the sum of the rest.
        """
        if self.size > LARGEST_EXACT:
            return torch.zeros_like(share, dtype=torch.bool)
        ordered, order = share.sort(0, descending=True)
        rest = ordered.flip(0).cumsum(0).flip(0)
        exact = ordered * rest >= WORTH_OF_EXACT * self.size * target.square()
        return torch.zeros_like(exact).scatter(0, order, exact)

    def _more(self, traces: Traces, family: Divergence, needed: Tensor) -> Traces:
        """Repeat estimates that are too noisy, with numbers of products that are powers of two."""
        exact = (needed >= WORTH_OF_EXACT * self.size) & (self.size <= LARGEST_EXACT)
        power = needed.clamp(min=1).log2().ceil().masked_fill(exact, -1)
        for p in power[needed > 0].unique().tolist():
            pairs = ((needed > 0) & (power == p)).nonzero().unbind(1)
            estimator = Exact() if p < 0 else family.with_products(int(2**p))
            traces = traces.replaced(pairs, self.estimate(estimator, pairs))
        return traces


def _unit(traces: Traces) -> Tensor:
    """Variance for one product."""
    return traces.stderr.square() * traces.products


def _smoothed(values: Tensor) -> Tensor:
    """Weighted averages with the neighbours along the first dimension."""
    padded = torch.cat([values[:1], values[:1], values, values[-1:], values[-1:]])
    parts = [w * padded[i : i + len(values)] for i, w in enumerate(SMOOTHING)]
    return torch.stack(parts).sum(0)
