"""Derivatives where the graph does not tell of x: constants have them, cut graphs are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm

SDE = sm.VPSDE()
X = torch.tensor([[0.3, -1.2], [0.0, 2.0]], dtype=torch.float64)


class Eps(nn.Module):
    """An estimate of eps by a function of the weights and x."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.rows = function, 0
        self.weight = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.function(self, t, x)  # type: ignore[no-any-return]


CONSTANT: dict[str, Any] = {
    "zeros": lambda self, t, x: torch.zeros_like(x),
    "weights": lambda self, t, x: self.weight.expand_as(x),
    "of time": lambda self, t, x: t[:, None].expand_as(x),
    "without a graph": torch.no_grad()(lambda self, t, x: self.weight.expand_as(x)),
    "in the graph": lambda self, t, x: self.weight + 0 * x,
}


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("trace", ["quadrature", "augmented"])
def test_a_constant_estimate_of_the_noise_moves_and_does_not_stretch(name: str, trace: str) -> None:
    """The divergence of the flow is that of x / alpha alone: D log(alpha_max / alpha_min)."""
    model = sm.ScoreModel(Eps(CONSTANT[name]), SDE)
    solver = "adams-batch" if trace == "quadrature" else "ode:dopri5"
    found = sm.log_prob(model, X, solver, trace=trace, rtol=1e-7, atol=1e-7)
    ends = SDE.alpha(SDE.times([SDE.t_min, SDE.t_max])).log()
    prior = SDE.prior((2,)).log_prob(found.z)
    torch.testing.assert_close(found.value, prior + 2 * (ends[1] - ends[0]), rtol=0, atol=1e-5)
    assert found.nfe == model.network.rows / len(X)  # also those that look for a cut


def test_a_constant_energy_has_no_score() -> None:
    for function in (lambda self, t, x: torch.zeros(len(x)), lambda self, t, x: self.weight[:1]):
        score = sm.EnergyModel(Eps(function), SDE).score(0.5, X[:1])
        assert torch.equal(score, torch.zeros_like(score))


CUT: dict[str, Any] = {
    "no_grad": torch.no_grad()(lambda self, t, x: self.weight * x),
    "detach": lambda self, t, x: self.weight * x.detach(),
    "no weights": lambda self, t, x: 2 * x.detach(),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_a_cut_graph_is_refused_whatever_is_predicted(name: str, prediction: str) -> None:
    """An estimate of x0 has a graph to x of its own, which does not tell of the network's."""
    model = sm.ScoreModel(Eps(CUT[name]), SDE, prediction)
    assert sm.encode(model, X, rtol=0.1, atol=0.1).nfe > 0
    with pytest.raises(ValueError, match="cuts the graph"):
        sm.log_prob(model, X)
    with pytest.raises(ValueError, match="cuts the graph"):
        sm.solve(sm.ProbabilityFlow(model), X.clone().requires_grad_(), (1.0, 0.5), "ode:rk4")


def test_a_users_model_that_cuts_the_graph_is_refused() -> None:
    class Users(sm.Model):
        @torch.no_grad()
        def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            return 2 * x, 2 * x

    with pytest.raises(ValueError, match="cuts the graph"):
        sm.log_prob(Users(SDE), X)
