r"""Weights of Adams methods on any nodes: integrals of the polynomial through past estimates.

With its linear part solved exactly, the equation of a diffusion leaves the integral of one estimate
u of the network over a clock :math:`\tau`,

.. math:: x_t = c\, x_s + S_t \int_{\tau_s}^{\tau_t} \kappa(\tau_t - \tau)\, u(\tau)\, d\tau,
          \qquad \kappa(\delta) = r e^{-r \delta} \text{ or } 1 .

u is replaced by the polynomial through its values at some nodes, whose integral is exact: the last
p nodes give a method of Adams-Bashforth, the last p of which the end of the step is one a method of
Adams-Moulton.

Reference:
    Hairer, Norsett and Wanner 1993, Solving ordinary differential equations I, III.5 (variable
    steps); Hochbruck and Ostermann 2010, Exponential integrators, section 2.5.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

GAUSS = np.polynomial.legendre.leggauss(4)
"""Points and weights, exact for polynomials to degree 7."""
GAUSS_OF_EXPONENTIALS = np.polynomial.legendre.leggauss(24)
"""Points and weights for a polynomial times an exponential, exact to rounding."""
GAUSS_OF_SHORT_STEPS = np.polynomial.legendre.leggauss(12)
"""The same for steps of a few units of the clock at most."""

MOST_REMEMBERED = 16
"""Number of grids whose weights are kept."""


@dataclass(frozen=True)
class Quadrature:
    r"""The remaining integral, at K + 1 nodes.

    Attributes:
        clock: :math:`\tau`, shape ``(K + 1,)``.
        scale: :math:`S`, shape ``(K + 1,)``.
        state: Factor c of the state in each step, shape ``(K,)``.
        rate: r of the kernel; 0 for the kernel 1.
        of_x0: Factor of x0 in the estimate u, shape ``(K + 1,)``.
        of_eps: Factor of eps in the estimate u, shape ``(K + 1,)``.
    """

    clock: Tensor
    scale: Tensor
    state: Tensor
    rate: float
    of_x0: Tensor
    of_eps: Tensor


Answer = TypeVar("Answer")


def remembered(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Keep the last few results, since successive batches of samples have the same nodes.

    Weights with a gradient are computed each time. Results are copied, so that they may be changed.
    """
    answers: OrderedDict[Any, Answer] = OrderedDict()

    @wraps(function)
    def remember(quadrature: Quadrature, order: int, **options: Any) -> Answer:
        nodes = (quadrature.clock, quadrature.scale)
        if any(values.requires_grad for values in nodes):
            return function(quadrature, order, **options)
        texts = (values.cpu().numpy().tobytes() for values in nodes)
        place = (nodes[0].device, nodes[0].dtype)
        key = (*place, quadrature.rate, order, *options.items(), *texts)
        if key not in answers:
            answers[key] = function(quadrature, order, **options)
            if len(answers) > MOST_REMEMBERED:
                answers.popitem(last=False)
        answer: Any = answers[key]
        if isinstance(answer, tuple):
            return tuple(weights.clone() for weights in answer)  # type: ignore[return-value]
        return answer.clone()

    return remember


@remembered
def predictor_weights(
    quadrature: Quadrature, order: int, *, amplification: float = math.inf
) -> Tensor:
    """Weights of the last ``order`` estimates in each step, shape ``(K, order)``.

    Where they amplify more than allowed, fewer estimates are used.
    """
    clock = quadrature.clock
    weights = clock.new_zeros(len(clock) - 1, order)
    for used in range(1, min(order, len(weights)) + 1):
        nodes = clock[:-1].unfold(0, used, 1).flip(1)
        rows = lagrange_integrals(nodes, clock[used - 1 : -1], clock[used:], quadrature.rate)
        small = rows.abs().sum(1, keepdim=True) <= amplification * rows.sum(1, keepdim=True).abs()
        lower = weights[used - 1 :, :used]
        weights[used - 1 :, :used] = rows if used == 1 else torch.where(small, rows, lower)
    return quadrature.scale[1:, None] * weights


@remembered
def corrector_weights(quadrature: Quadrature, order: int) -> Tensor:
    """Weights of ``order`` estimates, that at the end of the step first, shape ``(K - 1, order)``.

    The first steps have fewer. The last step is not corrected, since nothing is evaluated there.
    """
    clock = quadrature.clock
    weights = clock.new_zeros(max(len(clock) - 2, 0), order)
    for used in range(2, min(order, len(clock) - 1) + 1):
        nodes = clock[:-1].unfold(0, used, 1).flip(1)
        rows = lagrange_integrals(nodes, nodes[:, 1], nodes[:, 0], quadrature.rate)
        weights[used - 2 :, :used] = rows
    return quadrature.scale[1:-1, None] * weights


@remembered
def starting_weights(quadrature: Quadrature, order: int) -> tuple[Tensor, ...]:
    r"""Weights that repeat the first steps, so that a method of order p starts with order p.

    A first step of order 1 has an error of :math:`h^2`, once. When the estimate at node m is known,
    for m from 1 to p - 2, steps 1 to m are taken again with the polynomial through all of nodes 0
    to m: their errors are then :math:`h^{m+2}`, if the estimates have those of order
    :math:`h^{m+1}`, for which they are evaluated anew after each round but the last.

    Returns:
        For each round the weights of steps 1 to m, the newest estimate first, shape
        ``(m, m + 1)``. Fewer rounds where the steps are few.

    Reference:
        Dutt, Greengard and Rokhlin 2000, Spectral deferred correction methods, BIT 40.
    """
    clock, rounds = quadrature.clock, []
    for m in range(1, min(order - 2, len(clock) - 2) + 1):
        nodes = clock[: m + 1].flip(0).expand(m, -1)
        integrals = lagrange_integrals(nodes, clock[:m], clock[1 : m + 1], quadrature.rate)
        rounds.append(quadrature.scale[1 : m + 1, None] * integrals)
    return tuple(rounds)


def lagrange_integrals(nodes: Tensor, start: Tensor, end: Tensor, rate: float) -> Tensor:
    r"""Integrals of Lagrange polynomials against the kernel, for K steps at once.

    Args:
        nodes: Where the polynomials are 1 or 0, shape ``(K, p)``.
        start: :math:`\tau_s`, shape ``(K,)``.
        end: :math:`\tau_t`, shape ``(K,)``.
        rate: r of the kernel; 0 for the kernel 1.

    Returns:
        Shape ``(K, p)``.
    """
    rule = GAUSS_OF_EXPONENTIALS if rate else GAUSS
    points, gauss = (torch.as_tensor(values).to(nodes) for values in rule)
    half = 0.5 * (end - start)[:, None]
    before_end = half * (1 - points)
    factor = half * gauss
    if rate:
        factor = rate * factor * torch.exp(-rate * before_end)
    past = [end[:, None] - before_end - node[:, None] for node in nodes.unbind(1)]
    integrals = []
    for j, node in enumerate(nodes.unbind(1)):
        lagrange = factor
        for i, other in enumerate(nodes.unbind(1)):
            if i != j:
                lagrange = lagrange * past[i] / (node - other)[:, None]
        integrals.append(lagrange.sum(1))
    return torch.stack(integrals, 1)


def known_integrals(
    nodes: Tensor, known: Tensor, start: Tensor, end: Tensor, rate: float
) -> Tensor:
    """The same for steps whose polynomials go through different numbers of nodes.

    Args:
        nodes: Where the polynomials are 1 or 0, shape ``(K, p)``.
        known: Which of them count, shape ``(K, p)``.
        start: As above.
        end: As above.
        rate: r of the kernel, not 0.

    Returns:
        Shape ``(K, p)``, zero where a node does not count.
    """
    points, gauss = (torch.as_tensor(values).to(nodes) for values in GAUSS_OF_SHORT_STEPS)
    half = 0.5 * (end - start)[:, None]
    before_end = half * (1 - points)
    factor = rate * half * gauss * torch.exp(-rate * before_end)
    past = (end[:, None] - before_end)[..., None] - nodes[:, None]
    past = torch.where(known[:, None], past, 1.0)
    one = torch.ones_like(past[..., :1])
    below = torch.cat([one, past[..., :-1]], 2).cumprod(2)  # of all nodes before this one
    above = torch.cat([one, past[..., 1:].flip(2)], 2).cumprod(2).flip(2)
    apart = nodes[:, :, None] - nodes[:, None]
    others = known[:, None] & ~torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
    lengths = torch.where(others, apart, 1.0).prod(2)
    integrals = (factor[..., None] * below * above).sum(1) / lengths
    return torch.where(known, integrals, 0.0)
