r"""A model's probability flow as a distribution of torch.

With z from the prior at ``t_max`` and x its decoding,

.. math:: \log p(x) = \log p_{t_{max}}(z) - \log \Big| \det \frac{\partial x}{\partial z} \Big| .
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from sde_models._utils.randomness import Source
from sde_models.likelihood.log_densities import log_prob
from sde_models.models.base import Model, check_model, find_event_shape
from sde_models.sampling.latents import decode, encode


class LatentTransform(Transform):
    """The bijection from latents to data along the probability flow.

    Args:
        model: What gives the score.
        event_shape: Shape of one sample.
        solve: Arguments of :func:`~sde_models.encode` and :func:`~sde_models.decode`.
        density: Arguments of :func:`~sde_models.log_prob`.
    """

    bijective = True

    def __init__(
        self,
        model: Model,
        event_shape: Sequence[int],
        *,
        solve: dict[str, Any] | None = None,
        density: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(cache_size=0)
        self.model, self.event_shape = model, torch.Size(event_shape)
        self.solve = dict(solve or {})
        self.density = dict(density or {})

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """All latents."""
        return constraints.independent(constraints.real, len(self.event_shape))

    codomain = domain

    def _call(self, x: Tensor) -> Tensor:
        return self._by_batch(lambda z: decode(self.model, z, **self.solve).x, x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._by_batch(lambda x: encode(self.model, x, **self.solve).z, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the absolute determinant of the Jacobian of ``y``, decoded from ``x``."""
        return self.prior.log_prob(x.reshape(-1, *self.event_shape).clone()).reshape(
            self._batch(x)
        ) - self.log_prob(y)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-density of data under the decoded prior, shape of the batch."""
        batch = self._batch(y)
        if not batch.numel():
            return y.new_empty(batch)
        flat = y.reshape(-1, *self.event_shape)
        return log_prob(self.model, flat, **self.density).value.reshape(batch)

    @property
    def prior(self) -> Any:
        """The distribution of the latents."""
        return self.model.sde.prior(tuple(self.event_shape))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LatentTransform)
            and other.model is self.model
            and other.event_shape == self.event_shape
        )

    def __hash__(self) -> int:
        return hash((id(self.model), self.event_shape))

    def _batch(self, x: Tensor) -> torch.Size:
        return x.shape[: x.ndim - len(self.event_shape)]

    def _by_batch(self, function: Any, x: Tensor) -> Tensor:
        if not self._batch(x).numel():
            return x.clone()
        found: Tensor = function(x.reshape(-1, *self.event_shape))
        return found.reshape(x.shape)


class ScoreDistribution(Distribution):
    r"""The distribution of the decoded prior, with exact likelihoods.

    Samples are decoded along the probability flow, so that ``log_prob`` is their density, whatever
    the score.

    Args:
        model: What gives the score.
        event_shape: Shape of one sample; that of the model if None.
        batch_shape: Shape of independent copies.
        solve: Arguments of :func:`~sde_models.encode` and :func:`~sde_models.decode`, such as
            ``{"rtol": 1e-6}``.
        density: Arguments of :func:`~sde_models.log_prob`, such as ``{"tol": 0.05}``.
        validate_args: As for every distribution of torch.

    Raises:
        ValueError: If no event shape is known.

    Example:
        >>> model = sm.GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.5).score_model(sm.VPSDE())
        >>> dist = ScoreDistribution(model)
        >>> dist.log_prob(dist.sample((3,))).shape
        torch.Size([3])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch has it)
    has_rsample = True

    def __init__(
        self,
        model: Model,
        event_shape: Sequence[int] | None = None,
        batch_shape: Sequence[int] = (),
        *,
        solve: dict[str, Any] | None = None,
        density: dict[str, Any] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_model(model)
        shape = find_event_shape(model, event_shape)
        self.transform = LatentTransform(model, shape, solve=solve, density=density)
        super().__init__(torch.Size(batch_shape), torch.Size(shape), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """All numbers."""
        return self.transform.codomain

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ScoreDistribution:
        """The same with another batch shape."""
        new: Any = self._get_checked_instance(ScoreDistribution, _instance)  # type: ignore[no-untyped-call]
        new.transform = self.transform
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = (), generator: Source = None) -> Tensor:
        """Draw samples, shape ``(*sample_shape, *batch_shape, *event)``, without a graph.

        Args:
            sample_shape: Shape of samples for each entry of the batch.
            generator: Source of randomness; a sequence has one for each sample, in the order in
                which the result holds them.
        """
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def rsample(self, sample_shape: Sequence[int] = (), generator: Source = None) -> Tensor:
        """Draw samples with a graph to the parameters of the model, if these require a gradient."""
        shape = self._extended_shape(torch.Size(sample_shape))
        count = shape[: len(shape) - len(self.event_shape)].numel()
        model = self.transform.model
        dtype = torch.promote_types(model.dtype, torch.float32)
        z = self.transform.prior.sample(
            (count,), generator=generator, dtype=dtype, device=model.device
        )
        if not count:
            return z.reshape(shape)
        solve = dict(self.transform.solve)
        if torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters()):
            solve.setdefault("gradient", "direct")
        return decode(model, z, **solve).x.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, shape ``(*sample_shape, *batch_shape)``."""
        if self._validate_args and value.numel():
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, (*self.batch_shape, *self.event_shape))
        return self.transform.log_prob(value.expand(shape))
