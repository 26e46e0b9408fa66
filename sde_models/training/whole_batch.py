"""Losses whose random numbers are drawn for the whole batch, whoever computes which part of it.

A batch may be split over processes and over the steps of an accumulation. A loss with a method
``draw`` draws times and noise for all of it, alike everywhere, and is then evaluated part by part;
so the split changes nothing but rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from sde_models.losses import WEIGHTINGS, TimeSampler, denoising_score_matching, draw_times
from sde_models.randomness import standard_normal_like


class Loss(Protocol):
    """A scalar to be minimised, such as :func:`~sde_models.losses.denoising_score_matching`."""

    def __call__(
        self, model: Any, x0: Tensor, *, generator: torch.Generator | None, **cond: Any
    ) -> Tensor:
        """Mean loss over the samples of a batch."""


class WholeBatchLoss(Protocol):
    """A loss that is told its random numbers as keywords, beside those that any loss is given."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Mean loss over the samples of a part of a batch."""

    def draw(self, model: Any, like: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw what the loss needs, each with one row for each sample of ``like``."""


@dataclass(frozen=True)
class Denoising:
    """Denoising score matching, part by part.

    Args:
        weighting: As in :func:`~sde_models.losses.denoising_score_matching`.
        times: As there.
    """

    weighting: str = "output"
    times: str | TimeSampler | None = None

    def draw(self, model: Any, like: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Times, their inverse densities and noise."""
        times = self.times or WEIGHTINGS[self.weighting].times
        t, inverse_density = draw_times(model.sde, like, times, generator=generator)
        noise = standard_normal_like(like, generator)
        return {"t": t, "inverse_density": inverse_density, "noise": noise}

    def __call__(
        self, model: Any, x0: Tensor, *, generator: torch.Generator | None,
        t: Tensor, inverse_density: Tensor, noise: Tensor, **cond: Any,
    ) -> Tensor:  # fmt: skip
        """Mean over the samples of this part."""
        return denoising_score_matching(
            model, x0, noise=noise, weighting=self.weighting, generator=generator,
            times=lambda sde, u: (t, inverse_density), **cond,
        )  # fmt: skip


@dataclass(frozen=True)
class OwnNumbers:
    """Any other loss: it draws for each part anew, from a generator of that part."""

    loss: Loss

    def draw(self, model: Any, like: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(
        self, model: Any, x0: Tensor, *, generator: torch.Generator | None, **cond: Any
    ) -> Tensor:
        """Mean over the samples of this part."""
        return self.loss(model, x0, generator=generator, **cond)


def for_whole_batch(loss: Loss) -> WholeBatchLoss:
    """Make a loss draw for the whole batch, where it is known how.

    Args:
        loss: With a method ``draw`` it is taken as it is; denoising score matching, or a
            ``functools.partial`` of it with ``weighting`` and ``times``, is given one.

    Example:
        >>> for_whole_batch(sm.losses.denoising_score_matching)
        Denoising(weighting='output', times=None)
    """
    if hasattr(loss, "draw"):
        return cast(WholeBatchLoss, loss)
    bare, chosen = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    if bare is denoising_score_matching and chosen.keys() <= {"weighting", "times"}:
        return Denoising(**chosen)
    return OwnNumbers(loss)
