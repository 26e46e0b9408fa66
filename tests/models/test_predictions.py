"""Every prediction means what it says: from x_t and the right output come back x0 and eps.

The tolerances are rounding errors: 16 eps times what the formula must amplify. Reading x0 from eps
divides by alpha and reading eps from x0 by sigma, since x_t holds no more; v and EDM divide by
neither, so that they lose nothing at either end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.closed_forms import F64, every_sde, some_times
from torch import Tensor, nn

from sde_models.models.predictions import EDM, X0, Eps, Prediction, Score, V, find_prediction
from sde_models.models.score_model import ScoreModel
from sde_models.sdes import VESDE
from sde_models.sdes.gaussian import GaussianSDE

Amplification = Callable[[Tensor, Tensor], Tensor]


def _one(alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.ones_like(alpha)


def _over_alpha(alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha + sigma) / alpha


def _over_sigma(alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha + sigma) / sigma


# Each prediction with the amplification of rounding in x0 and in eps.
PREDICTIONS: list[tuple[Prediction, Amplification, Amplification]] = [
    (Eps(), _over_alpha, _one),
    (X0(), _one, _over_sigma),
    (V(), _one, _one),
    (Score(), _over_alpha, _one),
    (EDM(0.7), _one, _one),
    (EDM(3.0), _one, _one),
]
every_prediction = pytest.mark.parametrize(
    ("prediction", "in_x0", "in_eps"),
    PREDICTIONS,
    ids=["eps", "x0", "v", "score", "edm-0.7", "edm-3"],
)


def _round_trip(
    prediction: Prediction,
    in_x0: Amplification,
    in_eps: Amplification,
    alpha: Tensor,
    sigma: Tensor,
    seed: int = 0,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, alpha.shape[0], 5, dtype=alpha.dtype, generator=generator)
    size = torch.maximum(x0.abs(), noise.abs())
    x = alpha * x0 + sigma * noise
    output = prediction.target(x0, noise, alpha, sigma)
    got_x0, got_noise = prediction.denoise(output, x, alpha, sigma)
    eps = 16 * torch.finfo(alpha.dtype).eps
    assert ((got_x0 - x0).abs() <= eps * size * in_x0(alpha, sigma)).all()
    assert ((got_noise - noise).abs() <= eps * size * in_eps(alpha, sigma)).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@every_prediction
@every_sde
def test_round_trip_on_every_sde_at_every_time(
    sde: GaussianSDE,
    prediction: Prediction,
    in_x0: Amplification,
    in_eps: Amplification,
    dtype: torch.dtype,
) -> None:
    t = some_times(sde, dtype)
    _round_trip(prediction, in_x0, in_eps, sde.alpha(t)[:, None], sde.sigma(t)[:, None])


_scale = st.floats(-3, 2).map(lambda power: torch.tensor([[10.0**power]], dtype=F64))


@every_prediction
@settings(deadline=None, derandomize=True, max_examples=50)
@given(alpha=_scale, sigma=_scale, seed=st.integers(0, 2**32))
def test_round_trip_for_any_scales(
    prediction: Prediction,
    in_x0: Amplification,
    in_eps: Amplification,
    alpha: Tensor,
    sigma: Tensor,
    seed: int,
) -> None:
    """Also where alpha^2 + sigma^2 is far from 1."""
    _round_trip(prediction, in_x0, in_eps, alpha, sigma, seed)


@every_prediction
@settings(deadline=None, derandomize=True, max_examples=50)
@given(alpha=_scale, sigma=_scale, seed=st.integers(0, 2**32))
def test_any_output_explains_the_state(
    prediction: Prediction,
    in_x0: Amplification,
    in_eps: Amplification,
    alpha: Tensor,
    sigma: Tensor,
    seed: int,
) -> None:
    """Whatever a network says, alpha x0 + sigma eps is the x it was shown."""
    x, output = torch.randn(2, 4, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))
    x0, noise = prediction.denoise(output, x, alpha, sigma)
    terms = (alpha * x0).abs() + (sigma * noise).abs() + x.abs()
    assert ((alpha * x0 + sigma * noise - x).abs() <= 64 * torch.finfo(F64).eps * terms).all()


@every_sde
def test_targets_are_what_the_papers_call_them(sde: GaussianSDE) -> None:
    x0, noise = torch.randn(2, 17, 5, dtype=F64)
    t = some_times(sde)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    assert torch.equal(Eps().target(x0, noise, alpha, sigma), noise)
    assert torch.equal(X0().target(x0, noise, alpha, sigma), x0)
    assert torch.equal(V().target(x0, noise, alpha, sigma), alpha * noise - sigma * x0)
    x = (alpha * x0 + sigma * noise).requires_grad_()
    kernel = torch.distributions.Normal(alpha * x0, sigma).log_prob(x).sum()
    (score,) = torch.autograd.grad(kernel, x)
    # x - alpha x0 loses what sigma does not hold, here in the reference
    error = (Score().target(x0, noise, alpha, sigma) - score).abs() * sigma.square()
    assert (error <= 64 * torch.finfo(F64).eps * (1 + sigma) * (1 + x.abs())).all()


@every_sde
@pytest.mark.parametrize("std", [0.7, 3.0])
def test_edm_shows_the_network_unit_variance_at_every_noise_level(
    sde: GaussianSDE, std: float
) -> None:
    """Input and target are linear in x0 and eps: their variances are sums of squares."""
    edm, t = EDM(std), some_times(sde)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    from_data, from_noise = (
        torch.cat(
            [
                edm.target(x0, noise, alpha, sigma),
                edm.network_input(t, alpha * x0 + sigma * noise, alpha, sigma)[1],
            ],
            dim=1,
        )
        for x0, noise in ((std * one, zero), (zero, one))
    )
    variance = from_data.square() + from_noise.square()
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-12, atol=0)


class Arbitrary(nn.Module):
    """Some smooth function of both arguments."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(x + t.reshape(-1, *(1,) * (x.ndim - 1))) + 0.3 * x


@pytest.mark.parametrize("event_shape", [(2,), (1, 4, 4)], ids=str)
def test_edm_is_that_of_the_paper(event_shape: tuple[int, ...]) -> None:
    """Table 1 of Karras et al. 2022: D = c_skip x + c_out F(c_in x; c_noise), where alpha is 1."""
    sde, std, network = VESDE(0.002, 80.0, data_std=0.5), 0.5, Arbitrary()
    model = ScoreModel(network, sde, preconditioning="edm")
    x = 10 * torch.randn(17, *event_shape, dtype=F64)
    t = some_times(sde)
    sigma = sde.sigma(t).reshape(-1, *(1,) * len(event_shape))
    total = sigma**2 + std**2
    c_skip, c_out = std**2 / total, sigma * std / total.sqrt()
    c_in, c_noise = 1 / total.sqrt(), sde.sigma(t).log() / 4
    wanted = c_skip * x + c_out * network(c_noise, c_in * x)
    torch.testing.assert_close(model.x0(t, x), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eps(t, x), (x - wanted) / sigma, rtol=1e-9, atol=1e-9)
    x0 = torch.randn_like(x)
    noise = (x - x0) / sigma
    torch.testing.assert_close(model.target(t, x0, noise), (x0 - c_skip * x) / c_out)


def test_edm_shows_one_clock_for_one_time() -> None:
    """A scalar time reaches the network as (B,), like a time for each sample."""
    edm, x = EDM(1.0), torch.zeros(3, 2)
    t, alpha, sigma = torch.full((3,), 0.5), torch.tensor(0.5), torch.tensor(2.0)
    clock, _ = edm.network_input(t, x, alpha, sigma)
    assert clock.tolist() == pytest.approx([math.log(4.0) / 4] * 3)


@pytest.mark.parametrize(
    ("name", "kind"), [(None, Eps), ("eps", Eps), ("x0", X0), ("v", V), ("score", Score)]
)
def test_names(name: str | None, kind: type[Prediction]) -> None:
    assert type(find_prediction(name, None, 1.0)) is kind


@pytest.mark.parametrize("beside", [None, "x0"])
def test_edm_by_name(beside: str | None) -> None:
    edm = find_prediction(beside, "edm", 0.7)
    assert isinstance(edm, EDM)
    assert edm.data_std == 0.7


@pytest.mark.parametrize(
    ("prediction", "preconditioning", "message"),
    [
        ("x_0", None, "unknown prediction 'x_0'; did you mean 'x0'"),
        ("epsilon", None, "unknown prediction 'epsilon'; did you mean 'eps'"),
        ("scores", None, "did you mean 'score'"),
        ("Q", None, "unknown prediction 'Q'; known: eps, x0, v, score"),
        (None, "edn", "unknown preconditioning 'edn'.*'edm'"),
        ("eps", "edm", "prediction='eps' has no meaning with it: leave prediction out"),
        ("score", "edm", "prediction='score' has no meaning"),
    ],
)
def test_names_without_a_meaning_are_refused(
    prediction: str | None, preconditioning: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_prediction(prediction, preconditioning, 1.0)
