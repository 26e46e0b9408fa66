r"""Probes where they are needed: at the nodes and for the samples whose traces are noisy.

With weights :math:`w_i` and variances :math:`v_i / n_i` for :math:`n_i` products, the sum
:math:`\sum_i w_i^2 v_i / n_i` is :math:`V` with the fewest products for

.. math:: n_i = w_i \sqrt{v_i}\; \frac{\sum_j w_j \sqrt{v_j}}{V} .

Where this is about the number of dimensions, the exact trace is taken, which leaves more of V to
the other nodes. The variances of even nodes are taken from odd ones, and those of odd nodes from
even ones: a number of probes that depended on the probes drawn so far would stop where these are
small by luck, and bias the estimate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_models.divergence.exact import LARGEST_EXACT
from sde_models.likelihood.traces import Traces, neighbours

WORTH_OF_EXACT = 0.8
"""From this fraction of D products on, the exact trace is taken instead."""
ENOUGH = 1.2
"""An estimate gets more products only if it needs more than this factor times its own."""
FINENESS, ROUNDS = 4, 4
"""Numbers of additional products are rounded up to so many a doubling, to be taken together."""


def needed_products(
    weights: Tensor, traces: Traces, target: Tensor, size: int, length: float = math.inf
) -> Tensor:
    """Additional products for each estimate: 0 where it may stay, infinite for the exact trace.

    Args:
        weights: Weights of the nodes, shape ``(M, B)``.
        traces: The estimates; without products where there is none yet, which then needs one.
        target: Variance of the integral to reach, shape ``(B,)``.
        size: Numbers in an event.
        length: Number of probes N without replacement that give the trace exactly.
    """
    share = weights.abs() * neighbours(traces.unit).sqrt()
    share = share.masked_fill(traces.exact, 0)
    exact = torch.zeros_like(share, dtype=torch.bool)
    for _ in range(ROUNDS):
        rest = share.masked_fill(exact, 0)
        left = target + rest.square().sum(0) / length
        total = share * rest.sum(0) / left.clamp(min=torch.finfo(share.dtype).tiny)
        exact |= (total >= WORTH_OF_EXACT * size) & (size <= LARGEST_EXACT)
    more = (total - traces.products).masked_fill(total <= ENOUGH * traces.products, 0).clamp(min=0)
    new = (traces.products == 0) & ~traces.exact
    more = torch.where(new, more.clamp(min=1), more).masked_fill(traces.exact, 0)
    rounded = 2 ** ((more.clamp(min=1).log2() * FINENESS).ceil() / FINENESS)
    found = rounded.ceil().masked_fill(more == 0, 0)
    return found.masked_fill(exact & ~traces.exact, math.inf)
