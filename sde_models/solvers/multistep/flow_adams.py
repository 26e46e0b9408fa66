r"""Adams methods for the velocity of the straight path from noise to data.

Scaled by :math:`S = s \alpha + \sigma`, with s the standard deviation of the data, every Gaussian
kernel runs along the straight path :math:`x / S = (1 - \tau) x_0 / s + \tau \epsilon` with the
clock :math:`\tau = \sigma / S`, whatever alpha and sigma are. Its probability flow is

.. math:: \frac{x_t}{S_t} = \frac{x_s}{S_s} + \int_{\tau_s}^{\tau_t}
          \big(\hat\epsilon - \hat x_0 / s\big)\, d\tau,

and the velocity under the integral is smooth at both ends: there is no stiff part to take out, as
there is in the flow of x0 or of eps alone. It is interpolated through its values at the last nodes.

References:
    Liu et al. 2022, Flow straight and fast, arXiv:2209.03003; Lipman et al. 2022, Flow matching,
    arXiv:2210.02747 (the straight path and its velocity); Zhao et al. 2023, UniPC, arXiv:2302.04867
    (the corrector without an extra evaluation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from sde_models.solvers.base import Solver
from sde_models.solvers.multistep.adams import AdamsBashforth, AdamsMoulton
from sde_models.solvers.multistep.adams_weights import Quadrature
from sde_models.solvers.problem import Scales


def velocity_quadrature(scales: Scales) -> Quadrature:
    """The integral of the velocity of the straight path."""
    std = scales.data_std
    scale = std * scales.alpha + scales.sigma
    one = torch.ones_like(scale)
    return Quadrature(
        scales.sigma / scale, scale, scale[1:] / scale[:-1], 0.0, of_x0=-one / std, of_eps=one
    )


class FlowAdamsBashforth(AdamsBashforth):
    """Adams-Bashforth for the velocity of the straight path.

    One evaluation a step, order p. Order 4 takes one more evaluation to start.

    Args:
        order: p, from 2 to 4.
    """

    family = "flow-adams"

    def quadrature(self, scales: Scales) -> Quadrature:
        return velocity_quadrature(scales)


class FlowAdamsMoulton(AdamsMoulton):
    """Adams-Bashforth-Moulton for the velocity of the straight path: the most accurate one here.

    One evaluation a step, order p. Order 4 takes one more evaluation to start, order 5 three more,
    so that it pays from about 40 steps on.

    Options:
        amplification: Bound on the weights of the predictor, 5 or, for order 5, 10; see
            :class:`~sde_models.solvers.multistep.adams.AdamsMoulton`.

    Args:
        order: p, from 3 to 5.
    """

    family = "flow-abm"
    option_names = ("amplification",)
    number_options = option_names

    def quadrature(self, scales: Scales) -> Quadrature:
        return velocity_quadrature(scales)


def flow_adams_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for each order of both families, by name."""
    makers: dict[str, Callable[..., Solver]] = {}
    for order in (2, 3, 4):
        makers[f"flow-adams-{order}"] = partial(FlowAdamsBashforth, order)
    for order in (3, 4, 5):
        makers[f"flow-abm-{order}"] = partial(FlowAdamsMoulton, order)
    return makers
