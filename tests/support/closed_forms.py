"""What several test files hold the library against: SDEs, mixtures, exact flows and moments.

A statistical test here has a fixed seed and a stated false-alarm rate: the probability, over
seeds, that a correct library fails it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torchdiffeq import odeint

from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE
from sde_models.sdes.gaussian import GaussianSDE

F64 = torch.float64
Coefficient = Callable[[Tensor, Tensor], Tensor]


class OnlyScales(GaussianSDE):
    """The alpha and sigma of another SDE and nothing else, so that the base derives the rest."""

    def __init__(self, other: GaussianSDE) -> None:
        super().__init__(t_min=other.t_min, t_max=other.t_max, data_std=other.data_std)
        self.alpha, self.sigma = other.alpha, other.sigma


class Hyperbolic(GaussianSDE):
    """A user's own: alpha = 1 / (1 + t), sigma = (1 + 20 t) / 20, on [0, 2]; VP nowhere."""

    def __init__(self) -> None:
        super().__init__(t_min=0.0, t_max=2.0, data_std=0.7)

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 / (1 + torch.as_tensor(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return 0.05 + torch.as_tensor(t)


BUILT_IN: list[GaussianSDE] = [
    VPSDE(data_std=0.7),
    SubVPSDE(data_std=0.7),
    VESDE(data_std=0.7),
    CosineSDE(data_std=0.7),
    FlowMatchingSDE(data_std=0.7),
]
SDES: list[GaussianSDE] = [*BUILT_IN, Hyperbolic()]


def name_of(value: object) -> str:
    """Name an SDE or any other object by its class in the name of a test."""
    return value if isinstance(value, str) else type(value).__name__


every_sde = pytest.mark.parametrize("sde", SDES, ids=name_of)
every_built_in = pytest.mark.parametrize("sde", BUILT_IN, ids=name_of)


def some_times(sde: GaussianSDE, dtype: torch.dtype = F64) -> Tensor:
    """Both ends of the span and times between, closer together near the ends; increasing."""
    near = [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.35]
    fractions = torch.tensor([*near, 0.5, *(1 - v for v in reversed(near))], dtype=F64)
    times = sde.t_min + (sde.t_max - sde.t_min) * fractions
    return times.clamp(sde.t_min, sde.t_max).to(dtype)


def spread(sde: GaussianSDE, t: Tensor, std: Tensor | float) -> Tensor:
    """Standard deviation at time t of data N(m, std^2): sqrt(alpha^2 std^2 + sigma^2)."""
    return torch.hypot(sde.alpha(t) * std, sde.sigma(t))


@dataclass(frozen=True)
class Reference:
    """A Gaussian mixture under an SDE, as torch.distributions writes it and autograd its score.

    Attributes:
        means: Shape ``(K, D)``.
        covariances: Shape ``(K, D, D)``.
        weights: Shape ``(K,)``.
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor

    def at(self, sde: GaussianSDE, t: Tensor) -> MixtureSameFamily:
        """Law of x_t; a distribution for each sample where ``t`` has shape ``(B,)``."""
        alpha, sigma = sde.alpha(t)[..., None], sde.sigma(t)[..., None, None, None]
        noise = sigma.square() * torch.eye(self.means.shape[1], dtype=F64)
        covariances = alpha[..., None, None].square() * self.covariances + noise
        components = MultivariateNormal(alpha[..., None] * self.means, covariances)
        weights = self.weights.expand(components.batch_shape)
        return MixtureSameFamily(Categorical(probs=weights), components)

    def log_density(self, sde: GaussianSDE, t: Tensor, x: Tensor) -> Tensor:
        """Log-density at time t of points ``(B, *event)``, shape ``(B,)``."""
        return self.at(sde, t).log_prob(x.flatten(1))

    def score(self, sde: GaussianSDE, t: Tensor, x: Tensor) -> Tensor:
        """Gradient of the log-density, shape of ``x``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.log_density(sde, t, x).sum(), x)[0]

    def eps_and_x0(self, sde: GaussianSDE, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means by Tweedie's formula, each of the shape of ``x``."""
        ones = (1,) * (x.ndim - 1)
        alpha, sigma = sde.alpha(t).reshape(-1, *ones), sde.sigma(t).reshape(-1, *ones)
        score = self.score(sde, t, x)
        return -sigma * score, (x + sigma.square() * score) / alpha

    def points(
        self, sde: GaussianSDE, event_shape: tuple[int, ...], dtype: torch.dtype = F64
    ) -> tuple[Tensor, Tensor]:
        """Each of `some_times`, with a point drawn at it."""
        t = some_times(sde, dtype)
        return t, self.at(sde, t.to(F64)).sample().reshape(-1, *event_shape).to(dtype)


def exact_flow(
    sde: GaussianSDE, mean: Tensor, std: Tensor | float, t0: float, t1: float, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Carry x from t0 to t1 along the probability flow of data N(mean, diag(std^2)).

    A Gaussian keeps its quantiles: (x_t - alpha_t m) / S_t stands still, with S of `spread`.

    Args:
        sde: Forward SDE.
        mean: Event-shaped.
        std: A number, or event-shaped.
        t0: Time of ``x``.
        t1: Time wanted.
        x: Points of shape ``(B, *event)``.

    Returns:
        The points at t1 and the log-determinant of the map, a scalar.
    """
    start, end = torch.tensor(t0, dtype=x.dtype), torch.tensor(t1, dtype=x.dtype)
    stretch = spread(sde, end, std) / spread(sde, start, std)
    moved = sde.alpha(end) * mean + stretch * (x - sde.alpha(start) * mean)
    return moved, stretch.log().expand(x.shape[1:]).sum()


def _affine(f: Coefficient, g: Coefficient, t: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    """Drift at the mean, its slope, and g^2, of a drift that is affine coordinate by coordinate."""
    pair = torch.stack([mean, mean + 1])
    drift = f(t, pair)
    return drift[0], drift[1] - drift[0], g(t, pair)[0].square()


def exact_moments(
    f: Coefficient, g: Coefficient, mean: Tensor, variance: Tensor, ts: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance at each of ``ts`` of dx = f dt + g dB with affine drift.

    They solve m' = f(t, m) and V' = 2 f_x V + g^2; no simulation, no false alarms.

    Args:
        f: Drift as torchsde calls it, on a state of shape ``(B, D)``.
        g: Diffusion as torchsde calls it.
        mean: Mean at ``ts[0]``, shape ``(D,)``.
        variance: Variance of each coordinate at ``ts[0]``, shape ``(D,)``.
        ts: Increasing times.
    """

    def rate(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        drift, slope, noise = _affine(f, g, t.clamp(ts[0], ts[-1]), state[0])
        return drift, 2 * slope + noise / state[1].exp()

    means, log_variances = odeint(
        rate, (mean, variance.log()), ts, rtol=1e-10, atol=1e-10, options={"step_t": ts}
    )
    return means, log_variances.exp()


def euler_moments(
    f: Coefficient, g: Coefficient, mean: Tensor, variance: Tensor, ts: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of what Euler-Maruyama, stepping from each of ``ts`` to the next, draws.

    Their distance to the exact moments is the bias to allow for in a simulation.
    """
    means, variances = [mean], [variance]
    for t, dt in zip(ts[:-1], ts.diff(), strict=True):
        drift, slope, noise = _affine(f, g, t, means[-1])
        means.append(means[-1] + dt * drift)
        variances.append((1 + dt * slope).square() * variances[-1] + dt * noise)
    return torch.stack(means), torch.stack(variances)


def assert_moments(
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    *,
    false_alarm: float,
    mean_bias: Tensor | float = 0.0,
    covariance_bias: Tensor | float = 0.0,
) -> None:
    """Assert that independent samples have this mean and this covariance.

    Every mean and every entry of the covariance is a normal test against its own standard error,
    with the false-alarm rate shared out among them.

    Args:
        x: Samples, shape ``(n, *event)``, independent of one another.
        mean: Shape ``(D,)``.
        covariance: Shape ``(D, D)``, or ``(D,)`` for a diagonal one.
        false_alarm: Probability of failing where all is well.
        mean_bias: Difference to allow for, broadcastable against ``mean``.
        covariance_bias: Difference to allow for, broadcastable against ``covariance``.
    """
    x = x.detach().to(F64).flatten(1)
    n, dim = x.shape
    if covariance.ndim == 1:
        covariance, covariance_bias = covariance.diag(), torch.as_tensor(covariance_bias)
        covariance_bias = covariance_bias.expand(dim).diag()
    threshold = float(ndtri(1 - false_alarm / (dim * (dim + 3))))  # two-sided, D(D+3)/2 tests
    centred = x - mean
    products = centred[:, :, None] * centred[:, None]
    for what, value, wanted, bias in (
        ("mean", x, mean, mean_bias),
        ("covariance", products, covariance, covariance_bias),
    ):
        error = (value.mean(0) - wanted).abs()
        allowed = threshold * value.std(0) / math.sqrt(n) + bias
        assert bool((error <= allowed).all()), f"{what} off by {error} with {allowed} allowed"


def assert_distribution(
    x: Tensor, cdf: Callable[[Tensor], Tensor], *, false_alarm: float, bias: float = 0.0
) -> None:
    """Assert that independent numbers x, shape ``(n,)``, have this distribution function.

    By the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart the rate holds for every n.
    """
    x = x.detach().to(F64).sort().values
    n, wanted = len(x), cdf(x)
    rank = torch.arange(n + 1, dtype=F64) / n
    distance = float(torch.maximum((wanted - rank[:-1]).abs(), (rank[1:] - wanted).abs()).max())
    allowed = math.sqrt(math.log(2 / false_alarm) / (2 * n)) + bias
    assert distance <= allowed, f"Kolmogorov distance {distance:.4f} with {allowed:.4f} allowed"
