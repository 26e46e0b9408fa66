"""The diffused mixture and its model: density by convolution, score by autograd, posterior means.

The references are quadrature in one and two dimensions, torch.distributions and autograd in any.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.closed_forms import F64, Reference, every_sde, some_times
from torch import Tensor
from torch.distributions import Normal

from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.sdes import VPSDE
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE


def _reference(count: int, dim: int, full: bool) -> Reference:
    generator = torch.Generator().manual_seed(count * dim)
    means = torch.randn(count, dim, dtype=F64, generator=generator)
    root = torch.randn(count, dim, dim, dtype=F64, generator=generator) * 0.4 / math.sqrt(dim)
    covariances = root @ root.mT + 0.05 * torch.eye(dim, dtype=F64)
    if not full:
        covariances = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2))
    weights = torch.arange(1, count + 1, dtype=F64)
    return Reference(means, covariances, weights / weights.sum())


def _mixture(reference: Reference, full: bool) -> GaussianMixture:
    kind: dict[str, Any] = {"covariances": reference.covariances}
    if not full:
        kind = {"stds": reference.covariances.diagonal(dim1=1, dim2=2).sqrt()}
    return GaussianMixture(reference.means, weights=reference.weights, **kind)


either_kind = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
every_shape = pytest.mark.parametrize("event_shape", [(2,), (3,), (1, 4, 4)], ids=str)


@every_shape
@either_kind
@every_sde
def test_the_model_is_the_gradient_of_the_diffused_density(
    sde: GaussianSDE, full: bool, event_shape: tuple[int, ...]
) -> None:
    """Each sample at its own time, both ends included; eps and x0 in their own units."""
    reference = _reference(3, math.prod(event_shape), full)
    model = _mixture(reference, full).score_model(sde, event_shape)
    t, x = reference.points(sde, event_shape)
    noise, x0 = reference.eps_and_x0(sde, t, x)
    sigma = sde.sigma(t).reshape(-1, *(1,) * len(event_shape))
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(model.eps(t, x), noise, **close)
    torch.testing.assert_close(model.x0(t, x), x0, **close)
    torch.testing.assert_close(sigma * model.score(t, x), -noise, **close)


@either_kind
@every_sde
def test_diffuse_is_the_law_of_the_noised_data(sde: GaussianSDE, full: bool) -> None:
    reference = _reference(3, 2, full)
    mixture = _mixture(reference, full)
    x, close = torch.randn(20, 2, dtype=F64), {"rtol": 1e-8, "atol": 1e-8}
    for t in some_times(sde):
        diffused = mixture.diffuse(sde, t)
        point = (sde.alpha(t) + sde.sigma(t)) * x
        law = reference.at(sde, t)
        torch.testing.assert_close(diffused.log_prob(point), law.log_prob(point), **close)
        torch.testing.assert_close(diffused.mean(), law.mean)
        torch.testing.assert_close(diffused.covariance().diagonal(), law.variance)
        point.requires_grad_()
        (score,) = torch.autograd.grad(diffused.log_prob(point).sum(), point)
        modelled = mixture.score_model(sde).score(t, point)
        torch.testing.assert_close(sde.sigma(t) * score, sde.sigma(t) * modelled, **close)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3, 0.7, 1.0])
@every_sde
def test_density_and_posterior_means_by_quadrature(sde: GaussianSDE, fraction: float) -> None:
    """p_t = integral of N(x; alpha x0, sigma^2) p(x0), and the means of x0 and eps under it.

    The trapezoidal rule on Gaussians of width at least three steps is exact to rounding.
    """
    means = torch.tensor([[-1.0], [0.5], [0.9]], dtype=F64)
    stds = torch.tensor([0.2, 0.1, 0.4], dtype=F64)
    weights = torch.tensor([0.3, 0.5, 0.2], dtype=F64)
    mixture = GaussianMixture(means, stds, weights)
    t = torch.tensor(sde.t_min + fraction * (sde.t_max - sde.t_min), dtype=F64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = alpha * torch.linspace(-2, 2, 9, dtype=F64) + sigma * torch.linspace(-1, 1, 9, dtype=F64)
    x0 = torch.linspace(-5, 5, 20_001, dtype=F64)
    components = Normal(means, stds[:, None]).log_prob(x0)
    data = (components + weights.log()[:, None]).logsumexp(0)
    joint = (Normal(alpha * x0, sigma).log_prob(x[:, None]) + data).exp() * (x0[1] - x0[0])
    density = joint.sum(1)
    posterior = (joint * x0).sum(1) / density
    noise = (joint * (x[:, None] - alpha * x0) / sigma).sum(1) / density
    point, model = x[:, None], mixture.score_model(sde)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(mixture.diffuse(sde, t).log_prob(point), density.log(), **close)
    torch.testing.assert_close(model.x0(t, point)[:, 0], posterior, **close)
    torch.testing.assert_close(model.eps(t, point)[:, 0], noise, **close)


@pytest.mark.parametrize("dim", [1, 2])
@either_kind
@every_sde
def test_every_diffused_density_is_normalised(sde: GaussianSDE, full: bool, dim: int) -> None:
    mixture = _mixture(_reference(3, dim, full), full)
    for fraction in (0.0, 0.1, 0.5, 1.0):
        diffused = mixture.diffuse(sde, sde.t_min + fraction * (sde.t_max - sde.t_min))
        widest = float(diffused.covariance().diagonal().max().sqrt())
        reach = 9 * widest + float(diffused.means.abs().max())
        line = torch.linspace(-reach, reach, 401, dtype=F64)
        x = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
        mass = diffused.log_prob(x).exp().sum() * (line[1] - line[0]) ** dim
        assert mass.item() == pytest.approx(1, abs=1e-8)


@either_kind
@every_sde
def test_in_single_precision_eps_and_x0_lose_nothing(sde: GaussianSDE, full: bool) -> None:
    """Against double precision at the same float32 points: 1e-5 in noise units, to the ends."""
    reference = _reference(3, 2, full)
    mixture = _mixture(reference, full)
    t, x = reference.points(sde, (2,), torch.float32)
    exact, single = mixture.score_model(sde), _mixture(reference, full).float().score_model(sde)
    # A time in float32 may lie half a rounding beyond an end.
    time = t.double().clamp(sde.t_min, sde.t_max)
    for method in ("eps", "x0"):
        got = getattr(single, method)(t, x)
        assert got.dtype == torch.float32
        wanted = getattr(exact, method)(time, x.double())
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("mixture_dtype", [torch.float32, F64], ids=str)
@either_kind
def test_the_answer_has_the_dtype_of_the_question(
    full: bool, mixture_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    reference = _reference(3, 2, full)
    mixture = _mixture(reference, full).to(mixture_dtype)
    x = torch.randn(5, 2, dtype=dtype)
    noise, _ = reference.eps_and_x0(VPSDE(), torch.full((5,), 0.3, dtype=F64), x.double())
    got = mixture.score_model(VPSDE()).eps(0.3, x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), noise, rtol=1e-5, atol=1e-5)


@either_kind
def test_the_score_is_differentiable(full: bool) -> None:
    model = _mixture(_reference(3, 2, full), full).score_model(VPSDE())
    t = torch.tensor([0.2, 0.7], dtype=F64, requires_grad=True)
    x = torch.randn(2, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(model.score, (t, x))


def test_diffusing_leaves_the_data_alone() -> None:
    mixture = _mixture(_reference(3, 2, True), True)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    mixture.diffuse(VPSDE(), 0.5)
    for name, value in mixture.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_a_mixture_cannot_do_is_refused() -> None:
    mixture = _mixture(_reference(3, 2, True), True)
    model = mixture.score_model(VPSDE())
    x: Tensor = torch.zeros(1, 2, dtype=F64)
    with pytest.raises(TypeError, match="no conditions, got label, scale"):
        model.score(0.5, x, label=1, scale=2)
    with pytest.raises(ValueError, match=r"event shape \(1, 2\).*expects \(2,\)"):
        model.score(0.5, x[None])
    with pytest.raises(TypeError, match="SDE has no alpha and sigma"):
        mixture.score_model(SDE())  # type: ignore[arg-type]
