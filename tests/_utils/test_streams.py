"""A generator for each sample: a sample is the same alone, in any batch and in any order.

Bit for bit where the score is exact coordinate by coordinate, as that of one Gaussian is. No solver
is treated by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from support.closed_forms import assert_distribution
from support.diffusers_solvers import diffusers_solvers
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models._utils.randomness import Streams, as_source
from sde_models.sdes.brownian import FreshBrownian, StackedBrownian, remembering_brownian

EVENT = (1, 3, 6)
SEEDS = [3, 1, 4, 15, 9]
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}


def own(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def one(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_model() -> sm.Model:
    means = torch.randn(1, 18, generator=one(0), dtype=torch.float64)
    return sm.GaussianMixture(means, 0.6).score_model(sm.VPSDE(), EVENT)


class Network(torch.nn.Module):
    """Mixes all pixels and takes a label for each sample, so that rows must be the right ones."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(18, 18, generator=one(1)).double() / 9)

    def forward(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
        seen = x.flatten(1) @ self.matrix + label[:, None]
        return torch.tanh(seen).reshape(x.shape)


MODEL = gaussian_model()
NETWORK = sm.ScoreModel(Network(), sm.VPSDE(t_min=1e-2))

SOLVERS: dict[str, Callable[[], sm.Solver]] = {
    **{
        name: partial(sm.make_solver, name)
        for name, made in sm.list_solvers().items()
        if made.stochastic
    },
    **{name: make for name, make in diffusers_solvers().items() if make().stochastic},
    "interval": lambda: sm.make_solver("sde:srk", brownian="interval"),
    "interval with Levy area": lambda: sm.make_solver("sde:log_ode", brownian="interval"),
    "churn": lambda: sm.make_solver("heun-edm", churn=20),
    "Langevin by norm": lambda: sm.make_solver("pc", corrector="langevin", predictor="ancestral"),
    "Picard with noise": lambda: sm.make_solver("picard", method="dpmpp-3m-sde", window=4),
}  # fmt: skip
every_solver = pytest.mark.parametrize("make", list(SOLVERS.values()), ids=list(SOLVERS))


def draw(model: sm.Model, make: Any, generator: Any, count: int, **arguments: Any) -> Tensor:
    solver = make()
    if solver.stochastic:
        arguments["eta"] = 1.0
    if not solver.adaptive:
        arguments["steps"] = 8
    return sm.sample(
        model, (count, *EVENT), solver, generator=generator, dtype=torch.float64, **arguments
    ).x


@every_solver
def test_a_sample_is_the_same_alone_and_in_every_batch(make: Any) -> None:
    batch = draw(MODEL, make, own(SEEDS), 5)
    order = [4, 0, 2]
    for own_alone in (own, lambda seeds: one(*seeds)):
        alone = [draw(MODEL, make, own_alone([seed]), 1) for seed in SEEDS]
        assert torch.equal(torch.cat(alone), batch)
    assert torch.equal(draw(MODEL, make, own([SEEDS[i] for i in order]), 3), batch[order])
    assert torch.pdist(batch.flatten(1)).min() > 0.1
    assert (draw(MODEL, make, own([s + 1 for s in SEEDS]), 5) - batch).abs().max() > 0.1


@every_solver
def test_rows_and_conditions_stay_with_their_generators(make: Any) -> None:
    """A network of all pixels, in which samples of an adaptive solver leave at different times."""
    label = torch.linspace(-1, 1, 5, dtype=torch.float64)
    batch = draw(NETWORK, make, own(SEEDS), 5, cond={"label": label})
    for i, seed in enumerate(SEEDS):
        alone = draw(NETWORK, make, own([seed]), 1, cond={"label": label[i : i + 1]})
        torch.testing.assert_close(alone[0], batch[i], **ROUNDING)
    order = [4, 0, 2]
    part = draw(NETWORK, make, own([SEEDS[i] for i in order]), 3, cond={"label": label[order]})
    torch.testing.assert_close(part, batch[order], **ROUNDING)


class Geometric(sm.SDE):
    """Noise that is as large as the state."""

    state_dependent_noise = True

    def f(self, t: Any, x: Tensor) -> Tensor:
        return -0.1 * x

    def g(self, t: Any, x: Tensor) -> Tensor:
        return 0.3 * x


@pytest.mark.parametrize(
    "name", [n for n, s in sm.list_solvers().items() if s.stochastic and s.state_dependent_noise]
)
def test_an_equation_of_ones_own_runs_up_alike(name: str) -> None:
    x = 1 + torch.rand(5, 7, generator=one(0), dtype=torch.float64)

    def run(rows: list[int]) -> Tensor:
        generators = own([SEEDS[i] for i in rows])
        return sm.solve(Geometric(), x[rows], (0.1, 0.9), name, steps=6, generator=generators).x

    batch = run([0, 1, 2, 3, 4])
    assert torch.equal(torch.cat([run([i]) for i in range(5)]), batch)
    assert torch.equal(run([3, 1]), batch[[3, 1]])


def test_many_streams_reach_the_marginal() -> None:
    """A step that was shown must be met again by its own sample. False-alarm rate 1e-6 a case."""
    exact = ProductMixture(sm.VPSDE(), (3,))
    for name in ("adaptive-sde", "sde:srk"):
        effort = {} if name == "adaptive-sde" else {"steps": 100}
        x = exact.sample(600, 0.8, one(1))
        system = sm.ReverseSDE(exact.model, (3,))
        generators = own(range(600))
        got = sm.solve(system, x, (0.8, 0.2), name, generator=generators, **effort)
        exact.check_marginal(got.x, 0.2, bias=0.05)


def test_stacked_paths_are_independent_brownian_motions() -> None:
    """False-alarm rate 1e-6 for each of the nine tests."""
    like, clock = torch.zeros(1000, 2, dtype=torch.float64), torch.tensor([0.0, 1.0])
    streams = Streams(own(range(1000)))
    for path in (
        FreshBrownian(like, streams),
        remembering_brownian(like, clock, streams, "space-time"),
    ):
        assert tuple(path.shape) == (1000, 2)
        first, area = path(0.0, 0.36, return_U=True)
        second = path(0.36, 1.0)
        left = area / 0.36 - first / 2  # N(0, h / 12), and independent of the increment
        numbers = [first / 0.6, second / 0.8, left / (0.36 / 12) ** 0.5]
        for values in numbers:
            assert_distribution(values.flatten(), torch.special.ndtr, false_alarm=1e-6)
        # of two dimensions, two intervals and neighbouring samples
        products = [
            numbers[0].prod(1),
            (numbers[0] * numbers[1]).flatten(),
            (numbers[0] * numbers[2]).flatten(),
            (first[1:] * first[:-1]).flatten() / 0.36,
        ]
        for values in products:  # mean 0, variance 1; normal approximation
            assert abs(float(values.mean())) < 4.9 / len(values) ** 0.5
    assert isinstance(path, StackedBrownian)
    torch.testing.assert_close(path(0.0, 1.0), first + second)
    assert path.dtype == torch.float64
    assert path.levy_area_approximation == "space-time"
    assert "1000 of BrownianInterval" in repr(path)


DENSITIES: dict[str, dict[str, Any]] = {
    "fixed nodes": {"divergence": "hutchinson", "intervals": 24},
    "with the path": {"divergence": "hutchinson", "solver": "rk-batch", "trace": "augmented"},
    "directions": {"divergence": "xtrace", "intervals": 24},
    "as many as needed": {"divergence": "auto"},
    "to a tolerance": {"tol": 0.05},
    "exact": {},
}  # fmt: skip


def anisotropic() -> sm.Model:
    """48 dimensions of very different widths: two probes do not do, and XTrace is tried."""
    means = 2 * torch.randn(3, 48, generator=one(5), dtype=torch.float64)
    stds = torch.rand(3, 48, generator=one(6), dtype=torch.float64) + 0.02
    return sm.GaussianMixture(means, stds).score_model(sm.VPSDE())


@pytest.mark.parametrize("options", list(DENSITIES.values()), ids=list(DENSITIES))
def test_a_density_is_the_same_alone_and_in_every_batch(options: dict[str, Any]) -> None:
    model = anisotropic()
    x = model.mixture.sample(3, generator=one(2))
    if "tol" not in options:
        options = {"rtol": 1e-3, "atol": 1e-3, **options}

    def run(rows: list[int]) -> Tensor:
        generators = own([SEEDS[i] for i in rows])
        found = sm.log_prob(
            model, x[rows], generator=generators, estimate_solver_error=False, **options
        )
        return torch.stack([found.value, found.stderr, found.quadrature_error], dim=1)

    batch = run([0, 1, 2])
    close = {**ROUNDING, "equal_nan": True}
    torch.testing.assert_close(torch.cat([run([i]) for i in range(3)]), batch, **close)
    torch.testing.assert_close(run([2, 0]), batch[[2, 0]], **close)


def test_bits_samples_and_their_densities_are_the_same_alone() -> None:
    model = sm.GaussianMixture(torch.zeros(1, 18, dtype=torch.float64), 0.4).score_model(
        sm.VPSDE(t_min=1e-2), EVENT
    )
    images = torch.randint(0, 8, (3, *EVENT), generator=one(0))
    few = {"divergence": "hutchinson", "intervals": 12}
    loose = {"rtol": 1e-3, "atol": 1e-3, **few}

    def bits(kind: str, rows: list[int]) -> Tensor:
        generators = own([SEEDS[i] for i in rows])
        return sm.bits_per_dim(
            model, images[rows], 8, kind, importance_samples=2, generator=generators, **loose
        ).per_image

    for kind in ("uniform", "truncated-normal"):
        alone = torch.cat([bits(kind, [i]) for i in range(3)])
        torch.testing.assert_close(alone, bits(kind, [0, 1, 2]), **ROUNDING)

    def dense(seeds: list[int]) -> Tensor:
        drawn = sm.sample(
            model, (len(seeds), *EVENT), "adams-batch", generator=own(seeds),
            return_log_prob=True, density=few,
        )  # fmt: skip
        assert drawn.log_prob is not None
        return torch.cat([drawn.x.flatten(1), drawn.log_prob.value[:, None]], dim=1)

    alone = torch.cat([dense([seed]) for seed in SEEDS])
    torch.testing.assert_close(alone, dense(SEEDS), **ROUNDING)


MIXTURE = sm.GaussianMixture(
    torch.randn(3, 18, generator=one(0)), covariances=torch.eye(18).expand(3, 18, 18) + 0.1
)
CELLS = sm.data.TruncatedNormalDequantization(0.99, 0.1)
LEVELS = torch.arange(5)[:, None].expand(5, 18)
DRAWS: dict[str, Callable[[list[int], Any], Tensor]] = {
    "mixture": lambda rows, g: MIXTURE.sample(len(rows), generator=g),
    "prior": lambda rows, g: sm.VESDE().prior(EVENT).sample((len(rows),), generator=g),
    "distribution": lambda rows, g: sm.ScoreDistribution(
        gaussian_model(), solve={"solver": "ddim", "steps": 4}
    ).sample((len(rows),), generator=g),
    "uniform cells": lambda rows, g: sm.data.dequantize(LEVELS[rows], 8, generator=g),
    "normal cells": lambda rows, g: CELLS.draw(LEVELS[rows], 8, (-1.0, 1.0), g)[0],
    "a prior of one's own": lambda rows, g: (
        sm.sample(
            gaussian_model(), (len(rows), *EVENT), "ddim", steps=2, prior=Doubled(), generator=g
        ).x
    ),
}


class Doubled:
    """What a user hands over as prior= knows a single generator only."""

    def sample(self, shape: Sequence[int], *, generator: torch.Generator | None = None) -> Tensor:
        return 2 * torch.randn(*shape, *EVENT, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        raise AssertionError


@pytest.mark.parametrize("drawn", list(DRAWS.values()), ids=list(DRAWS))
def test_all_that_draws_for_samples_takes_one_for_each(
    drawn: Callable[[list[int], Any], Tensor],
) -> None:
    batch = drawn([0, 1, 2, 3, 4], own(SEEDS))
    for i, seed in enumerate(SEEDS):
        torch.testing.assert_close(drawn([i], own([seed]))[0], batch[i])
        assert torch.equal(drawn([i], one(seed)), drawn([i], own([seed])))
    assert torch.pdist(batch.flatten(1)).min() > 0.1


def test_a_shape_of_samples_has_one_for_each_in_its_order() -> None:
    for sample in (MIXTURE.sample, sm.VPSDE().prior((4,)).sample):
        got = sample((2, 3), generator=own(range(6)))
        assert torch.equal(got.reshape(6, -1), sample((6,), generator=own(range(6))))
    assert sm.VPSDE().prior((4,)).sample((0,), generator=[]).shape == (0, 4)


def test_generators_move_on_from_call_to_call() -> None:
    generators = own(SEEDS)
    first = draw(MODEL, SOLVERS["ddim"], generators, 5)
    assert (draw(MODEL, SOLVERS["ddim"], generators, 5) - first).abs().max() > 0.1
    again = own(SEEDS)
    assert torch.equal(draw(MODEL, SOLVERS["ddim"], tuple(again), 5), first)
    assert [a.get_state().equal(b.get_state()) for a, b in zip(generators, again, strict=True)] == (
        [False] * 5
    )


def test_nothing_else_is_drawn_from() -> None:
    state = torch.get_rng_state()
    draw(MODEL, SOLVERS["sde:srk"], own(SEEDS), 5)
    draw(MODEL, SOLVERS["interval"], own(SEEDS), 5)
    assert torch.equal(torch.get_rng_state(), state)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (own([1, 2]), ValueError, "generator has 2 entries for a batch of 3"),
    ([one(1)] * 3, ValueError, "same torch.Generator twice"),
    ([1, 2, 3], TypeError, r"generator\[0\] must be a torch.Generator, got 1: use \[torch"),
    ([one(1), None, one(2)], TypeError, r"generator\[1\] must be a torch.Generator, got None"),
    ((one(s) for s in range(3)), TypeError, "must be a torch.Generator, got <generator"),
    ("abc", TypeError, "must be a torch.Generator, got 'abc'"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_what_is_not_one_for_each_sample_is_refused(
    wrong: Any, error: type[Exception], message: str
) -> None:
    x = torch.zeros(3, *EVENT, dtype=torch.float64)
    for work in (
        lambda: sm.sample(MODEL, (3, *EVENT), generator=wrong),
        lambda: sm.solve(MODEL.sde, x, (0.1, 0.9), "euler-maruyama", generator=wrong),
        lambda: sm.log_prob(MODEL, x, generator=wrong),
        lambda: sm.bits_per_dim(MODEL, x.long(), 2, generator=wrong),
        lambda: MIXTURE.sample(3, generator=wrong),
        lambda: sm.data.dequantize(x.long(), 2, generator=wrong),
    ):
        with sm.count_evaluations() as counter, pytest.raises(error, match=message):
            work()
        assert counter.calls == 0


def test_what_draws_for_a_batch_as_one_takes_a_single_generator(tmp_path: Any) -> None:
    x = torch.zeros(5, *EVENT, dtype=torch.float64)
    several = own(SEEDS)
    for work in (
        lambda: sm.losses.denoising_score_matching(MODEL, x, generator=several),
        lambda: sm.losses.sliced_score_matching(MODEL, x, generator=several),
        lambda: sm.losses.simulated_score_matching(MODEL, x, generator=several),
        lambda: sm.fit(MODEL, x, steps=1, generator=several, progress=False),
        lambda: sm.data.toy("two-moons", 5, generator=several),
        lambda: sm.data.patches(generator=several),
    ):
        with pytest.raises(TypeError, match=r"single torch\.Generator here, got a list of 5"):
            work()
    with pytest.raises(TypeError, match="use seed="):
        sm.evaluate(MODEL, x, tmp_path, generator=several)


def test_a_source_is_checked_once() -> None:
    streams = as_source(own(SEEDS), 5)
    assert as_source(streams, 5) is streams
    assert as_source(None, 5) is None
