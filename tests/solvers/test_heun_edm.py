"""Heun's method of Karras et al. with churn, and DPM-Solver++(2S): closed forms and marginals."""

from __future__ import annotations

import math

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
EXACT = ProductMixture(sm.VPSDE(), (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_one_step_as_the_paper_writes_it(sde: sm.GaussianSDE) -> None:
    """Algorithm 2 without churn, in x / alpha and sigma / alpha, by hand."""
    model = ProductMixture(sde, (2,)).model
    t = torch.tensor([0.6, 0.4], dtype=torch.float64)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    level = sigma / alpha
    scaled = x / alpha[0]
    slope = (scaled - model.x0(t[0], x)) / level[0]
    euler = scaled + (level[1] - level[0]) * slope
    ahead = (euler - model.x0(t[1], alpha[1] * euler)) / level[1]
    want = alpha[1] * (scaled + (level[1] - level[0]) * 0.5 * (slope + ahead))
    got = sm.solve(sm.ProbabilityFlow(model), x, (0.6, 0.4), "heun-edm", steps=1)
    torch.testing.assert_close(got.x, want)
    assert got.nfe == 2


@pytest.mark.parametrize("churn", [10.0, 40.0])
@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_churn_keeps_the_marginals(sde: sm.GaussianSDE, churn: float) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    exact = ProductMixture(sde, (2,))
    high, low = sde.t_max, sde.t_min + 0.05 * (sde.t_max - sde.t_min)
    x = exact.sample(2000, high, generator(1))
    solver = sm.make_solver("heun-edm", churn=churn)
    got = sm.solve(exact.flow(), x, (high, low), solver, steps=100, generator=generator(2))
    exact.check_marginal(got.x, low, bias=0.04)
    calm = sm.solve(exact.flow(), x, (high, low), "heun-edm", steps=100)
    assert (got.x - calm.x).square().mean().sqrt() > 0.1 * exact.spread(low)


def test_churn_with_too_much_noise_is_seen_by_that_test() -> None:
    x = EXACT.sample(2000, 1.0, generator(1))
    solver = sm.make_solver("heun-edm", churn=40.0, noise=1.3)
    got = sm.solve(EXACT.flow(), x, (1.0, 0.05), solver, steps=100, generator=generator(2))
    with pytest.raises(AssertionError, match="variance off"):
        EXACT.check_marginal(got.x, 0.05, bias=0.04)


def test_churn_is_seeded_and_bounded_to_its_levels() -> None:
    x = EXACT.sample(8, 1.0, generator())

    def run(seed: int, **options: float) -> Tensor:
        solver = sm.make_solver("heun-edm", churn=20.0, **options)
        return sm.solve(EXACT.flow(), x, (1.0, 0.05), solver, steps=20, generator=generator(seed)).x

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    calm = sm.solve(EXACT.flow(), x, (1.0, 0.05), "heun-edm", steps=20).x
    assert torch.equal(run(1, churn_max=1e-4), calm)
    assert torch.equal(run(1, churn_min=1e6), calm)
    assert not torch.equal(run(1, churn_min=0.5), calm)


def test_what_has_no_meaning_is_refused() -> None:
    x = EXACT.sample(4, 1e-5, generator())
    churned = sm.make_solver("heun-edm", churn=10.0)
    with pytest.raises(ValueError, match="runs down, from noise to data"):
        sm.encode(EXACT.model, x, churned)
    with pytest.raises(
        ValueError, match="draws noise here, so that decoding would not be a function"
    ):
        sm.decode(EXACT.model, x, churned)
    assert sm.decode(EXACT.model, x, "heun-edm").nfe == 50
    with pytest.raises(ValueError, match="runs down, from noise to data"):
        sm.log_prob(EXACT.model, x, churned)
    with pytest.raises(ValueError, match="samples of the probability flow"):
        sm.sample(EXACT.model, (2, *EXACT.model.event_shape), churned, return_log_prob=True)
    with pytest.raises(ValueError, match="cannot use generator=; it is deterministic"):
        sm.solve(EXACT.flow(), x, (1.0, 0.1), "heun-edm", generator=generator())
    with pytest.raises(ValueError, match="no effect without churn"):
        sm.make_solver("heun-edm", noise=1.1)
    with pytest.raises(ValueError, match="'churn_min' must be below"):
        sm.make_solver("heun-edm", churn=1.0, churn_min=2.0, churn_max=1.0)
    with pytest.raises(ValueError, match="'churn' must be 0 or more"):
        sm.make_solver("heun-edm", churn=-1.0)
    with pytest.raises(ValueError, match="did you mean 'churn'"):
        sm.make_solver("heun-edm", chrun=1.0)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0])
def test_two_stage_dpm_solver_as_the_paper_writes_it(ratio: float) -> None:
    """Algorithm 1 of Lu et al. 2022 with r = ratio, by hand."""
    sde, model = EXACT.sde, EXACT.model
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    t = torch.tensor([0.6, 0.4], dtype=torch.float64)
    lam = 0.5 * sde.log_snr(t)
    h = float(lam[1] - lam[0])
    middle = sde.t_from_log_snr(2 * (lam[0] + ratio * h))
    a1, (s0, s1) = sde.alpha(t)[1], sde.sigma(t)
    first = model.x0(t[0], x)
    u = sde.sigma(middle) / s0 * x - sde.alpha(middle) * math.expm1(-ratio * h) * first
    second = model.x0(middle, u)
    d = (1 - 1 / (2 * ratio)) * first + 1 / (2 * ratio) * second
    want = s1 / s0 * x - a1 * math.expm1(-h) * d
    solver = sm.make_solver("dpmpp-2s", ratio=ratio)
    got = sm.solve(sm.ProbabilityFlow(model), x, (0.6, 0.4), solver, steps=1)
    torch.testing.assert_close(got.x, want)
    assert got.nfe == 2
