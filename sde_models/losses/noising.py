"""Noised data at which objectives are evaluated, and the mean over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sde_models._utils.randomness import standard_normal_like
from sde_models._utils.shapes import Time, as_time, check_batch
from sde_models._utils.split_batches import draw_rows, pool_rows
from sde_models.losses.times import TimeSampler, draw_times, find_times
from sde_models.models.base import Model
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.grids import times_of_sigmas


@dataclass(frozen=True)
class NoisedBatch:
    """Data with noise at some times.

    Attributes:
        sde: Forward SDE.
        x0: Data, shape ``(B, *event)``.
        noise: Standard normal numbers, shape of ``x0``.
        t: Times, scalar or ``(B,)``.
        inverse_density: One over the density of ``t``, shape of ``t``.
        xt: Noised data, shape of ``x0``.
        times: The sampler of the times; None if they were given.
        generator: Source of the times and the noise.
    """

    sde: GaussianSDE
    x0: Tensor
    noise: Tensor
    t: Tensor
    inverse_density: Tensor
    xt: Tensor
    times: TimeSampler | None = None
    generator: torch.Generator | None = None

    def copied(self) -> NoisedBatch:
        """A copy, whose tensors a user's function may change in place."""
        names = ("x0", "noise", "t", "inverse_density", "xt")
        return replace(self, **{name: getattr(self, name).clone() for name in names})

    def mean(self, errors: Tensor) -> Tensor:
        """The mean of the terms of a loss, shape ``(B, *event)`` or ``(B,)``.

        Times that learn observe the terms if gradients are enabled.
        """
        terms = errors.reshape(len(errors), -1).mean(1)
        observe = getattr(self.times, "observe", None)
        if observe is not None and torch.is_grad_enabled():
            shown = torch.stack((self.t.detach(), terms.detach().to(self.t)))
            pool_rows(shown, self.generator, lambda rows: observe(self.sde, *rows))
        return terms.mean()


@dataclass(frozen=True)
class NoiseLevels:
    """The noise to be added to data; see :func:`denoising_score_matching` for the meanings."""

    t: Time | None = None
    noise: Tensor | None = None
    sigma: float | None = None
    times: str | TimeSampler | None = None
    stratified: bool = True
    generator: torch.Generator | None = None

    def apply(
        self, model: Model, x0: Tensor, default: str, divides_by_density: bool = False
    ) -> NoisedBatch:
        """Noise the data.

        Args:
            model: Whose SDE it is.
            x0: Data, shape ``(B, *event)``.
            default: Times if none are given.
            divides_by_density: Whether the loss is divided by the density of the times.

        Raises:
            TypeError: If ``x0`` is not floating, or the SDE has no Gaussian kernel.
            ValueError: For shapes that do not fit, NaN, times out of range, more than one of
                ``t``, ``sigma`` and ``times``, and times that do not go with the weighting.
        """
        check_batch(x0, model.event_shape, "x0")
        sde = kernel_of(model)
        named = {"t": self.t, "sigma": self.sigma, "times": self.times}
        given = [name for name, value in named.items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]} and {given[1]} both set the noise levels: give one of them, not both"
            )
        sampler = None
        if self.t is None and self.sigma is None:
            sampler = find_times(self.times or default)
            if getattr(sampler, "divides_by_density", False) and not divides_by_density:
                raise ValueError(
                    f"{type(sampler).__name__} is for a loss that is divided by the density of its "
                    "times: use weighting='likelihood', since elsewhere the times are part of the "
                    "weighting"
                )
            draw = partial(_draw_both, sde, sampler, self.stratified)
            t, inverse_density = draw_rows(draw, x0, self.generator, dim=1)
        else:
            at = time_of_sigma(sde, self.sigma) if self.sigma is not None else self.t
            assert at is not None
            sde.check_times(as_time(at))
            t = as_time(at, x0)
            inverse_density = torch.full_like(t, sde.t_max - sde.t_min)
        noise = self.noise
        if noise is None:
            noise = draw_rows(standard_normal_like, x0, self.generator)
        xt = sde.perturb(t, x0, noise)
        return NoisedBatch(sde, x0, noise, t, inverse_density, xt, sampler, self.generator)


def _draw_both(
    sde: GaussianSDE,
    times: TimeSampler,
    stratified: bool,
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Times and their inverse densities, shape ``(2, B)``."""
    return torch.stack(draw_times(sde, like, times, stratified=stratified, generator=generator))


def time_of_sigma(sde: GaussianSDE, sigma: float) -> Tensor:
    r"""The time at which :math:`\sigma_t / \alpha_t` has a value, a scalar in float64.

    Raises:
        ValueError: If the SDE does not reach it.
    """
    return times_of_sigmas(sde, [float(sigma)])[0]


def kernel_of(model: Model) -> GaussianSDE:
    """The SDE of a model, which must have a Gaussian kernel.

    Raises:
        TypeError: If it has none.
    """
    if not isinstance(model.sde, GaussianSDE):
        raise TypeError(
            f"noising data at once needs the Gaussian kernel of a GaussianSDE, "
            f"{type(model.sde).__name__} has none: use sm.losses.simulated_score_matching"
        )
    return model.sde
