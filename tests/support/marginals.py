"""A mixture whose flow and marginals are known in closed form, at any event shape.

Its components differ in the first coordinate only, so the density is a product: a two-component
mixture in the first coordinate, one Gaussian in each other. The flow of a product acts on each
coordinate by itself, and in one dimension it keeps quantiles: F_t(x_t) = F_s(x_s).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import sde_models as sm

WEIGHTS = (0.4, 0.6)
FIRST_MEANS = (-1.0, 0.8)
FIRST_STDS = (0.3, 0.5)
FALSE_ALARM = 1e-6


class ProductMixture:
    """The mixture, its model, its exact flow map, and a test of samples against its marginals."""

    def __init__(self, sde: sm.GaussianSDE, event_shape: tuple[int, ...]) -> None:
        size = math.prod(event_shape)
        means = torch.linspace(-0.5, 0.5, size, dtype=torch.float64).repeat(2, 1)
        stds = torch.linspace(0.4, 0.9, size, dtype=torch.float64).repeat(2, 1)
        means[:, 0] = torch.tensor(FIRST_MEANS)
        stds[:, 0] = torch.tensor(FIRST_STDS)
        self.sde, self.event_shape = sde, event_shape
        self.means, self.stds = means, stds
        self.weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        self.mixture = sm.GaussianMixture(means, stds, self.weights)
        self.model = self.mixture.score_model(sde, event_shape)

    def flow(self) -> sm.ProbabilityFlow:
        """The system to solve."""
        return sm.ProbabilityFlow(self.model)

    def sample(self, n: int, t: float, generator: torch.Generator) -> Tensor:
        """Exact samples of the marginal at time ``t``."""
        x = self.mixture.diffuse(self.sde, t).sample(n, generator=generator)
        return x.reshape(n, *self.event_shape)

    def flow_map(self, x: Tensor, t0: float, t1: float) -> Tensor:
        """Where the exact probability flow carries ``x`` from ``t0`` to ``t1``."""
        flat = x.flatten(1)
        mean0, std0 = (v[0] for v in self._scaled(t0))
        mean1, std1 = (v[0] for v in self._scaled(t1))
        end = mean1 + std1 / std0 * (flat - mean0)
        end[:, 0] = self._quantile(self._cdf(flat[:, 0], t0), t1)
        return end.reshape(x.shape)

    def spread(self, t: float) -> float:
        """Largest standard deviation of a coordinate at time ``t``."""
        return float(self.mixture.diffuse(self.sde, t).covariance().diagonal().max().sqrt())

    def check_marginal(self, x: Tensor, t: float, bias: float) -> None:
        """Compare samples with the marginal at ``t``, coordinate by coordinate.

        Each coordinate becomes uniform under its exact distribution function; mean and variance
        of the uniforms are compared with 1/2 and 1/12. Exact samples fail this with probability
        ``FALSE_ALARM`` at most (normal approximation, Bonferroni over coordinates and moments).
        ``bias`` is what the discretisation may add, in standard deviations of a uniform.
        """
        flat = x.flatten(1)
        means, stds = self._scaled(t)
        uniform = torch.special.ndtr((flat - means[0]) / stds[0])
        uniform[:, 0] = self._cdf(flat[:, 0], t)
        n, size = flat.shape
        tail = FALSE_ALARM / (4 * size)
        z = float(torch.special.ndtri(torch.tensor(1 - tail, dtype=torch.float64)))
        std = math.sqrt(1 / 12)
        centred = (uniform - 0.5) / std
        mean_error = centred.mean(0).abs().max()
        # the square of a standardised uniform has variance 9/5 - 1
        variance_error = (centred.square().mean(0) - 1).abs().max()
        assert mean_error < bias + z / math.sqrt(n), f"mean off by {mean_error:.3f} at t={t:g}"
        assert variance_error < bias + z * math.sqrt(0.8 / n), (
            f"variance off by {variance_error:.3f} at t={t:g}"
        )

    def _scaled(self, t: float) -> tuple[Tensor, Tensor]:
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        return alpha * self.means, (alpha**2 * self.stds**2 + sigma**2).sqrt()

    def _cdf(self, x: Tensor, t: float) -> Tensor:
        means, stds = self._scaled(t)
        z = (x[:, None] - means[:, 0]) / stds[:, 0]
        return (self.weights * torch.special.ndtr(z)).sum(1)

    def _quantile(self, level: Tensor, t: float) -> Tensor:
        means, stds = self._scaled(t)
        reach = 12 * float(stds.max()) + float(means.abs().max())
        low, high = torch.full_like(level, -reach), torch.full_like(level, reach)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = self._cdf(middle, t) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)
