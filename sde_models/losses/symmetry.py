"""How far a model's score is from being a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import as_conditions
from sde_models._utils.counting import record_vjps
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import standard_normal_like
from sde_models._utils.shapes import Time, check_batch, leaf_copy
from sde_models._utils.user_networks import value_with_graph
from sde_models.divergence.base import Products
from sde_models.models.base import Model

LARGEST_EXACT = 64
"""Numbers in an event up to which the full Jacobian is taken."""
PROBES = 16


def asymmetry(
    model: Model,
    t: Time,
    x: Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""How far the Jacobian of the score is from symmetric, for each sample.

    .. math:: \frac{\|J - J^\top\|_F}{\|J\|_F}, \qquad J = \frac{\partial s}{\partial x}

    A gradient has 0, a rotation 2. With v of covariance I, :math:`E |A v|^2 = \|A\|_F^2`, so
    random products estimate both norms.

    Args:
        model: What gives the score.
        t: Time in ``[t_min, t_max]``, scalar or ``(B,)``.
        x: Where, shape ``(B, *event)``.
        probes: Random products for each sample; if None the Jacobian is exact for up to 64
            coordinates, and 16 probes are taken for more.
        generator: Source of probes; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`.

    Returns:
        Shape ``(B,)``, without a graph; NaN where the Jacobian is zero.

    Raises:
        TypeError: If ``x`` is not floating.
        ValueError: If a shape does not fit, a time is out of range, or ``probes`` is below 1.

    Reference:
        Lai et al. 2023 (conservative scores), arXiv:2210.04296; Salimans and Ho 2021,
        Should EBMs model the energy or the score?

    Example:
        >>> model = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.5).score_model(sm.VPSDE())
        >>> bool((asymmetry(model, 0.5, torch.randn(3, 2)) < 1e-5).all())
        True
    """
    check_batch(x, model.event_shape)
    size = x[0].numel()
    given = as_conditions(cond, len(x), x.device)
    with torch.inference_mode(False), torch.enable_grad():
        point = leaf_copy(x)
        flat = point.flatten(1)
        if probes is None and size <= LARGEST_EXACT:
            eye = torch.eye(size, dtype=x.dtype, device=x.device)
            vectors = eye[:, None].expand(size, *flat.shape)
        else:
            shape = (check_integer("probes", PROBES if probes is None else probes), *flat.shape)
            vectors = standard_normal_like(flat.detach().new_empty(shape), generator)
        value = value_with_graph(lambda y: model.score(t, y, **given), point)
        transposed = Products(value, point, 0.0, differentiable=False)(vectors)
        straight = _forward_products(value, point, vectors)
    difference = (straight - transposed).square().sum((0, 2))
    return (difference / transposed.square().sum((0, 2))).sqrt().detach()


def _forward_products(value: Tensor, point: Tensor, vectors: Tensor) -> Tensor:
    """Products J v with flat vectors ``(k, B, D)``, by reverse mode twice."""
    dual = torch.zeros_like(value, requires_grad=True)
    record_vjps(len(value))
    (linear,) = torch.autograd.grad(value, point, dual, create_graph=True)
    return Products(linear, dual, 0.0, differentiable=False)(vectors)
