r"""Exponential Adams-Bashforth methods in the log-SNR clock, of order 1 to 4.

With :math:`\lambda = \log(\alpha/\sigma)`, the reverse SDE of stochasticity eta (and the
probability flow, eta = 0) from s to t is solved by

.. math:: x_t = \frac{\sigma_t}{\sigma_s} e^{-\eta^2 h} x_s
          + \alpha_t (1 + \eta^2) \int_{\lambda_s}^{\lambda_t}
            e^{-(1 + \eta^2)(\lambda_t - \lambda)} \hat x_0(\lambda)\, d\lambda
          + \sigma_t \sqrt{1 - e^{-2 \eta^2 h}}\, \xi .

Only :math:`\hat x_0` is unknown. It is replaced by the polynomial through its last values, whose
integral against the exponential is exact.

References:
    Zhang and Chen 2022, DEIS, arXiv:2204.13902; Lu et al. 2022, DPM-Solver++, arXiv:2211.01095
    (the integral of x0); Hochbruck and Ostermann 2010, Exponential integrators, section 2.5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_models.solvers.base import Solver
from sde_models.solvers.multistep import MultistepSolver, Weights, exact_decay, half_log_snr
from sde_models.solvers.problem import Scales

GAUSS_NODES = 24
"""Nodes of the quadrature of a polynomial times an exponential; exact to rounding."""


class ExponentialAdams(MultistepSolver):
    r"""Exponential Adams-Bashforth: the last p estimates of x0, interpolated in log-SNR.

    One evaluation a step. Order p of the flow; strong order 1 of the reverse SDE, whose paths are
    too rough for more, with a smaller constant than one step back.

    Args:
        order: p, from 1 to 4. Of order 1 it is DDIM.
    """

    def __init__(self, order: int, **options: Any) -> None:
        self.name = f"exp-adams-{order}"
        self.order = order
        super().__init__(**options)

    integrates = ("ODE",)

    def weights(self, scales: Scales, eta: float) -> Weights:
        state, noise = exact_decay(scales, eta)
        return Weights(state, interpolation_weights(scales, int(self.order), eta), noise)


def interpolation_weights(scales: Scales, order: int, eta: float = 0.0) -> Tensor:
    """Integrals of the Lagrange polynomials through the last ``order`` nodes, shape (K, order)."""
    clock = half_log_snr(scales)
    rows = []
    for k in range(len(clock) - 1):
        used = min(order, k + 1)
        nodes = torch.stack([clock[k - j] for j in range(used)])
        row = lagrange_integrals(nodes, clock[k], clock[k + 1], eta)
        rows.append(torch.nn.functional.pad(row, (0, order - used)))
    return scales.alpha[1:, None] * torch.stack(rows)


def lagrange_integrals(nodes: Tensor, start: Tensor, end: Tensor, eta: float = 0.0) -> Tensor:
    r"""Integrals of each Lagrange polynomial against the exponential, shape of ``nodes``:

    .. math:: (1 + \eta^2) \int e^{-(1 + \eta^2)(\lambda_t - \lambda)} \ell_j(\lambda) d\lambda .
    """
    rate = 1 + eta**2
    rule = np.polynomial.legendre.leggauss(GAUSS_NODES)
    points, gauss = (torch.as_tensor(values).to(nodes) for values in rule)
    clock = start + (end - start) * 0.5 * (points + 1)
    factor = rate * 0.5 * (end - start) * gauss * torch.exp(-rate * (end - clock))
    integrals = []
    for j in range(len(nodes)):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        lagrange = ((clock[:, None] - others) / (nodes[j] - others)).prod(1)
        integrals.append((factor * lagrange).sum())
    return torch.stack(integrals)


def exponential_adams_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for each order, by name."""
    return {f"exp-adams-{order}": partial(ExponentialAdams, order) for order in (1, 2, 3, 4)}
