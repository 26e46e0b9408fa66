"""Noised data at which objectives are evaluated, and the mean over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number, check_switch
from sde_models._utils.conditions import Conditions, as_conditions
from sde_models._utils.randomness import standard_normal_like
from sde_models._utils.shapes import Time, as_time, check_batch
from sde_models._utils.split_batches import draw_rows, pool_rows
from sde_models.losses.times import TimeSampler, draw_times, find_times
from sde_models.models.base import Model, check_model
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.grids import times_of_sigmas


class NoisingOptions(TypedDict, total=False):
    """Options that most losses have in common; :func:`denoising_score_matching` documents them."""

    sigma: float | None
    times: str | TimeSampler | None
    stratified: bool
    generator: torch.Generator | None
    cond: Mapping[str, Any] | None


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


def add_noise(
    model: Model,
    x0: Tensor,
    t: Time | None,
    noise: Tensor | None,
    usual_times: str,
    divides_by_density: bool = False,
    *,
    sigma: float | None = None,
    times: str | TimeSampler | None = None,
    stratified: bool = True,
    generator: torch.Generator | None = None,
    cond: Mapping[str, Any] | None = None,
) -> tuple[NoisedBatch, Conditions]:
    """Noise data, and give the conditions of the batch; as :func:`denoising_score_matching` says.

    Args:
        model: Whose SDE it is.
        x0: Data, shape ``(B, *event)``.
        t: Times.
        noise: Standard normal numbers.
        usual_times: Times if none are given.
        divides_by_density: Whether the loss is divided by the density of the times.
    """
    check_model(model)
    check_batch(x0, model.event_shape, "x0")
    check_switch("stratified", stratified)
    sde = model.sde
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"noising data at once needs the Gaussian kernel of a GaussianSDE, "
            f"{type(sde).__name__} has none: use sm.losses.simulated_score_matching"
        )
    named = {"t": t, "sigma": sigma, "times": times}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"{given[0]} and {given[1]} both set the noise levels: give one of them, not both"
        )
    if sigma is not None:
        t = times_of_sigmas(sde, [as_number("sigma", sigma)])[0]
    if t is not None:
        sampler = None
        sde.check_times(as_time(t))
        clock = as_time(t, x0)
        inverse_density = torch.full_like(clock, sde.t_max - sde.t_min)
    else:
        sampler = chosen = find_times(times or usual_times)
        if getattr(sampler, "divides_by_density", False) and not divides_by_density:
            raise ValueError(
                f"{type(sampler).__name__} is for a loss that is divided by the density of its "
                "times: use weighting='likelihood', since elsewhere the times are part of the "
                "weighting"
            )

        def draw(like: Tensor, source: torch.Generator | None) -> Tensor:
            return torch.stack(
                draw_times(sde, like, chosen, stratified=stratified, generator=source)
            )

        clock, inverse_density = draw_rows(draw, x0, generator, dim=1)
    if noise is not None and not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a tensor of the shape of x0, got {type(noise).__name__}")
    if noise is None:
        noise = draw_rows(standard_normal_like, x0, generator)
    xt = sde.perturb(clock, x0, noise)
    batch = NoisedBatch(sde, x0, noise, clock, inverse_density, xt, sampler, generator)
    return batch, as_conditions(cond, len(x0), x0.device)
