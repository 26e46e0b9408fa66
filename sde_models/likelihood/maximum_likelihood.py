"""Training by the likelihood itself, through the probability flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from sde_models.likelihood.log_densities import log_prob
from sde_models.likelihood.settings import LogProbOptions
from sde_models.models.base import Model
from sde_models.solvers import Solver
from sde_models.solvers.options import check_options


def maximum_likelihood_loss(
    model: Model,
    x0: Tensor,
    solver: str | Solver | None = None,
    *,
    cond: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[LogProbOptions],
) -> Tensor:
    r"""Minus the mean log-density of the data under the probability flow, in nats.

    .. math:: -E \log p_0(x_0)

    The score is trained as a continuous normalising flow. Each step costs a full solve and its
    gradient, so this is for fine-tuning. The loss of denoising with ``weighting="likelihood"`` is
    a cheap bound on the likelihood of the reverse SDE.

    With few steps or nodes the optimiser exploits the error of the discretised integral: the loss
    falls while the density of other data does not rise. Measure by :func:`~sde_models.log_prob`
    with ``tol=``, and give more ``intervals`` where the two differ.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        solver: An ODE solver, as in :func:`~sde_models.log_prob`.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        generator: Source of the probes; torch's global one if None.
        **options: Those of :func:`~sde_models.log_prob`, such as ``divergence``, ``rtol`` and
            ``intervals``. ``gradient`` is "direct" unless it is given.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If the model has dropout or batch normalisation in training mode, and what
            :func:`~sde_models.log_prob` raises.
        TypeError: If ``x0`` is not a floating tensor.

    Reference:
        Chen et al. 2018, Neural ordinary differential equations, arXiv:1806.07366; Song et al.
        2021, section 4.3, arXiv:2011.13456.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE())
        >>> x0 = torch.randn(4, 2)
        >>> loss = maximum_likelihood_loss(model, x0, rtol=1e-2, atol=1e-2, intervals=12)
        >>> loss.backward()
    """
    given = check_options(maximum_likelihood_loss, options, LogProbOptions)
    settled: LogProbOptions = {"gradient": "direct", **given, "estimate_solver_error": False}
    found = log_prob(model, x0, solver, cond=cond, generator=generator, **settled)
    return -found.value.mean()
