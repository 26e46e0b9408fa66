r"""Probes without replacement: rows of a Hadamard matrix with random signs.

With a vector s of random signs and different rows :math:`h_k` of a Hadamard matrix of order
:math:`N \ge D`, cut to D columns, the probes :math:`s \circ h_k` are Rademacher vectors. All N of
them give the trace exactly, and n of them, in random order, have the variance of a sample without
replacement,

.. math:: \frac{v}{n} \Big( 1 - \frac{n - 1}{N - 1} \Big) ,

with the variance v of a single one. The order is that of :math:`a k + b` modulo a prime, with
random a and b for each sequence: it makes every pair of rows equally likely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_models._utils.randomness import Source, rademacher_like, uniform_like
from sde_models._utils.split_batches import draw_rows
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.traces import Probes


@dataclass(frozen=True)
class ProbeSequence:
    """A sequence of probes for each node of each sample.

    Attributes:
        signs: Random signs, int8, shape ``(M, B, *event)``.
        orders: Numbers of their orders, from 1 on, shape ``(M, B)``.
    """

    signs: Tensor
    orders: Tensor

    @classmethod
    def draw(cls, states: Tensor, source: Source) -> ProbeSequence:
        """Draw sequences for states ``(M, B, *event)``."""
        by_sample = states.detach().transpose(0, 1)
        signs: Tensor = draw_rows(rademacher_like, by_sample, source)
        like = by_sample.new_zeros(by_sample.shape[:2], dtype=torch.float64)
        uniform: Tensor = draw_rows(uniform_like, like, source)
        prime = _next_prime(_length(states))
        orders = 1 + (uniform * prime * (prime - 1)).long()
        return cls(signs.to(torch.int8).transpose(0, 1), orders.T)

    @property
    def length(self) -> int:
        """Number of probes N that give the trace exactly."""
        return _length(self.signs)

    def finer(self, nodes: Nodes, factor: int, states: Tensor, source: Source) -> ProbeSequence:
        """Those of finer nodes, with new ones where there are none."""
        new = ProbeSequence.draw(states, source)
        columns = [nodes.spread(column, factor) for column in self.signs.flatten(2).unbind(2)]
        signs = torch.stack(columns, 2).reshape(states.shape)
        orders = nodes.spread(self.orders, factor)
        return ProbeSequence(
            torch.where(signs == 0, new.signs, signs), torch.where(orders == 0, new.orders, orders)
        )

    def at(self, pairs: tuple[Tensor, ...], first: Tensor, count: int) -> Probes:
        """The next probes of some nodes of some samples.

        Args:
            pairs: Numbers of the nodes and of the samples, shape ``(n,)`` each.
            first: How many each has had, shape ``(n,)``.
            count: How many more each gets.
        """
        signs = self.signs[pairs]
        number = (first[None] + torch.arange(count, device=first.device)[:, None]) % self.length
        rows = self._rows(self.orders[pairs] - 1, number)
        flat = signs.flatten(1)
        columns = torch.arange(flat.shape[1], device=flat.device)
        drawn = flat[None] * _entries(rows[..., None], columns)
        return Probes(drawn.reshape(count, *signs.shape))

    def of_rows(self, rows: Tensor) -> ProbeSequence:
        """Those of some samples."""
        return replace(self, signs=self.signs[:, rows], orders=self.orders[:, rows])

    def _rows(self, orders: Tensor, number: Tensor) -> Tensor:
        """Rows of the matrix with these numbers in these orders, shape ``(count, n)``."""
        prime = _next_prime(self.length)
        factor, offset = 1 + orders // prime, orders % prime
        rows = (factor * number + offset) % prime
        while bool((rows >= self.length).any()):  # the next one that is a row
            rows = torch.where(rows >= self.length, (factor * rows + offset) % prime, rows)
        return rows


def _length(states: Tensor) -> int:
    """The power of 2 that is no less than the size of an event of ``(M, B, *event)``."""
    return 1 << (states[0, 0].numel() - 1).bit_length()


def _next_prime(number: int) -> int:
    while number < 3 or any(number % k == 0 for k in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


def _entries(rows: Tensor, columns: Tensor) -> Tensor:
    """Entries of the Hadamard matrix: -1 to the number of ones that two numbers share in base 2."""
    common = rows & columns
    for shift in (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return (1 - 2 * (common & 1)).to(torch.int8)
