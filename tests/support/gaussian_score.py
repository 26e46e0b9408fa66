"""A model of two parameters whose every objective has a known minimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde_models._utils.counting import record_call
from sde_models._utils.shapes import per_sample
from sde_models.models.base import Model
from sde_models.sdes.gaussian import GaussianSDE


class GaussianScore(Model):
    """The score of diffused data N(m, v I), with m and log v to be learned."""

    def __init__(self, sde: GaussianSDE, mean: Tensor, variance: float) -> None:
        super().__init__(sde, tuple(mean.shape))
        self.mean = nn.Parameter(mean.clone())
        self.log_variance = nn.Parameter(torch.tensor(variance, dtype=mean.dtype).log())

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        record_call(len(x))
        sde = self._gaussian()
        alpha, sigma = per_sample(sde.alpha(t), x), per_sample(sde.sigma(t), x)
        variance = alpha.square() * self.log_variance.exp() + sigma.square()
        standardised = (x - alpha * self.mean) / variance
        return self.mean + alpha * self.log_variance.exp() * standardised, sigma * standardised
