"""IsotropicGaussian is the Gaussian it says, and is what every SDE turns its data into.

False-alarm rate of each statistical test: 1e-6, over seeds; the seeds are fixed.
"""

from __future__ import annotations

import math

import pytest
import torch
from support.closed_forms import F64, SDES, assert_distribution, assert_moments, every_sde, name_of
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from sde_models.sdes import VESDE, VPSDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.priors import IsotropicGaussian

SHAPES = [(1,), (2,), (1, 4, 4), (3, 2, 1, 2)]
every_shape = pytest.mark.parametrize("event_shape", SHAPES, ids=str)


@every_shape
@pytest.mark.parametrize("std", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3)])
def test_log_prob_is_that_of_independent_normals(
    event_shape: tuple[int, ...], std: float, sample_shape: tuple[int, ...]
) -> None:
    zeros = torch.zeros(event_shape, dtype=F64)
    reference = Independent(Normal(zeros, std), len(event_shape))
    torch.manual_seed(0)
    x = reference.sample(sample_shape)
    log_prob = IsotropicGaussian(event_shape, std).log_prob(x)
    assert log_prob.shape == sample_shape
    torch.testing.assert_close(log_prob, reference.log_prob(x), rtol=1e-13, atol=1e-13)


@every_shape
def test_samples_have_the_moments(event_shape: tuple[int, ...]) -> None:
    prior = IsotropicGaussian(event_shape, 3.0)
    x = prior.sample((20_000,), generator=torch.Generator().manual_seed(0), dtype=F64)
    assert x.shape == (20_000, *event_shape)
    dim = math.prod(event_shape)
    assert_moments(x, torch.zeros(dim), 9.0 * torch.ones(dim, dtype=F64), false_alarm=1e-6)


def test_samples_have_the_distribution() -> None:
    x = IsotropicGaussian((1,), 3.0).sample((20_000,), generator=torch.Generator().manual_seed(1))
    assert_distribution(x[:, 0], lambda v: torch.special.ndtr(v / 3), false_alarm=1e-6)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_the_statistical_tests_see_a_wrong_scale(factor: float) -> None:
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(2), dtype=F64) * factor
    with pytest.raises(AssertionError, match="covariance off"):
        assert_moments(x, torch.zeros(1), torch.ones(1), false_alarm=1e-6)
    with pytest.raises(AssertionError, match="mean off"):
        assert_moments(x + 0.05, torch.zeros(1), torch.ones(1), false_alarm=1e-6)
    with pytest.raises(AssertionError, match="Kolmogorov"):
        assert_distribution(x[:, 0] + 0.1, torch.special.ndtr, false_alarm=1e-6)


def test_it_is_a_torch_distribution() -> None:
    prior = IsotropicGaussian((1, 2, 2), 3.0)
    assert isinstance(prior, Distribution)
    assert prior.event_shape == (1, 2, 2)
    assert prior.batch_shape == ()
    assert torch.equal(prior.mean, torch.zeros(1, 2, 2))
    assert torch.equal(prior.variance, torch.full((1, 2, 2), 9.0))
    assert torch.equal(prior.stddev, torch.full((1, 2, 2), 3.0))
    assert not prior.has_rsample
    assert repr(prior) == "IsotropicGaussian(event_shape=(1, 2, 2), std=3)"


def test_the_same_seed_gives_the_same_sample() -> None:
    prior = IsotropicGaussian((2,), 3.0)
    seeded = prior.sample((4,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert torch.equal(prior.sample((4,)), seeded)
    assert prior.sample((4,), dtype=F64).dtype == F64


def test_log_prob_goes_backward() -> None:
    x = torch.randn(4, 2, dtype=F64, requires_grad=True)
    IsotropicGaussian((2,), 3.0).log_prob(x).sum().backward()
    torch.testing.assert_close(x.grad, -x.detach() / 9)


@pytest.mark.parametrize(
    ("event_shape", "shape"), [((2,), (5, 3)), ((1, 4, 4), (4, 4)), ((1, 4, 4), (5, 4, 4, 1))]
)
def test_another_event_shape_has_no_density(
    event_shape: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        IsotropicGaussian(event_shape, 1.0).log_prob(torch.zeros(shape))


@every_sde
def test_the_prior_has_the_variance_of_the_kernel_and_of_the_data(sde: GaussianSDE) -> None:
    """By the law of total variance; VP with other than unit data is not N(0, I)."""
    t = torch.tensor(sde.t_max, dtype=F64)
    wanted = sde.alpha(t).square() * sde.data_std**2 + sde.sigma(t).square()
    prior = sde.prior((1, 2, 2))
    assert prior.event_shape == (1, 2, 2)
    assert math.isclose(prior.std**2, float(wanted), rel_tol=1e-14)


def test_known_priors() -> None:
    assert VPSDE().prior((2,)).std == pytest.approx(1, abs=1e-15)
    assert VESDE(0.01, 50.0).prior((2,)).std ** 2 == pytest.approx(2501)
    assert VESDE(0.01, 50.0, data_std=3.0).prior((2,)).std ** 2 == pytest.approx(2509)


@pytest.mark.parametrize("sde", SDES, ids=name_of)
def test_data_diffused_to_the_end_have_the_prior_density(sde: GaussianSDE) -> None:
    """The density of alpha x0 + sigma eps for Gaussian data of the SDE's own data_std."""
    t = torch.tensor(sde.t_max, dtype=F64)
    identity = torch.eye(2, dtype=F64)
    covariance = (sde.alpha(t) * sde.data_std) ** 2 * identity + sde.sigma(t) ** 2 * identity
    reference = MultivariateNormal(torch.zeros(2, dtype=F64), covariance)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sde.prior((2,)).log_prob(x), reference.log_prob(x))
