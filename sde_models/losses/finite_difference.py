"""Sliced score matching by finite differences: no derivative of the score is taken."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from sde_models._utils.arguments import check_positive
from sde_models._utils.shapes import Time, per_sample
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Field
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.losses.implicit import mean_objective
from sde_models.losses.noising import NoisedBatch, NoisingOptions
from sde_models.losses.weightings import Weighting
from sde_models.models.base import Model
from sde_models.solvers.options import check_options


def finite_difference_sliced(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    step: float = 0.05,
    probes: int = 1,
    distribution: str = "rademacher",
    weighting: str | Weighting = "simple",
    **options: Unpack[NoisingOptions],
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
        step: The step h in units of the noise :math:`\sigma_t`, the scale on which the score of
            diffused data varies. A smaller one has less bias and, in float32, more rounding.
        probes: Directions v for each sample.
        distribution: Of v: "rademacher", "gaussian" or "sphere".
        weighting: As in :func:`implicit_score_matching`.
        **options: ``sigma``, ``times``, ``stratified``, ``generator`` and ``cond``, as in
            :func:`denoising_score_matching`; the generator draws the probes too.

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
    options = check_options(finite_difference_sliced, options, NoisingOptions)
    step = check_positive("step", step)
    drawer = Hutchinson(probes, distribution)

    def objective(score: Field, batch: NoisedBatch) -> Tensor:
        h = step * batch.sde.sigma(batch.t)
        values = []
        for probe in draw_rows(drawer.draw, batch.xt, batch.generator, dim=1):
            shift = per_sample(h, batch.xt) * probe
            ahead, behind = score(batch.xt + shift), score(batch.xt - shift)
            slope = (probe * (ahead - behind)).flatten(1).sum(1) / (2 * h)
            values.append(slope + (ahead + behind).flatten(1).square().sum(1) / 8)
        return torch.stack(values).mean(0)

    return mean_objective(model, x0, objective, t, noise, weighting, **options)
