r"""Implicit score matching, with the trace of the score's Jacobian.

The squared error of a score against the unknown :math:`\nabla \log p`, integrated by parts, is

.. math:: \tfrac12 E |s - \nabla \log p|^2 = E\,[\, \nabla \cdot s + \tfrac12 |s|^2 \,] + const .

Other objectives replace the term in brackets by one that is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from torch import Tensor

from sde_models._utils.shapes import Time
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Divergence, Field
from sde_models.divergence.registry import find_divergence
from sde_models.losses.noising import NoisedBatch, NoisingOptions, add_noise
from sde_models.losses.weightings import Weighting, find_weighting
from sde_models.models.base import Model
from sde_models.solvers.options import check_options

Objective = Callable[[Field, NoisedBatch], Tensor]
"""A function J of a score, shape ``(B,)``, at the noised points of a batch."""


def implicit_score_matching(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    divergence: str | Divergence = "exact",
    weighting: str | Weighting = "simple",
    **options: Unpack[NoisingOptions],
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
        divergence: "exact", "hutchinson", "hutch++", "xtrace" or an object such as
            ``sm.Hutchinson(4)``; see :func:`~sde_models.log_prob`.
        weighting: "simple" (:math:`\lambda = \sigma^2`), "edm", "min-snr" or "likelihood", or an
            object, as in :func:`denoising_score_matching`.
        **options: ``sigma``, ``times``, ``stratified``, ``generator`` and ``cond``, as in
            :func:`denoising_score_matching`; the generator draws the probes too.

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
    options = check_options(implicit_score_matching, options, NoisingOptions)

    def objective(score: Field, batch: NoisedBatch) -> Tensor:
        estimator = find_divergence(divergence, batch.xt[0].numel(), along_a_path=False)
        probes = draw_rows(estimator.draw, batch.xt.clone(), batch.generator, dim=1)
        value, trace = estimator(score, batch.xt, probes)
        return trace.value + 0.5 * value.flatten(1).square().sum(1)

    return mean_objective(model, x0, objective, t, noise, weighting, **options)


def mean_objective(
    model: Model,
    x0: Tensor,
    objective: Objective,
    t: Time | None,
    noise: Tensor | None,
    weighting: str | Weighting,
    **options: Unpack[NoisingOptions],
) -> Tensor:
    r"""The mean of :math:`\lambda J / D` over data, noise and times, a scalar."""
    found = find_weighting(weighting)
    batch, cond = add_noise(model, x0, t, noise, found.times, found.divides_by_density, **options)
    weight = found.score_weight(batch) / x0[0].numel()
    values = objective(lambda x: model.score(batch.t, x, **cond), batch)
    return batch.mean(weight * values)
