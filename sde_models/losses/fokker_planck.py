r"""How far a model is from the score of a diffusion.

Densities that follow the forward SDE obey the Fokker-Planck equation, and so for their score

.. math:: \partial_t s = \nabla \Big[ \tfrac12 g^2 \big( \nabla \cdot s + |s|^2 \big)
          - f \cdot s - \nabla \cdot f \Big] .
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from sde_models._utils.conditions import as_conditions
from sde_models._utils.counting import record_vjps
from sde_models._utils.shapes import Time, as_time, check_batch, leaf_copy, per_sample
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import Divergence
from sde_models.divergence.registry import find_divergence
from sde_models.losses.noising import NoisingOptions, add_noise
from sde_models.losses.times import log_snr_rate
from sde_models.models.base import Model
from sde_models.solvers.options import check_options


def fokker_planck_residual(
    model: Model,
    t: Time,
    x: Tensor,
    *,
    divergence: str | Divergence = "exact",
    generator: torch.Generator | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""The norm of the residual of the score Fokker-Planck equation, for each sample.

    It is zero for the exact score of diffused data, under any SDE whose g depends on t alone. With
    the exact trace it takes D + 2 products and their derivatives; with an estimated trace it is the
    norm of a random vector whose mean is the residual.

    Args:
        model: What gives the score.
        t: Time in ``[t_min, t_max]``, scalar or ``(B,)``.
        x: Where, shape ``(B, *event)``.
        divergence: Trace of the score's Jacobian, as in :func:`implicit_score_matching`.
        generator: Source of probes; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`.

    Returns:
        Shape ``(B,)``, in units of one over length and time. It carries a graph to the
        parameters if gradients are enabled.

    Raises:
        TypeError: If ``x`` is not floating.
        ValueError: If a shape does not fit, a time is out of range, or g depends on the state.

    Reference:
        Lai et al. 2023, FP-Diffusion, arXiv:2210.04296.

    Example:
        >>> model = sm.GaussianMixture([[-1.0], [1.0]], 0.5).score_model(sm.VPSDE())
        >>> x = torch.zeros(1, 1, dtype=torch.float64)
        >>> bool(fokker_planck_residual(model, 0.5, x) < 1e-8)
        True
    """
    check_batch(x, model.event_shape)
    residual = _residual(model, t, x, divergence, generator, cond)
    return torch.linalg.vector_norm(residual.flatten(1), dim=1)


def fokker_planck_penalty(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    divergence: str | Divergence = "exact",
    **options: Unpack[NoisingOptions],
) -> Tensor:
    r"""The mean square of the residual at noised data, to be added to a loss.

    The residual r is measured in units of the noise and of the log-SNR l:
    :math:`|\sigma\, r\, dt/dl|^2`, averaged over samples and coordinates. So it has no unit, and
    all noise levels count.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        t: Times, scalar or ``(B,)``; drawn if None, uniform in the log-SNR.
        noise: Standard normal numbers, shape of ``x0``; drawn if None.
        divergence: As in :func:`fokker_planck_residual`. The square of an estimate is too large on
            average, by its variance.
        **options: ``sigma``, ``times``, ``stratified``, ``generator`` and ``cond``, as in
            :func:`denoising_score_matching`; the generator draws the probes too.

    Returns:
        The penalty, a scalar.

    Raises:
        TypeError: If ``x0`` is not floating, or the SDE has no Gaussian kernel.
        ValueError: As in :func:`implicit_score_matching`.

    Reference:
        Lai et al. 2023, FP-Diffusion, arXiv:2210.04296.

    Example:
        >>> def loss(model, x0, *, generator=None):
        ...     fit = sm.losses.denoising_score_matching(model, x0, generator=generator)
        ...     return fit + 0.01 * fokker_planck_penalty(model, x0, generator=generator)
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> loss(sm.ScoreModel(network, sm.VPSDE()), torch.randn(8, 2)).backward()
    """
    options = check_options(fokker_planck_penalty, options, NoisingOptions)
    batch, given = add_noise(model, x0, t, noise, "log-snr", **options)
    residual = _residual(model, batch.t, batch.xt, divergence, batch.generator, given)
    unit = batch.sde.sigma(batch.t) / log_snr_rate(batch.sde, batch.t)
    return batch.mean((per_sample(unit, residual) * residual).square())


def _residual(
    model: Model,
    t: Time,
    x: Tensor,
    divergence: str | Divergence,
    generator: torch.Generator | None,
    cond: Mapping[str, Any] | None,
) -> Tensor:
    """The left side of the equation minus the right one, shape of ``x``.

    With the velocity u of the probability flow the right side is that of the continuity equation,
    minus the gradient of div u + u . s.
    """
    estimator = find_divergence(divergence, x[0].numel(), along_a_path=False)
    sde = model.sde
    sde.check_reversible()
    given = as_conditions(cond, len(x), x.device)
    keep_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        point, clock = leaf_copy(x), leaf_copy(as_time(t, x).expand(len(x)))
        time = clock.detach()
        half_square = 0.5 * sde.g(time, x).square()
        scores = []

        def velocity(y: Tensor) -> Tensor:
            scores.append(model.score(clock, y, **given))
            return sde.f(time, y) - half_square * scores[-1]

        probes = draw_rows(estimator.draw, x.clone(), generator, dim=1)
        flow, trace = estimator(velocity, point, probes)
        score = scores[0]
        lost = trace.value + (flow * score).flatten(1).sum(1)
        record_vjps(2 * len(x))
        (gradient,) = torch.autograd.grad(
            lost.sum(), point, create_graph=keep_graph, retain_graph=True
        )
        residual = _time_derivative(score, clock, keep_graph) + gradient
    return residual if keep_graph else residual.detach()


def _time_derivative(values: Tensor, t: Tensor, keep_graph: bool) -> Tensor:
    """The derivative of values ``(B, *event)`` with respect to times ``(B,)``.

    A product with the transposed Jacobian is linear in its vector, and the derivative of that is
    a product with the Jacobian itself: reverse mode alone suffices.
    """
    vector = torch.zeros_like(values, requires_grad=True)
    products: tuple[Tensor | None, ...] = torch.autograd.grad(
        values, t, vector, create_graph=True, allow_unused=True
    )
    product = products[0]
    if product is None:  # values that do not depend on t
        return torch.zeros_like(values)
    (derivative,) = torch.autograd.grad(product.sum(), vector, create_graph=keep_graph)
    return derivative
