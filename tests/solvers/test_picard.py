"""Picard iteration gives the sequential method's answer, in fewer passes, whatever the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import sde_models as sm
from sde_models.solvers.parallel import windows as picard_windows
from sde_models.solvers.parallel.picard import METHODS

TABLE = sm.list_solvers()
FLOW_METHODS = [name for name in METHODS if TABLE[name].deterministic]
SDE_METHODS = [name for name in METHODS if TABLE[name].stochastic]
EXACT = ProductMixture(sm.VPSDE(), (1, 2, 2))
DOWN, UP = (1.0, 1e-5), (1e-5, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picard(method: str = "ddim", **options: Any) -> Any:
    return sm.make_solver("picard", method=method, **options)


def relative(got: Tensor, wanted: Tensor) -> float:
    """Largest root mean square of a sample's difference, in units of the wanted ones' spread."""
    return float((got - wanted).flatten(1).square().mean(1).sqrt().max() / wanted.std())


@pytest.mark.parametrize("span", [DOWN, UP], ids=["down", "up"])
@pytest.mark.parametrize("name", FLOW_METHODS)
def test_it_converges_to_the_sequential_flow(name: str, span: tuple[float, float]) -> None:
    x = EXACT.sample(6, span[0], generator())
    one = sm.solve(EXACT.flow(), x, span, name, steps=40)
    got = sm.solve(EXACT.flow(), x, span, picard(name, tolerance=1e-8), steps=40)
    assert relative(got.x, one.x) < 1e-6
    assert got.cost.calls < 0.8 * one.cost.calls
    assert got.accepted == one.accepted == 40


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SDE_METHODS)
def test_it_draws_the_noise_of_the_sequential_sampler(name: str, eta: float) -> None:
    x = EXACT.sample(6, 1.0, generator())
    system = sm.ReverseSDE(EXACT.model, EXACT.event_shape, eta)
    first, second = generator(7), generator(7)
    one = sm.solve(system, x, DOWN, name, steps=40, generator=first)
    solver = picard(name, window=12, tolerance=1e-8)
    got = sm.solve(system, x, DOWN, solver, steps=40, generator=second)
    assert relative(got.x, one.x) < 1e-6
    assert got.cost.calls < one.cost.calls
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize("sde", [sm.VPSDE(), sm.VESDE(), sm.FlowMatchingSDE()])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-5])
def test_the_error_is_about_the_tolerance(sde: sm.GaussianSDE, tolerance: float) -> None:
    """In units of the spread at each time, so that it holds for every SDE."""
    exact = ProductMixture(sde, (4,))
    for t0, t1 in [(sde.t_min, sde.t_max), (sde.t_max, sde.t_min)]:
        x = exact.sample(32, t0, generator())
        one = sm.solve(exact.flow(), x, (t0, t1), "ddim", steps=60)
        got = sm.solve(exact.flow(), x, (t0, t1), picard(tolerance=tolerance), steps=60)
        assert 0 < relative(got.x, one.x) < 6 * tolerance
        assert got.cost.calls < 40


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "dpmpp-3m", "flow-abm-3"])
def test_the_default_tolerance_is_below_the_error_of_the_method(name: str) -> None:
    """So that the order shows; and float32 takes it as well."""
    for steps in (12, 40, 120):
        x = EXACT.sample(16, 1.0, generator())
        truth = EXACT.flow_map(x, *DOWN)
        one = sm.solve(EXACT.flow(), x, DOWN, name, steps=steps).x
        got = sm.solve(EXACT.flow(), x, DOWN, picard(name), steps=steps)
        assert relative(got.x, one) < 0.35 * relative(one, truth)
        assert got.cost.calls < steps
        single = sm.solve(EXACT.flow(), x.float(), DOWN, picard(name), steps=steps)
        assert relative(single.x, got.x) < 1e-4
        assert single.cost.calls < 1.2 * got.cost.calls


def test_the_scale_of_the_state_changes_nothing() -> None:
    """On nodes of equal log-SNR, VE is VP in other units; so are its states, and its rounds."""
    vp, ve = sm.VPSDE(), sm.VESDE(sigma_min=0.01, sigma_max=50.0)
    levels = torch.linspace(-4, 6, 51, dtype=torch.float64)
    answers, rounds = [], []
    for sde in (vp, ve):
        nodes = sde.t_from_log_snr(levels)
        spread = torch.hypot(sde.alpha(nodes), sde.sigma(nodes))
        x = spread[0] * torch.randn(8, 4, generator=generator(), dtype=torch.float64)
        flow, span = ProductMixture(sde, (4,)).flow(), (float(nodes[0]), float(nodes[-1]))
        got = sm.solve(flow, x, span, picard(tolerance=1e-3), grid=nodes)
        answers.append(got.x / spread[-1])
        rounds.append(got.cost)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-8, atol=1e-8)
    assert rounds[0] == rounds[1]


def test_a_hundred_steps_take_a_fifth_of_the_rounds() -> None:
    """What it is for: rounds, and the rows that they cost, on a mixture in 64 dimensions."""
    mixture = sm.GaussianMixture(
        torch.randn(8, 64, generator=generator(), dtype=torch.float64), 0.3
    )
    flow = sm.ProbabilityFlow(mixture.score_model(sm.VPSDE()))
    x = torch.randn(4, 64, generator=generator(1), dtype=torch.float64)
    one = sm.solve(flow, x, DOWN, "ddim", steps=100)
    rounds = []
    for window in (4, 8, 16, 1000):
        got = sm.solve(flow, x, DOWN, picard(window=window), steps=100)
        assert relative(got.x, one.x) < 5e-3
        assert got.cost.calls < got.nfe <= window * got.cost.calls
        rounds.append(got.cost.calls)
    assert rounds[0] < 50
    assert rounds[1] < 30
    assert rounds[2] <= 20


def test_a_window_of_one_is_the_sequential_method() -> None:
    x = EXACT.sample(3, 1.0, generator())
    one = sm.solve(EXACT.flow(), x, DOWN, "dpmpp-3m", steps=15)
    got = sm.solve(EXACT.flow(), x, DOWN, picard("dpmpp-3m", window=1), steps=15)
    assert relative(got.x, one.x) < 1e-14
    assert got.cost == sm.Cost(nfe=15.0, calls=15)


class Rough(nn.Module):
    """A network whose output says little about its output nearby."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(300 * x + 40 * t[:, None])


@pytest.mark.parametrize("tolerance", [0, 1e-12])
def test_there_are_never_more_rounds_than_steps(tolerance: float) -> None:
    flow = sm.ProbabilityFlow(sm.ScoreModel(Rough(), sm.VPSDE(), "x0"))
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    one = sm.solve(flow, x, DOWN, "ddim", steps=30)
    got = sm.solve(flow, x, DOWN, picard(tolerance=tolerance), steps=30)
    assert relative(got.x, one.x) < 1e-8
    assert 15 < got.cost.calls <= 30


def test_an_answer_does_not_depend_on_its_batch_mates() -> None:
    """A sample that stands between two narrow modes, and one that hardly moves, among others."""
    narrow = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.1).double()
    flow = sm.ProbabilityFlow(narrow.score_model(sm.VPSDE()))
    hard = torch.tensor([[0.02, 0.5]], dtype=torch.float64)
    easy = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    tolerance = 1e-5

    def run(x: Tensor, solver: Any = "ddim") -> Tensor:
        return sm.solve(flow, x, DOWN, solver, steps=60).x

    for sample, mates in [(hard, easy.repeat(63, 1)), (easy, hard.repeat(63, 1))]:
        one, solver = run(sample), picard(tolerance=tolerance)
        assert float((run(sample, solver) - one).abs().max()) < 20 * tolerance
        batch = run(torch.cat([mates, sample]), solver)[-1:]
        assert float((batch - one).abs().max()) < 20 * tolerance


class Conditioned(nn.Module):
    """A network that takes everything that conditioning may be, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
        self.calls: list[Tensor] = []

    def forward(
        self, t: Tensor, x: Tensor, label: Tensor, own: Tensor, one: Tensor, gain: Any
    ) -> Tensor:
        assert t.shape == label.shape == x.shape[:1]
        self.calls.append(t.detach())
        pull = label[:, None] + own - one * t[:, None]
        return torch.tanh(self.weight * x + gain * pull)


CONDITIONS = {
    "label": torch.tensor([0, 1, 2]),
    "own": torch.tensor([[0.3, -1.0], [0.0, 0.5], [2.0, 0.1]], dtype=torch.float64),
    "one": torch.tensor([[0.7, -0.4]], dtype=torch.float64),
    "gain": torch.tensor(0.4, dtype=torch.float64),
}


@pytest.mark.parametrize(
    "meaning", [{"prediction": "v"}, {"preconditioning": "edm"}], ids=["v", "edm"]
)
def test_conditions_go_with_its_sample_and_times_with_their_nodes(
    meaning: dict[str, str],
) -> None:
    network = Conditioned()
    flow = sm.ProbabilityFlow(sm.ScoreModel(network, sm.VPSDE(), **meaning))
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    one = sm.solve(flow, x, DOWN, "dpmpp-2m", steps=30, cond=CONDITIONS)
    shown = torch.stack([t[0] for t in network.calls])
    network.calls.clear()
    solver = picard("dpmpp-2m", window=5, tolerance=1e-9)
    got = sm.solve(flow, x, DOWN, solver, steps=30, cond=CONDITIONS)
    assert relative(got.x, one.x) < 1e-7
    assert len(network.calls) == got.cost.calls < 30
    assert sum(map(len, network.calls)) == 3 * got.nfe
    assert max(map(len, network.calls)) == 5 * 3
    for t in network.calls:
        nodes = t.reshape(-1, 3)
        first = int((shown - nodes[0, 0]).abs().argmin())
        wanted = shown[first : first + len(nodes), None].expand(-1, 3)
        torch.testing.assert_close(nodes, wanted, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_the_sequential_method() -> None:
    network = Conditioned()
    flow = sm.ProbabilityFlow(sm.ScoreModel(network, sm.VPSDE(), "v"))
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    own = CONDITIONS["own"].clone().requires_grad_()
    gradients = []
    for solver in ("dpmpp-3m", picard("dpmpp-3m", tolerance=1e-8)):
        end = sm.solve(flow, x, DOWN, solver, steps=20, cond={**CONDITIONS, "own": own}).x
        weights = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
        inputs = [x, own, network.weight]
        gradients.append(torch.autograd.grad((weights * end).sum(), inputs))
    for one, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-6, atol=1e-7)
        assert bool((one != 0).all())


@pytest.mark.parametrize("name", ["ddim", "flow-abm-3"])
def test_every_state_is_reported_once_and_in_order(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    x = EXACT.sample(3, 1.0, generator())
    one = sm.solve(EXACT.flow(), x, DOWN, name, steps=20, path=True)
    steps: list[sm.Step] = []
    solver = picard(name, tolerance=1e-9)
    got = sm.solve(
        EXACT.flow(), x, DOWN, solver, steps=20, path=True, progress=True, callback=steps.append
    )
    assert got.path is not None
    assert one.path is not None
    assert got.times is not None
    torch.testing.assert_close(got.path, one.path, rtol=1e-6, atol=1e-7)
    assert torch.equal(got.times, one.times)
    assert [step.index for step in steps] == list(range(1, 21))
    assert [step.t for step in steps] == got.times[1:].tolist()
    assert torch.equal(torch.stack([step.x for step in steps]), got.path[1:])
    counts = [step.nfe for step in steps]
    assert counts == sorted(counts)
    assert counts[-1] == got.nfe
    assert "100%" in capsys.readouterr().err
    asked = sm.solve(EXACT.flow(), x, DOWN, solver, steps=20, path=[0.7, 0.2])
    assert asked.path is not None
    assert asked.accepted == 22
    wanted = sm.solve(EXACT.flow(), x, DOWN, name, steps=20, path=[0.7, 0.2]).path
    torch.testing.assert_close(asked.path, wanted, rtol=1e-6, atol=1e-7)


class Spoiled(nn.Module):
    """NaN below some time in the samples that are marked, or anywhere in the first few calls."""

    def __init__(self, below: float = 0.0, calls: int = 0) -> None:
        super().__init__()
        self.below, self.calls = below, calls

    def forward(self, t: Tensor, x: Tensor, marked: Tensor) -> Tensor:
        self.calls -= 1
        guess = (t < t.max()) & (self.calls >= 0)
        bad = (marked & (t < self.below)) | guess
        return torch.where(bad[:, None], torch.nan, torch.tanh(x))


def test_nan_is_named_by_the_node_and_the_row_of_the_batch() -> None:
    flow = sm.ProbabilityFlow(sm.ScoreModel(Spoiled(below=0.4), sm.VPSDE()))
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    marked = torch.tensor([False, True, False, True, False])
    nodes = torch.linspace(1.0, 0.1, 21, dtype=torch.float64)
    solver = picard(tolerance=1e-9)
    with (
        sm.count_evaluations() as counter,
        pytest.raises(sm.NonFiniteError, match="rows 1, 3 of the batch") as caught,
    ):
        sm.solve(flow, x, (1.0, 0.1), solver, grid=nodes, cond={"marked": marked})
    error = caught.value
    assert error.rows == [1, 3]
    assert error.t == float(nodes[nodes < 0.4][0])
    assert counter.calls < 20
    assert error.nfe == counter.rows / 5
    assert error.x is not None
    before = nodes[nodes >= error.t]
    one = sm.solve(flow, x, (1.0, error.t), "ddim", grid=before, cond={"marked": marked}).x
    torch.testing.assert_close(error.x, one, rtol=1e-7, atol=1e-7)


def test_nan_at_a_guess_heals() -> None:
    """Only what the sequential method would see ends the solve."""
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    marked = torch.zeros(5, dtype=torch.bool)
    answers = []
    for network, solver in [(Spoiled(), "ddim"), (Spoiled(calls=4), picard(tolerance=1e-9))]:
        flow = sm.ProbabilityFlow(sm.ScoreModel(network, sm.VPSDE()))
        answers.append(sm.solve(flow, x, DOWN, solver, steps=20, cond={"marked": marked}).x)
    assert relative(answers[1], answers[0]) < 1e-7


def test_memory_is_bounded_by_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and estimates that are alive at once, of 80 steps each."""
    made: dict[str, list[StorageWeakRef]] = {"noise": [], "estimates": []}
    most = {"noise": 0, "estimates": 0}

    def watch(kind: str, values: Tensor) -> Tensor:
        made[kind].append(StorageWeakRef(values.untyped_storage()))
        most[kind] = max(most[kind], sum(not ref.expired() for ref in made[kind]))
        return values

    draw, evaluate = picard_windows.standard_normal_like, picard_windows.ManyNodes.__call__
    monkeypatch.setattr(
        picard_windows, "standard_normal_like", lambda *args: watch("noise", draw(*args))
    )
    monkeypatch.setattr(
        picard_windows.ManyNodes,
        "__call__",
        lambda *args: [watch("estimates", values) for values in evaluate(*args)],
    )
    system = sm.ReverseSDE(EXACT.model, EXACT.event_shape)
    x = EXACT.sample(2, 1.0, generator())
    got = sm.solve(system, x, DOWN, picard("dpmpp-2m-sde", window=5), steps=80)
    assert len(made["noise"]) == 80
    assert len(made["estimates"]) == got.cost.calls
    assert most["noise"] <= 10  # a window, and the one that follows it
    assert most["estimates"] <= 4  # of this round, the one before it, and two past nodes


REFUSALS = [
    ({"method": "exp-adams-4"}, "order 3 at most.*starts with more.*did you mean 'exp-adams-3'"),
    ({"method": sm.make_solver("flow-abm-4")}, "starts with more.*'flow-abm-3'"),
    ({"method": "dpmpp-2"}, "did you mean 'dpmpp-2m'"),
    ({"method": "euler-maruyama"}, "must be a multistep solver.*ddim, dpmpp-2m"),
    ({"method": sm.make_solver("ode:rk4")}, "must be a multistep solver"),
    ({"method": 3}, "must be a multistep solver"),
    ({"window": 0}, "window must be an integer of 1 or more, got 0"),
    ({"window": 2.5}, "window must be an integer"),
    ({"tolerance": -1e-3}, "'tolerance' must be 0 or more"),
    ({"tolerance": math.nan}, "'tolerance' must be 0 or more"),
    ({"tolerance": math.inf}, "tolerance must be a finite number"),
    ({"tolerance": "tight"}, "'tolerance' must be a number"),
    ({"windows": 4}, "did you mean 'window'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sm.make_solver("picard", **options)


def test_it_integrates_what_its_method_does() -> None:
    assert picard().integrates == ("ODE", "SDE")
    assert picard("dpmpp-2m").integrates == ("ODE",)
    assert picard("dpmpp-2m-sde").integrates == ("SDE",)
    assert picard("flow-abm-3").order == 3
    x = EXACT.sample(2, 1.0, generator())
    reverse = sm.ReverseSDE(EXACT.model, EXACT.event_shape)
    with pytest.raises(ValueError, match="'dpmpp-2m' is for ODEs and ReverseSDE is an SDE"):
        sm.solve(reverse, x, DOWN, picard("dpmpp-2m"))
    with pytest.raises(ValueError, match="is for SDEs and ProbabilityFlow is an ODE"):
        sm.solve(EXACT.flow(), x, DOWN, picard("dpmpp-2m-sde"))
    with pytest.raises(ValueError, match="takes the ProbabilityFlow or ReverseSDE"):
        sm.solve(EXACT.sde, x, UP, picard())
    with pytest.raises(ValueError, match=r"cannot use rtol=.*steps="):
        sm.solve(EXACT.flow(), x, DOWN, picard(), rtol=1e-3)


def test_a_method_may_come_with_options_of_its_own() -> None:
    x = EXACT.sample(4, 1e-5, generator())
    method = sm.make_solver("exp-adams-2", estimate="eps")
    one = sm.solve(EXACT.flow(), x, UP, method, steps=30)
    got = sm.solve(
        EXACT.flow(), x, UP, sm.make_solver("picard", method=method, tolerance=1e-9), steps=30
    )
    assert relative(got.x, one.x) < 1e-7
