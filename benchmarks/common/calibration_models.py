"""Models whose log-densities are known, by closed forms or by an independent solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common.sampler_problems import digits_model
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import sde_models as sm
from sde_models.sdes.priors import Prior

T_MIN = 1e-3


@dataclass(frozen=True)
class Case:
    """A model, points, and their log-densities under its flow.

    Attributes:
        name: What it is.
        model: The model.
        x: Points, shape ``(B, *event)``.
        truth: Log-densities, float64.
        prior: The law at ``t_max``, None for that of the SDE.
        small: Whether the exact trace is cheap, so that all solvers are tried.
    """

    name: str
    model: sm.Model
    x: Tensor
    truth: Tensor
    prior: Prior | None = None
    small: bool = True


class RandomFeatures(nn.Module):
    """A random network of sines of the time, or of the log-SNR: the score of nothing."""

    def __init__(self, size: int, rate: float, sde: sm.GaussianSDE, seed: int, clock: str) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.sde, self.clock = sde, clock

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.rates = rate * torch.rand(16, generator=draw, dtype=torch.float64)
        self.first = normal(size + 32, 64) / math.sqrt(size + 32)
        self.second = normal(64, 64) / 8
        self.last = normal(64, size) / 8

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        time = t if self.clock == "t" else self.sde.log_snr(t)
        phase = time[:, None].to(x) * self.rates.to(x)
        hidden = torch.cat([x, phase.sin(), phase.cos()], 1) @ self.first.to(x)
        hidden = nn.functional.silu(nn.functional.silu(hidden) @ self.second.to(x))
        return x / (1 + 0.3 * x.square()) + hidden @ self.last.to(x)


class Line(nn.Module):
    """The noise of data near a line: a Jacobian that is c I plus rank one."""

    def __init__(self, size: int, sde: sm.GaussianSDE, width: float) -> None:
        super().__init__()
        direction = torch.randn(size, generator=torch.Generator().manual_seed(0)).double()
        self.sde, self.width, self.along = sde, width, direction / direction.norm()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        part = (x @ self.along)[:, None] * self.along
        near, far = ((alpha * s).square() + sigma.square() for s in (self.width, 1.0))
        return sigma * ((x - part) / near + part / far)


def typical(model: sm.Model, count: int, seed: int) -> Tensor:
    """Points typical of a flow, decoded with little accuracy, so that no solver made them."""
    generator = torch.Generator().manual_seed(seed)
    return sm.sample(model, (count, *model.event_shape), "heun-edm", steps=40,
                     generator=generator, dtype=torch.float64).x  # fmt: skip


def solved(model: sm.Model, x: Tensor, rtol: float = 1e-9) -> Tensor:
    """Log-densities by SciPy's DOP853 with the exact trace, in float64, by no code of the library.

    The state is scaled by alpha, and the clock is log sigma / alpha.
    """
    sde: Any = model.sde
    flat, size = x.double().flatten(1), x[0].numel()
    count = len(flat)
    ends = sde.times([sde.t_min, sde.t_max])
    first, last = (-0.5 * sde.log_snr(ends)).tolist()
    basis = torch.eye(size, dtype=torch.float64)

    def rate(clock: float, state: Any) -> Any:
        t = sde.t_from_log_snr(sde.times(-2 * clock)).double()
        t = t.clamp(sde.t_min, sde.t_max).expand(count)
        scale, level = float(sde.alpha(t[0])), math.exp(clock)
        y = torch.from_numpy(state[: count * size].copy()).reshape(count, size).requires_grad_()
        with torch.enable_grad():
            eps = model.eps(t, (scale * y).reshape(x.shape)).flatten(1)
            trace = torch.zeros(count, dtype=torch.float64)
            for i in range(size):
                (row,) = torch.autograd.grad((eps * basis[i]).sum(), y, retain_graph=True)
                trace += row[:, i]
        moved = level * eps.detach().flatten()
        return torch.cat([moved, level * trace]).numpy()

    scales = sde.alpha(ends).double().tolist()
    start = torch.cat([(flat / scales[0]).flatten(), torch.zeros(count, dtype=torch.float64)])
    found = solve_ivp(rate, (first, last), start.numpy(), method="DOP853", rtol=rtol, atol=rtol)
    end = torch.from_numpy(found.y[:, -1])
    z = scales[1] * end[: count * size].reshape(x.shape)
    change = size * math.log(scales[1] / scales[0]) + end[count * size :]
    prior = sde.prior(tuple(x.shape[1:]))
    return torch.as_tensor(prior.log_prob(z) + change)


def random_cases(points: int) -> Iterator[Case]:
    """Random networks, with features up to 300 radians."""
    for size, rate, clock in (
        (2, 30, "t"), (2, 100, "t"), (2, 300, "t"), (2, 20, "log-snr"), (6, 100, "t"),
        (6, 10, "log-snr"),
    ):  # fmt: skip
        sde = sm.VPSDE(t_min=T_MIN)
        network = RandomFeatures(size, rate, sde, seed=rate + size, clock=clock)
        model = sm.ScoreModel(network, sde, event_shape=(size,))
        x = typical(model, points, seed=rate)
        yield Case(f"random, {size}-D, {rate} rad in {clock}", model, x, solved(model, x))


def trained_cases(points: int) -> Iterator[Case]:
    """Small networks trained on toys, with all predictions."""
    for number, (data, prediction, sde) in enumerate(
        (
            ("two-moons", "eps", sm.VPSDE()), ("checkerboard", "v", sm.VPSDE()),
            ("pinwheel", "x0", sm.CosineSDE()), ("rings", "eps", sm.VESDE(sigma_max=20.0)),
            ("swiss-roll", "edm", sm.VESDE(sigma_max=20.0)),
        )
    ):  # fmt: skip
        torch.manual_seed(number)
        network = sm.nn.ResidualNetwork((2,), width=64, depth=2)
        how: Any = {"preconditioning": "edm"} if prediction == "edm" else {"prediction": prediction}
        model = sm.ScoreModel(network, sde, **how)
        x = sm.data.toy(data, 4000, generator=torch.Generator().manual_seed(0))
        sm.fit(model, x, steps=1000, progress=False, seed=number)
        precise = model.double().eval()
        points_of = typical(precise, points, seed=number)
        yield Case(f"{data}, {prediction}", precise, points_of, solved(precise, points_of))
    model = digits_model().eval()
    x = typical(model, max(16, points // 6), seed=1)
    yield Case("digits, EDM", model, x, solved(model, x, 1e-6), small=False)


def closed_cases(points: int) -> Iterator[Case]:
    """Mixtures, data near a line, and scales that float32 hardly resolves."""
    for size, make in ((2, sm.VPSDE), (8, sm.VESDE), (64, sm.VPSDE), (64, sm.FlowMatchingSDE)):
        yield _mixture(f"mixture, {size}-D, {make.__name__}", make(), size, points)
    for size in (256, 1024):
        yield _line(size, points)
    for name, center, width in (("far", 100.0, 0.01), ("tiny", 0.0, 1e-3)):
        yield _narrow(f"{name} mixture, float32", center, width, points)


def _mixture(name: str, sde: sm.GaussianSDE, size: int, points: int) -> Case:
    draw = torch.Generator().manual_seed(size)
    means = torch.randn(6, size, generator=draw, dtype=torch.float64)
    stds = 0.1 + 0.3 * torch.rand(6, generator=draw, dtype=torch.float64)
    mixture = sm.GaussianMixture(means, stds)
    data = mixture.diffuse(sde, sde.t_min)
    x = data.sample(points, generator=draw)
    prior = mixture.diffuse(sde, sde.t_max)
    return Case(name, mixture.score_model(sde), x, data.log_prob(x), prior, small=size < 64)


def _line(size: int, points: int) -> Case:
    sde, width = sm.VPSDE(), 0.01
    network = Line(size, sde, width)
    along, noise = network.along, torch.randn(points, size).double()
    part = (noise @ along)[:, None] * along
    x = part + width * (noise - part)
    ends = sde.times([sde.t_min, sde.t_max])
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    near, far = (((alpha * s).square() + sigma.square()).sqrt() for s in (width, 1.0))
    z = (far[1] / far[0]) * part + (near[1] / near[0]) * (x - part)
    growth = (far[1] / far[0]).log() + (size - 1) * (near[1] / near[0]).log()
    truth = -0.5 * z.square().sum(1) - 0.5 * size * math.log(2 * math.pi) + growth
    model = sm.ScoreModel(network, sde, event_shape=(size,))
    return Case(f"line, {size}-D", model, x, truth, small=False)


def _narrow(name: str, center: float, width: float, points: int) -> Case:
    sde, draw = sm.VPSDE(), torch.Generator().manual_seed(1)
    means = (center + 5 * width * torch.randn(3, 2, generator=draw)).float()
    precise, single = (
        sm.GaussianMixture(means.to(d), width) for d in (torch.float64, torch.float32)
    )
    data = precise.diffuse(sde, sde.t_min)
    x = data.sample(points, generator=draw).float()
    prior = single.diffuse(sde, sde.t_max)
    return Case(name, single.score_model(sde), x, data.log_prob(x.double()), prior)


KINDS: dict[str, Callable[[int], Iterator[Case]]] = {
    "random networks": random_cases,
    "trained networks": trained_cases,
    "closed forms": closed_cases,
}
