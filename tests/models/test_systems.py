"""The systems are the equations of their docstrings, for every SDE, eta, time and event shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchsde
from support.closed_forms import (
    F64,
    Reference,
    every_sde,
    exact_moments,
    name_of,
    some_times,
    spread,
)
from torch import Tensor, nn

import sde_models as sm
from sde_models._utils.shapes import Time
from sde_models.models.base import Model
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow, ReverseSDE
from sde_models.sdes import VPSDE
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.system import System

every_eta = pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
every_shape = pytest.mark.parametrize("event_shape", [(4,), (1, 2, 2)], ids=str)


def mixture_in(event_shape: tuple[int, ...], sde: GaussianSDE) -> tuple[Reference, Model]:
    """A two-component mixture in four dimensions and its model."""
    means = torch.tensor([[-1.0, 0.5, 0.0, 0.3], [0.8, -0.3, 1.0, -0.6]], dtype=F64)
    stds = torch.tensor([[0.3, 0.5, 0.2, 0.7], [0.4, 0.2, 0.6, 0.3]], dtype=F64)
    weights = torch.tensor([0.4, 0.6], dtype=F64)
    model = GaussianMixture(means, stds, weights).score_model(sde, event_shape)
    return Reference(means, torch.diag_embed(stds.square()), weights), model


@every_shape
@every_sde
def test_the_flow_is_its_equation(sde: GaussianSDE, event_shape: tuple[int, ...]) -> None:
    """f - g^2 / 2 score, from the SDE's own f and g and autograd's score; relative to its terms."""
    reference, model = mixture_in(event_shape, sde)
    t, x = reference.points(sde, event_shape)
    drift = sde.f(t, x)
    pull = 0.5 * sde.g(t, x).square() * reference.score(sde, t, x)
    flow = ProbabilityFlow(model)
    assert ((flow(t, x) - (drift - pull)).abs() <= 1e-9 * (drift.abs() + pull.abs() + 1e-3)).all()
    assert torch.equal(flow.drift(t, x), flow(t, x))


@every_eta
@every_shape
@every_sde
def test_the_reverse_sde_is_its_equation(
    sde: GaussianSDE, event_shape: tuple[int, ...], eta: float
) -> None:
    """On a flat state with the clock s = -t for torchsde, on events in model time for solvers."""
    reference, model = mixture_in(event_shape, sde)
    t, x = reference.points(sde, event_shape)
    drift, g = sde.f(t, x), sde.g(t, x)
    pull = 0.5 * (1 + eta**2) * g.square() * reference.score(sde, t, x)
    rev = ReverseSDE(model, event_shape, eta)
    allowed = 1e-9 * (drift.abs() + pull.abs() + 1e-3)
    assert ((rev.drift(t, x) - (drift - pull)).abs() <= allowed).all()
    torch.testing.assert_close(rev.noise_scale(t, x).expand_as(x), eta * g)
    for i in range(len(t)):
        s, y = -t[i], x[i : i + 1].reshape(1, 4)
        f, noise = rev.f(s, y), rev.g(s, y)
        assert f.shape == noise.shape == y.shape
        assert ((f + (drift - pull)[i].reshape(1, 4)).abs() <= allowed[i].reshape(1, 4)).all()
        torch.testing.assert_close(noise, eta * g[i].reshape(1, 4))


@every_shape
@every_sde
def test_each_sample_has_its_own_time(sde: GaussianSDE, event_shape: tuple[int, ...]) -> None:
    """Four samples of four coordinates: B is also an event dimension."""
    _, model = mixture_in(event_shape, sde)
    x = torch.randn(4, *event_shape, dtype=F64)
    t = torch.linspace(sde.t_min, sde.t_max, 4, dtype=F64)
    rev = ReverseSDE(model, event_shape)
    for call in (
        ProbabilityFlow(model),
        rev.drift,
        lambda t, x: rev.noise_scale(t, x).expand_as(x),
    ):
        alone = torch.cat([call(t[i], x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(call(t, x), alone, rtol=1e-12, atol=1e-12)


@every_eta
@every_sde
def test_every_eta_has_the_marginals_of_the_forward_sde(sde: GaussianSDE, eta: float) -> None:
    """Mean and variance along the way, solved and not simulated, against those of the kernel."""
    mean = torch.tensor([1.5, -0.5], dtype=F64)
    std = torch.tensor([0.3, 0.8], dtype=F64)
    model = GaussianMixture(mean[None], std[None]).score_model(sde)
    rev = ReverseSDE(model, (2,), eta)
    t = some_times(sde).flip(0)[:, None]
    wanted_mean, wanted_std = sde.alpha(t) * mean, spread(sde, t, std)
    means, variances = exact_moments(rev.f, rev.g, wanted_mean[0], wanted_std[0].square(), -t[:, 0])
    torch.testing.assert_close(variances.sqrt(), wanted_std, rtol=1e-6, atol=0)
    assert ((means - wanted_mean).abs() <= 1e-6 * (wanted_std + wanted_mean.abs())).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@every_sde
def test_times_beyond_the_span_are_its_ends(sde: GaussianSDE, dtype: torch.dtype) -> None:
    """Adaptive solvers probe there, where sigma may be NaN."""
    _, model = mixture_in((4,), sde)
    model.to(dtype)
    flow, rev, x = ProbabilityFlow(model), ReverseSDE(model, (4,)), torch.randn(3, 4, dtype=dtype)
    for outside, end in ((-0.5, sde.t_min), (sde.t_max + 0.5, sde.t_max)):
        assert torch.isfinite(flow(outside, x)).all()
        assert torch.equal(flow(outside, x), flow(end, x))
        assert torch.equal(rev.drift(outside, x), rev.drift(end, x))
        assert torch.equal(rev.noise_scale(outside, x), rev.noise_scale(end, x))
    mixed = flow(torch.tensor([-0.5, 0.3, sde.t_max + 0.5], dtype=dtype), x)
    wanted = flow(torch.tensor([sde.t_min, 0.3, sde.t_max], dtype=dtype), x)
    torch.testing.assert_close(mixed, wanted)


@every_sde
def test_times_on_another_clock_are_refused(sde: GaussianSDE) -> None:
    """Those beyond the span by rounding are its ends."""
    _, model = mixture_in((4,), sde)
    rev, x = ReverseSDE(model, (4,)), torch.randn(3, 4, dtype=F64)
    for side, end in ((-1, -sde.t_max), (1, -sde.t_min)):
        for call in (rev.f, rev.g):
            assert torch.equal(call(end + side * 1e-7 * sde.t_max, x), call(end, x))
            for wrong in (end + side * 1e-5 * sde.t_max, torch.tensor(torch.nan)):
                with pytest.raises(
                    ValueError, match=r"clock s = -t .* integrate over its .span\(\)"
                ):
                    call(wrong, x)
    with pytest.raises(ValueError, match="is outside of"):
        torchsde.sdeint(rev, x, torch.tensor([0.0, 0.999]), dt=0.5, method="euler")


@every_sde
def test_the_clock_is_exact(sde: GaussianSDE) -> None:
    """In float32 too, s = -t is t; t_max - t would not be."""
    _, model = mixture_in((4,), sde)
    rev = ReverseSDE(model, (4,))
    for dtype in (torch.float32, F64):
        assert torch.equal(rev.span(dtype), torch.tensor([-sde.t_max, -sde.t_min], dtype=dtype))
    assert rev.span().dtype == torch.get_default_dtype()


class Ring(nn.Module):
    """Some score, with conditioning."""

    def forward(self, t: Tensor, x: Tensor, *, shift: float = 0.0, scale: float = 1.0) -> Tensor:
        return scale * torch.sin(x) + t.reshape(-1, *(1,) * (x.ndim - 1)) + shift


class OrnsteinUhlenbeck(SDE):
    """dx = -x dt + sqrt(2) dB, by f and g alone."""

    def f(self, t: Time, x: Tensor) -> Tensor:
        return -x

    def g(self, t: Time, x: Tensor) -> Tensor:
        return torch.full_like(x, 2**0.5)


@every_eta
@every_shape
def test_an_sde_without_a_kernel_reverses_like_the_one_with_it(
    event_shape: tuple[int, ...], eta: float
) -> None:
    """VP at constant beta 2 is the Ornstein-Uhlenbeck process."""
    gaussian = VPSDE(2.0, 2.0)
    plain = OrnsteinUhlenbeck(t_min=gaussian.t_min, t_max=gaussian.t_max)
    one, other = (
        ReverseSDE(
            ScoreModel(Ring(), sde, prediction="score"), event_shape, eta, cond={"shift": 0.3}
        )
        for sde in (plain, gaussian)
    )
    y = torch.randn(17, 4, dtype=F64)
    for t in some_times(gaussian):
        torch.testing.assert_close(one.f(-t, y), other.f(-t, y), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.g(-t, y), other.g(-t, y))
    if eta == 0:
        x, t = y.reshape(-1, *event_shape), some_times(gaussian)
        flows = [ProbabilityFlow(rev.model, cond={"shift": 0.3})(t, x) for rev in (one, other)]
        torch.testing.assert_close(*flows, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(flows[0].reshape(-1, 4)[3:4], -one.f(-t[3], y[3:4]))


SYSTEMS: list[Any] = [ProbabilityFlow, lambda model, **c: ReverseSDE(model, (4,), 0.5, **c)]


@pytest.mark.parametrize("make", SYSTEMS, ids=["flow", "reverse"])
def test_conditioned_adds_to_what_is_there(make: Any) -> None:
    model = ScoreModel(Ring(), VPSDE(), prediction="score")
    system = make(model, cond={"shift": 1.0})
    x = torch.randn(3, 4)
    before = system.drift(0.5, x)
    both = system.conditioned({"scale": 2.0}, x)
    replaced = system.conditioned({"shift": 3.0}, x)
    assert type(both) is type(system)
    assert both.model is model
    assert both.cond == {"shift": 1.0, "scale": 2.0}
    assert torch.equal(
        both.drift(0.5, x), make(model, cond={"shift": 1.0, "scale": 2.0}).drift(0.5, x)
    )
    assert torch.equal(replaced.drift(0.5, x), make(model, cond={"shift": 3.0}).drift(0.5, x))
    assert not torch.equal(both.drift(0.5, x), before)
    assert system.cond == {"shift": 1.0}
    assert torch.equal(system.drift(0.5, x), before)


def test_systems_without_a_model_take_no_conditions() -> None:
    sde = VPSDE()
    x = torch.zeros(2, 1)
    assert sde.conditioned(None, x) is sde
    with pytest.raises(TypeError, match="VPSDE takes no conditions, got label"):
        sde.conditioned({"label": 1}, x)


@pytest.mark.parametrize("make", SYSTEMS, ids=["flow", "reverse"])
def test_systems_are_modules_with_the_parameters_of_the_network(make: Any) -> None:
    network = nn.Linear(4, 4)
    system = make(ScoreModel(network, VPSDE()))
    assert isinstance(system, System)
    assert [id(p) for p in system.parameters()] == [id(p) for p in network.parameters()]
    assert (system.t_min, system.t_max) == (system.sde.t_min, system.sde.t_max)


class Unbounded(OrnsteinUhlenbeck):
    """Says that its noise depends on the state."""

    state_dependent_noise = True


class Rising(VPSDE):
    """Its noise falls in time."""

    def log_snr(self, t: Time) -> Tensor:
        return -super().log_snr(t)


@pytest.mark.parametrize("make", SYSTEMS, ids=["flow", "reverse"])
@pytest.mark.parametrize(
    ("sde", "message"),
    [(Unbounded(), "state_dependent_noise"), (Rising(), "must be finite and fall")],
    ids=name_of,
)
def test_what_cannot_be_reversed_is_refused(make: Any, sde: SDE, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ScoreModel(Ring(), sde, prediction="score"))


def test_arguments_without_a_meaning_are_refused() -> None:
    _, model = mixture_in((1, 2, 2), VPSDE())
    for eta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"eta must be 0 or more, and finite, got {eta}"):
            ReverseSDE(model, (1, 2, 2), eta)
    with pytest.raises(ValueError, match="'ito' or 'stratonovich', got 'itoh'"):
        ReverseSDE(model, (1, 2, 2), sde_type="itoh")
    with pytest.raises(ValueError, match=r"\(4,\) is not that of the model, \(1, 2, 2\)"):
        ReverseSDE(model, (4,))
    rev = ReverseSDE(model, [1, 2, 2])
    assert rev.event_shape == (1, 2, 2)
    for y in (torch.zeros(3, 5), torch.zeros(3, 1, 2, 2), torch.zeros(4)):
        for call in (rev.f, rev.g):
            with pytest.raises(
                ValueError, match=r"expected \(B, 4\) for events of shape \(1, 2, 2\)"
            ):
                call(-0.5, y)


@pytest.mark.parametrize(
    "sde", [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(data_std=0.5), sm.FlowMatchingSDE()], ids=repr
)
def test_isotropic_part_is_the_jacobian_of_gaussian_data(sde: sm.GaussianSDE) -> None:
    means = torch.zeros(1, 3, dtype=torch.float64)
    flow = sm.ProbabilityFlow(sm.GaussianMixture(means, sde.data_std).score_model(sde))
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(sde.t_min, sde.t_max, 4, dtype=torch.float64)
    _, trace = sm.Exact()(lambda y: flow(t, y), x, None)
    torch.testing.assert_close(trace.value, 3 * flow.isotropic(t, x))
