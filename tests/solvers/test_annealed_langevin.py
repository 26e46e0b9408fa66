"""Annealed Langevin dynamics, and the choice of its levels and step against the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import norm
from support.exact_laws import live_tensors, variance_ratio
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.sdes.grids import times_of_sigmas
from sde_models.solvers.langevin.levels import (
    geometric_sigmas,
    langevin_epsilon,
    largest_sigma,
    level_ratio,
)

SDES = {
    "vp": sm.VPSDE(),
    "sub-vp": sm.SubVPSDE(),
    "ve": sm.VESDE(),
    "cosine": sm.CosineSDE(),
    "flow-matching": sm.FlowMatchingSDE(),
}
every_sde = pytest.mark.parametrize("name", list(SDES))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the algorithm


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("end", ["t_min", "inside"])
@every_sde
def test_it_is_algorithm_1(name: str, end: str, denoise: bool) -> None:
    """By hand, from the score, in the notation of the paper: step size alpha_i / 2."""
    sde, steps_per_level, epsilon = SDES[name], 3, 0.1
    last = sde.t_min if end == "t_min" else 0.2
    exact = ProductMixture(sde, (2,))
    x = exact.sample(5, sde.t_max, generator())
    grid = torch.linspace(sde.t_max, last, 6, dtype=torch.float64)
    solver = sm.make_solver(
        "ald", steps_per_level=steps_per_level, epsilon=epsilon, denoise=denoise
    )
    got = sm.solve(
        sm.ReverseSDE(exact.model, (2,)), x, (sde.t_max, last), solver,
        grid=grid, generator=generator(1),
    )  # fmt: skip
    source = generator(1)
    small = 2 * epsilon * sde.sigma(grid[-1]) ** 2  # the paper's epsilon
    for i, t in enumerate(grid):
        if i:
            x = x * sde.alpha(t) / sde.alpha(grid[i - 1])
        alpha_i = small * sde.sigma(t) ** 2 / sde.sigma(grid[-1]) ** 2
        for _ in range(steps_per_level):
            noise = torch.randn(5, 2, generator=source, dtype=torch.float64)
            x = x + alpha_i / 2 * exact.model.score(t, x) + alpha_i.sqrt() * noise
    denoised = denoise and end == "t_min"
    if denoised:
        x = (x + sde.sigma(grid[-1]) ** 2 * exact.model.score(grid[-1], x)) / sde.alpha(grid[-1])
    torch.testing.assert_close(got.x, x, rtol=1e-8, atol=1e-8)
    assert got.nfe == steps_per_level * len(grid) + denoised


@pytest.mark.parametrize("steps_per_level", [1, 4])
def test_evaluations_are_as_declared(steps_per_level: int) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, 1.0, generator())
    solver = sm.make_solver("ald", steps_per_level=steps_per_level)
    assert solver.evaluations == steps_per_level
    system = sm.ReverseSDE(exact.model, (2,))
    few, many = (sm.solve(system, x, (1.0, 1e-5), solver, steps=n).nfe for n in (5, 12))
    assert many - few == 7 * solver.evaluations
    assert few == 6 * steps_per_level + 1


def test_path_ends_in_the_denoised_state() -> None:
    exact = ProductMixture(sm.VESDE(), (2,))
    x = exact.sample(3, 1.0, generator())
    got = sm.solve(sm.ReverseSDE(exact.model, (2,)), x, (1.0, 0.0), "ald", steps=5, path=True)
    assert got.path is not None
    assert len(got.path) == 6
    assert torch.equal(got.path[0], x)
    assert torch.equal(got.path[-1], got.x)


# its law


def test_variance_is_that_of_proposition_3() -> None:
    """Data that are a point: each level begins with gamma^2 times the right variance, or with what
    the level before left, and ends as in equation 4 of Song and Ermon 2020."""
    sde, steps_per_level, delta, levels = sm.VESDE(), 4, 0.15, 12
    solver = sm.make_solver("ald", steps_per_level=steps_per_level, epsilon=delta, denoise=False)
    got = variance_ratio(
        solver, sde, 1e-9, (1.0, 0.5), draws=levels * steps_per_level, steps=levels - 1
    )
    gamma = (sde.sigma_max / sde.sigma_min) ** (0.5 / (levels - 1))
    wanted = 1.0
    for level in range(levels):
        wanted *= gamma**2 if level else 1
        e = delta  # epsilon / sigma_L^2
        settled = 2 * e / (1 - (1 - e) ** 2)
        wanted = (1 - e) ** (2 * steps_per_level) * (wanted - settled) + settled
    assert abs(got / wanted - 1) < 1e-9


@pytest.mark.parametrize("steps_per_level", [1, 5])
@every_sde
def test_weak_order(name: str, steps_per_level: int) -> None:
    """Variance on Gaussian data, halving the distance of the levels."""
    sde = SDES[name]
    coarse, fine = (
        variance_ratio(
            sm.make_solver("ald", steps_per_level=steps_per_level),
            sde, 0.5, (sde.t_max, 0.1), draws=steps_per_level * (steps + 1), steps=steps,
        )
        - 1
        for steps in (100, 200)
    )  # fmt: skip
    assert abs(math.log2(coarse / fine) - sm.list_solvers()["ald"].order) < 0.25


@pytest.mark.parametrize("steps", [40, 120])
@pytest.mark.parametrize("steps_per_level", [1, 3, 5])
def test_default_step_is_near_the_best(steps: int, steps_per_level: int) -> None:
    """Against a scan of fixed steps, where noise rules."""
    sde, draws = sm.VESDE(), (steps + 1) * steps_per_level

    def error(**options: Any) -> float:
        solver = sm.make_solver("ald", steps_per_level=steps_per_level, denoise=False, **options)
        return abs(variance_ratio(solver, sde, 1e-3, (1.0, 0.4), draws=draws, steps=steps) - 1)

    best = min(error(epsilon=0.03 * 1.4**i) for i in range(9))
    assert error() < 1.1 * best


@every_sde
def test_a_thousand_levels_reach_the_marginal(name: str) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed. The levels are given as sigmas."""
    sde = SDES[name]
    exact = ProductMixture(sde, (2,))
    ends = [sde.t_max, sde.t_min]
    largest, smallest = (float(sde.sigma(sde.times([t])) / sde.alpha(sde.times([t]))) for t in ends)
    sigmas = largest * (smallest / largest) ** torch.linspace(0, 1, 1000, dtype=torch.float64)
    x = exact.sample(1000, sde.t_max, generator())
    got = sm.solve(
        sm.ReverseSDE(exact.model, (2,)), x, (sde.t_max, sde.t_min),
        sm.make_solver("ald", steps_per_level=2), grid=times_of_sigmas(sde, sigmas),
        generator=generator(1),
    )  # fmt: skip
    assert got.accepted == 999
    exact.check_marginal(got.x, sde.t_min, bias=0.05)


def test_a_start_that_is_no_noise_is_forgotten() -> None:
    """As the paper starts: uniform numbers, and Langevin steps at the first level before all else.
    False-alarm rate 1e-6; the seed is fixed."""
    exact = ProductMixture(sm.VESDE(), (2,))
    x = torch.rand(1000, 2, dtype=torch.float64, generator=generator())
    got = sm.solve(
        sm.ReverseSDE(exact.model, (2,)), x, (1.0, 0.0),
        sm.make_solver("ald", steps_per_level=10), steps=150, generator=generator(1),
    )  # fmt: skip
    exact.check_marginal(got.x, 0.0, bias=0.06)


def test_denoising_removes_the_last_noise() -> None:
    """Data on a point: what is left is the noise of the last level, and none after denoising."""
    model = sm.GaussianMixture(torch.ones(1, 3).double(), 1e-6).score_model(sm.VESDE(0.1, 50.0))
    spread = {}
    for denoise in (True, False):
        solver = sm.make_solver("ald", denoise=denoise)
        got = sm.sample(model, (200, 3), solver, steps=100, generator=generator(1))
        spread[denoise] = float((got.x - 1).std())
    assert spread[True] < 1e-5
    assert 0.09 < spread[False] < 0.12


def test_memory_does_not_grow_with_the_levels() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    alive = {}

    def look(step: sm.Step) -> None:
        if step.index in (3, 97):
            alive[step.index] = live_tensors()

    x = exact.sample(4, 1.0, generator())
    system = sm.ReverseSDE(exact.model, (2,))
    sm.solve(system, x, (1.0, 1e-5), "ald", steps=100, callback=look)
    assert alive[97] <= alive[3]


# refusals


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"steps_per_level": 0}, "steps_per_level must be an integer of 1 or more, got 0"),
    ({"steps_per_level": 2.5}, "steps_per_level must be an integer"),
    ({"epsilon": 0.0}, "'epsilon' must be positive"),
    ({"epsilon": -1.0}, "'epsilon' must be positive"),
    ({"epsilon": 2.0}, "epsilon must be a number below 2"),
    ({"epsilon": math.inf}, "epsilon must be a number below 2"),
    ({"epsilon": "small"}, "'epsilon' must be a number"),
    ({"epsilon": True}, "'epsilon' must be a number"),
    ({"denoise": 1}, "denoise must be True or False"),
    ({"denoise": "no"}, "denoise must be True or False"),
    ({"epsilom": 0.1}, "no option 'epsilom'; did you mean 'epsilon'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sm.make_solver("ald", **options)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.5])
def test_another_eta_is_refused(eta: float) -> None:
    model = ProductMixture(sm.VPSDE(), (2,)).model
    with pytest.raises(ValueError, match=rf"'ald' is for eta=1 .* eta={eta:g}: leave eta out"):
        sm.sample(model, (3, 2), "ald", eta=eta)


# levels and step


# data set: (numbers in a sample, first sigma, levels, steps a level, epsilon), Song and Ermon 2020,
# with sigma_L = 0.01
PAPER = {
    "CIFAR-10": (32 * 32 * 3, 50.0, 232, 5, 6.2e-6),
    "CelebA": (64 * 64 * 3, 90.0, 500, 5, 3.3e-6),
    "LSUN bedroom": (128 * 128 * 3, 190.0, 1086, 3, 1.8e-6),
    "FFHQ": (256 * 256 * 3, 348.0, 2311, 3, 0.9e-6),
}
every_data_set = pytest.mark.parametrize("data_set", list(PAPER))


@pytest.mark.parametrize("dim", [5, 10, 100, 3072, 196608])
@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
def test_level_ratio_solves_technique_2(dim: int, overlap: float) -> None:
    ratio = level_ratio(dim, overlap)
    middle = math.sqrt(2 * dim) * (ratio - 1)
    assert ratio > 1
    assert abs(norm.cdf(middle + 3 * ratio) - norm.cdf(middle - 3 * ratio) - overlap) < 1e-9


@every_data_set
def test_levels_are_those_of_the_paper(data_set: str) -> None:
    """Its rule says about 0.5; its numbers of levels are those of 0.566, to 3 in 1000, which 0.5
    misses by 6 in 100."""
    dim, largest, levels, _, _ = PAPER[data_set]
    ours = len(geometric_sigmas(largest, 0.01, level_ratio(dim, 0.566)))
    assert abs(ours / levels - 1) < 0.003
    by_rule = len(geometric_sigmas(largest, 0.01, level_ratio(dim)))
    assert abs(by_rule / levels - 1) < 0.06


@every_data_set
def test_step_is_that_of_the_paper(data_set: str) -> None:
    """To the two digits it gives."""
    _, largest, levels, steps_per_level, epsilon = PAPER[data_set]
    ratio = (largest / 0.01) ** (1 / (levels - 1))
    ours = langevin_epsilon(ratio, steps_per_level) * 0.01**2
    assert abs(ours / epsilon - 1) < 0.02


@pytest.mark.parametrize("ratio", [1.001, 1.04, 1.3, 2.0])
@pytest.mark.parametrize("steps_per_level", [1, 3, 100])
def test_step_is_the_best_of_a_scan(ratio: float, steps_per_level: int) -> None:
    """Equation 4 of the paper as it stands there, with sigma_L = 0.01."""

    def distance(epsilon: Tensor) -> Tensor:
        share = 1 - epsilon / 0.01**2
        settled = 2 * epsilon / (0.01**2 - 0.01**2 * share**2)
        return (share ** (2 * steps_per_level) * (ratio**2 - settled) + settled - 1).abs()

    scan = torch.linspace(0, 0.01**2, 100_001, dtype=torch.float64)[1:-1]
    ours = torch.tensor(langevin_epsilon(ratio, steps_per_level) * 0.01**2, dtype=torch.float64)
    assert distance(ours) <= distance(scan).min() * (1 + 1e-6)


def test_geometric_sigmas() -> None:
    sigmas = geometric_sigmas(50.0, 0.01, 1.5)
    ratios = sigmas[:-1] / sigmas[1:]
    assert sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([50.0, 0.01], dtype=torch.float64))
    assert float(ratios.max() / ratios.min()) - 1 < 1e-12
    assert float(ratios.max()) <= 1.5
    assert (50.0 / 0.01) ** (1 / (len(sigmas) - 2)) > 1.5  # one level less would be too few
    assert len(geometric_sigmas(8.0, 1.0, 2.0)) == 4


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_largest_sigma_is_the_largest_distance(block: int) -> None:
    data = torch.randn(40, 3, 4, generator=generator()) + 100.0
    brute = max(float((a - b).norm()) for a in data for b in data)
    assert abs(largest_sigma(data, block=block) / brute - 1) < 1e-5


@every_sde
def test_times_of_sigmas_have_those_levels(name: str) -> None:
    sde = SDES[name]
    t = torch.linspace(sde.t_max, sde.t_min, 1000, dtype=torch.float64)
    times = times_of_sigmas(sde, sde.sigma(t) / sde.alpha(t))
    torch.testing.assert_close(times, t, rtol=1e-9, atol=1e-12)
    single = times_of_sigmas(sde, (sde.sigma(t) / sde.alpha(t)).float())
    assert float(single.min()) >= sde.t_min
    assert float(single.max()) <= sde.t_max
    torch.testing.assert_close(single, t, rtol=1e-5, atol=1e-7)


class Bare(sm.SDE):
    """An SDE without a kernel."""


LEVEL_REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (lambda: largest_sigma(torch.zeros(1, 2)), ValueError, "two different samples"),
    (lambda: largest_sigma(torch.ones(5, 2)), ValueError, "two different samples"),
    (lambda: largest_sigma(torch.tensor([[math.nan]])), ValueError, "NaN"),
    (lambda: largest_sigma(torch.zeros(3, 2), block=0), ValueError, "block must be an integer"),
    (lambda: largest_sigma([[0.0]]), TypeError, "data must be a torch.Tensor"),
    (lambda: level_ratio(4), ValueError, "dim must be 5 or more"),
    (lambda: level_ratio(3.5), ValueError, "dim must be an integer"),
    (lambda: level_ratio(100, 1.0), ValueError, "overlap must lie within"),
    (lambda: level_ratio(100, 0.0), ValueError, "overlap must lie within"),
    (lambda: geometric_sigmas(0.01, 50.0, 1.1), ValueError, "0 < smallest < largest"),
    (lambda: geometric_sigmas(50.0, 0.0, 1.1), ValueError, "0 < smallest < largest"),
    (lambda: geometric_sigmas(50.0, 0.01, 1.0), ValueError, "ratio .* above 1"),
    (lambda: langevin_epsilon(0.9, 5), ValueError, "ratio .* above 1"),
    (lambda: langevin_epsilon(1.1, 0), ValueError, "steps_per_level must be an integer"),
    (lambda: times_of_sigmas(Bare(), [1.0]), TypeError, "Bare has no alpha and sigma"),
    (lambda: times_of_sigmas(sm.VESDE(), [60.0, 1.0]), ValueError, "from 0.01 to 50, and 60 is"),
    (lambda: times_of_sigmas(sm.VESDE(), [1.0, 0.0]), ValueError, "and 0 is none of them"),
    (lambda: times_of_sigmas(sm.VESDE(), [math.nan]), ValueError, "and nan is none of them"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "message"), LEVEL_REFUSALS, ids=range(len(LEVEL_REFUSALS))
)
def test_wrong_levels_are_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
