"""Score matching on simulated paths, on processes whose score is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm
from sde_models.losses.simulated import simulate

MEAN, VARIANCE = 1.5, 0.09


class OrnsteinUhlenbeck(sm.SDE):
    """dx = -x dt + sqrt(2) dB: from N(1.5, 0.09), N(1.5 e^-t, 0.09 e^-2t + 1 - e^-2t)."""

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        return -x

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x, math.sqrt(2))


def moments(t: Tensor) -> tuple[Tensor, Tensor]:
    return MEAN * torch.exp(-t), VARIANCE * torch.exp(-2 * t) - torch.expm1(-2 * t)


class Known(nn.Module):
    """The known score plus a line that is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        mean, variance = (m[:, None] for m in moments(t))
        return -(x - mean) / variance + self.slope * x + self.offset


def data(count: int, generator: torch.Generator | None = None) -> Tensor:
    noise = torch.randn(count, 1, dtype=torch.float64, generator=generator)
    return MEAN + math.sqrt(VARIANCE) * noise


def test_simulated_points_have_the_law_of_the_process() -> None:
    """Mean and variance of 40,000 standardised points, and uniform times; 4e-5 in all."""
    generator = torch.Generator().manual_seed(0)
    t, x = zip(
        *(simulate(OrnsteinUhlenbeck(), data(400, generator), 200, generator) for _ in range(100)),
        strict=True,
    )
    times, points = torch.cat(t), torch.cat(x)[:, 0]
    mean, variance = moments(times)
    z = (points - mean) / variance.sqrt()
    allowed = 4.2 / 200  # of the mean; the variance of z^2 is 2; the Euler steps shift by 1/400
    assert abs(float(z.mean())) < allowed + 0.005
    assert abs(float(z.square().mean()) - 1) < 1.5 * allowed + 0.005
    assert float(times.min()) >= 0
    assert float(times.max()) <= 1
    # One offset is shared by the 400 times of a draw: 100 independent ones, of width 1/200.
    assert abs(float(times.mean()) - 0.5) < 4.2 / 200 / math.sqrt(12 * 100) + 1e-3


def test_the_known_score_is_the_minimiser() -> None:
    """No line added lowers the loss: z-tests of two numbers, false alarm 1e-6, on 60 batches."""
    generator = torch.Generator().manual_seed(1)
    model, gradients = sm.ScoreModel(Known(), OrnsteinUhlenbeck(), "score"), []
    for _ in range(60):
        loss = sm.losses.simulated_score_matching(
            model, data(512, generator), steps=200, generator=generator
        )
        gradients.append(torch.stack(torch.autograd.grad(loss, list(model.parameters()))))
    sample = torch.stack(gradients)
    stderr = sample.std(0) / math.sqrt(len(sample))
    # Euler steps of 1/200 shift the law of the points by half a percent at most.
    assert bool((sample.mean(0).abs() < 5 * stderr + 0.005).all())
    assert float(stderr.max()) < 0.05


@pytest.mark.parametrize("reduced", [True, False])
def test_a_network_learns_the_score_of_the_process(reduced: bool) -> None:
    """To 25% of the score at points of the process, after 300 steps."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((1,), width=32, depth=1)
    model = sm.ScoreModel(network, OrnsteinUhlenbeck(), "score")

    def loss(model: Any, x0: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return sm.losses.simulated_score_matching(
            model, x0, steps=16, variance_reduced=reduced, generator=generator,
            weight=lambda t: moments(t)[1],
        )  # fmt: skip

    trained = sm.fit(
        model, data(20_000, generator).float(), steps=300, batch_size=512, loss=loss,
        generator=generator, progress=False, ema_decay=0.98, learning_rate=5e-3,
    )  # fmt: skip
    t = torch.linspace(0.05, 1, 2000)
    mean, variance = (m[:, None] for m in moments(t))
    noise = torch.randn(2000, 1, generator=generator)
    score = trained.model.score(t, mean + variance.sqrt() * noise).detach()
    error = variance.sqrt() * score + noise
    assert float(error.square().mean().sqrt()) < 0.25


def test_a_gaussian_sde_may_be_simulated_too() -> None:
    """The loss is that of exact noising, of the same times; false alarm 6e-7."""
    generator = torch.Generator().manual_seed(2)
    mixture = sm.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.5)
    sde = sm.VPSDE()
    model = mixture.score_model(sde)
    direct = sm.losses.noise_weighting(lambda batch: batch.sde.sigma(batch.t) ** -2, "uniform")
    gaps = []
    for _ in range(50):
        x0 = mixture.sample(400, generator=generator)
        with torch.no_grad():
            gaps.append(
                sm.losses.simulated_score_matching(model, x0, steps=200, generator=generator)
                - sm.losses.implicit_score_matching(
                    model, x0, weighting=direct, generator=generator
                )
            )  # fmt: skip
    sample = torch.stack(gaps)
    assert abs(float(sample.mean())) < 5 * float(sample.std()) / math.sqrt(50) + 0.01


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("steps", [1, 7])
def test_any_number_of_steps_and_any_shape(count: int, steps: int) -> None:
    t, x = simulate(OrnsteinUhlenbeck(), torch.ones(count, 2, 3), steps)
    assert t.shape == (count,)
    assert x.shape == (count, 2, 3)
    assert bool(torch.isfinite(x).all())


def test_the_generator_fixes_the_paths() -> None:
    runs = [
        simulate(OrnsteinUhlenbeck(), torch.ones(5, 2), 4, torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(runs[0][1], runs[1][1])


def test_bad_arguments_are_refused() -> None:
    model = sm.ScoreModel(Known(), OrnsteinUhlenbeck(), "score")
    with pytest.raises(ValueError, match="steps"):
        sm.losses.simulated_score_matching(model, data(4), steps=0)
    with pytest.raises(TypeError, match="simulated_score_matching"):
        sm.losses.sliced_score_matching(model, data(4))
