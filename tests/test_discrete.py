"""Bits per dimension: the exact change of variables, any levels, any range."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde_models as sm

SDE = sm.VPSDE()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_model(mean: float, std: float, size: int) -> sm.Model:
    return gaussian(mean, std, size).score_model(SDE)


def gaussian(mean: float, std: float, size: int) -> sm.GaussianMixture:
    means = torch.full((1, size), mean, dtype=torch.float64)
    return sm.GaussianMixture(means, std)


def cell_bits(images: Tensor, levels: int, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Bits/dim of each image: with dequantisation averaged by quadrature, and of the cells.

    The first is what uniform dequantisation gives on average, the second what the discrete
    distribution of cell probabilities gives; the first is never below the second.
    """
    width = 2 / levels
    left = -1 + width * images.double()
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x = left[..., None] + width * u
    std_t = math.hypot(std * float(SDE.alpha(SDE.t_min)), float(SDE.sigma(SDE.t_min)))
    density = torch.distributions.Normal(mean, std_t)
    dequantised = -(density.log_prob(x).mean(-1) + math.log(width)) / math.log(2)
    cells = density.cdf(left + width) - density.cdf(left)
    return dequantised.mean(1), -(cells.log2()).mean(1)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_against_quadrature_over_the_cells(levels: int) -> None:
    """A Gaussian of known cells; 400 dequantisations, 5 standard errors, false alarms 6e-7."""
    mean, std, size = 0.2, 0.5, 3
    model = gaussian_model(mean, std, size)
    image = torch.randint(0, levels, (1, size), generator=generator())
    wanted, discrete = cell_bits(image, levels, mean, std)
    got = sm.bits_per_dim(
        model, image.repeat(400, 1), levels=levels, generator=generator(1), rtol=1e-6, atol=1e-6,
        prior=gaussian(mean, std, size).diffuse(SDE, 1.0),
    )  # fmt: skip
    slack = 1e-5  # the solver
    assert (got.value - wanted[0]).abs() < 5 * got.stderr + slack
    assert wanted[0] >= discrete[0]
    assert got.value.shape == got.stderr.shape == ()
    torch.testing.assert_close(got.value, got.per_image.mean())
    torch.testing.assert_close(got.stderr, got.per_image.std() / 20)


def test_same_bits_whatever_the_range_of_the_data() -> None:
    """Stretching data and model together changes nothing."""
    images = torch.randint(0, 8, (5, 2), generator=generator())
    values = []
    for low, high in [(-1.0, 1.0), (0.0, 1.0), (0.5, 3.5)]:
        stretch = (high - low) / 2
        mean, std = low + stretch * 1.1, 0.4 * stretch
        sde = sm.VPSDE(data_std=std)
        means = torch.full((1, 2), mean, dtype=torch.float64)
        mixture = sm.GaussianMixture(means, std)
        model = mixture.score_model(sde)
        got = sm.bits_per_dim(
            model, images, levels=8, data_range=(low, high), generator=generator(1),
            prior=mixture.diffuse(sde, 1.0), rtol=1e-8, atol=1e-8,
        )  # fmt: skip
        values.append(got.per_image)
    # t_min adds a noise of 1e-3 that is not stretched
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(values[0], values[2], rtol=0, atol=1e-4)


def test_the_generator_decides() -> None:
    model = gaussian_model(0.0, 0.5, 2)
    images = torch.zeros(3, 2, dtype=torch.uint8)
    first, again, other = (
        sm.bits_per_dim(model, images, levels=4, generator=generator(seed)).value
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_bad_images_are_refused() -> None:
    model = gaussian_model(0.0, 0.5, 2)
    with pytest.raises(ValueError, match="levels"):
        sm.bits_per_dim(model, torch.full((2, 2), 17), levels=17)
    with pytest.raises(ValueError, match="levels"):
        sm.bits_per_dim(model, torch.full((2, 2), -1), levels=17)
    with pytest.raises((TypeError, ValueError), match="whole"):
        sm.bits_per_dim(model, torch.full((2, 2), 0.5), levels=17)
    with pytest.raises(ValueError, match="unknown dequantization 'unifrom'; did you mean"):
        sm.bits_per_dim(model, torch.zeros(2, 2), dequantization="unifrom")
