"""Sliced score matching by finite differences: no derivative of the score is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import as_conditions
from sde_models._utils.shapes import Time, per_sample
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Field
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.losses.integrated import mean_objective
from sde_models.losses.noising import NoisedBatch, NoiseLevels
from sde_models.losses.times import TimeSampler
from sde_models.losses.weightings import Weighting
from sde_models.models.base import Model


def finite_difference_sliced(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    sigma: float | None = None,
    step: float = 0.05,
    probes: int = 1,
    distribution: str = "rademacher",
    weighting: str | Weighting = "simple",
    times: str | TimeSampler | None = None,
    stratified: bool = True,
    generator: torch.Generator | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""Sliced score matching with the score at two points in place of its derivative.

    With :math:`s_\pm = s(t, x_t \pm h v)` and :math:`E\, v v^\top = I`, averaged over samples and
    coordinates,

    .. math:: \frac1D E\,\lambda(t) \Big[ \frac{v^\top (s_+ - s_-)}{2 h}
              + \tfrac18 |s_+ + s_-|^2 \Big],

    which is the variance-reduced :func:`sliced_score_matching` up to :math:`O(h^2)`. Each probe
    takes two independent evaluations.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        t: Times, scalar or ``(B,)``; drawn if None.
        noise: Standard normal numbers, shape of ``x0``; drawn if None.
        sigma: A single noise level :math:`\sigma / \alpha` in place of ``t``.
        step: The step h in units of the noise :math:`\sigma_t`, the scale on which the score of
            diffused data varies. A smaller one has less bias and, in float32, more rounding.
        probes: Directions v for each sample.
        distribution: Of v: "rademacher", "gaussian" or "sphere".
        weighting: As in :func:`implicit_score_matching`.
        times: As in :func:`denoising_score_matching`.
        stratified: Whether times are drawn in strata or independently of each other.
        generator: Source of times, noise and probes; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`.

    Returns:
        The loss, a scalar; it may be negative.

    Raises:
        TypeError: If ``x0`` is not floating, or the SDE has no Gaussian kernel.
        ValueError: As in :func:`sliced_score_matching`, and if ``step`` is not positive.

    Reference:
        Pang et al. 2020, Efficient learning of generative models via finite-difference score
        matching, arXiv:2007.03317.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE())
        >>> with sm.count_evaluations() as counter:
        ...     loss = finite_difference_sliced(model, torch.randn(8, 2))
        >>> counter.calls, counter.vjps
        (2, 0)
    """
    if not 0 < step < math.inf:
        raise ValueError(f"step must be positive and finite, got {step!r}")
    drawer = Hutchinson(probes, distribution)

    def objective(score: Field, batch: NoisedBatch) -> Tensor:
        h = step * batch.sde.sigma(batch.t)
        values = []
        for probe in draw_rows(drawer.draw, batch.xt, generator, dim=1):
            shift = per_sample(h, batch.xt) * probe
            ahead, behind = score(batch.xt + shift), score(batch.xt - shift)
            slope = (probe * (ahead - behind)).flatten(1).sum(1) / (2 * h)
            values.append(slope + (ahead + behind).flatten(1).square().sum(1) / 8)
        return torch.stack(values).mean(0)

    levels = NoiseLevels(t, noise, sigma, times, stratified, generator)
    return mean_objective(
        model, x0, objective, levels, weighting, as_conditions(cond, len(x0), x0.device)
    )
