"""Evaluations are counted where they happen: nested, after errors, and in backward passes."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from sde_models._utils.counting import Evaluations, count_evaluations, record
from sde_models.models.energy_model import EnergyModel
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes import VPSDE


class Tally(nn.Module):
    """A network that counts its own calls."""

    def __init__(self, energy: bool = False) -> None:
        super().__init__()
        self.energy = energy
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.weight * x.square()).sum(1) if self.energy else self.weight * x


def test_counters_nest() -> None:
    with count_evaluations() as outer:
        record(nfe=1)
        with count_evaluations() as inner:
            record(nfe=2, vjps=3)
        record(vjps=5)
    record(nfe=100)
    assert inner == Evaluations(nfe=2, vjps=3)
    assert outer == Evaluations(nfe=3, vjps=8)


def test_a_counter_closes_after_an_error() -> None:
    counter = Evaluations()

    def fail() -> None:
        nonlocal counter
        with count_evaluations() as counter:
            record(nfe=1)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    record(nfe=1)
    assert counter.nfe == 1


def test_threads_do_not_see_each_other() -> None:
    with count_evaluations() as cost:
        thread = Thread(target=record, kwargs={"nfe": 1})
        thread.start()
        thread.join()
    assert cost.nfe == 0


@pytest.mark.parametrize("method", ["score", "eps", "x0", "v"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_every_question_to_a_score_model_costs_one_pass(prediction: str, method: str) -> None:
    network = Tally()
    model = ScoreModel(network, VPSDE(), prediction=prediction)
    with count_evaluations() as cost:
        getattr(model, method)(0.5, torch.ones(3, 2))
    assert cost == Evaluations(nfe=1, rows=3, vjps=0)
    assert network.calls == 1


@pytest.mark.parametrize("method", ["score", "eps", "x0", "v"])
def test_every_question_to_an_energy_model_costs_a_pass_and_a_vjp(method: str) -> None:
    network = Tally(energy=True)
    model = EnergyModel(network, VPSDE())
    with count_evaluations() as cost:
        getattr(model, method)(0.5, torch.ones(3, 2))
    assert cost == Evaluations(nfe=1, rows=3, vjps=1)
    assert network.calls == 1
    with count_evaluations() as cost:
        model.energy(0.5, torch.ones(3, 2))
    assert cost == Evaluations(nfe=1, rows=3, vjps=0)


def test_a_mixture_counts_like_a_network() -> None:
    model = GaussianMixture(torch.zeros(1, 2), 1.0).score_model(VPSDE())
    with count_evaluations() as cost:
        model.score(0.5, torch.ones(3, 2))
        model.x0(0.5, torch.ones(3, 2))
    assert cost == Evaluations(nfe=2, rows=6, vjps=0)


def test_a_refused_call_costs_nothing() -> None:
    model = ScoreModel(Tally(), VPSDE())
    with count_evaluations() as cost, pytest.raises(ValueError, match="outside"):
        model.score(2.0, torch.ones(3, 2))
    assert cost.nfe == 0


@pytest.mark.parametrize("integrate", [odeint, odeint_adjoint])
def test_solver_and_backward_pass_are_counted_as_the_network_sees_them(
    integrate: object,
) -> None:
    """An adjoint solve runs the network again on the way back."""
    network = Tally()
    flow = ProbabilityFlow(ScoreModel(network, VPSDE()))
    x = torch.ones(3, 2, requires_grad=True)
    with count_evaluations() as cost:
        end = integrate(flow, x, torch.tensor([0.2, 0.8]), method="rk4", options={"step_size": 0.1})
        forward = cost.nfe
        end[-1].sum().backward()
    assert forward == 24
    assert cost.nfe == network.calls
    assert (cost.nfe > forward) == (integrate is odeint_adjoint)
