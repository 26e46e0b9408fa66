"""The dtype of the state and that of the network have nothing to do with each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm

F32, F64 = torch.float32, torch.float64
SDE = sm.VPSDE()
STD = 0.3


class Exact(nn.Module):
    """The noise in data N(0, STD^2), in the dtype of a weight that nothing else has."""

    def __init__(self, dtype: torch.dtype, kind: str = "eps") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.kind = kind

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        assert t.dtype == x.dtype == self.weight.dtype
        if self.kind == "edm":  # x / S, of variance 1, of which nothing is left to predict
            return self.weight * 0 * x
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        if self.kind == "energy":
            return 0.5 * self.weight * (x.square() / (alpha**2 * STD**2 + sigma**2)).sum(1)
        return self.weight * sigma * x / (alpha**2 * STD**2 + sigma**2)


def model(dtype: torch.dtype, kind: str = "eps") -> sm.Model:
    if kind == "energy":
        return sm.EnergyModel(Exact(dtype, kind), SDE)
    if kind == "edm":
        sde = sm.VPSDE(data_std=STD)
        return sm.ScoreModel(Exact(dtype, kind), sde, preconditioning="edm")
    return sm.ScoreModel(Exact(dtype, kind), SDE)


def draw(kind: str, network: torch.dtype, state: torch.dtype, name: str, steps: int) -> Tensor:
    start = torch.linspace(-2, 2, 32, dtype=F64).reshape(16, 2).to(state)
    flow = sm.ProbabilityFlow(model(network, kind))
    x = sm.solve(flow, start, (1.0, 1e-5), name, steps=steps).x
    assert x.dtype == state
    return x.double()


@pytest.mark.parametrize("name", ["ddim", "ode:rk4", "dpmpp-2m", "heun-edm"])
@pytest.mark.parametrize("kind", ["eps", "energy", "edm"])
def test_a_state_in_double_precision_is_as_good_as_the_networks_rounding(
    kind: str, name: str
) -> None:
    """Its error is a few roundings of the network, and does not add up over 500 evaluations.

    With EDM preconditioning the network predicts 0, which no rounding changes: what is left is
    that the preconditioning is in the precision of the state.
    """
    steps = 500 // (sm.list_solvers()[name].evaluations or 1)
    truth = draw(kind, F64, F64, name, steps)
    mixed = draw(kind, F32, F64, name, steps)
    allowed = 1e-12 if kind == "edm" else 16 * torch.finfo(F32).eps * float(truth.abs().max())
    assert float((mixed - truth).abs().max()) < allowed
    assert not torch.equal(mixed.float().double(), mixed)


@pytest.mark.parametrize("state", [F32, F64], ids=str)
@pytest.mark.parametrize("network", [torch.bfloat16, F32, F64], ids=str)
def test_every_function_takes_any_pair(network: torch.dtype, state: torch.dtype) -> None:
    """Densities of Gaussian data are known; a network in bfloat16 rounds them to a percent."""
    for kind in ("eps", "energy"):
        found = model(network, kind)
        x = (STD * torch.tensor([[1.0, -0.5], [0.2, 2.0]])).to(state)
        truth = torch.distributions.Normal(0.0, STD).log_prob(x.double()).sum(1)
        tolerance = 0.3 if network == torch.bfloat16 else 2e-3
        lp = sm.log_prob(found, x, rtol=1e-3, atol=1e-3)
        assert lp.value.dtype == lp.z.dtype == state
        torch.testing.assert_close(lp.value.double(), truth, rtol=0, atol=tolerance)
        x.requires_grad_()
        value = sm.log_prob(found, x, "ode:rk4", trace="augmented", steps=30).value
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.dtype == state
        score = -x.detach() / STD**2
        near = 0.5 if network == torch.bfloat16 else 0.05
        torch.testing.assert_close(gradient, score, rtol=near, atol=near)
        assert sm.sample(found, (2, 2), "ddim", dtype=state).x.dtype == state


class Scaled(Exact):
    """The exact estimate, times the mean of conditions that meet its weights in a product."""

    def forward(self, t: Tensor, x: Tensor, w: Tensor) -> Tensor:
        one = torch.nn.functional.linear(w, torch.ones(1, 2, dtype=self.weight.dtype))
        return super().forward(t, x) * one / 2


@pytest.mark.parametrize("given", [F32, F64, list], ids=str)
@pytest.mark.parametrize("state", [F32, F64], ids=str)
@pytest.mark.parametrize("network", [F32, F64], ids=str)
def test_floating_conditions_get_the_dtype_of_the_network(
    network: torch.dtype, state: torch.dtype, given: Any
) -> None:
    w = [[0.5, 1.5], [1.0, 1.0]]
    cond = {"w": w if given is list else torch.tensor(w, dtype=given)}
    x = torch.ones(2, 2, dtype=state)
    scaled = sm.ScoreModel(Scaled(network), SDE)
    for name in ("rk-batch", "ode:rk4"):
        found = sm.encode(scaled, x, name, cond=cond).z
        torch.testing.assert_close(found, sm.encode(model(network), x, name).z)
    bound = sm.log_prob(scaled.bind(w=torch.ones(2, dtype=F64)), x, cond=None).value
    torch.testing.assert_close(bound, sm.log_prob(model(network), x).value)


def test_a_round_trip_keeps_double_precision() -> None:
    """There and back through a network in float32, whose roundings cancel on the way."""
    x = STD * torch.linspace(-2, 2, 8, dtype=F64).reshape(4, 2)
    errors = {}
    for state in (F32, F64):
        z = sm.encode(model(F32), x.to(state), "ode:rk4", steps=200).z
        back = sm.decode(model(F32), z, "ode:rk4", steps=200).x
        errors[state] = float((back.double() - x).abs().max())
    assert errors[F64] < 2e-7
    assert errors[F64] < errors[F32]


def test_losses_evaluation_and_bits_take_any_pair(tmp_path: Any) -> None:
    x = STD * torch.randn(8, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    single = model(F32)
    loss = sm.losses.denoising_score_matching(single, x, 0.5, torch.ones_like(x))
    wanted = sm.losses.denoising_score_matching(model(F64), x, 0.5, torch.ones_like(x))
    assert loss.dtype == F64
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == F32 for p in single.parameters())
    found = sm.evaluate(single, x, tmp_path, progress=False)
    truth = torch.distributions.Normal(0.0, STD).log_prob(x).sum(1)
    torch.testing.assert_close(found.value.double(), truth, rtol=0, atol=2e-3)
    images = torch.zeros(2, 2, dtype=torch.long)
    assert sm.bits_per_dim(model(F64), images, 4, rtol=0.1, atol=0.1).per_image.dtype == F64


def test_a_distribution_over_nothing() -> None:
    """No samples have no densities; samples without numbers are refused."""
    dist = sm.ScoreDistribution(model(F32), (2,))
    assert dist.log_prob(dist.sample((0,))).shape == (0,)
    assert SDE.prior((2,)).log_prob(torch.zeros(0, 2)).shape == (0,)
    assert sm.GaussianMixture(torch.zeros(1, 2), 1.0).log_prob(torch.zeros(0, 2)).shape == (0,)
    with pytest.raises(ValueError, match="event_shape must hold integers of 1 or more"):
        sm.ScoreDistribution(model(F32), (0,))


EMPTY: dict[str, Any] = {
    "encode": lambda m, x: sm.encode(m, x),
    "decode": lambda m, x: sm.decode(m, x),
    "log_prob": lambda m, x: sm.log_prob(m, x),
    "bits": lambda m, x: sm.bits_per_dim(m, x.long()),
    "solve": lambda m, x: sm.solve(sm.ProbabilityFlow(m), x, (1.0, 0.5)),
    "loss": lambda m, x: sm.losses.denoising_score_matching(m, x),
    "sliced": lambda m, x: sm.losses.sliced_score_matching(m, x),
    "fit": lambda m, x: sm.fit(m, x, steps=1, progress=False),
    "sample": lambda m, x: sm.sample(m, tuple(x.shape)),
    "trace": lambda m, x: sm.Hutchinson()(lambda y: 3 * y, x, sm.Hutchinson().draw(x)),
    "exact": lambda m, x: sm.Exact()(lambda y: 3 * y, x, None),
    "asymmetry": lambda m, x: sm.losses.asymmetry(m, 0.5, x),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("shape", [(2, 0), (0, 2), (2, 3, 0)], ids=str)
def test_batches_of_nothing_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"(has|have|got|of 1 or more).*\(\d, \d.*"):
        EMPTY[name](model(F32), torch.zeros(shape))


@pytest.mark.parametrize("make", [sm.ScoreModel, sm.EnergyModel])
def test_what_is_no_module_is_refused_when_the_model_is_made(make: Any) -> None:
    for network, hint in ((lambda t, x: x, r"got <function.*forward\(self, t, x\)"),
                          (Exact, "got the class Exact: make one of it")):  # fmt: skip
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module.*" + hint):
            make(network, SDE)
