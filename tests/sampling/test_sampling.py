"""Samples have the exact marginals, at the end and on the way, from the flow and from the SDE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.marginals import ProductMixture

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
EXACT = ProductMixture(sm.VPSDE(), (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("solver", ["euler-maruyama", "sde:srk", "ode:heun3"])
def test_reverse_sde_and_flow_share_the_marginals_of_the_diffusion(
    sde: sm.GaussianSDE, solver: str
) -> None:
    """At three times on the way; false-alarm rate 1e-6 a time, the seed is fixed."""
    exact = ProductMixture(sde, (1, 4, 4))
    span = sde.t_max - sde.t_min
    times = [sde.t_min + part * span for part in (0.7, 0.4, 0.1)]
    stochastic = sm.list_solvers()[solver].stochastic
    arguments: dict[str, Any] = {"generator": generator(1)} if stochastic else {}
    x = exact.sample(4000, sde.t_max, generator())
    system = sm.ReverseSDE(exact.model, (1, 4, 4)) if stochastic else exact.flow()
    got = sm.solve(system, x, (sde.t_max, sde.t_min), solver, steps=150, path=times, **arguments)
    assert got.path is not None
    for t, state in zip(times, got.path, strict=True):
        exact.check_marginal(state, t, bias=0.03)
    exact.check_marginal(got.x, sde.t_min, bias=0.03)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("solver", ["euler-maruyama", "ode:dopri5"])
def test_samples_start_from_the_prior_and_end_at_the_data(sde: sm.GaussianSDE, solver: str) -> None:
    """False-alarm rate 1e-6, plus the bias of the prior; the seed is fixed."""
    exact = ProductMixture(sde, (2,))
    out = sm.sample(exact.model, (2000, 2), solver, generator=generator())
    assert out.x.dtype == torch.float64
    exact.check_marginal(out.x, sde.t_min, bias=0.05)


def test_one_seed_decides_everything() -> None:
    for solver in ("ode:dopri5", "euler-maruyama", "sde:heun"):
        state = torch.get_rng_state()
        first, again, other = (
            sm.sample(EXACT.model, (3, 2), solver, generator=generator(seed)).x
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)  # nothing else was asked


def test_eta_is_the_stochasticity() -> None:
    """With eta 0 the reverse SDE is the flow: it comes from the prior to the flow's end point."""
    still = sm.sample(EXACT.model, (4, 2), "sde:heun", eta=0.0, steps=400, generator=generator(3))
    start = EXACT.sde.prior((2,)).sample((4,), generator=generator(3), dtype=torch.float64)
    truth = EXACT.flow_map(start, 1.0, EXACT.sde.t_min)
    torch.testing.assert_close(still.x, truth, rtol=0, atol=2e-4)


def test_denoise_adds_one_evaluation_and_is_the_models_x0() -> None:
    plain = sm.sample(EXACT.model, (4, 2), steps=20, solver="ode:rk4", generator=generator(3))
    clean = sm.sample(
        EXACT.model, (4, 2), steps=20, solver="ode:rk4", generator=generator(3), denoise=True
    )
    assert clean.nfe == plain.nfe + 1
    torch.testing.assert_close(clean.x, EXACT.model.x0(EXACT.sde.t_min, plain.x))


def test_a_prior_of_ones_own_is_used() -> None:
    """From the exact marginal at t_max the samples have no bias of the prior."""
    sde = sm.VESDE(sigma_min=0.01, sigma_max=2.0)
    exact = ProductMixture(sde, (2,))
    out = sm.sample(
        exact.model, (4000, 2), prior=exact.mixture.diffuse(sde, 1.0), generator=generator()
    )
    exact.check_marginal(out.x, 0.0, bias=0.0)


def test_conditioning_reaches_the_network() -> None:
    seen: list[float] = []

    class Conditional(torch.nn.Module):
        def forward(self, t: torch.Tensor, x: torch.Tensor, *, shift: float) -> torch.Tensor:
            seen.append(shift)
            return x - shift

    model = sm.ScoreModel(Conditional(), sm.VPSDE())
    sm.sample(model, (2, 3), "ode:euler", steps=4, cond={"shift": 2.5}, denoise=True)
    sm.sample(model, (2, 3), "euler-maruyama", steps=4, cond={"shift": 2.5})
    sm.log_prob(model, torch.zeros(2, 3), "ode:euler", steps=4, cond={"shift": 2.5})
    assert len(seen) == 5 + 4 + (4 + 2 + 1)  # and the coarser solves of the likelihood
    assert set(seen) == {2.5}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"shape": (3, 5)}, r"has events of shape \(5,\), the model expects \(2,\): use \(3, 2\)"),
    ({"shape": (3,)}, r"\(n, \*event\)"),
    ({"shape": (0, 2)}, "integers of 1 or more"),
    ({"shape": (2.0, 2)}, "integers"),
    ({"eta": 0.5}, "cannot use eta="),
    ({"solver": "euler-maruyama", "eta": -1.0}, "eta must be 0 or more"),
    ({"solver": "euler-maruyama", "rtol": 1e-3}, "cannot use rtol="),
    ({"solver": "dpm"}, "unknown solver"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sm.sample(EXACT.model, **{"shape": (3, 2), **change})


def test_an_sde_without_a_kernel_needs_a_prior() -> None:
    class Brownian(sm.SDE):
        def f(self, t: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

        def g(self, t: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(x)

    class Standard(torch.nn.Module):
        """The exact score of x_t = x_0 + B_t with x_0 from N(0, I)."""

        def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return -x / (1 + t[:, None])

    model = sm.ScoreModel(Standard(), Brownian(), prediction="score")
    with pytest.raises(TypeError, match="give prior="):
        sm.sample(model, (3, 2))
    prior = sm.GaussianMixture(torch.zeros(1, 2), 2**0.5)
    for solver in ("ode:dopri5", "euler-maruyama"):
        out = sm.sample(model, (4000, 2), solver, prior=prior, generator=generator())
        assert (out.x.std(0) - 1).abs().max() < 5 / (2 * 4000) ** 0.5 + 0.01


def test_denoised_samples_that_are_not_finite_are_refused_with_the_count() -> None:
    class BlindAtTheEnd(torch.nn.Module):
        def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.where(t[:, None] < 2e-5, torch.nan, x)

    model = sm.ScoreModel(BlindAtTheEnd(), sm.VPSDE())
    with pytest.raises(sm.NonFiniteError, match="denoised samples") as caught:
        sm.sample(model, (3, 2), "ode:euler", steps=5, denoise=True)
    assert caught.value.nfe == 6
