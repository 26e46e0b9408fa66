r"""Bits per dimension of data on integer levels, such as images.

Level k of L is a cell of real numbers, and a density p gives an image the probability of its cell.
For any density q over the cell (:mod:`sde_models.data.cell_densities`)

.. math:: \log P(k) = \log \int_{cell(k)} p(y)\,dy
          \ge E_q \log \frac{1}{K} \sum_{i=1}^{K} \frac{p(y_i)}{q(y_i)} .

The bound rises with K to the truth. With a transform T to the space that the model was trained in,
:math:`\log p(y) = \log p_z(T(y)) + \log |\det \partial T / \partial y|`.

References:
    Theis et al. 2016, A note on the evaluation of generative models, arXiv:1511.01844; Burda et al.
    2016, Importance weighted autoencoders, arXiv:1509.00519; Zheng et al. 2023, arXiv:2305.03935.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.distributions import Transform, identity_transform

from sde_models._utils.counting import Cost, HasCost, count_evaluations
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import Source, as_source, independent_parts
from sde_models._utils.shapes import check_batch
from sde_models._utils.standard_errors import standard_error
from sde_models.data.cell_densities import Dequantization, find_dequantization
from sde_models.data.dequantization import DATA_RANGE, check_data_range, check_levels
from sde_models.likelihood.errors import Errors
from sde_models.likelihood.log_densities import LogProb, log_prob
from sde_models.likelihood.settings import LogProbOptions
from sde_models.models.base import Model, check_model
from sde_models.solvers import Solver
from sde_models.solvers.options import check_options


@dataclass(frozen=True)
class BitsPerDim(HasCost):
    """Bits per dimension of a set of images, an upper bound in expectation, and its errors.

    Attributes:
        value: Mean over the images, scalar.
        stderr: Standard error of ``value`` over images, dequantisation and probes together,
            scalar; NaN for one image.
        per_image: Bits per dimension of each image, shape ``(B,)``.
        errors: Errors of ``per_image``, over all draws.
        log_prob: The log-densities of the last draw, with their own errors, in the space of the
            model.
        cost: What they cost over all draws, for each image; ``nfe`` and ``vjps`` are shorthands.
        dequantization_stderr: Standard error of ``value`` for these images from the draws alone,
            scalar; NaN for one repeat. It includes noise of probes that ``probe_stderr`` does not
            know.
        probe_stderr: Standard error of ``value`` for these images from the probes and the shifts of
            the nodes alone, scalar; NaN for a single probe fixed for the full path.
        solver_error: Error of ``value`` from the steps, scalar: the mean of those of the images,
            which may all have one sign.
    """

    value: Tensor
    stderr: Tensor
    per_image: Tensor
    errors: Errors
    log_prob: LogProb
    cost: Cost
    dequantization_stderr: Tensor
    probe_stderr: Tensor
    solver_error: Tensor


def bits_per_dim(
    model: Model,
    images: Tensor,
    levels: int = 256,
    dequantization: str | Dequantization = "uniform",
    *,
    importance_samples: int = 1,
    repeats: int = 1,
    transform: Transform | None = None,
    data_range: tuple[float, float] | None = None,
    solver: str | Solver | None = None,
    cond: Mapping[str, Any] | None = None,
    generator: Source = None,
    **options: Unpack[LogProbOptions],
) -> BitsPerDim:
    """Compute bits per dimension of images on integer levels.

    Args:
        model: What gives the score.
        images: Levels 0 to ``levels - 1``, shape ``(B, *event)``, of an integer dtype or integers
            in a floating one.
        levels: Number of levels: 256 for bytes.
        dequantization: "uniform" for models trained on uniformly dequantised data,
            "truncated-normal" for models trained on data at the centres of the cells, or an
            object. Both bound the same probability; the one that fits is tighter.
        importance_samples: Draws K in a bound, which is tighter the more there are, with the exact
            trace or with enough probes: errors of the log-densities of variance v, in nats, lower
            the bits of many draws by v/2 nats.
        repeats: Independent bounds for each image, which are averaged; ``dequantization_stderr``
            is computed from their spread. Each draw of each repeat is a solve.
        transform: From data in ``data_range`` to the space that the model was trained in, such as
            ``sm.data.LogitTransform()``; none if None.
        data_range: Range that the levels are mapped to: level k is the k-th of ``levels`` equal
            parts of it. If None ``model.data_range``, or -1 and 1 where that is None or a
            transform is given, since it holds in the space of the model.
        solver: An ODE solver in :func:`~sde_models.list_solvers`.
        generator: Source of the dequantisation and the probes; torch's global one if None. With a
            sequence each image has its own, and its bits do not depend on the others.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        **options: Those of :func:`~sde_models.log_prob`.

    Raises:
        TypeError: If ``images`` is no tensor of numbers, or ``transform`` no transform of torch.
        ValueError: If the images leave their levels, counts are below 1, for an unknown
            dequantisation, a transform that is not bijective or not made for ``data_range`` or
            "truncated-normal", and whatever :func:`~sde_models.log_prob` raises.

    Example:
        >>> model = sm.GaussianMixture(torch.zeros(1, 4), 0.5).score_model(sm.VPSDE())
        >>> images = torch.randint(0, 16, (8, 4))
        >>> bits_per_dim(model, images, levels=16).per_image.shape
        torch.Size([8])
    """
    check_model(model)
    options = check_options(bits_per_dim, options, LogProbOptions)
    check_levels(images, levels)
    source = as_source(generator, len(images))
    draws = check_integer("importance_samples", importance_samples)
    bounds = check_integer("repeats", repeats)
    density = find_dequantization(dequantization, model.sde)
    to_model = _check_transform(transform, density)
    own = model.data_range if transform is None else None
    spread_over = check_data_range(data_range or own or DATA_RANGE)
    images = images.to(model.device)
    dtype = torch.promote_types(model.dtype, torch.float32)

    def draw() -> tuple[Tensor, LogProb]:
        """Log of p(y) / q(y) for a point y of each cell."""
        filled = [
            density.draw(images[rows].clone(), levels, spread_over, stream, dtype)
            for rows, stream in independent_parts(source, len(images))
        ]
        y, log_q = (torch.cat(column) for column in zip(*filled, strict=True))
        z, log_det = _change_of_variables(to_model, y)
        found = log_prob(model, z, solver, cond=cond, generator=source, **options)
        return found.value + (log_det - log_q), found

    with count_evaluations() as counter:
        found = [_Bound.of(draw() for _ in range(draws)) for _ in range(bounds)]
    return _summary(found, images[0].numel(), counter.cost(len(images)))


def bits_from_log_prob(log_prob: Tensor, size: int, level_width: float) -> Tensor:
    r"""Turn log-densities of dequantised data into bits per dimension.

    .. math:: -\frac{1}{D \ln 2}\left(\log p(x) + D \log w\right)

    Args:
        log_prob: Log-densities in nats.
        size: Number of dimensions D.
        level_width: Width w of a level in units of x.
    """
    return -(log_prob + size * math.log(level_width)) / (size * math.log(2))


@dataclass(frozen=True)
class _Bound:
    """A bound on log P from K draws, in nats, with its errors to first order, all ``(B,)``."""

    value: Tensor
    errors: Errors
    last: LogProb

    @classmethod
    def of(cls, draws: Iterable[tuple[Tensor, LogProb]]) -> _Bound:
        """Take the mean of the importance weights, whose logarithms the draws are."""
        columns = []
        for log_weight, last in draws:
            sources = last.stderr, last.solver_error, last.quadrature_error
            columns.append((log_weight, *(source.detach() for source in sources)))
        log_weights, *errors = (torch.stack(column) for column in zip(*columns, strict=True))
        share = log_weights.detach().softmax(0)
        value = log_weights.logsumexp(0) - math.log(len(log_weights))
        return cls(value, _mean_errors(share, *errors), last)


def _mean_errors(shares: Tensor, stderr: Tensor, steps: Tensor, quadrature: Tensor) -> Errors:
    """Errors of weighted sums: those of steps may have one sign, the others are independent."""
    return Errors(
        stderr=torch.linalg.vector_norm(shares * stderr, dim=0),
        solver_error=(shares * steps).sum(0),
        quadrature_error=torch.linalg.vector_norm(shares * quadrature, dim=0),
    )


def _summary(bounds: list[_Bound], size: int, cost: Cost) -> BitsPerDim:
    """Average the bounds on each image, and the images."""
    values = torch.stack([bound.value for bound in bounds], dim=1)
    per_image = bits_from_log_prob(values.mean(1), size, 1.0)
    unit = size * math.log(2)
    sources = (
        torch.stack([getattr(bound.errors, field.name) for bound in bounds]) / unit
        for field in fields(Errors)
    )
    errors = _mean_errors(torch.full_like(values.detach().T, 1 / len(bounds)), *sources)
    random = torch.hypot(errors.stderr, errors.quadrature_error / 2)
    probes = random.square().mean() / len(values)
    spread = standard_error(values.detach()).square().mean() / len(values) / unit**2
    return BitsPerDim(
        value=per_image.mean(),
        stderr=standard_error(per_image[None].detach())[0],
        per_image=per_image,
        errors=errors,
        log_prob=bounds[-1].last,
        cost=cost,
        # The spread of the repeats includes that of their probes.
        dequantization_stderr=(spread - probes.nan_to_num()).clamp_min(0).sqrt(),
        probe_stderr=probes.sqrt(),
        solver_error=errors.solver_error.mean(),
    )


def _check_transform(transform: Any, density: Dequantization) -> Transform:
    """The transform, or the identity for none; refuse what cannot be one.

    Raises:
        TypeError: If it is no transform of torch.
        ValueError: If it is not bijective, or the dequantisation has no meaning with it.
    """
    if transform is None:
        return identity_transform
    if not isinstance(transform, Transform):
        raise TypeError(
            "transform must be a torch.distributions.Transform such as sm.data.LogitTransform(), "
            f"got {transform!r}"
        )
    if not transform.bijective:
        raise ValueError(f"transform must be bijective, {transform!r} is not")
    if density.in_model_space:
        raise ValueError(
            f"{density!r} has the shape of the model's noise, which a transform= distorts: use "
            "dequantization='uniform' with it"
        )
    return transform


def _change_of_variables(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where a transform takes a batch, and the log of its determinant, shape ``(B,)``.

    Raises:
        ValueError: If it is not made for these numbers, or gives none that are finite.
    """
    if not bool(torch.as_tensor(transform.domain.check(y.clone())).all()):
        raise ValueError(
            f"transform {transform!r} takes numbers in {transform.domain}, got images with "
            f"numbers from {float(y.min()):.4g} to {float(y.max()):.4g}: give another data_range="
        )
    z = transform(y.clone()).clone()
    check_batch(z, name="the batch of transformed images")
    log_det: Tensor = transform.log_abs_det_jacobian(y.clone(), z.clone())
    return z, log_det.reshape(len(y), -1).sum(1)
