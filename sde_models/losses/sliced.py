"""Sliced score matching: the score compared along random directions."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from sde_models._utils.arguments import check_switch
from sde_models._utils.shapes import Time
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Field
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.losses.implicit import mean_objective
from sde_models.losses.noising import NoisedBatch, NoisingOptions
from sde_models.losses.weightings import Weighting
from sde_models.models.base import Model
from sde_models.solvers.options import check_options


def sliced_score_matching(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    probes: int = 1,
    distribution: str = "rademacher",
    variance_reduced: bool = True,
    weighting: str | Weighting = "simple",
    **options: Unpack[NoisingOptions],
) -> Tensor:
    r"""Sliced score matching of the diffused data, averaged over samples and coordinates.

    .. math:: \frac1D E\,\lambda(t) \Big[ v^\top (\nabla s)\, v + \tfrac12 (v^\top s)^2 \Big],
              \qquad E\, v v^\top = I,

    or with :math:`\frac12 |s|^2`, the mean of the last term over v, in its place: the
    variance-reduced form. On average both are :func:`implicit_score_matching`. Each probe takes
    one vector-Jacobian product, whatever the dimension.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        t: Times, scalar or ``(B,)``; drawn if None.
        noise: Standard normal numbers, shape of ``x0``; drawn if None.
        probes: Directions v for each sample.
        distribution: Of v: "rademacher", "gaussian" or "sphere".
        variance_reduced: Whether the second term is averaged over v exactly.
        weighting: As in :func:`implicit_score_matching`.
        **options: ``sigma``, ``times``, ``stratified``, ``generator`` and ``cond``, as in
            :func:`denoising_score_matching`; the generator draws the probes too.

    Returns:
        The loss, a scalar; it may be negative.

    Raises:
        TypeError: If ``x0`` is not floating, or the SDE has no Gaussian kernel.
        ValueError: As in :func:`implicit_score_matching`, and if ``probes`` is below 1.

    Reference:
        Song et al. 2019, Sliced score matching, arXiv:1905.07088.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE())
        >>> loss = sliced_score_matching(model, torch.randn(8, 2), sigma=0.5)
        >>> loss.backward()
    """
    options = check_options(sliced_score_matching, options, NoisingOptions)
    estimator = Hutchinson(probes, distribution)
    check_switch("variance_reduced", variance_reduced)

    def objective(score: Field, batch: NoisedBatch) -> Tensor:
        return sliced_objective(score, batch.xt, estimator, variance_reduced, batch.generator)

    return mean_objective(model, x0, objective, t, noise, weighting, **options)


def sliced_objective(
    score: Field,
    x: Tensor,
    estimator: Hutchinson,
    variance_reduced: bool,
    generator: torch.Generator | None,
) -> Tensor:
    r"""The values :math:`v^\top (\nabla s) v + \frac12 (v^\top s)^2`, shape ``(B,)``."""
    probes = draw_rows(estimator.draw, x, generator, dim=1)
    value, trace = estimator(score, x, probes)
    if variance_reduced:
        squares = value.flatten(1).square().sum(1)
    else:
        squares = (probes * value).flatten(2).sum(2).square().mean(0)
    return trace.value + 0.5 * squares
