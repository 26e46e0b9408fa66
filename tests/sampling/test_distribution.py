"""ScoreDistribution keeps the contract of torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import TransformedDistribution

import sde_models as sm

MEANS = torch.tensor([[-1.0, 0.5], [0.8, -0.4]], dtype=torch.float64)
MIXTURE = sm.GaussianMixture(MEANS, 0.3)
MODEL = MIXTURE.score_model(sm.VPSDE())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def dist() -> sm.ScoreDistribution:
    return sm.ScoreDistribution(MODEL, density={"rtol": 1e-4, "atol": 1e-4, "intervals": 48})


@pytest.mark.parametrize("batch", [(), (2,), (2, 1)])
@pytest.mark.parametrize("sample", [(), (3,), (3, 2), (0,)])
def test_shapes(
    dist: sm.ScoreDistribution, batch: tuple[int, ...], sample: tuple[int, ...]
) -> None:
    wide = dist.expand(batch)
    assert (wide.batch_shape, wide.event_shape) == (torch.Size(batch), torch.Size((2,)))
    x = wide.sample(sample, generator())
    assert x.shape == (*sample, *batch, 2)
    assert not x.requires_grad
    if x.numel():
        assert wide.log_prob(x).shape == (*sample, *batch)


def test_density_integrates_to_one(dist: sm.ScoreDistribution) -> None:
    side = torch.linspace(-3, 3, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    total = dist.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_density_of_a_trained_model_integrates_to_one() -> None:
    """Whatever the network has learned, decoding is a bijection."""
    torch.manual_seed(0)
    data = MIXTURE.sample(4000, generator=generator()).float()
    network = sm.nn.ResidualNetwork((2,), width=64, depth=2)
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3), preconditioning="edm")
    trained = sm.fit(model, data, steps=400, generator=generator(1), progress=False).model.eval()
    dist = sm.ScoreDistribution(trained, density={"tol": 0.02})
    side = torch.linspace(-4, 4, 61)
    total = dist.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-3)
    gain = dist.log_prob(data[:200]).mean() - MIXTURE.log_prob(data[:200].double()).mean()
    assert float(gain) > -0.2  # it has learned something


def test_samples_have_the_density(dist: sm.ScoreDistribution) -> None:
    """Mean log-density of samples and of the mixture's own, to 5 standard errors (6e-7)."""
    ours = dist.sample((2000,), generator())
    own = MIXTURE.sample(2000, generator=generator(1))
    first, second = MIXTURE.log_prob(ours), MIXTURE.log_prob(own)
    spread = ((first.var() + second.var()) / 2000).sqrt()
    assert (first.mean() - second.mean()).abs() < 5 * spread


def test_transform_inverts_and_has_the_determinant_of_autograd(
    dist: sm.ScoreDistribution,
) -> None:
    transform = dist.transform
    transform.solve.update(rtol=1e-8, atol=1e-8)
    transform.density["intervals"] = 96
    z = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    x = transform(z)
    torch.testing.assert_close(transform.inv(x), z, rtol=1e-6, atol=1e-6)
    told = transform.log_abs_det_jacobian(z, x)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(transform, z[i])
        assert float(told[i]) == pytest.approx(float(jacobian.slogdet().logabsdet), abs=1e-3)
    base = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2).double(), 1.0), 1
    )
    transformed = TransformedDistribution(base, [transform])
    close = transformed.log_prob(x) - dist.log_prob(x)
    assert close.abs().max() < 1e-3  # the prior's alpha at t_max is not quite 0


def test_what_torchs_own_distributions_do(dist: sm.ScoreDistribution) -> None:
    """The properties that torch's tests ask of each of its distributions and transforms."""
    x = dist.sample((2,), generator())
    assert dist.support.check(x).tolist() == [True, True]
    assert dist.arg_constraints == {}
    assert type(dist.expand((3,))) is sm.ScoreDistribution
    assert dist.expand((3,)).expand((2, 3)).batch_shape == (2, 3)
    assert "ScoreDistribution" in repr(dist)
    torch.manual_seed(4)
    first = dist.sample((2,))
    torch.manual_seed(4)
    assert torch.equal(dist.sample((2,)), first)
    together = torch.distributions.Independent(dist.expand((3,)), 1)
    assert together.event_shape == (3, 2)
    value = together.sample((2,))
    torch.testing.assert_close(together.log_prob(value), dist.log_prob(value).sum(1))
    transform = dist.transform
    assert transform.inv.inv is transform
    assert transform.bijective
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    assert transform.forward_shape((5, 2)) == transform.inverse_shape((5, 2)) == (5, 2)
    assert transform == sm.ScoreDistribution(MODEL).transform
    composed = torch.distributions.ComposeTransform([transform, transform.inv])
    torch.testing.assert_close(composed(x), x, rtol=1e-2, atol=1e-2)
    jacobian = composed.log_abs_det_jacobian(x, composed(x))
    torch.testing.assert_close(jacobian, torch.zeros(2).double(), rtol=0, atol=1e-2)


def test_gradients(dist: sm.ScoreDistribution) -> None:
    x = MIXTURE.sample(3, generator=generator()).requires_grad_()
    (score,) = torch.autograd.grad(dist.log_prob(x).sum(), x)
    truth = MIXTURE.diffuse(MODEL.sde, MODEL.sde.t_min)
    (wanted,) = torch.autograd.grad(truth.log_prob(x).sum(), x)
    torch.testing.assert_close(score, wanted, rtol=1e-2, atol=1e-2)


def test_bad_values_are_refused(dist: sm.ScoreDistribution) -> None:
    with pytest.raises(ValueError, match=r"support|NaN"):
        dist.log_prob(torch.full((1, 2), torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="shape"):
        dist.log_prob(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="give event_shape="):
        sm.ScoreDistribution(sm.ScoreModel(torch.nn.Identity(), sm.VPSDE()))
