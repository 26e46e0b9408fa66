"""The likelihood of a batch, with random numbers that follow from its place in the dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_models._utils.randomness import make_generator
from sde_models.likelihood.bits_per_dimension import bits_per_dim
from sde_models.likelihood.log_densities import log_prob
from sde_models.models.base import Model

RESULTS = ("value", "stderr", "solver_error", "quadrature_error")
"""Names of what is known of each sample."""


@dataclass(frozen=True)
class Batches:
    """The likelihood of one batch, with random numbers of its own.

    Attributes:
        model: What gives the score.
        levels: Number of levels, or None for densities.
        seed: Seed of the evaluation.
        arguments: Those of the verb.
    """

    model: Model
    levels: int | None
    seed: int
    arguments: dict[str, Any]

    def run(self, first: int, x: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Results by name, each of shape ``(B,)``, of the samples from ``first`` on."""
        generator = make_generator(self.seed, first)
        device = self.model.device
        x = x.to(device)
        further: dict[str, Any] = {name: value.to(device) for name, value in cond.items()}
        if self.levels is None:
            density = log_prob(self.model, x, generator=generator, **self.arguments, **further)
            value, bits = density.value, 1.0
        else:
            images = bits_per_dim(
                self.model, x, self.levels, generator=generator, **self.arguments, **further
            )
            value, density = images.per_image, images.log_prob
            bits = 1 / (x[0].numel() * math.log(2))
        return {"value": value.detach().cpu()} | {
            name: bits * getattr(density, name).detach().cpu() for name in RESULTS[1:]
        }
