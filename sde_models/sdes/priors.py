"""Distributions at the noise end of a diffusion: the Gaussian, and the interface of any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from sde_models._utils.arguments import check_positive
from sde_models._utils.randomness import Source, as_source, standard_normal
from sde_models._utils.split_batches import draw_rows


class Prior(Protocol):
    """The methods that a distribution at ``t_max`` must have."""

    def sample(
        self, sample_shape: Sequence[int], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats."""


class IsotropicGaussian(Distribution):
    r"""Isotropic Gaussian :math:`N(0, s^2 I)` over events of any shape.

    A ``torch.distributions.Distribution`` whose :meth:`sample` also takes a generator, so that
    the same seed gives the same sample.

    Args:
        event_shape: Shape of one sample.
        std: Standard deviation :math:`s` of each coordinate.

    Raises:
        ValueError: If ``std`` is not positive and finite.

    Example:
        >>> prior = IsotropicGaussian((1, 8, 8), 2.0)
        >>> prior.sample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    arg_constraints = {}  # noqa: RUF012 (as in torch)
    support = constraints.real
    has_rsample = False

    def __init__(self, event_shape: Sequence[int], std: float) -> None:
        self.std = check_positive("std", std)
        super().__init__(event_shape=torch.Size(event_shape), validate_args=False)

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        generator: Source = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw samples of shape ``(*sample_shape, *event_shape)``.

        Raises:
            TypeError, ValueError: For a ``generator`` that is neither one nor one for each sample.
        """
        count = math.prod(sample_shape)

        def draw(like: Tensor, own: torch.Generator | None) -> Tensor:
            return standard_normal(like.shape, generator=own, dtype=dtype, device=device)

        shapes = torch.empty((count, *self.event_shape), device="meta")
        noise = draw_rows(draw, shapes, as_source(generator, count))
        return self.std * noise.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, shape of ``value`` without its event dimensions.

        Raises:
            ValueError: If ``value`` does not end in the event shape.
        """
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ValueError(
                f"value has shape {tuple(value.shape)}, expected (..., "
                f"{', '.join(map(str, self.event_shape))}) for events of shape "
                f"{tuple(self.event_shape)}"
            )
        batch = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape(*batch, self.event_shape.numel())
        constant = flat.shape[-1] * math.log(self.std * math.sqrt(2 * math.pi))
        return -0.5 * (flat / self.std).square().sum(-1) - constant

    @property
    def stddev(self) -> Tensor:
        return torch.full(self.event_shape, self.std)

    @property
    def variance(self) -> Tensor:
        return self.stddev.square()

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.event_shape)

    def __repr__(self) -> str:
        return f"IsotropicGaussian(event_shape={tuple(self.event_shape)}, std={self.std:g})"


def check_prior(prior: Any, method: str) -> Any:
    """Return a prior, or None; refuse one without a method that is needed."""
    if prior is not None and not hasattr(prior, method):
        raise TypeError(
            f"prior must be an object with {method}, such as a distribution of torch over events, "
            f"got {prior!r}"
        )
    return prior
