"""Reverse diffusion and ancestral sampling: their equations, their order, their likeness to DDIM.

The weak order is measured on the density itself, in one dimension and without Monte-Carlo error.
"""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from support.exact_laws import density_error, live_tensors, one_step
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers import Problem
from sde_models.solvers.one_step.ancestral import variance_gained

SDES = {
    "vp": sm.VPSDE(),
    "sub-vp": sm.SubVPSDE(),
    "ve": sm.VESDE(),
    "cosine": sm.CosineSDE(),
    "flow-matching": sm.FlowMatchingSDE(),
}
SPANS = {"ve": (0.6, 0.35)}
REACH = {"ve": 9.0}
NAMES = ["reverse-diffusion", "ancestral"]
every_sde = pytest.mark.parametrize("name", list(SDES))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernel(sde: sm.GaussianSDE, noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Its a and G^2, as the definition has them."""
    a = sde.alpha(noisy) / sde.alpha(clean)
    return a, sde.sigma(noisy) ** 2 - a**2 * sde.sigma(clean) ** 2


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@every_sde
def test_reverse_diffusion_is_equation_46(name: str, eta: float) -> None:
    sde = SDES[name]
    exact = ProductMixture(sde, (3,))
    x = exact.sample(5, sde.t_max, generator())
    grid = torch.linspace(sde.t_max, 0.3, 9, dtype=torch.float64)
    system = sm.ReverseSDE(exact.model, (3,), eta)
    got = sm.solve(
        system, x, (sde.t_max, 0.3), "reverse-diffusion", grid=grid, generator=generator(1)
    ).x
    source = generator(1)
    for noisy, clean in pairwise(grid):
        a, squared = kernel(sde, noisy, clean)
        xi = torch.randn(5, 3, generator=source, dtype=torch.float64)
        score = exact.model.score(noisy, x)
        x = (2 - a) * x + 0.5 * (1 + eta**2) * squared * score + eta * squared.sqrt() * xi
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_reverse_diffusion_of_vp_is_that_of_ddpm() -> None:
    """Discrete betas as in DDPM: x' = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) noise."""
    sde = sm.VPSDE()
    exact = ProductMixture(sde, (2,))
    x = exact.sample(4, 0.8, generator())
    kept = torch.tensor([sde.integrated_beta(t) for t in (0.8, 0.7)], dtype=torch.float64)
    beta = 1 - torch.exp(kept[1] - kept[0])
    xi = torch.randn(4, 2, generator=generator(1), dtype=torch.float64)
    wanted = (2 - (1 - beta).sqrt()) * x + beta * exact.model.score(0.8, x) + beta.sqrt() * xi
    system = sm.ReverseSDE(exact.model, (2,))
    got = sm.solve(
        system, x, (0.8, 0.7), "reverse-diffusion", steps=1, generator=generator(1)
    ).x  # fmt: skip
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # betas in float32


@every_sde
def test_ancestral_draws_from_the_posterior(name: str) -> None:
    """Bayes: p(x_t | x_s, x0) is proportional to N(x_s; a x_t, G^2) N(x_t; alpha_t x0, sigma_t^2),
    so precisions add."""
    sde = SDES[name]
    exact = ProductMixture(sde, (3,))
    noisy, clean = torch.tensor([0.8, 0.55], dtype=torch.float64)
    x = exact.sample(5, 0.8, generator())
    a, squared = kernel(sde, noisy, clean)
    x0 = exact.model.x0(noisy, x)
    precision = a**2 / squared + 1 / sde.sigma(clean) ** 2
    mean = (a / squared * x + sde.alpha(clean) / sde.sigma(clean) ** 2 * x0) / precision
    xi = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    system = sm.ReverseSDE(exact.model, (3,))
    got = sm.solve(system, x, (0.8, 0.55), "ancestral", steps=1, generator=generator(1)).x
    torch.testing.assert_close(got, mean + precision.rsqrt() * xi, rtol=1e-10, atol=1e-10)


@every_sde
def test_ancestral_is_ddim_with_eta_1(name: str) -> None:
    sde = SDES[name]
    exact = ProductMixture(sde, (1, 4, 4))
    x = exact.sample(5, sde.t_max, generator())
    system = sm.ReverseSDE(exact.model, (1, 4, 4))
    ours, ddim = (
        sm.solve(system, x, (sde.t_max, sde.t_min), solver, steps=40, generator=generator(1)).x
        for solver in ("ancestral", "ddim")
    )
    torch.testing.assert_close(ours, ddim, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "eta"),
    [("reverse-diffusion", eta) for eta in (0.5, 1.0, 1.5)] + [("ancestral", 1.0)],
)
@every_sde
def test_weak_order(name: str, solver: str, eta: float) -> None:
    """L1 distance of the density, halving the step."""
    moves = one_step(sm.make_solver(solver))
    span, reach = SPANS.get(name, (0.9, 0.2)), REACH.get(name, 5.0)
    coarse, fine = (
        density_error(moves, SDES[name], span, steps=steps, reach=reach, eta=eta)
        for steps in (20, 40)
    )
    assert abs(math.log2(coarse / fine) - sm.list_solvers()[solver].order) < 0.25
    assert fine < 0.12


def test_variance_gained_does_not_cancel() -> None:
    """1 - e^-d of neighbours that differ by d = 1.2345e-11 in log-SNR is d, to within d^2 / 2."""
    log_snr = torch.tensor([0.0, 1.2345e-11], dtype=torch.float64)
    gained = float(variance_gained(SimpleNamespace(log_snr=log_snr)))  # type: ignore[arg-type]
    assert abs(gained / 1.2345e-11 - 1) < 1e-10


@pytest.mark.parametrize("solver", NAMES)
@every_sde
def test_float32_keeps_to_float64_over_many_steps(name: str, solver: str) -> None:
    sde = SDES[name]
    exact = ProductMixture(sde, (2,))
    single = exact.sample(4, sde.t_max, generator()).float()
    system = sm.ReverseSDE(exact.model, (2,))
    noise = torch.randn(400, 4, 2, generator=generator(1), dtype=torch.float64)
    ends = []
    for x in (single, single.double()):
        drawn = iter(noise.to(x.dtype))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Problem, "noise", lambda _, drawn=drawn: next(drawn))
            ends.append(sm.solve(system, x, (sde.t_max, sde.t_min), solver, steps=400).x)
    assert ends[0].dtype == torch.float32
    torch.testing.assert_close(ends[0].double(), ends[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.5, 1.5])
@every_sde
def test_reverse_diffusion_has_the_marginals_at_every_eta(name: str, eta: float) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    sde = SDES[name]
    exact = ProductMixture(sde, (2,))
    x = exact.sample(1000, sde.t_max, generator())
    system = sm.ReverseSDE(exact.model, (2,), eta)
    got = sm.solve(
        system, x, (sde.t_max, sde.t_min), "reverse-diffusion", steps=100, generator=generator(1)
    )
    exact.check_marginal(got.x, sde.t_min, bias=0.06)


@pytest.mark.parametrize("solver", NAMES)
def test_memory_does_not_grow_with_the_steps(solver: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    alive = {}

    def look(step: sm.Step) -> None:
        if step.index in (3, 97):
            alive[step.index] = live_tensors()

    system = sm.ReverseSDE(exact.model, (2,))
    x = exact.sample(4, 1.0, generator())
    sm.solve(system, x, (1.0, 1e-5), solver, steps=100, callback=look)
    assert alive[97] <= alive[3]


@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
def test_ancestral_refuses_another_eta(eta: float) -> None:
    model = ProductMixture(sm.VPSDE(), (2,)).model
    with pytest.raises(ValueError, match=rf"eta={eta:g}: leave eta out, or use 'ddim'"):
        sm.sample(model, (3, 2), "ancestral", eta=eta)


@pytest.mark.parametrize("solver", NAMES)
def test_what_they_are_not_made_for_is_refused(solver: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="is for SDEs and ProbabilityFlow is an ODE"):
        sm.solve(exact.flow(), x, (1.0, 0.1), solver)
    with pytest.raises(ValueError, match="takes the ProbabilityFlow or ReverseSDE of a model"):
        sm.solve(exact.sde, x, (0.1, 1.0), solver)
    with pytest.raises(ValueError, match="takes none"):
        sm.make_solver(solver, eta=1.0)
