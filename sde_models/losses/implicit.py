"""Implicit score matching, with the trace of the score's Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import as_conditions
from sde_models._utils.shapes import Time
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Divergence, Field
from sde_models.divergence.registry import find_divergence
from sde_models.losses.integrated import mean_objective
from sde_models.losses.noising import NoisedBatch, NoiseLevels
from sde_models.losses.times import TimeSampler
from sde_models.losses.weightings import Weighting
from sde_models.models.base import Model


def implicit_score_matching(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    sigma: float | None = None,
    divergence: str | Divergence = "exact",
    weighting: str | Weighting = "simple",
    times: str | TimeSampler | None = None,
    stratified: bool = True,
    generator: torch.Generator | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""Implicit score matching of the diffused data, averaged over samples and coordinates.

    .. math:: \frac1D E\,\lambda(t) \Big[ \nabla \cdot s(t, x_t) + \tfrac12 |s(t, x_t)|^2 \Big]

    Twice this has the gradient of denoising score matching with the same weighting, on average.
    The exact trace takes D vector-Jacobian products for each step, and keeps the graphs of all of
    them for the gradient: beyond some hundred numbers take :func:`sliced_score_matching`.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        t: Times, scalar or ``(B,)``; drawn if None. The smallest, ``model.sde.t_min``, with
            ``noise=torch.zeros_like(x0)`` takes the data as they are.
        noise: Standard normal numbers, shape of ``x0``; drawn if None.
        sigma: A single noise level :math:`\sigma / \alpha` in place of ``t``.
        divergence: "exact", "hutchinson", "hutch++", "xtrace" or an object such as
            ``sm.Hutchinson(4)``; see :func:`~sde_models.log_prob`.
        weighting: "simple" (:math:`\lambda = \sigma^2`), "edm", "min-snr" or "likelihood", or an
            object, as in :func:`denoising_score_matching`.
        times: As in :func:`denoising_score_matching`.
        stratified: Whether times are drawn in strata or independently of each other.
        generator: Source of times, noise and probes; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`.

    Returns:
        The loss, a scalar; it may be negative.

    Raises:
        TypeError: If ``x0`` is not floating, or the SDE has no Gaussian kernel.
        ValueError: For unknown names, the weighting "output", events that are too large for the
            exact trace, and what :func:`denoising_score_matching` refuses.

    Reference:
        Hyvarinen 2005, Estimation of non-normalized statistical models by score matching.

    Example:
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> x0 = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        >>> noise = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        >>> implicit_score_matching(model, x0, 1.0, noise)  # s = -x: -1 + 1/2
        tensor(-0.5...)
    """

    def objective(score: Field, batch: NoisedBatch) -> Tensor:
        estimator = find_divergence(divergence, batch.xt[0].numel(), along_a_path=False)
        probes = draw_rows(estimator.draw, batch.xt.clone(), generator, dim=1)
        value, trace = estimator(score, batch.xt, probes)
        return trace.value + 0.5 * value.flatten(1).square().sum(1)

    levels = NoiseLevels(t, noise, sigma, times, stratified, generator)
    return mean_objective(
        model, x0, objective, levels, weighting, as_conditions(cond, len(x0), x0.device)
    )
