r"""Exponential Adams methods in the log-SNR clock.

With :math:`\lambda = \log(\alpha/\sigma)` and :math:`h = \lambda_t - \lambda_s`, the reverse SDE of
stochasticity eta (and the probability flow, eta = 0) from s to t is solved by

.. math:: x_t = \frac{\sigma_t}{\sigma_s} e^{-\eta^2 h} x_s
          + \alpha_t (1 + \eta^2) \int_{\lambda_s}^{\lambda_t}
            e^{-(1 + \eta^2)(\lambda_t - \lambda)} \hat x_0(\lambda)\, d\lambda
          + \sigma_t \sqrt{1 - e^{-2 \eta^2 h}}\, \xi,

and the flow also by the same with the noise in place of the data,

.. math:: x_t = \frac{\alpha_t}{\alpha_s} x_s - \sigma_t \int_{\lambda_s}^{\lambda_t}
            e^{\lambda_t - \lambda} \hat\epsilon(\lambda)\, d\lambda .

Only the estimate is unknown, and is interpolated through its values at the last nodes.

References:
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095 (the integral of x0); Zhang and Chen 2022, DEIS,
    arXiv:2204.13902 (polynomials through the last estimates); Zhao et al. 2023, UniPC,
    arXiv:2302.04867 (the corrector without an extra evaluation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sde_models.solvers.base import Solver
from sde_models.solvers.multistep.adams import AdamsBashforth, AdamsMoulton
from sde_models.solvers.multistep.adams_weights import Quadrature
from sde_models.solvers.multistep.base import exact_decay, half_log_snr
from sde_models.solvers.problem import Scales

ESTIMATES = ("x0", "eps")


def exponential_quadrature(scales: Scales, eta: float = 0.0) -> Quadrature:
    """The integral of x0 in log-SNR."""
    state = exact_decay(scales, eta)[0]
    one, none = torch.ones_like(scales.alpha), torch.zeros_like(scales.alpha)
    return Quadrature(half_log_snr(scales), scales.alpha, state, 1 + eta**2, one, none)


def noise_quadrature(scales: Scales) -> Quadrature:
    """The integral of eps in log-SNR."""
    state = scales.alpha[1:] / scales.alpha[:-1]
    one, none = torch.ones_like(scales.alpha), torch.zeros_like(scales.alpha)
    return Quadrature(half_log_snr(scales), scales.sigma, state, -1.0, none, one)


class _Exponential:
    """The choice of the estimate, common to both families."""

    def __init__(self, order: int, **options: Any) -> None:
        super().__init__(order, **options)  # type: ignore[call-arg]
        self.estimate = self.options.get("estimate", "x0")  # type: ignore[attr-defined]
        if self.estimate not in ESTIMATES:
            raise ValueError(f"estimate must be 'x0' or 'eps', got {self.estimate!r}")

    def quadrature(self, scales: Scales) -> Quadrature:
        """The integral of the chosen estimate."""
        return exponential_quadrature(scales) if self.estimate == "x0" else noise_quadrature(scales)


class ExponentialAdamsBashforth(_Exponential, AdamsBashforth):
    """Exponential Adams-Bashforth: the last p estimates of x0, interpolated in log-SNR.

    One evaluation a step, order p; of order 1 it is DDIM. Order 4 takes one more evaluation to
    start.

    Options:
        estimate: "x0" (default) or "eps": which one is interpolated.

    Args:
        order: p, from 1 to 4.
    """

    family = "exp-adams"
    option_names = ("estimate",)


class ExponentialAdamsMoulton(_Exponential, AdamsMoulton):
    """Exponential Adams-Bashforth-Moulton: predicted by p - 1 estimates of x0, corrected by p.

    One evaluation a step, order p. Order 4 takes one more evaluation to start.

    Options:
        estimate: "x0" (default) or "eps": which one is interpolated.
        amplification: Bound on the weights of the predictor, 5; see
            :class:`~sde_models.solvers.multistep.adams.AdamsMoulton`.

    Args:
        order: p, 3 or 4.
    """

    family = "exp-abm"
    option_names = ("estimate", "amplification")
    number_options = ("amplification",)


def exponential_adams_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for each order of both families, by name."""
    makers: dict[str, Callable[..., Solver]] = {}
    for order in (1, 2, 3, 4):
        makers[f"exp-adams-{order}"] = partial(ExponentialAdamsBashforth, order)
    for order in (3, 4):
        makers[f"exp-abm-{order}"] = partial(ExponentialAdamsMoulton, order)
    return makers
