"""Maximum likelihood through the probability flow."""

from __future__ import annotations

import pytest
import torch
from support.gaussian_score import GaussianScore

import sde_models as sm

FINE = {"rtol": 1e-7, "atol": 1e-7, "intervals": 96}


def test_loss_and_gradient_of_a_gaussian_in_closed_form() -> None:
    """Minus log N(x; a m, a^2 v + s^2) at t_min, with the law at t_max as the prior."""
    sde = sm.VPSDE(t_min=1e-2)
    mean, variance = torch.tensor([0.5, -0.3], dtype=torch.float64), 0.4
    mixture = sm.GaussianMixture(mean[None], variance**0.5)
    x0 = torch.randn(16, 2, dtype=torch.float64)
    model = GaussianScore(sde, mean, variance)
    prior = mixture.diffuse(sde, sde.t_max)
    loss = sm.maximum_likelihood_loss(model, x0, prior=prior, **FINE)
    found = torch.autograd.grad(loss, [model.mean, model.log_variance])

    m, log_v = mean.clone().requires_grad_(), model.log_variance.detach().clone().requires_grad_()
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    total = sde.alpha(t) ** 2 * log_v.exp() + sde.sigma(t) ** 2
    law = torch.distributions.Normal(sde.alpha(t) * m, total.sqrt())
    expected = -law.log_prob(x0).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    # The prior is held, so the gradient is that of the flow, affine here, up to that prior. It is
    # off that of the law by 0.01, since alpha at t_max is 0.007 and not zero.
    end = torch.tensor(sde.t_max, dtype=torch.float64)
    ratio = ((sde.alpha(end) ** 2 * log_v.exp() + sde.sigma(end) ** 2) / total).sqrt()
    z = sde.alpha(end) * m + ratio * (x0 - sde.alpha(t) * m)
    through_the_flow = -(prior.log_prob(z) + 2 * ratio.log()).mean()
    assert torch.allclose(through_the_flow, expected, atol=1e-12)
    gradient = torch.autograd.grad(through_the_flow, [m, log_v])
    for ours, theirs in zip(found, gradient, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)


def test_training_improves_the_likelihood_of_data() -> None:
    """From a wrong mean and variance to those of the sample, to 3%, in 60 steps of Adam."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.8 + 0.5 * torch.randn(200, 1, dtype=torch.float64, generator=generator)
    model = GaussianScore(sm.VPSDE(t_min=1e-2), torch.zeros(1, dtype=torch.float64), 1.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss = sm.maximum_likelihood_loss(model, x0, rtol=1e-3, atol=1e-3, intervals=16)
        loss.backward()
        optimiser.step()
    assert float(model.mean.detach()) == pytest.approx(float(x0.mean()), rel=0.03)
    assert float(model.log_variance.detach().exp()) == pytest.approx(float(x0.var()), rel=0.06)


def test_it_goes_into_fit() -> None:
    def loss(model: sm.Model, x0: torch.Tensor, **arguments: object) -> torch.Tensor:
        return sm.maximum_likelihood_loss(
            model, x0, rtol=1e-2, atol=1e-2, intervals=12, divergence="hutchinson", **arguments
        )

    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=8, depth=1), sm.VPSDE())
    trained = sm.fit(
        model, torch.randn(50, 2), steps=2, batch_size=8, loss=loss, progress=False,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert bool(torch.isfinite(trained.losses).all())
