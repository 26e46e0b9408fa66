"""Training by the likelihood itself, through the probability flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_models.likelihood.log_densities import log_prob
from sde_models.models.base import Model
from sde_models.solvers import Solver


def maximum_likelihood_loss(
    model: Model,
    x0: Tensor,
    solver: str | Solver = "adams-batch",
    *,
    gradient: str = "direct",
    generator: torch.Generator | None = None,
    **arguments: Any,
) -> Tensor:
    r"""Minus the mean log-density of the data under the probability flow, in nats.

    .. math:: -E \log p_0(x_0)

    The score is trained as a continuous normalising flow. A step costs a whole solve and its
    gradient, so this is for fine-tuning. The loss of denoising with ``weighting="likelihood"`` is
    the cheap bound on the likelihood of the reverse SDE.

    With a few steps or nodes the optimiser learns to deceive the rule that is differentiated: the
    loss falls and the density of other data does not rise. Measure by :func:`~sde_models.log_prob`
    with ``tol=``, and give more ``nodes`` where the two part.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        solver: An ODE solver, as in :func:`~sde_models.log_prob`.
        gradient: "direct" or "adjoint", as in :func:`~sde_models.solve`.
        generator: Source of the probes; torch's global one if None.
        **arguments: Others of :func:`~sde_models.log_prob`, such as ``divergence``, ``rtol`` and
            ``nodes``, and conditioning.

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
        >>> loss = maximum_likelihood_loss(model, torch.randn(4, 2), rtol=1e-2, atol=1e-2, nodes=12)
        >>> loss.backward()
    """
    found = log_prob(
        model, x0, solver,
        gradient=gradient, generator=generator, estimate_solver_error=False, **arguments,
    )  # fmt: skip
    return -found.value.mean()
