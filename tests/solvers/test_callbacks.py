"""callback= and progress=: every solver says where it is after each step, and closes its bar."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers import progress as progress_module

TABLE = sm.list_solvers()
EXACT = ProductMixture(sm.VPSDE(t_min=1e-3), (2,))
START, END, STEPS = 1.0, 0.1, 12
every_solver = pytest.mark.parametrize("name", TABLE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(name: str, **arguments: Any) -> sm.Solution:
    """A short solve from noise towards data, of whatever equation the solver takes."""
    solver = TABLE[name]
    system: sm.System = EXACT.flow()
    if not solver.deterministic:
        system = sm.ReverseSDE(EXACT.model, (2,))
    if solver.draws_noise(system):
        arguments["generator"] = generator(1)
    tolerance = 1e-2 if solver.stochastic else 1e-5
    arguments |= {"rtol": tolerance, "atol": tolerance} if solver.adaptive else {"steps": STEPS}
    x = EXACT.sample(5, START, generator())
    return sm.solve(system, x, (START, END), name, **arguments)


@every_solver
def test_callback_gets_each_step_in_order(name: str) -> None:
    seen: list[sm.Step] = []
    states: list[Tensor] = []

    def note(step: sm.Step) -> str:
        seen.append(step)
        states.append(step.x.clone())
        return "ignored"

    got = run(name, callback=note)
    assert [step.index for step in seen] == list(range(1, got.accepted + 1))
    assert len(seen) > 2 if TABLE[name].adaptive else len(seen) == STEPS
    times = [torch.as_tensor(step.t, dtype=torch.float64) for step in seen]
    for t in times:
        assert t.shape in ((), (5,))
    before = torch.tensor(START, dtype=torch.float64)
    for t in times:  # a sample that has no step of its own now stays where it is
        moved = t < before if t.ndim == 0 else t <= before
        assert moved.all()
        assert (t != before).any()
        before = t.clone()
    assert (times[-1] == END).all()
    assert torch.equal(seen[-1].x, got.x)
    for step, state in zip(seen, states, strict=True):
        assert step.x.shape == got.x.shape
        assert torch.equal(step.x, state)  # nothing is written into a state that was told
    counts = [step.nfe for step in seen]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert counts[-1] == got.nfe


@every_solver
def test_callback_and_bar_change_nothing(name: str) -> None:
    plain = run(name)
    watched = run(name, callback=lambda step: None, progress=True)
    assert torch.equal(plain.x, watched.x)
    assert (plain.cost, plain.accepted) == (watched.cost, watched.accepted)


class Bar:
    """Stands in for tqdm's bar, and remembers."""

    made: list[Bar]

    def __init__(self, **arguments: Any) -> None:
        self.n, self.moves, self.closed, self.said = 0.0, [], False, ""
        Bar.made.append(self)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.said = text

    def update(self, by: float) -> None:
        assert not self.closed
        self.moves.append(by)
        self.n += by

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.made = []
    monkeypatch.setattr(progress_module, "open_bar", Bar)
    return Bar.made


@every_solver
def test_bar_moves_with_each_step_up_to_the_end(name: str, bars: list[Bar]) -> None:
    got = run(name, progress=True)
    (bar,) = bars
    assert bar.closed
    assert bar.n == pytest.approx(100)
    assert min(bar.moves) >= 0
    assert len(bar.moves) == got.accepted
    assert bar.said == f"t={END:.3g}, {got.cost}"


@pytest.mark.parametrize("sde", [sm.VPSDE(), sm.VESDE(), sm.FlowMatchingSDE()], ids=repr)
@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name].adaptive])
def test_bar_is_in_the_middle_when_half_the_steps_are_taken(
    name: str, sde: sm.GaussianSDE, bars: list[Bar]
) -> None:
    """On VP it stood at 81 to 93% there for sampling, and 15 to 32% for encoding, measured in t."""
    model = sm.GaussianMixture([[2.0, 0.0], [-2.0, 1.0], [0.0, 0.0]], 0.3).score_model(sde)
    how: dict[str, Any] = {"generator": generator(1)}
    if TABLE[name].deterministic:
        how = {"rtol": 1e-4, "atol": 1e-4}
        sm.encode(
            model,
            model.mixture.sample(8, generator=generator()).double(),
            name,
            progress=True,
            **how,
        )
    sm.sample(model, (8, 2), name, dtype=torch.float64, progress=True, **how)
    for bar in bars:
        moved = torch.tensor(bar.moves).cumsum(0)
        assert 20 < moved[len(moved) // 2] < 80
        assert 20 < moved[(len(moved) - 1) // 2] < 80
        assert bar.n == pytest.approx(100)


@pytest.mark.parametrize("grid", ["uniform", "log-snr", "karras"])
def test_fixed_steps_count_alike_on_the_bar(grid: str, bars: list[Bar]) -> None:
    sm.sample(EXACT.model, (5, 2), "ddim", steps=STEPS, grid=grid, progress=True)
    torch.testing.assert_close(torch.tensor(bars[0].moves), torch.full((STEPS,), 100 / STEPS))


class Noiseless(sm.GaussianSDE):
    """Its log-SNR is infinite at t = 0."""

    def alpha(self, t: Any) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))

    def sigma(self, t: Any) -> Tensor:
        return torch.as_tensor(t)


class Decay(sm.System):
    """An equation with no log-SNR at all."""

    stochastic, t_min, t_max = False, 0.0, 1.0

    def drift(self, t: Any, x: Tensor) -> Tensor:
        return -x


def test_bar_goes_by_t_where_there_is_no_other_clock(bars: list[Bar]) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for system in (Noiseless(t_min=0.0, t_max=1.0), Decay()):
        progress = progress_module.SolveProgress(system, ends)
        for t in (0.25, 0.2, 1.0 + 1e-9):  # no way back, and not beyond the end
            progress.reach(t, 0)
        progress.complete()
        assert bars.pop().moves == pytest.approx([25, 0, 75])


def test_bar_of_a_solve_that_fails_stays_where_it_is(bars: list[Bar]) -> None:
    with pytest.raises(sm.StepLimitError):
        sm.sample(EXACT.model, (5, 2), "rk-batch", max_steps=3, progress=True)
    assert bars[0].closed
    assert 0 < bars[0].n < 90


class Stop(Exception):
    """What a callback may raise."""


@every_solver
def test_what_a_callback_raises_ends_the_solve(name: str, bars: list[Bar]) -> None:
    seen: list[sm.Step] = []

    def note(step: sm.Step) -> None:
        seen.append(step)
        if step.index == 2:
            raise Stop

    with sm.count_evaluations() as counter, pytest.raises(Stop):
        run(name, callback=note, progress=True)
    assert len(seen) == 2
    assert seen[-1].nfe == counter.rows / len(seen[-1].x)
    assert bars[0].closed


@pytest.mark.parametrize("wrong", [5, "print", [print]], ids=repr)
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    x = torch.zeros(2, 2)
    for work in (
        lambda: sm.solve(EXACT.flow(), x, (START, END), callback=wrong),
        lambda: sm.sample(EXACT.model, (2, 2), callback=wrong),
        lambda: sm.encode(EXACT.model, x, callback=wrong),
        lambda: sm.decode(EXACT.model, x, callback=wrong),
        lambda: sm.log_prob(EXACT.model, x, callback=wrong),
    ):
        with (
            sm.count_evaluations() as counter,
            pytest.raises(TypeError, match=r"callback must be a function of one sm\.Step"),
        ):
            work()
        assert counter.calls == 0


def test_every_function_calls_the_callback() -> None:
    sde, seen = EXACT.sde, []
    x = EXACT.sample(5, sde.t_min, generator())
    arguments: dict[str, Any] = {"solver": "ode:rk4", "steps": 4, "callback": seen.append}

    def told() -> list[sm.Step]:
        steps = seen.copy()
        seen.clear()
        assert [step.index for step in steps] == [1, 2, 3, 4]
        assert steps[-1].x.shape == (5, 2)
        return steps

    drawn = sm.sample(EXACT.model, (5, 2), dtype=torch.float64, **arguments)
    steps = told()
    assert torch.equal(steps[-1].x, drawn.x)
    assert steps[-1].t == sde.t_min
    code = sm.encode(EXACT.model, x, **arguments)
    steps = told()
    assert torch.equal(steps[-1].x, code.z)
    assert steps[-1].t == sde.t_max
    back = sm.decode(EXACT.model, code.z, **arguments)
    assert torch.equal(told()[-1].x, back.x)
    density = sm.log_prob(EXACT.model, x, **arguments)  # and not its coarser second solve
    assert torch.equal(told()[-1].x, density.z)


def test_callback_sees_a_forward_sde() -> None:
    seen: list[sm.Step] = []
    x = EXACT.sample(3, EXACT.sde.t_min, generator())
    for name in ("euler-maruyama", "sde:heun"):
        seen.clear()
        sm.solve(EXACT.sde, x, (0.1, 0.9), name, steps=4, callback=seen.append)
        times = [float(step.t) for step in seen]
        assert times == sorted(times)
        assert math.isclose(times[-1], 0.9)
        assert [step.nfe for step in seen] == [0] * 4


def test_saved_path_and_callback_agree() -> None:
    for name in ("ddim", "ode:rk4", "ode:dopri5", "scipy:RK45"):
        seen: list[sm.Step] = []
        got = run(name, callback=seen.append, path=True)
        assert got.times is not None
        assert got.path is not None
        assert got.times.tolist()[1:] == [step.t for step in seen]
        assert torch.equal(got.path[1:], torch.stack([step.x for step in seen]))
