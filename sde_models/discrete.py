r"""Bits per dimension of data that live on levels, such as images.

With levels k in 0, ..., L - 1 and u uniform on [0, 1), the dequantised
:math:`x = low + (high - low)(k + u)/L` has a density, and

.. math:: \log_2 P(k) \ge E_u \log_2 p(x) + D \log_2 \frac{high - low}{L} .

Reference:
    Theis et al. 2016, A note on the evaluation of generative models, arXiv:1511.01844.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models.data.dequantization import check_levels, dequantize
from sde_models.divergence import standard_error
from sde_models.errors import nearest_names
from sde_models.likelihood import LogProb, log_prob
from sde_models.models import Model, check_model
from sde_models.solvers import Solver


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of a set of images, an upper bound in expectation.

    Attributes:
        value: Mean over the images, scalar.
        stderr: Standard error of ``value`` over images, dequantisation and probes together,
            scalar; NaN for one image.
        per_image: Bits per dimension of each image, shape ``(B,)``.
        log_prob: The log-densities of the dequantised images, with their own errors.
        nfe: Network forward passes, each on the whole batch.
        vjps: Vector-Jacobian products, each on the whole batch.
    """

    value: Tensor
    stderr: Tensor
    per_image: Tensor
    log_prob: LogProb
    nfe: int
    vjps: int


def bits_per_dim(
    model: Model,
    images: Tensor,
    levels: int = 256,
    dequantization: str = "uniform",
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    solver: str | Solver = "adams-batch",
    generator: torch.Generator | None = None,
    **arguments: Any,
) -> BitsPerDim:
    """Compute bits per dimension of images on integer levels.

    Args:
        model: What gives the score, trained on dequantised data in ``data_range``.
        images: Levels 0 to ``levels - 1``, shape ``(B, *event)``, of an integer dtype or of whole
            numbers in a floating one.
        levels: Number of levels: 256 for bytes.
        dequantization: "uniform".
        data_range: What the levels are mapped to: level k fills the k-th of ``levels`` equal
            parts of it.
        solver: An ODE solver in :func:`~sde_models.solvers`.
        generator: Source of the dequantisation and the probes; torch's global one if None.
        **arguments: Those of :func:`~sde_models.log_prob`, and conditioning.

    Raises:
        TypeError: If ``images`` are not whole numbers.
        ValueError: If they leave their levels, for an unknown dequantisation, and whatever
            :func:`~sde_models.log_prob` raises.

    Example:
        >>> model = sm.GaussianMixture(torch.zeros(1, 4), 0.5).score_model(sm.VPSDE())
        >>> images = torch.randint(0, 16, (8, 4))
        >>> bits_per_dim(model, images, levels=16).per_image.shape
        torch.Size([8])
    """
    if dequantization != "uniform":
        raise ValueError(
            f"unknown dequantization {dequantization!r}; "
            f"{nearest_names(dequantization, ['uniform'])}"
        )
    check_model(model)
    check_levels(images, levels)
    x = dequantize(
        images.to(model.device), levels,
        data_range=data_range, generator=generator,
        dtype=torch.promote_types(model.dtype, torch.float32),
    )  # fmt: skip
    density = log_prob(model, x, solver, generator=generator, **arguments)
    low, high = data_range
    per_image = bits_from_log_prob(density.value, x[0].numel(), (high - low) / levels)
    return BitsPerDim(
        value=per_image.mean(),
        stderr=standard_error(per_image[None].detach())[0],
        per_image=per_image,
        log_prob=density,
        nfe=density.nfe,
        vjps=density.vjps,
    )


def bits_from_log_prob(log_prob: Tensor, size: int, level_width: float) -> Tensor:
    r"""Turn log-densities of dequantised data into bits per dimension.

    .. math:: -\frac{1}{D \ln 2}\left(\log p(x) + D \log w\right)

    Args:
        log_prob: Log-densities in nats.
        size: Number of dimensions D.
        level_width: Width w of a level in units of x.
    """
    return -(log_prob + size * math.log(level_width)) / (size * math.log(2))
