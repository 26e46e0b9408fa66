"""Predictor-corrector: its algorithm step by step, and what the corrector does for the law.

Laws are computed by quadrature in one dimension, without Monte-Carlo error, except where the test
says that it is statistical.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.exact_laws import density_error, live_tensors, variance_ratio
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers import Problem
from sde_models.solvers.langevin.correctors import LONGEST_STEP
from sde_models.solvers.langevin.predictor_corrector import PREDICTORS
from sde_models.solvers.one_step.base import OneStepSolver, Stepper

SDES = {
    "vp": sm.VPSDE(),
    "sub-vp": sm.SubVPSDE(),
    "ve": sm.VESDE(),
    "cosine": sm.CosineSDE(),
    "flow-matching": sm.FlowMatchingSDE(),
}
ALONG_THE_FLOW = [name for name, make in PREDICTORS.items() if not make().stochastic]
every_sde = pytest.mark.parametrize("name", list(SDES))
every_predictor = pytest.mark.parametrize("predictor", list(PREDICTORS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def system_for(predictor: str, exact: ProductMixture) -> sm.ReverseSDE:
    eta = 0.0 if predictor in ALONG_THE_FLOW else 1.0
    return sm.ReverseSDE(exact.model, exact.event_shape, eta)


def moves_of(solver: Any):  # type: ignore[no-untyped-def]
    """What a step of ``pc`` consists of, for the quadrature."""

    def moves(problem: Problem) -> list[tuple[int, Stepper]]:
        correcting = [(1, solver.correcting(problem))] if solver.corrector_steps else []
        return [(0, solver.predictor.stepper(problem)), *solver.corrector_steps * correcting]

    return moves


class Rescaling(OneStepSolver):
    """A predictor that knows no model: it rescales the state as alpha changes, and no more."""

    name = "rescaling"
    integrates = ("SDE",)
    order = 1.0
    evaluations = 0

    def stepper(self, problem: Problem) -> Stepper:
        alpha = problem.scales().alpha
        grown = (alpha[1:] / alpha[:-1]).tolist()

        def step(k: int, x: Tensor) -> Tensor:
            return grown[k] * x

        return step


# the algorithm


@pytest.mark.parametrize("corrector", ["langevin", "annealed-langevin"])
@every_sde
def test_it_is_algorithm_2_with_the_correctors_of_4_and_5(name: str, corrector: str) -> None:
    """By hand, from the score: the predictor, then two Langevin steps at the new node."""
    sde, snr, size = SDES[name], 0.2, 6
    exact = ProductMixture(sde, (size,))
    x = exact.sample(5, sde.t_max, generator())
    grid = torch.linspace(sde.t_max, sde.t_min, 6, dtype=torch.float64)
    solver = sm.make_solver(
        "pc", predictor="ancestral", corrector=corrector, corrector_steps=2, snr=snr
    )
    span = (sde.t_max, sde.t_min)
    system = sm.ReverseSDE(exact.model, (size,))
    got = sm.solve(system, x, span, solver, grid=grid, generator=generator(1)).x
    source = generator(1)
    for noisy, clean in pairwise(grid):
        x = sm.solve(
            system, x, (float(noisy), float(clean)), "ancestral", steps=1, generator=source
        ).x
        sigma, kept = sde.sigma(clean), (sde.alpha(noisy) / sde.alpha(clean)) ** 2
        for _ in range(2):
            score = exact.model.score(clean, x)
            squared = size / score.square().sum(1, keepdim=True)
            if corrector == "annealed-langevin":
                step = 2 * kept * (snr * sigma) ** 2
            else:
                step = (2 * kept * snr**2 * squared).clamp(max=LONGEST_STEP * sigma**2)
            noise = torch.randn(5, size, generator=source, dtype=torch.float64)
            x = x + step * score + (2 * step).sqrt() * noise
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


def test_kept_share_of_the_signal_is_1_minus_beta_for_vp() -> None:
    """The a of the paper's algorithm 5: alpha_i = 1 - beta_i of the discrete chain."""
    sde = sm.VPSDE()
    exact = ProductMixture(sde, (2,))
    x = exact.sample(3, 0.8, generator())
    solver = sm.make_solver("pc", predictor=Rescaling(), snr=0.3)
    got = sm.solve(
        sm.ReverseSDE(exact.model, (2,)), x, (0.8, 0.75), solver, steps=1, generator=generator(1)
    ).x
    integral = [
        float(sde.integrated_beta(torch.tensor(t, dtype=torch.float64))) for t in (0.8, 0.75)
    ]
    one_minus_beta = math.exp(integral[1] - integral[0])
    noise = torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    x = x / math.sqrt(one_minus_beta)
    step = (
        2 * one_minus_beta * (0.3 * float(sde.sigma(torch.tensor(0.75, dtype=torch.float64)))) ** 2
    )
    wanted = x + step * exact.model.score(0.75, x) + math.sqrt(2 * step) * noise
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@every_predictor
def test_without_a_corrector_it_is_the_predictor(predictor: str) -> None:
    exact = ProductMixture(sm.SubVPSDE(), (2,))
    x = exact.sample(4, 1.0, generator())
    solver = sm.make_solver("pc", predictor=predictor, corrector="none")
    system = system_for(predictor, exact)
    got = sm.solve(system, x, (1.0, 1e-3), solver, steps=12, generator=generator(1)).x
    alone, source = system, {"generator": generator(1)}
    if predictor in ALONG_THE_FLOW:
        alone, source = exact.flow(), {}  # type: ignore[assignment]
    wanted = sm.solve(alone, x, (1.0, 1e-3), predictor, grid="log-snr", steps=12, **source).x
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("corrector", ["langevin", "annealed-langevin"])
@pytest.mark.parametrize("corrector_steps", [1, 3])
@every_predictor
def test_evaluations_are_as_declared(predictor: str, corrector: str, corrector_steps: int) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, 1.0, generator())
    solver = sm.make_solver(
        "pc", predictor=predictor, corrector=corrector, corrector_steps=corrector_steps
    )
    assert solver.evaluations == sm.list_solvers()[predictor].evaluations + corrector_steps
    got = sm.solve(system_for(predictor, exact), x, (1.0, 0.1), solver, steps=7)
    assert got.nfe == 7 * solver.evaluations
    alone = sm.make_solver("pc", predictor=predictor, corrector="none")
    assert alone.evaluations == sm.list_solvers()[predictor].evaluations


def test_every_solver_of_the_table_that_can_step_by_itself_is_a_predictor() -> None:
    """An object serves too, here with eta = 0, which every one of them takes or refuses by name."""
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, 1.0, generator())
    served = set()
    for name, solver in sm.list_solvers().items():
        if not hasattr(solver, "stepper"):
            continue
        pc = sm.make_solver("pc", predictor=solver)
        system = sm.ReverseSDE(exact.model, (2,), 1.0 if name == "ancestral" else 0.0)
        got = sm.solve(system, x, (1.0, 0.1), pc, steps=5)
        assert bool(torch.isfinite(got.x).all())
        served.add(name)
    assert served >= set(PREDICTORS)


def test_batch_mates_do_not_matter() -> None:
    """A mate far out has a score a hundred times as large."""
    exact = ProductMixture(sm.VESDE(), (4,))
    x = exact.sample(2, 1.0, generator())
    system = sm.ReverseSDE(exact.model, (4,))
    for corrector in ("langevin", "annealed-langevin"):
        solver = sm.make_solver("pc", corrector=corrector)
        first, second = (
            sm.solve(system, batch, (1.0, 0.0), solver, steps=20, generator=generator(1)).x[0]
            for batch in (x, torch.stack([x[0], 100 * x[1]]))
        )
        assert torch.equal(first, second)


# what the corrector does


def test_corrector_mends_too_few_steps() -> None:
    """L1 distance of the density after eight steps, with 0, 4 and 12 Langevin steps after each."""
    errors = [
        density_error(
            moves_of(sm.make_solver("pc", **options)), sm.VPSDE(), (0.9, 0.2), steps=8, reach=6.0
        )
        for options in ({"corrector": "none"}, {"corrector_steps": 4}, {"corrector_steps": 12})
    ]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.5 * errors[0]


@every_sde
def test_corrector_mends_a_predictor_that_knows_no_model(name: str) -> None:
    """Rescaling alone leaves the law of the noise; Langevin steps make it that of the data."""
    span = (0.6, 0.35) if name == "ve" else (0.9, 0.2)
    alone, some, many = (
        variance_ratio(
            sm.make_solver("pc", predictor=Rescaling(), **options),
            SDES[name], 0.5, span, draws=20 * 21, steps=20,
        )
        for options in ({"corrector": "none"}, {"corrector_steps": 5}, {"corrector_steps": 20})
    )  # fmt: skip
    assert alone > 10
    assert many < some < 0.2 * alone
    assert 1 < many < 1.3


@pytest.mark.parametrize(
    ("name", "t", "reach"), [("vp", 0.3, 6.0), ("ve", 0.45, 7.0), ("flow-matching", 0.4, 5.0)]
)
def test_corrector_leaves_the_marginal_as_its_step_goes_to_0(
    name: str, t: float, reach: float
) -> None:
    """Langevin steps alone from the exact marginal, as many as make the same stretch: halving snr
    quarters the step, and with it the bias."""
    errors = []
    for snr, count in ((0.32, 4), (0.16, 16), (0.08, 64)):

        def only_correcting(
            problem: Problem, snr: float = snr, count: int = count
        ) -> list[tuple[int, Stepper]]:
            return count * [(1, sm.make_solver("pc", snr=snr).correcting(problem))]

        errors.append(
            density_error(only_correcting, SDES[name], (t + 1e-7, t), steps=1, reach=reach)
        )
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - 2) < 0.25 for slope in slopes)
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("size", [4, 16, 64])
def test_rule_of_norms_is_off_by_2_over_d(size: int) -> None:
    """What the docstring says: N(0, I) in D dimensions settles at a variance of 1 + 2/D, times what
    the step itself adds, 1 / (1 - snr^2). Standard error of the measured variance below 0.005."""
    model = sm.GaussianMixture(torch.zeros(1, size).double(), 1.0).score_model(sm.VPSDE())
    x = torch.randn(100_000 // size, size, dtype=torch.float64, generator=generator())
    system = sm.ReverseSDE(model, (size,))

    def variance(corrector: str) -> float:
        solver = sm.make_solver(
            "pc", predictor=Rescaling(), corrector=corrector, corrector_steps=60
        )
        got = sm.solve(system, x, (1.0, 0.9999), solver, steps=1, generator=generator(1))
        return float(got.x.square().mean())

    settled = 1 / (1 - 0.16**2)
    assert abs(variance("annealed-langevin") / settled - 1) < 0.02
    assert abs(variance("langevin") / settled / (1 + 2 / size) - 1) < 0.02 + 0.5 / size**2


@every_sde
def test_more_steps_do_not_pass_the_floor_of_the_corrector(name: str) -> None:
    """Variance on Gaussian data falls with the step, down to less than snr squared."""
    errors = [
        variance_ratio(
            sm.make_solver("pc"),
            SDES[name],
            0.5,
            (SDES[name].t_max, 0.1),
            draws=2 * steps,
            steps=steps,
        )
        - 1
        for steps in (25, 100, 400)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert 0 < errors[2] < 0.16**2


@pytest.mark.parametrize("corrector", ["annealed-langevin", "none"])
@pytest.mark.parametrize("name", ["sub-vp", "ve"])
@every_predictor
def test_every_predictor_reaches_the_marginal(name: str, predictor: str, corrector: str) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    sde = SDES[name]
    exact = ProductMixture(sde, (2,))
    x = exact.sample(1000, sde.t_max, generator())
    solver = sm.make_solver("pc", predictor=predictor, corrector=corrector)
    got = sm.solve(
        system_for(predictor, exact), x, (sde.t_max, sde.t_min), solver,
        steps=100, generator=generator(1),
    )  # fmt: skip
    exact.check_marginal(got.x, sde.t_min, bias=0.08)


@every_sde
def test_rule_of_norms_reaches_the_marginal_of_an_image(name: str) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    sde, shape = SDES[name], (1, 8, 8)
    exact = ProductMixture(sde, shape)
    x = exact.sample(1000, sde.t_max, generator())
    solver = sm.make_solver("pc", corrector="langevin")
    got = sm.solve(
        sm.ReverseSDE(exact.model, shape), x, (sde.t_max, sde.t_min), solver,
        steps=60, generator=generator(1),
    )  # fmt: skip
    exact.check_marginal(got.x, sde.t_min, bias=0.08)


# randomness, memory, refusals


@pytest.mark.parametrize("corrector", ["langevin", "annealed-langevin"])
@every_predictor
def test_same_seed_same_sample(predictor: str, corrector: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(4, 1.0, generator())
    solver = sm.make_solver("pc", predictor=predictor, corrector=corrector, corrector_steps=2)
    first, again, other = (
        sm.solve(
            system_for(predictor, exact), x, (1.0, 0.1), solver, steps=5, generator=generator(seed)
        ).x
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sample_at_rest_has_a_finite_step_and_gradient() -> None:
    """Where the score is zero the rule of norms alone would step to infinity."""
    model = sm.GaussianMixture(torch.zeros(1, 2).double(), 1.0).score_model(sm.VPSDE())
    x = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    solver = sm.make_solver("pc", predictor=Rescaling(), corrector="langevin")
    got = sm.solve(sm.ReverseSDE(model, (2,)), x, (0.5, 0.4), solver, steps=1).x
    got.sum().backward()
    assert bool(torch.isfinite(got).all())
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("corrector", ["langevin", "annealed-langevin"])
def test_memory_does_not_grow_with_the_steps(corrector: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    alive = {}

    def look(step: sm.Step) -> None:
        if step.index in (3, 97):
            alive[step.index] = live_tensors()

    x = exact.sample(4, 1.0, generator())
    sm.solve(
        sm.ReverseSDE(exact.model, (2,)), x, (1.0, 1e-5), sm.make_solver("pc", corrector=corrector),
        steps=100, callback=look,
    )  # fmt: skip
    assert alive[97] <= alive[3]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"predictor": "reverse-difusion"}, "unknown predictor .*did you mean 'reverse-diffusion'"),
    ({"predictor": "zzz"}, "unknown predictor 'zzz'; known: reverse-diffusion, ancestral"),
    ({"predictor": sm.make_solver("ode:rk4")}, "name .* or a solver with a stepper.*'ode:rk4'"),
    ({"predictor": 3}, "name .* or a solver with a stepper.*got 3"),
    ({"corrector": "langevine"}, "unknown corrector 'langevine'; did you mean 'langevin'"),
    ({"corrector_steps": 0}, "corrector_steps must be an integer of 1 or more, got 0"),
    ({"corrector_steps": 1.5}, "corrector_steps must be an integer"),
    ({"corrector_steps": True}, "corrector_steps must be an integer"),
    ({"snr": 0.0}, "'snr' must be positive"),
    ({"snr": 1.0}, "snr must be a number below 1"),
    ({"snr": math.nan}, "'snr' must be positive"),
    ({"snr": "high"}, "'snr' must be a number"),
    ({"snr": True}, "'snr' must be a number"),
    ({"corrector": "none", "snr": 0.1}, "corrector='none' cannot use snr="),
    ({"corrector": "none", "corrector_steps": 2}, "'none' cannot use corrector_steps="),
    ({"correcter": "none"}, "no option 'correcter'; did you mean 'corrector'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sm.make_solver("pc", **options)


def test_predictors_refuse_a_system_that_is_not_theirs() -> None:
    model = ProductMixture(sm.VPSDE(), (2,)).model
    with pytest.raises(ValueError, match="'ancestral' is for eta=1"):
        sm.sample(model, (3, 2), sm.make_solver("pc", predictor="ancestral"), eta=0.5)
    with pytest.raises(ValueError, match=r"'heun-edm' steps along .* eta=1: give eta=0"):
        sm.sample(model, (3, 2), sm.make_solver("pc", predictor="heun-edm"))
