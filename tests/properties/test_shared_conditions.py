"""The answer does not depend on how many samples share a condition, nor on parts of the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde_models as sm

SDE = sm.VPSDE(beta_max=40.0)  # so that nothing is left of the mean at t_max
F64 = torch.float64


class Exact(nn.Module):
    """eps of Gaussian data of mean m(w) and standard deviation 1/2, in each coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=F64))

    def mean(self, w: Any) -> Any:
        raise NotImplementedError

    def forward(self, t: Tensor, x: Tensor, *, w: Any) -> Tensor:
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        return self.one * sigma * (x - alpha * self.mean(w)) / ((alpha / 2) ** 2 + sigma**2)


class Sums(Exact):
    """All numbers of w belong to all samples."""

    def mean(self, w: Any) -> Any:
        return torch.as_tensor(w, dtype=F64).sum()


class ByRow(Exact):
    """Each sample has a mean of its own; written so that a row too few is an error."""

    def forward(self, t: Tensor, x: Tensor, *, w: Any) -> Tensor:
        both = torch.cat([x, torch.as_tensor(w, dtype=F64)], dim=1)
        return super().forward(t, both[:, :-1], w=both[:, -1:])

    def mean(self, w: Any) -> Any:
        return w


def truth(x: Tensor, mean: Tensor | float) -> Tensor:
    return sm.GaussianMixture(torch.zeros(1, x.shape[1], dtype=F64), 0.5).log_prob(x - mean)


def data(count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("length", [1, 2, 18, 33, 64])
@pytest.mark.parametrize("given", ["bound", "one row"])
@pytest.mark.parametrize("count", [1, 2, 64])
def test_shared_numbers_of_any_length_are_seen_whole(count: int, given: str, length: int) -> None:
    model, w = sm.ScoreModel(Sums(), SDE), torch.full((length,), 0.8 / length, dtype=F64)
    x = data(count) * (1 + 5 * (torch.arange(count) % 3 == 0))[:, None]
    if given == "bound":
        lp = sm.log_prob(model.bind(w=w), x, tol=0.3)
    else:
        lp = sm.log_prob(model, x, tol=0.3, cond={"w": w[None]})
    assert bool(((lp.value - truth(x, 0.8)).abs() <= 0.3).all())


@pytest.mark.parametrize("solver", ["adams-batch", "rk-batch", "ode:dopri5", "dpmpp-3m"])
@pytest.mark.parametrize("shared", [torch.tensor([0.3, 0.5]), [0.3, 0.5], {"deep": 0.8}])
def test_what_is_bound_is_seen_whole_by_every_solver(solver: str, shared: Any) -> None:
    """Two samples, and two numbers that both share."""

    class Sum(Sums):
        def mean(self, w: Any) -> Any:
            return super().mean(list(w.values()) if isinstance(w, dict) else w)

    model, x = sm.ScoreModel(Sum(), SDE).bind(w=shared), data(2)
    adaptive = sm.list_solvers()[solver].adaptive
    effort: Any = {"rtol": 1e-6, "atol": 1e-6} if adaptive else {"steps": 100}
    z = sm.encode(model, x, solver, **effort).z
    alpha, sigma = SDE.alpha(SDE.t_max), SDE.sigma(SDE.t_max)
    ratio = ((alpha / 2) ** 2 + sigma**2).sqrt() / 0.5
    wanted = alpha * 0.8 + ratio * (x - 0.8)
    torch.testing.assert_close(z, wanted.to(F64), rtol=0, atol=2e-3)


def test_noise_solvers_see_what_is_bound() -> None:
    model = sm.ScoreModel(Sums(), SDE).bind(w=torch.tensor([0.25, 0.5]))
    draw = partial(sm.sample, solver="adaptive-sde", dtype=F64, rtol=0.05, atol=0.05)
    one = draw(model, (2, 2), generator=torch.Generator().manual_seed(1)).x
    other = draw(
        sm.ScoreModel(Sums(), SDE), (2, 2), generator=torch.Generator().manual_seed(1),
        cond={"w": 0.75},
    ).x  # fmt: skip
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
@pytest.mark.parametrize("trace", ["quadrature", "augmented"])
def test_rows_go_with_their_samples(kind: str, trace: str) -> None:
    """Together, and each alone, where a single row is that of its sample."""
    x, w = data(5), torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    of: Any = {"tensor": lambda v: v, "array": Tensor.numpy, "list": Tensor.tolist}[kind]
    solver = "adams-batch" if trace == "quadrature" else "ode:dopri5"
    score = partial(
        sm.log_prob, sm.ScoreModel(ByRow(), SDE), solver=solver, trace=trace, rtol=1e-6, atol=1e-6
    )
    together = score(x, cond={"w": of(w)}).value
    torch.testing.assert_close(together, truth(x, w), rtol=0, atol=1e-3)
    for i in range(5):
        alone = score(x[i : i + 1], cond={"w": of(w[i : i + 1])}).value
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-3)


def test_picard_repeats_no_row_of_a_single_sample() -> None:
    for network in (Sums(), ByRow()):
        model, x = sm.ScoreModel(network, SDE), data(1)
        cond = {"w": torch.full((1, 1), 0.8, dtype=F64)}
        plain = sm.encode(model, x, "dpmpp-3m", steps=20, cond=cond).z
        picard = sm.make_solver("picard", method="dpmpp-3m", tolerance=1e-8)
        parallel = sm.encode(model, x, picard, steps=20, cond=cond).z
        torch.testing.assert_close(parallel, plain, rtol=1e-6, atol=1e-6)


class Table(nn.Module):
    """A network that needs all of a table, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.seen: list[Any] = []

    def forward(self, t: Tensor, x: Tensor, *, table: Tensor) -> Tensor:
        self.seen.append(tuple(table.shape))
        return self.linear(x) * table.sum()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_shared_table_is_not_cut_in_training(parts: int) -> None:
    """Four samples, and a table of four rows that each of them needs."""
    model = sm.ScoreModel(Table(), SDE).bind(table=torch.ones(4, 2))
    sm.fit(
        model, torch.randn(16, 2), steps=2, batch_size=4, gradient_accumulation_steps=parts,
        seed=0, progress=False,
    )  # fmt: skip
    assert {*model.model.network.seen} == {(4, 2)}  # type: ignore[union-attr, operator]


def test_conditions_of_data_follow_the_same_rule() -> None:
    model = sm.ScoreModel(Table(), SDE)
    fit = partial(sm.fit, model, steps=1, batch_size=4, seed=0, progress=False)
    fit(lambda n, generator: (torch.zeros(n, 2), {"table": np.ones((n, 3), "float32")}))
    fit(lambda n, generator: (torch.zeros(n, 2), {"table": torch.ones(1, 7)}))
    assert {*model.network.seen} == {(4, 3), (1, 7)}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has shape \(7,\) for 4 samples"):
        fit(lambda n, generator: (torch.zeros(n, 2), {"table": torch.ones(7)}))


def test_many_samples_follow_the_same_rule(tmp_path: Any) -> None:
    model, x, w = sm.ScoreModel(ByRow(), SDE), data(7), torch.linspace(-1, 1, 7, dtype=F64)
    found = sm.evaluate(
        model, x, tmp_path / "a", chunk=3, cond={"w": w[:, None].tolist()}, tol=0.1, progress=False
    )
    torch.testing.assert_close(found.value, truth(x, w[:, None]), rtol=0, atol=0.1)
    bound = sm.evaluate(
        sm.ScoreModel(Sums(), SDE).bind(w=w), x, tmp_path / "b", chunk=3, tol=0.1, progress=False
    )
    torch.testing.assert_close(bound.value, truth(x, 0.0), rtol=0, atol=0.1)
    with pytest.raises(
        ValueError, match=r"model\.bound_w: .* there, not given now"
    ):  # other numbers are other results
        sm.evaluate(
            sm.ScoreModel(Sums(), SDE).bind(w=0.5), x, tmp_path / "b", chunk=3, tol=0.1,
            progress=False,
        )  # fmt: skip


def test_a_bound_model_is_a_model() -> None:
    model = sm.ScoreModel(Sums(), SDE)
    bound = model.bind(w=torch.tensor([0.5, 0.3], dtype=F64))
    x, t = data(3), torch.full((3,), 0.5, dtype=F64)
    for name in ("score", "eps", "x0", "v"):
        assert torch.equal(getattr(bound, name)(t, x), getattr(model, name)(t, x, w=0.8))
    assert sum(p.numel() for p in bound.parameters()) == 1
    assert bound.to(torch.float32).bound_w.dtype == torch.float32
    assert "w=tensor" in repr(bound)
    again: list[Callable[[], Any]] = [
        lambda: bound.score(t, x, w=1.0), lambda: sm.encode(bound, x, cond={"w": 1.0}),
        lambda: bound.bind(w=1.0), lambda: bound.bind(v=2.0).bind(w=1.0),
    ]  # fmt: skip
    for call in again:
        with pytest.raises(TypeError, match=r"w is bound .* leave it out, or bind it anew to its"):
            call()
    bound.data_range = (-3.0, 2.0)
    both = bound.bind(v=2.0)
    assert {*both.bound} == {"w", "v"}
    assert both.data_range == (-3.0, 2.0)
    assert both.model is model
    with pytest.raises(TypeError, match=r"got BoundModel: save its \.model"):
        sm.save_model("nowhere.safetensors", bound)  # type: ignore[arg-type]


class Named(nn.Module):
    """eps by conditions of any names, of which each has a weight of its own."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names, self.gain = names, nn.Parameter(torch.tensor(0.7, dtype=F64))

    def forward(self, t: Tensor, x: Tensor, /, **cond: Any) -> Tensor:
        given = sum(cond.pop(name) * 2.0 ** -(1 + i) for i, name in enumerate(self.names))
        assert not cond
        return self.gain * torch.tanh(x) * given


class NamedEnergy(Named):
    """The same as an energy."""

    def forward(self, t: Tensor, x: Tensor, /, **cond: Any) -> Tensor:
        return super().forward(t, x, **cond).sum(1)


NAMES = [
    "eta", "model", "sde", "cond", "generator", "network", "times", "like", "k", "state", "probes",
    "given", "system", "input", "args", "kwargs", "step", "y", "s", "z", "name", "function",
    "dropout", "training", "forward",
]  # fmt: skip


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of_every_kind(model: sm.Model, cond: dict[str, Any] | None) -> list[Tensor]:
    """Numbers from all functions that take conditions, with those that a network is given."""
    x, noise = data(3), draws()
    kind: Any = {"dtype": F64, "generator": noise, "cond": cond}
    loose: Any = {"rtol": 1e-2, "atol": 1e-2, "cond": cond}
    few: Any = {"steps": 12, "cond": cond}
    density: Any = {"estimate_solver_error": False, **few}
    flow, back = sm.ProbabilityFlow(model, cond=cond), sm.ReverseSDE(model, (2,), 0.5, cond=cond)
    return [
        *(sm.encode(model, x, name, **loose).z for name in ("ode:dopri5", "rk-batch")),
        *(sm.encode(model, x, name, **few).z for name in ("ode:rk4", "flow-abm-4")),
        *(sm.decode(model, x, name, **few).x for name in ("ddim", "dpmpp-2m", "heun-edm")),
        *(
            sm.sample(model, (3, 2), name, steps=3, **kind).x
            for name in ("sde:euler", "euler-maruyama", "ancestral")
        ),
        sm.sample(model, (3, 2), "adaptive-sde", rtol=1.0, atol=1.0, **kind).x,
        flow(0.5, x), back.drift(0.5, x), back.f(torch.tensor(-0.5), x),
        sm.log_prob(model, x, "ode:rk4", trace="augmented", **density).value,
        sm.log_prob(model, x, "flow-abm-4", trace="quadrature", intervals=12, **density).value,
        sm.losses.denoising_score_matching(
            model, x, generator=noise, weighting="simple", cond=cond
        ),
        *(
            loss(model, x, generator=noise, cond=cond)
            for loss in (
                sm.losses.implicit_score_matching, sm.losses.sliced_score_matching,
                sm.losses.finite_difference_sliced, sm.losses.simulated_score_matching,
                sm.losses.fokker_planck_penalty,
            )
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("network", [Named, NamedEnergy])
def test_the_names_of_conditions_change_nothing(network: type[Named]) -> None:
    """Bound, given by these names, and given by some that nothing else has."""

    def make(names: list[str]) -> sm.Model:
        own = network(names)
        return sm.EnergyModel(own, SDE) if network is NamedEnergy else sm.ScoreModel(own, SDE)

    values = [0.5 + 0.25 * (i % 3) for i in range(len(NAMES))]
    plain = [f"condition_{name}" for name in NAMES]
    given = dict(zip(NAMES, values, strict=True))
    truth = of_every_kind(make(plain), dict(zip(plain, values, strict=True)))
    for found in (
        of_every_kind(make(NAMES), given),
        of_every_kind(make(NAMES).bind(**given), None),
    ):
        for one, two in zip(found, truth, strict=True):
            assert torch.equal(one, two)
