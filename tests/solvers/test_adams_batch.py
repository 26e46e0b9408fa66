"""Adaptive Adams in noise units: against closed forms, alone, in a batch, and between its steps."""

from __future__ import annotations

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sigma(sde: sm.GaussianSDE, t: float) -> float:
    return float(sde.sigma(torch.tensor(t, dtype=torch.float64)))


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_error_of_latents_is_a_few_tolerances_in_noise_units(sde: sm.GaussianSDE) -> None:
    exact = ProductMixture(sde, (2,))
    x = exact.sample(16, sde.t_min, generator())
    truth = exact.flow_map(x, sde.t_min, sde.t_max)
    span = (sde.t_min, sde.t_max)
    rows = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        half = 0.5 * tolerance
        got = sm.solve(exact.flow(), x, span, "adams-batch", rtol=half, atol=half)
        error = (got.x - truth).square().mean(1).sqrt().max() / sigma(sde, sde.t_max)
        assert error < 5 * tolerance
        rows.append(got.nfe)
    assert rows[0] < 45
    # A fixed order p would take 10**(2 / (p + 1)) times the steps for a hundredth of the tolerance.
    assert rows[2] < 2.8 * rows[1]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_the_way_down_is_exact_too(sde: sm.GaussianSDE) -> None:
    exact = ProductMixture(sde, (1, 3))
    x = exact.sample(8, sde.t_max, generator())
    truth = exact.flow_map(x, sde.t_max, sde.t_min)
    got = sm.solve(exact.flow(), x, (sde.t_max, sde.t_min), "adams-batch", rtol=1e-6, atol=1e-6)
    assert (got.x - truth).abs().max() < 1e-5


def test_one_point_is_exact_in_few_steps() -> None:
    """Its estimate of x0 is constant; going down nothing is left to integrate."""
    sde = sm.VPSDE()
    point = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    model = sm.GaussianMixture(point, 1e-9).score_model(sde)
    noise = torch.tensor([[0.7, 0.1]], dtype=torch.float64)
    x = sde.perturb(0.9, point, noise)
    got = sm.solve(sm.ProbabilityFlow(model), x, (0.9, 0.1), "adams-batch")
    torch.testing.assert_close(got.x, sde.perturb(0.1, point, noise))
    assert got.nfe < 12


def test_alone_or_in_a_batch() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(6, 1e-5, generator())
    batch = sm.solve(exact.flow(), x, (1e-5, 1.0), "adams-batch")
    for i in range(len(x)):
        alone = sm.solve(exact.flow(), x[i : i + 1], (1e-5, 1.0), "adams-batch")
        torch.testing.assert_close(alone.x, batch.x[i : i + 1], rtol=1e-10, atol=1e-10)
    assert batch.nfe < batch.cost.calls  # samples leave when they are done


def test_dense_output_is_as_accurate_as_the_steps() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(8, 1e-5, generator())
    times = torch.logspace(-4.5, -0.05, 30, dtype=torch.float64)
    got = sm.solve(
        exact.flow(), x, (1e-5, 1.0), "adams-batch", path=times, rtol=1e-6, atol=1e-6
    )  # fmt: skip
    assert got.path is not None
    for t, state in zip(times.tolist(), got.path, strict=True):
        truth = exact.flow_map(x, 1e-5, t)
        assert (state - truth).abs().max() / sigma(exact.sde, t) < 2e-5


@pytest.mark.parametrize("order", [1, 3, 8])
def test_orders(order: int) -> None:
    """The higher the order, the fewer steps at a tight tolerance."""
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(4, 1e-5, generator())
    tolerance = {1: 1e-3, 3: 1e-6, 8: 1e-8}[order]
    got = sm.solve(
        exact.flow(), x, (1e-5, 1.0), sm.make_solver("adams-batch", order=order),
        rtol=tolerance, atol=tolerance,
    )  # fmt: skip
    truth = exact.flow_map(x, 1e-5, 1.0)
    assert (got.x - truth).abs().max() < 20 * tolerance
    assert got.nfe < {1: 400, 3: 260, 8: 300}[order]


def test_gradient_is_that_of_the_flow() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, 1e-3, generator()).requires_grad_()
    got = sm.solve(exact.flow(), x, (1e-3, 1.0), "adams-batch", rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(got.x.square().sum(), x)
    for j, direction in enumerate(torch.eye(2, dtype=torch.float64)):
        ends = [exact.flow_map(x.detach() + s * 1e-5 * direction, 1e-3, 1.0) for s in (-1, 1)]
        slope = (ends[1].square().sum(1) - ends[0].square().sum(1)) / 2e-5
        torch.testing.assert_close(gradient[:, j], slope, rtol=1e-4, atol=1e-4)


def test_conditioning_leaves_with_its_sample() -> None:
    class Shifted(torch.nn.Module):
        def forward(self, t: Tensor, x: Tensor, shift: Tensor) -> Tensor:
            return (x + shift).tanh()

    model = sm.ScoreModel(Shifted(), sm.VPSDE(t_min=1e-3), event_shape=(2,))
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    shift = torch.randn(5, 1, generator=generator(1), dtype=torch.float64)
    flow = sm.ProbabilityFlow(model)
    both = sm.solve(flow, x, (1e-3, 1.0), "adams-batch", cond={"shift": shift})
    for i in range(5):
        rows = slice(i, i + 1)
        alone = sm.solve(flow, x[rows], (1e-3, 1.0), "adams-batch", cond={"shift": shift[rows]})
        torch.testing.assert_close(alone.x, both.x[rows], rtol=1e-9, atol=1e-9)


def test_what_it_cannot_do_is_refused() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(2, 1e-5, generator())
    with pytest.raises(ValueError, match="order must be an integer from 1 to 8, got 9"):
        sm.make_solver("adams-batch", order=9)
    with pytest.raises(ValueError, match="each sample has its own steps"):
        sm.solve(exact.flow(), x, (1e-5, 1.0), "adams-batch", path=True)
    with pytest.raises(sm.StepLimitError) as caught:
        sm.solve(exact.flow(), x, (1e-5, 1.0), "adams-batch", max_steps=3)
    assert caught.value.t.shape == (2,)

    class Jump(torch.nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x + torch.where(t > 0.002, 50.0, -50.0)[:, None]

    flow = sm.ProbabilityFlow(sm.ScoreModel(Jump(), sm.VPSDE(t_min=1e-3)))
    with pytest.raises(sm.StepSizeError, match="loosen rtol=2e-07 and atol=1e-09"):
        sm.solve(flow, x.float(), (1e-3, 1.0), "adams-batch", rtol=2e-7, atol=1e-9)
