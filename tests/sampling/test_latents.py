"""Latents: the exact flow map, back and forth, with gradients that finite differences confirm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_sde
@pytest.mark.parametrize("event_shape", [(2,), (1, 4, 4)], ids=str)
def test_round_trip_and_closed_form(sde: sm.GaussianSDE, event_shape: tuple[int, ...]) -> None:
    exact = ProductMixture(sde, event_shape)
    x = exact.sample(16, sde.t_min, generator())
    encoded = sm.encode(exact.model, x, rtol=1e-7, atol=1e-7)
    decoded = sm.decode(exact.model, encoded.z, rtol=1e-7, atol=1e-7)
    assert (decoded.x - x).abs().max() < 1e-5
    truth = exact.flow_map(x, sde.t_min, sde.t_max)
    assert (encoded.z - truth).abs().max() < 1e-4 * exact.spread(sde.t_max)


def test_round_trip_of_a_full_covariance_mixture_in_64_dimensions() -> None:
    g = generator(1)
    factors = 0.2 * torch.randn(10, 64, 64, generator=g, dtype=torch.float64) / 8
    covariances = factors @ factors.mT + 0.05 * torch.eye(64, dtype=torch.float64)
    means = torch.randn(10, 64, generator=g, dtype=torch.float64)
    mixture = sm.GaussianMixture(means, covariances=covariances)
    model = mixture.score_model(sm.VPSDE())
    x = mixture.sample(8, generator=g)
    z = sm.encode(model, x, rtol=1e-7, atol=1e-7).z
    assert (sm.decode(model, z, rtol=1e-7, atol=1e-7).x - x).abs().max() < 1e-5


class Smooth(torch.nn.Module):
    """A small network without high frequencies, so that tight tolerances cost little."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.out(self.hidden(torch.cat([t[:, None], x], dim=1)).tanh())


def small_model() -> sm.ScoreModel:
    torch.manual_seed(0)
    return sm.ScoreModel(Smooth().double(), sm.VPSDE(), prediction="v")


TIGHT: Any = {"solver": "ode:dopri5", "rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("way", ["direct", "adjoint"])
def test_gradient_with_respect_to_z_against_finite_differences(way: str) -> None:
    model = small_model()
    z = torch.randn(2, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)

    decoded = sm.decode(model, z, gradient=way, **TIGHT).x
    (got,) = torch.autograd.grad((decoded * weight).sum(), z)
    step = 1e-4
    shifts = step * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():  # all shifted points in one batch: a sample does not feel the others
        above, below = (
            sm.decode(model, (z[:, None] + sign * shifts).reshape(-1, 3), **TIGHT).x
            for sign in (1, -1)
        )
    wanted = (above - below).reshape(2, 3, 3) @ weight[..., None] / (2 * step)
    torch.testing.assert_close(got, wanted[..., 0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", ["direct", "adjoint"])
def test_gradient_with_respect_to_parameters_against_finite_differences(way: str) -> None:
    model = small_model()
    z = torch.randn(2, 3, generator=generator(), dtype=torch.float64)

    def loss(gradient: str | None = None) -> Tensor:
        return sm.decode(model, z, gradient=gradient, **TIGHT).x.square().sum()

    loss(way).backward()
    step = 1e-4
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator(3), dtype=torch.float64)
        direction /= direction.norm()
        kept, values = parameter.data, []
        for sign in (1, -1):
            parameter.data = kept + sign * step * direction
            values.append(loss().item())
        parameter.data = kept
        wanted = (values[0] - values[1]) / (2 * step)
        along = float((parameter.grad * direction).sum())
        assert along == pytest.approx(wanted, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("solver", ["ode:rk4", "ode:explicit_adams", "ode:heun3"])
@pytest.mark.parametrize("span", [(1.0, 0.2), (0.2, 1.0)])
def test_fixed_step_gradients_direct_and_adjoint_agree(
    solver: str, span: tuple[float, float]
) -> None:
    flow = sm.ProbabilityFlow(small_model())
    x = torch.randn(2, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    direct, adjoint = (
        torch.autograd.grad(
            sm.solve(flow, x, span, solver, gradient=way, steps=100).x.square().sum(), x
        )[0]
        for way in ("direct", "adjoint")
    )
    torch.testing.assert_close(direct, adjoint, rtol=1e-4, atol=1e-5)


def test_a_graph_is_kept_only_where_it_was_asked_for() -> None:
    model = small_model()
    z = torch.randn(2, 3, generator=generator(), dtype=torch.float64)
    assert not sm.decode(model, z).x.requires_grad
    assert sm.decode(model, z, gradient="direct").x.requires_grad
    assert sm.decode(model, z.clone().requires_grad_()).x.requires_grad
    with torch.no_grad():
        assert not sm.decode(model, z.clone().requires_grad_()).x.requires_grad
    with pytest.raises(ValueError, match="cannot be differentiated"):
        sm.decode(model, z.clone().requires_grad_(), "scipy:RK45")


def test_gradient_flows_through_sde_solvers() -> None:
    """Same noise, shifted start: the gradient of Euler-Maruyama against finite differences."""
    model = small_model()
    x = torch.randn(1, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    system = sm.ReverseSDE(model, (3,))
    for solver in ("euler-maruyama", "sde:heun"):

        def end(x: Tensor, solver: str = solver) -> Tensor:
            return sm.solve(system, x, (1.0, 0.1), solver, steps=20, generator=generator(2)).x.sum()

        (got,) = torch.autograd.grad(end(x), x)
        for j in range(3):
            shift = torch.zeros(1, 3, dtype=torch.float64)
            shift[0, j] = 1e-5
            with torch.no_grad():
                wanted = (end(x + shift) - end(x - shift)) / 2e-5
            assert got[0, j].item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-8)


def test_encoding_refuses_sde_solvers() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    for function in (sm.encode, sm.decode):
        with pytest.raises(ValueError, match="is for SDEs and ProbabilityFlow is an ODE"):
            function(exact.model, torch.zeros(2, 2), "sde:heun")
