"""GaussianMixture is the mixture that torch.distributions knows: density, moments, samples.

False-alarm rate of each statistical test: 1e-6, over seeds; the seeds are fixed.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.closed_forms import F64, assert_distribution, assert_moments
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.sdes import VPSDE

MEANS = torch.tensor([[-1.0, 0.5], [0.8, -0.3], [0.1, 1.2]], dtype=F64)
SQUARE_MEANS = torch.tensor([[-1.0, 0.5, 0.0], [0.8, -0.3, 1.0], [0.1, 1.2, -0.4]], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=F64)


def _covariances(count: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    root = 0.4 * torch.randn(count, dim, dim, dtype=F64, generator=generator)
    return root @ root.mT + 0.05 * torch.eye(dim, dtype=F64)


STDS: dict[str, tuple[Tensor, float | Tensor]] = {
    "()": (MEANS, torch.tensor(0.4, dtype=F64)),
    "(K,)": (MEANS, torch.tensor([0.3, 0.5, 0.2], dtype=F64)),
    "(K, D)": (MEANS, torch.tensor([[0.3, 0.1], [0.5, 0.2], [0.2, 0.6]], dtype=F64)),
    "(K,), K = D": (SQUARE_MEANS, torch.tensor([0.3, 0.5, 0.2], dtype=F64)),
    "one component": (MEANS[:1], torch.tensor([[0.3, 0.1]], dtype=F64)),
}
every_std = pytest.mark.parametrize(("means", "stds"), STDS.values(), ids=STDS)
every_size = pytest.mark.parametrize(("count", "dim"), [(3, 2), (3, 3), (1, 2), (4, 16)])


def _weights(count: int) -> Tensor:
    weights = torch.arange(1, count + 1, dtype=F64)
    return weights / weights.sum()


@every_std
def test_log_prob_with_stds(means: Tensor, stds: float | Tensor) -> None:
    scale = torch.as_tensor(stds, dtype=F64)
    scale = (scale[:, None] if scale.ndim == 1 else scale).expand_as(means)
    weights = _weights(len(means))
    reference = MixtureSameFamily(Categorical(weights), Independent(Normal(means, scale), 1))
    x = 2 * torch.randn(50, means.shape[1], dtype=F64)
    mixture = GaussianMixture(means, stds, weights)
    torch.testing.assert_close(mixture.log_prob(x), reference.log_prob(x), rtol=1e-12, atol=0)


@every_size
def test_log_prob_with_covariances(count: int, dim: int) -> None:
    means, covariances = torch.randn(count, dim, dtype=F64), _covariances(count, dim)
    components = MultivariateNormal(means, covariances)
    reference = MixtureSameFamily(Categorical(_weights(count)), components)
    x = 2 * torch.randn(50, dim, dtype=F64)
    mixture = GaussianMixture(means, weights=_weights(count), covariances=covariances)
    torch.testing.assert_close(mixture.log_prob(x), reference.log_prob(x), rtol=1e-10, atol=1e-10)


def test_numbers_keep_double_precision() -> None:
    """0.3 in a list is 0.3 to the last digit of the means' dtype, not of torch's default one."""
    x = torch.randn(5, 2, dtype=F64)
    exact = GaussianMixture(MEANS, torch.tensor(0.3, dtype=F64), WEIGHTS).log_prob(x)
    several = torch.tensor([0.3, 0.3, 0.3], dtype=F64)
    for stds, weights in (
        (0.3, WEIGHTS),
        ([0.3, 0.3, 0.3], WEIGHTS),
        (several, WEIGHTS.tolist()),
    ):
        got = GaussianMixture(MEANS, stds, weights).log_prob(x)
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=0)
    full = GaussianMixture(MEANS, covariances=[[[0.3, 0.1], [0.1, 0.3]]] * 3)  # type: ignore[arg-type]
    torch.testing.assert_close(
        full.covariance() - GaussianMixture(MEANS, 1.0).covariance(),
        torch.tensor([[-0.7, 0.1], [0.1, -0.7]], dtype=F64),
        rtol=1e-12,
        atol=0,
    )


def test_weights_are_equal_or_normalised() -> None:
    x = torch.randn(5, 2, dtype=F64)
    for weights, same in ((None, [1.0, 1.0, 1.0]), ([5.0, 2.0, 3.0], WEIGHTS)):
        one, other = GaussianMixture(MEANS, 0.4, weights), GaussianMixture(MEANS, 0.4, same)
        torch.testing.assert_close(one.log_prob(x), other.log_prob(x))


def test_far_from_every_component_the_density_is_still_there() -> None:
    """exp(-5e5) underflows; its logarithm does not."""
    x = torch.tensor([[400.0, 0.0]], dtype=F64)
    nearest = Normal(MEANS, 0.4).log_prob(x).sum(1) + WEIGHTS.log()
    got = GaussianMixture(MEANS, torch.tensor(0.4, dtype=F64), WEIGHTS).log_prob(x)
    torch.testing.assert_close(got, nearest.max()[None], rtol=1e-12, atol=0)


def test_points_of_any_event_shape() -> None:
    mixture = GaussianMixture(torch.randn(3, 16, dtype=F64), covariances=_covariances(3, 16))
    x = torch.randn(5, 1, 4, 4, dtype=F64)
    assert torch.equal(mixture.log_prob(x), mixture.log_prob(x.reshape(5, 16)))


MIXTURES = {
    name: GaussianMixture(means, stds, _weights(len(means))) for name, (means, stds) in STDS.items()
}
MIXTURES["full, D = 2"] = GaussianMixture(MEANS, None, WEIGHTS, covariances=_covariances(3, 2))
# Eigenvectors of 2 x 2 matrices may come as a symmetric matrix, which hides a transpose.
SOLID = GaussianMixture(SQUARE_MEANS, None, WEIGHTS, covariances=_covariances(3, 3))
MIXTURES["full, D = 3"] = SOLID
PLANE = {name: mixture for name, mixture in MIXTURES.items() if mixture.dim == 2}
every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


@pytest.mark.parametrize("mixture", PLANE.values(), ids=PLANE)
def test_mean_and_covariance_are_the_moments_of_the_density(mixture: GaussianMixture) -> None:
    """By quadrature: the trapezoidal rule is exact to rounding on a Gaussian this wide."""
    line = torch.linspace(-6, 6, 601, dtype=F64)
    x = torch.cartesian_prod(line, line)
    density = mixture.log_prob(x).exp() * (line[1] - line[0]) ** 2
    assert density.sum().item() == pytest.approx(1, abs=1e-10)
    mean = density @ x
    torch.testing.assert_close(mixture.mean(), mean, rtol=1e-9, atol=1e-10)
    covariance = torch.einsum("n,ni,nj->ij", density, x - mean, x - mean)
    torch.testing.assert_close(mixture.covariance(), covariance, rtol=1e-9, atol=1e-10)


def test_mean_and_covariance_by_their_definition() -> None:
    second = torch.einsum("ki,kj->kij", SQUARE_MEANS, SQUARE_MEANS) + _covariances(3, 3)
    mean = WEIGHTS @ SQUARE_MEANS
    covariance = torch.einsum("k,kij->ij", WEIGHTS, second) - torch.outer(mean, mean)
    torch.testing.assert_close(SOLID.mean(), mean)
    torch.testing.assert_close(SOLID.covariance(), covariance)


@every_mixture
def test_samples_have_the_moments(mixture: GaussianMixture) -> None:
    x = mixture.sample(20_000, generator=torch.Generator().manual_seed(3))
    assert_moments(x, mixture.mean(), mixture.covariance(), false_alarm=1e-6)


@every_mixture
def test_samples_have_the_distribution(mixture: GaussianMixture) -> None:
    """Along a direction: the moments would not see a wrong share of the components."""
    direction = torch.tensor([0.8, -0.6, 0.3], dtype=F64)[: mixture.dim]
    covariance = torch.diag_embed(mixture.variances)
    if mixture.axes.numel():
        covariance = mixture.axes @ covariance @ mixture.axes.mT
    centres, scales = mixture.means @ direction, (direction @ covariance @ direction).sqrt()
    x = mixture.sample(20_000, generator=torch.Generator().manual_seed(4)) @ direction
    assert_distribution(
        x,
        lambda v: torch.special.ndtr((v[:, None] - centres) / scales) @ mixture.log_weights.exp(),
        false_alarm=1e-6,
    )


@every_mixture
def test_the_same_seed_gives_the_same_sample(mixture: GaussianMixture) -> None:
    seeded = mixture.sample(7, generator=torch.Generator().manual_seed(5))
    assert seeded.shape == (7, mixture.dim)
    torch.manual_seed(5)
    assert torch.equal(mixture.sample(7), seeded)


@every_mixture
def test_it_is_a_module(mixture: GaussianMixture) -> None:
    """Converted, copied or loaded, it is the same density."""
    x = torch.randn(5, mixture.dim, dtype=F64)
    single = copy.deepcopy(mixture).float().log_prob(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), mixture.log_prob(x), rtol=1e-4, atol=1e-4)
    other = copy.deepcopy(mixture)
    for value in other.buffers():
        value.zero_()
    other.load_state_dict(mixture.state_dict())
    assert torch.equal(other.log_prob(x), mixture.log_prob(x))
    assert not list(mixture.parameters())


def test_a_scalar_time_in_range_is_required() -> None:
    mixture = GaussianMixture(MEANS, 0.4)
    with pytest.raises(ValueError, match=r"one time, got shape \(2,\)"):
        mixture.diffuse(VPSDE(), torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"t=1\.1 outside"):
        mixture.diffuse(VPSDE(), 1.1)


SKEWED = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
INDEFINITE = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"means": [0.0, 1.0], "stds": 1.0},
            r"means must be finite and have shape .* got shape \(2,\)",
        ),
        ({"means": MEANS}, "exactly one of stds and covariances, got neither"),
        (
            {"means": MEANS, "stds": 1.0, "covariances": _covariances(3, 2)},
            "exactly one of stds and covariances, got both",
        ),
        ({"means": MEANS, "stds": 0.0}, "positive, the smallest given is 0"),
        ({"means": MEANS, "stds": [0.1, -0.2, 0.3]}, "positive, the smallest given is -0.2"),
        ({"means": MEANS, "stds": float("nan")}, "positive"),
        ({"means": MEANS, "stds": [0.1, 0.2]}, r"\(3,\) or \(3, 2\) like the means, got \(2,\)"),
        ({"means": MEANS, "stds": torch.ones(3, 1)}, r"got \(3, 1\)"),
        ({"means": MEANS, "stds": torch.ones(1, 3, 2)}, r"got \(1, 3, 2\)"),
        ({"means": MEANS, "stds": 1.0, "weights": [0.5, 0.5]}, "3 positive numbers"),
        ({"means": MEANS, "stds": 1.0, "weights": [0.5, 0.5, 0.0]}, "3 positive numbers"),
        ({"means": MEANS, "covariances": torch.eye(2)}, r"shape \(3, 2, 2\), got \(2, 2\)"),
        ({"means": [[0.0, 0.0]], "covariances": SKEWED}, r"symmetric, .* up to 0\.5 from"),
        ({"means": [[0.0, 0.0]], "covariances": INDEFINITE}, "smallest eigenvalue given is -1"),
    ],
)
def test_parameters_without_a_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**arguments)


def test_points_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="have 3 coordinates each, this mixture has 2"):
        GaussianMixture(MEANS, 0.4).log_prob(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) holds 16 numbers, .* have 2"):
        GaussianMixture(MEANS, 0.4).score_model(VPSDE(), (1, 4, 4))


def test_samples_have_the_shape_asked_for() -> None:
    mixture = GaussianMixture(MEANS, 0.4)
    assert mixture.sample((3, 2)).shape == (3, 2, 2)
    for none in (0, (3, 0)):
        with pytest.raises(ValueError, match=r"n must .* integers? of 1 or more"):
            mixture.sample(none)
    for means in (torch.zeros(0, 2), torch.tensor([[float("nan"), 0.0]])):
        with pytest.raises(ValueError, match="means must be finite"):
            GaussianMixture(means, 1.0)
