"""Times that learn: unbiased whatever they learned, and of less variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models.losses import LearnedTimes, denoising_score_matching

STD = 0.6


def exact_model(sde: sm.GaussianSDE) -> sm.Model:
    return sm.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), STD).score_model(sde)


def expected_loss(sde: sm.GaussianSDE) -> float:
    """The likelihood loss of the exact model of N(0, s^2), in closed form."""
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    clean, noisy = torch.log1p(STD**2 * ends.exp())
    return 0.5 * float(clean - noisy)


def losses(
    sde: sm.GaussianSDE, times: str | LearnedTimes, count: int, generator: torch.Generator
) -> Tensor:
    model, found = exact_model(sde), []
    for _ in range(count):
        x0 = STD * torch.randn(128, 2, dtype=torch.float64, generator=generator)
        found.append(
            denoising_score_matching(
                model, x0, weighting="likelihood", times=times, generator=generator,
                stratified=False,
            )
        )  # fmt: skip
    return torch.stack(found).detach()


@pytest.mark.parametrize(
    "sde", [sm.VPSDE(), sm.VESDE(), sm.CosineSDE()], ids=lambda sde: type(sde).__name__
)
def test_learned_times_are_unbiased_and_of_less_variance(sde: sm.GaussianSDE) -> None:
    """300 batches after learning from 100: the mean within 5 standard errors (6e-7), the variance
    half of that of uniform log-SNR, where chance moves the ratio by 12%."""
    generator = torch.Generator().manual_seed(0)
    times = LearnedTimes()
    losses(sde, times, 100, generator)
    with torch.no_grad():  # what is evaluated is not learned from
        before = times.density
        learned = losses(sde, times, 300, generator)
        assert torch.equal(times.density, before)
        fixed = losses(sde, "importance", 300, generator)
    error = float(learned.mean()) - expected_loss(sde)
    assert abs(error) < 5 * float(learned.std()) / math.sqrt(300)
    assert float(learned.var()) < 0.5 * float(fixed.var())


def test_inverse_density_is_the_derivative_of_the_times() -> None:
    times, sde = LearnedTimes(bins=8), sm.VPSDE()
    losses(sde, times, 20, torch.Generator().manual_seed(0))
    u = torch.linspace(0.013, 0.983, 31, dtype=torch.float64)
    h = 1e-7
    differences = (times(sde, u + h)[0] - times(sde, u - h)[0]) / (2 * h)
    assert torch.allclose(times(sde, u)[1], differences, rtol=1e-4)
    ends, _ = times(sde, torch.tensor([0.0, 1 - 1e-15], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([sde.t_min, sde.t_max])
    assert float(times.density.mean()) == pytest.approx(1)
    assert float(times.density.min()) >= 0.1


def test_density_is_the_root_mean_square() -> None:
    """Terms of known size: 3 in the first half of the log-SNR and 1 in the second."""
    times, sde = LearnedTimes(bins=4, uniform=1e-9), sm.VESDE()
    for _ in range(300):
        u = torch.rand(400, dtype=torch.float64)
        t, inverse_density = times(sde, u)
        rate = 2 * sde.log_ratio  # of the log-SNR in t
        height = torch.where(t < 0.5, 3.0, 1.0).double()
        times.observe(sde, t, height * rate * inverse_density)
    assert times.density.tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5], rel=1e-6)


def test_training_with_learned_times() -> None:
    times = LearnedTimes()

    def loss(model: sm.Model, x0: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return denoising_score_matching(
            model, x0, weighting="likelihood", times=times, generator=generator
        )

    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=16, depth=1), sm.VPSDE())
    trained = sm.fit(model, torch.randn(500, 2), steps=20, loss=loss, progress=False)
    assert bool(torch.isfinite(trained.losses).all())
    assert float(times.density.std()) > 0.01


def test_nothing_seen_and_nothing_finite_leave_the_times_uniform() -> None:
    times, sde = LearnedTimes(), sm.VPSDE()
    assert torch.equal(times.density, torch.ones(32, dtype=torch.float64))
    t, _ = times(sde, torch.rand(10))
    times.observe(sde, t, torch.full((10,), torch.nan))
    times.observe(sde, t, torch.zeros(10))
    assert torch.equal(times.density, torch.ones(32, dtype=torch.float64))


@pytest.mark.parametrize("weighting", ["simple", "edm", "min-snr", "output"])
def test_weightings_that_times_are_part_of_are_refused(weighting: str) -> None:
    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=8, depth=1), sm.VPSDE())
    with pytest.raises(ValueError, match="use weighting='likelihood'"):
        denoising_score_matching(
            model, torch.zeros(4, 2), weighting=weighting, times=LearnedTimes()
        )


def test_what_was_learned_can_be_kept() -> None:
    times, sde = LearnedTimes(bins=8), sm.VPSDE()
    losses(sde, times, 5, torch.Generator().manual_seed(0))
    kept, density = times.state_dict(), times.density
    losses(sde, times, 5, torch.Generator().manual_seed(1))
    other = LearnedTimes(bins=8)
    other.load_state_dict(kept)
    assert torch.equal(other.density, density)
    assert not torch.equal(times.density, density)
    with pytest.raises(ValueError, match="has 8 bins, expected 4"):
        LearnedTimes(bins=4).load_state_dict(kept)


@pytest.mark.parametrize("settings", [{"bins": 1}, {"decay": 1.0}, {"uniform": 0.0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LearnedTimes(**settings)
