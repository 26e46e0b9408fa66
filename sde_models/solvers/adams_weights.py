r"""Weights of Adams methods on any nodes: integrals of the polynomial through past estimates.

A diffusion's equation, with what is known of it solved exactly, leaves the integral of one estimate
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
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

GAUSS = np.polynomial.legendre.leggauss(24)
"""Points and weights for a polynomial times an exponential; with so many exact to rounding."""


@dataclass(frozen=True)
class Quadrature:
    r"""What is left to integrate, at K + 1 nodes.

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
        calm = rows.abs().sum(1, keepdim=True) <= amplification * rows.sum(1, keepdim=True).abs()
        lower = weights[used - 1 :, :used]
        weights[used - 1 :, :used] = rows if used == 1 else torch.where(calm, rows, lower)
    return quadrature.scale[1:, None] * weights


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


def starting_corrector(quadrature: Quadrature, order: int) -> tuple[Tensor | None, Tensor | None]:
    """Correctors of the first steps that keep a method's order, and the weights of a restart.

    A first step of order 1 has an error of h^2, once; corrected h^3, and taken again when three
    estimates are known h^4.
    """
    if order < 3:
        return None, None
    start = replace(quadrature, clock=quadrature.clock[:order], scale=quadrature.scale[:order])
    corrector = corrector_weights(start, order - 1)
    if order == 3 or len(corrector) < 2:
        return corrector, None
    nodes = quadrature.clock[:3].flip(0)[None]
    restart = lagrange_integrals(nodes, nodes[:, 2], nodes[:, 1], quadrature.rate)[0]
    return corrector, quadrature.scale[1] * restart


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
    points, gauss = (torch.as_tensor(values).to(nodes) for values in GAUSS)
    half = 0.5 * (end - start)[:, None]
    before_end = half * (1 - points)
    factor = half * gauss
    if rate:
        factor = rate * factor * torch.exp(-rate * before_end)
    clock = end[:, None] - before_end
    order = nodes.shape[1]
    integrals = []
    for j in range(order):
        lagrange = factor
        for i in range(order):
            if i != j:
                gap = nodes[:, j] - nodes[:, i]
                lagrange = lagrange * (clock - nodes[:, i, None]) / gap[:, None]
        integrals.append(lagrange.sum(1))
    return torch.stack(integrals, 1)
