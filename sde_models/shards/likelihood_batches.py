"""The likelihood of a batch, with random numbers that follow from its place in the dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Transform

from sde_models._utils.conditions import Conditions
from sde_models._utils.seeds import generator_at
from sde_models.data.cell_densities import Dequantization
from sde_models.likelihood.bits_per_dimension import bits_per_dim
from sde_models.likelihood.log_densities import log_prob
from sde_models.likelihood.settings import TraceOptions
from sde_models.models.base import Model
from sde_models.solvers import Solver
from sde_models.solvers.options import StepOptions

RESULTS = ("value", "stderr", "solver_error", "quadrature_error")
"""Names of the results of each sample."""


class EvaluateOptions(TraceOptions, StepOptions, total=False):
    """Options of the functions that compute likelihoods, which document them."""

    solver: str | Solver | None
    dequantization: str | Dequantization
    importance_samples: int
    repeats: int
    transform: Transform | None
    data_range: tuple[float, float] | None


@dataclass(frozen=True)
class Batches:
    """The likelihood of one batch, with random numbers of its own.

    Attributes:
        model: What gives the score.
        levels: Number of levels, or None for densities.
        seed: Seed of the evaluation.
        options: Those of the function that computes it.
    """

    model: Model
    levels: int | None
    seed: int
    options: EvaluateOptions

    def run(self, first: int, x: Tensor, cond: Conditions) -> dict[str, Tensor]:
        """Results by name, each of shape ``(B,)``, of the samples from ``first`` on."""
        generator = generator_at(self.seed, first)
        device = self.model.device
        x = x.to(device)
        cond = cond.mapped(lambda value: value.to(device))
        options: dict[str, Any] = {**self.options}
        if self.levels is None:
            density = log_prob(self.model, x, cond=cond, generator=generator, **options)
            value, bits = density.value, 1.0
        else:
            images = bits_per_dim(
                self.model, x, self.levels, cond=cond, generator=generator, **options
            )
            value, density = images.per_image, images.log_prob
            bits = 1 / (x[0].numel() * math.log(2))
        return {"value": value.detach().cpu()} | {
            name: bits * getattr(density, name).detach().cpu() for name in RESULTS[1:]
        }
