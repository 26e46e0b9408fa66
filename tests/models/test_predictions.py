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

from sde_models.models.base import Model
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.predictions import (
    EDM,
    X0,
    Eps,
    Prediction,
    Score,
    V,
    Velocity,
    find_prediction,
)
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes import VESDE, FlowMatchingSDE
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


def _velocity_scales(sde: GaussianSDE, t: Tensor) -> list[Tensor]:
    return [getattr(sde, name)(t)[:, None] for name in Velocity.scales]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@every_sde
def test_the_velocity_gives_x0_and_eps(sde: GaussianSDE, dtype: torch.dtype) -> None:
    """The tolerance is the rounding of the two terms of each inverse, and of the target."""
    scales = _velocity_scales(sde, some_times(sde, dtype))
    alpha, sigma, alpha_rate, sigma_rate = scales
    generator = torch.Generator().manual_seed(0)
    x0, noise, output = torch.randn(3, len(alpha), 5, dtype=dtype, generator=generator)
    x = alpha * x0 + sigma * noise
    norm = alpha * sigma_rate - sigma * alpha_rate
    assert (norm > 0).all()
    velocity = Velocity()
    got_x0, got_noise = velocity.denoise(velocity.target(x0, noise, *scales), x, *scales)
    size = torch.maximum(x0.abs(), noise.abs())
    of_state, of_output = (alpha + sigma) * size, (alpha_rate.abs() + sigma_rate.abs()) * size
    eps = 16 * torch.finfo(dtype).eps
    in_x0 = (sigma_rate.abs() * of_state + sigma * of_output) / norm
    in_noise = (alpha_rate.abs() * of_state + alpha * of_output) / norm
    assert ((got_x0 - x0).abs() <= eps * in_x0).all()
    assert ((got_noise - noise).abs() <= eps * in_noise).all()
    any_x0, any_noise = velocity.denoise(output, x, *scales)
    terms = (alpha * any_x0).abs() + (sigma * any_noise).abs() + x.abs()
    assert ((alpha * any_x0 + sigma * any_noise - x).abs() <= 4 * eps * terms * (1 + in_x0)).all()


@every_sde
def test_the_velocity_is_the_derivative_of_the_path(sde: GaussianSDE) -> None:
    t = some_times(sde)
    x0, noise = torch.randn(2, len(t), 5, dtype=F64, generator=torch.Generator().manual_seed(0))

    def path(times: Tensor) -> Tensor:
        return sde.alpha(times)[:, None] * x0 + sde.sigma(times)[:, None] * noise

    _, rate = torch.autograd.functional.jvp(path, t, torch.ones_like(t))
    model = ScoreModel(Arbitrary(), sde, "velocity")
    torch.testing.assert_close(model.target(t, x0, noise), rate, rtol=1e-9, atol=1e-9)
    if isinstance(sde, FlowMatchingSDE):
        torch.testing.assert_close(model.target(t, x0, noise), noise - x0)


@every_sde
def test_the_flow_of_a_predicted_velocity_is_the_output(sde: GaussianSDE) -> None:
    """alpha' x0 + sigma' eps of what the output implies, also at the nodes of a solver."""
    network, t = Arbitrary(), some_times(sde)
    model = ScoreModel(network, sde, "velocity")
    x = torch.randn(len(t), 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    output = network(t, x)
    scale = _velocity_scales(sde, t)[3].abs() + 1
    assert ((ProbabilityFlow(model)(t, x) - output).abs() <= 1e-11 * scale).all()
    times = sde.times([sde.t_min, 0.5 * (sde.t_min + sde.t_max), sde.t_max])
    nodes = model.at_nodes(times, x, {})
    drift = nodes.weighted(sde.alpha_rate(times), sde.sigma_rate(times))
    for k, time in enumerate(times):
        torch.testing.assert_close(drift(k, x), network(time, x), rtol=1e-9, atol=1e-9)
        for got, there in zip(nodes.denoise(k, x), (model.x0, model.eps), strict=True):
            torch.testing.assert_close(got, there(time, x), rtol=1e-12, atol=1e-12)


class FlowOf(nn.Module):
    """The velocity of another model as a network."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.flow = ProbabilityFlow(model)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.flow(t, x)


@every_sde
def test_the_velocity_of_a_mixture_gives_its_score(sde: GaussianSDE) -> None:
    exact = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=F64), 0.5)
    known = exact.score_model(sde)
    model = ScoreModel(FlowOf(known), sde, "velocity")
    t = torch.linspace(sde.t_min, sde.t_max, 19, dtype=F64)[1:-1]
    x = torch.randn(len(t), 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    for name in ("score", "eps", "x0", "v"):
        got, wanted = (getattr(each, name)(t, x) for each in (model, known))
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-7)


def test_edm_shows_one_clock_for_one_time() -> None:
    """A scalar time reaches the network as (B,), like a time for each sample."""
    edm, x = EDM(1.0), torch.zeros(3, 2)
    t, alpha, sigma = torch.full((3,), 0.5), torch.tensor(0.5), torch.tensor(2.0)
    clock, _ = edm.network_input(t, x, alpha, sigma)
    assert clock.tolist() == pytest.approx([math.log(4.0) / 4] * 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(None, Eps), ("eps", Eps), ("x0", X0), ("v", V), ("score", Score), ("velocity", Velocity)],
)
def test_names(name: str | None, kind: type[Prediction]) -> None:
    assert type(find_prediction(name, None, 1.0)) is kind


@pytest.mark.parametrize("prediction", [None, "x0"])
def test_edm_by_name(prediction: str | None) -> None:
    edm = find_prediction(prediction, "edm", 0.7)
    assert isinstance(edm, EDM)
    assert edm.data_std == 0.7


@pytest.mark.parametrize(
    ("prediction", "preconditioning", "message"),
    [
        ("x_0", None, "unknown prediction 'x_0'; did you mean 'x0'"),
        ("epsilon", None, "unknown prediction 'epsilon'; did you mean 'eps'"),
        ("scores", None, "did you mean 'score'"),
        ("Q", None, "unknown prediction 'Q'; known: eps, x0, v, score, velocity"),
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
