"""EnergyModel: the score is minus the gradient of the energy, and can itself be differentiated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.closed_forms import F64, Reference, every_sde
from torch import Tensor, nn

from sde_models._utils.counting import Cost, count_evaluations
from sde_models.models.energy_model import EnergyModel
from sde_models.sdes import VPSDE
from sde_models.sdes.gaussian import GaussianSDE

MIXTURE = Reference(
    torch.tensor([[-1.0, 0.5], [0.8, -0.3]], dtype=F64),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]], dtype=F64),
    torch.tensor([0.6, 0.4], dtype=F64),
)


class ExactEnergy(nn.Module):
    """Minus the log of the diffused density, up to a function of time."""

    def __init__(self, sde: GaussianSDE, column: bool) -> None:
        super().__init__()
        self.sde, self.column = sde, column

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        energy = 3 * t - MIXTURE.log_density(self.sde, t, x)
        return energy[:, None] if self.column else energy


class Ripples(nn.Module):
    """A smooth energy with a parameter and conditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4], dtype=F64))

    def forward(self, t: Tensor, x: Tensor, *, shift: float = 0.0) -> Tensor:
        return torch.sin(x @ self.weight + t + shift) + 0.25 * x.pow(4).sum(1)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("column", [True, False], ids=["(B, 1)", "(B,)"])
@every_sde
def test_the_energy_of_a_mixture_gives_its_score(
    sde: GaussianSDE, column: bool, grad: bool
) -> None:
    t, x = MIXTURE.points(sde, (1, 2))
    model = EnergyModel(ExactEnergy(sde, column), sde)
    sigma = sde.sigma(t)[:, None, None]
    alpha = sde.alpha(t)[:, None, None]
    score = MIXTURE.score(sde, t, x)
    close = {"rtol": 1e-9, "atol": 1e-9}
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(sigma * model.score(t, x), sigma * score, **close)
        torch.testing.assert_close(model.x0(t, x), (x + sigma**2 * score) / alpha, **close)
        torch.testing.assert_close(
            model.energy(t, x), 3 * t - MIXTURE.log_density(sde, t, x), **close
        )
    assert not x.requires_grad


def test_under_no_grad_nothing_is_kept() -> None:
    model, x = EnergyModel(Ripples(), VPSDE()), torch.randn(3, 2, dtype=F64)
    for point in (x, x.clone().requires_grad_()):
        with torch.no_grad():
            assert not model.score(0.5, point).requires_grad


def test_the_score_is_there_in_inference_mode() -> None:
    model, x = EnergyModel(Ripples(), VPSDE()), torch.randn(3, 2, dtype=F64)
    wanted = model.score(0.5, x)
    with torch.inference_mode():
        for point in (x, x.clone()):
            torch.testing.assert_close(model.score(0.5, point), wanted)


def test_the_score_is_differentiable_in_the_state() -> None:
    """Its Jacobian, and the Jacobian of that, against finite differences."""
    model = EnergyModel(Ripples(), VPSDE())
    t = torch.tensor([0.2, 0.7], dtype=F64)
    x = torch.randn(2, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model.score(t, x), x)
    assert torch.autograd.gradgradcheck(lambda x: model.score(t, x), x)


def test_the_score_is_differentiable_after_another_layer() -> None:
    """A state that is no leaf of the graph keeps its history."""
    model = EnergyModel(Ripples(), VPSDE())
    x = torch.randn(2, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model.score(0.5, torch.tanh(x)), x)


@pytest.mark.parametrize("state_has_history", [True, False])
def test_the_score_is_differentiable_in_the_parameters(state_has_history: bool) -> None:
    """What score matching needs; central differences at 1e-6 are good to 1e-8."""
    network = Ripples()
    model = EnergyModel(network, VPSDE())
    x = torch.randn(4, 2, dtype=F64).requires_grad_(state_has_history)

    def loss() -> Tensor:
        return model.score(0.5, x).square().sum()

    (gradient,) = torch.autograd.grad(loss(), network.weight)
    for i in range(2):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                network.weight[i] += step
                values.append(float(loss()))
                network.weight[i] -= step
        assert gradient[i].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


def test_cost_and_conditioning() -> None:
    model, x = EnergyModel(Ripples(), VPSDE()), torch.randn(3, 2, dtype=F64)
    with count_evaluations() as counter:
        shifted = model.score(0.3, x, shift=0.2)
    assert counter.cost(len(x)) == Cost(nfe=1.0, vjps=1.0, calls=1)
    torch.testing.assert_close(shifted + x**3, model.score(0.5, x) + x**3)


class Constantly(nn.Module):
    """An energy of a fixed shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, t: Tensor, x: Tensor) -> Any:
        return x.sum() * torch.ones(self.shape)


@pytest.mark.parametrize("shape", [(), (2,), (3, 2), (1, 3)], ids=str)
def test_other_than_one_energy_for_each_sample_is_refused(shape: tuple[int, ...]) -> None:
    model = EnergyModel(Constantly(*shape), VPSDE())
    for method in (model.score, model.energy):
        with pytest.raises(ValueError, match=r"expected one energy for each sample, \(3,\)"):
            method(0.5, torch.zeros(3, 2))
