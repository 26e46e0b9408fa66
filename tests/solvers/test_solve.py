"""solve(): batch-mates do not matter, seeds do, paths are true, and failures say where."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm

TABLE = sm.list_solvers()
STOCHASTIC = [name for name, solver in TABLE.items() if solver.stochastic]
ADAPTIVE = [name for name, s in TABLE.items() if s.adaptive and s.deterministic]
EXACT = ProductMixture(sm.VPSDE(), (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_samples_answer_does_not_depend_on_its_batch_mates(name: str) -> None:
    """A hard sample among 63 at rest: its error is that of a solve alone, not an average's.

    With SDE VP and N(0, I) as one component, samples of a standard Gaussian hardly move; the
    others cross between narrow modes.
    """
    narrow = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.1).double()
    flow = sm.ProbabilityFlow(narrow.score_model(sm.VPSDE()))
    hard = torch.tensor([[0.02, 0.5]], dtype=torch.float64)
    easy = torch.tensor([[3.0, 0.0]], dtype=torch.float64).repeat(63, 1)
    tolerance = 1e-5
    truth = sm.solve(flow, hard, (1.0, 1e-5), "ode:dopri8", rtol=1e-11, atol=1e-11).x
    alone = sm.solve(flow, hard, (1.0, 1e-5), name, rtol=tolerance, atol=tolerance).x
    batch = sm.solve(
        flow, torch.cat([easy, hard]), (1.0, 1e-5), name, rtol=tolerance, atol=tolerance
    ).x[-1:]
    error_alone = float((alone - truth).abs().max())
    error_batch = float((batch - truth).abs().max())
    assert error_batch < max(3 * error_alone, 20 * tolerance)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_same_seed_same_sample(name: str) -> None:
    system = sm.ReverseSDE(EXACT.model, (2,))
    x = EXACT.sample(4, 1.0, generator())

    def run(seed: int) -> Tensor:
        source = {} if seed == 0 else {"generator": generator(seed)}
        effort = {} if TABLE[name].adaptive else {"steps": 10}
        return sm.solve(system, x, (1.0, 0.1), name, **source, **effort).x  # type: ignore[arg-type]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(5)
    first = run(0)
    torch.manual_seed(5)
    assert torch.equal(first, run(0))


def test_brownian_interval_is_seeded_by_the_generator() -> None:
    system = sm.ReverseSDE(EXACT.model, (2,))
    x = EXACT.sample(4, 1.0, generator())
    solver = sm.make_solver("sde:srk", brownian="interval")
    runs = [
        sm.solve(system, x, (1.0, 0.1), solver, steps=10, generator=generator(seed)).x
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n.startswith("sde:")])
def test_brownian_interval_has_the_same_law(name: str) -> None:
    """False-alarm rate 1e-6 each; the seed is fixed."""
    system = sm.ReverseSDE(EXACT.model, (2,))
    x = EXACT.sample(1000, 1.0, generator())
    solver = sm.make_solver(name, brownian="interval")
    got = sm.solve(system, x, (1.0, 0.05), solver, steps=60, generator=generator(1))
    EXACT.check_marginal(got.x, 0.05, bias=0.05)


def test_euler_maruyama_is_torchsdes_euler() -> None:
    system = sm.ReverseSDE(EXACT.model, (2,))
    x = EXACT.sample(8, 1.0, generator())
    ours, theirs = (
        sm.solve(system, x, (1.0, 1e-5), name, steps=50, generator=generator(3)).x
        for name in ("euler-maruyama", "sde:euler")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n.startswith("sde:")])
def test_strong_order_on_one_brownian_path(name: str) -> None:
    """Halving the step on the same path: root-mean-square distance to a fine solve."""
    import torchsde

    x = EXACT.sample(300, 0.9, generator()).reshape(300, 2)
    system = sm.ReverseSDE(EXACT.model, (2,))
    brownian = torchsde.BrownianInterval(
        t0=-0.9, t1=-0.2, size=(300, 2), dtype=torch.float64, entropy=7,
        levy_area_approximation="space-time" if name == "sde:srk" else "foster",
    )  # fmt: skip

    def run(method: str, steps: int) -> Tensor:
        solver = sm.make_solver(method, brownian=brownian)
        return sm.solve(system, x, (0.9, 0.2), solver, steps=steps, grid="uniform").x

    fine = run("sde:srk" if name == "sde:srk" else "sde:heun", 512)
    errors = [float((run(name, steps) - fine).square().mean().sqrt()) for steps in (16, 32, 64)]
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope > TABLE[name].order - 0.25


@pytest.mark.parametrize("name", ["ode:dopri5", "scipy:RK45", "scipy:LSODA", "ode:rk4"])
@pytest.mark.parametrize("span", [(1.0, 1e-5), (1e-5, 1.0), (0.8, 0.3)])
def test_saved_path_lies_on_the_flow(name: str, span: tuple[float, float]) -> None:
    x = EXACT.sample(3, span[0], generator())
    asked = torch.linspace(*span, 6, dtype=torch.float64)
    tight = {} if name == "ode:rk4" else {"rtol": 1e-8, "atol": 1e-8}
    for path in (asked, asked[1:-1], True):
        got = sm.solve(EXACT.flow(), x, span, name, path=path, **tight)  # type: ignore[arg-type]
        assert got.times is not None
        assert got.path is not None
        if path is True:
            assert len(got.times) == got.accepted + 1
            assert got.times[[0, -1]].tolist() == list(span)
            assert torch.equal(got.path[-1], got.x)
        else:
            assert torch.equal(got.times, torch.as_tensor(path))
        for t, state in zip(got.times.tolist(), got.path, strict=True):
            # torchdiffeq interpolates by polynomials of fourth order, whatever the method
            torch.testing.assert_close(
                state, EXACT.flow_map(x, span[0], t), rtol=0, atol=2e-4 * EXACT.spread(t)
            )


def test_saved_path_of_an_sde_has_the_marginals() -> None:
    """False-alarm rate 1e-6 a time; the seed is fixed."""
    x = EXACT.sample(1000, 1.0, generator())
    for name in ("euler-maruyama", "sde:heun"):
        got = sm.solve(
            sm.ReverseSDE(EXACT.model, (2,)), x, (1.0, 1e-5), name,
            steps=100, path=[0.8, 0.5, 0.2], generator=generator(1),
        )  # fmt: skip
        assert got.accepted == 103
        assert got.path is not None
        for t, state in zip((0.8, 0.5, 0.2), got.path, strict=True):
            EXACT.check_marginal(state, t, bias=0.05)


@pytest.mark.parametrize("grid", ["uniform", "log-snr", "karras"])
def test_grids_have_a_solver_step_on_their_nodes(grid: str) -> None:
    x = EXACT.sample(2, 1.0, generator())
    got = sm.solve(EXACT.flow(), x, (1.0, 0.1), "ode:heun2", steps=9, grid=grid, path=True)
    nodes = sm.grids.GRIDS[grid](EXACT.sde, 1.0, 0.1, 9)
    assert got.times is not None
    torch.testing.assert_close(got.times, nodes, rtol=1e-12, atol=0)
    times = sm.solve(EXACT.flow(), x, (1.0, 0.1), "ode:heun2", grid=nodes)
    assert torch.equal(times.x, got.x)
    function = sm.solve(
        EXACT.flow(), x, (1.0, 0.1), "ode:heun2", steps=9, grid=sm.grids.GRIDS[grid]
    )
    assert torch.equal(function.x, got.x)


class Spoiled(torch.nn.Module):
    """A network that is NaN below t = 0.5 in row 2 of the batch."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        bad = (t < 0.5) & (torch.arange(len(x)) == 2)
        return torch.where(bad[:, None], torch.nan, x)


@pytest.mark.parametrize("name", list(TABLE))
def test_nan_names_time_evaluations_and_rows(name: str) -> None:
    model = sm.ScoreModel(Spoiled(), sm.VPSDE())
    system = sm.ReverseSDE(model, (2,)) if TABLE[name].stochastic else sm.ProbabilityFlow(model)
    with pytest.raises(
        sm.NonFiniteError, match=r"NaN .* at t=[\d.e-]+ after [\d.]+ eval"
    ) as caught:
        sm.solve(system, torch.randn(5, 2, generator=generator()), (1.0, 1e-5), name)
    error = caught.value
    assert error.rows == [2]
    assert "row 2 of the batch" in str(error)
    assert 0 < error.t < 0.5
    assert error.nfe >= 1
    assert f"after {round(error.nfe, 1):g} evaluations" in str(error)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_step_cap_carries_the_state_reached(name: str) -> None:
    x = EXACT.sample(3, 1.0, generator())
    with pytest.raises(sm.StepLimitError, match="raise max_steps") as caught:
        sm.solve(EXACT.flow(), x, (1.0, 1e-5), name, max_steps=4)
    error = caught.value
    # some solvers have a time for each sample
    times = torch.as_tensor(error.t, dtype=torch.float64).expand(3).tolist()
    assert all(1e-5 < t < 1.0 for t in times)
    assert error.x is not None
    truth = torch.cat([EXACT.flow_map(x[i, None], 1.0, t) for i, t in enumerate(times)])
    torch.testing.assert_close(error.x, truth, rtol=0, atol=1e-3)


def test_progress_bar_reaches_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    x = EXACT.sample(2, 1.0, generator())
    for name in ("ode:dopri5", "ode:rk4", "scipy:RK45"):
        sm.solve(EXACT.flow(), x, (1.0, 0.1), name, progress=True)
        assert "100%" in capsys.readouterr().err
    with pytest.raises(sm.StepLimitError):
        sm.solve(EXACT.flow(), x, (1.0, 0.1), "scipy:RK45", progress=True, max_steps=1)


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(3, 4)}, ValueError, r"event shape \(4,\).*expects \(2,\)"),
    ({"x": torch.zeros(2)}, ValueError, r"expected \(B, \*event\)"),
    ({"x": torch.zeros(0, 2)}, ValueError, "at least one sample"),
    ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, r"torch.int64.*x.float\(\)"),
    ({"x": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])}, ValueError, "NaN.*row 1 of"),
    ({"x": [[0.0, 1.0]]}, TypeError, "torch.as_tensor"),
    ({"t_span": (1.0, 0.0)}, ValueError, r"leaves \[t_min, t_max\] = \[1e-05, 1\]"),
    ({"t_span": (1.5, 0.1)}, ValueError, "leaves"),
    ({"t_span": (0.5, 0.5)}, ValueError, "nothing to integrate"),
    ({"t_span": 0.5}, ValueError, "two times"),
    ({"t_span": (math.nan, 0.5)}, ValueError, "leaves"),
    ({"solver": "ode:dopri55"}, ValueError, "did you mean 'ode:dopri5'"),
    ({"solver": "sde:heun"}, ValueError, "is for SDEs and ProbabilityFlow is an ODE"),
    ({"steps": 10}, ValueError, "cannot use steps=.*rtol= and atol="),
    ({"grid": "uniform"}, ValueError, "cannot use grid="),
    ({"solver": "ode:rk4", "rtol": 1e-3}, ValueError, "cannot use rtol=.*steps="),
    ({"solver": "ode:rk4", "atol": 1e-3}, ValueError, "cannot use atol="),
    ({"solver": "ode:rk4", "max_steps": 9}, ValueError, "cannot use max_steps="),
    ({"generator": torch.Generator()}, ValueError, "cannot use generator=.*deterministic"),
    ({"rtol": 0.0}, ValueError, "rtol must be positive"),
    ({"atol": -1e-3}, ValueError, "atol must be positive"),
    ({"rtol": math.nan}, ValueError, "rtol must be positive"),
    ({"rtol": 1e-9}, ValueError, "below the rounding of torch.float32"),
    ({"max_steps": 0}, ValueError, "max_steps must be an integer of 1 or more"),
    ({"solver": "ode:rk4", "steps": 0}, ValueError, "steps must be an integer of 1 or more"),
    ({"solver": "ode:rk4", "steps": 2.5}, ValueError, "steps must be an integer of 1 or more"),
    ({"solver": "ode:rk4", "grid": "karas"}, ValueError, "did you mean 'karras'"),
    ({"solver": "ode:rk4", "grid": [1.0, 0.5, 0.6, 0.1]}, ValueError, "turns back from 0.5"),
    ({"solver": "ode:rk4", "grid": [1.0, 0.5, 0.5, 0.1]}, ValueError, "repeats the time 0.5"),
    ({"solver": "ode:rk4", "grid": [0.9, 0.5, 0.1]}, ValueError, "runs from 0.9 to 0.1"),
    ({"solver": "ode:rk4", "grid": [1.0, 0.1], "steps": 3}, ValueError, "leave steps out"),
    ({"solver": "ode:explicit_adams", "grid": "karras"}, ValueError, "equal steps"),
    ({"solver": "ode:explicit_adams", "path": [0.5]}, ValueError, "equal steps"),
    ({"path": [2.0]}, ValueError, "path must be True"),
    ({"path": [0.2, 0.5]}, ValueError, "must run as the span does"),
    ({"gradient": "yes"}, ValueError, "gradient must be"),
    ({"solver": "scipy:RK45", "gradient": "direct"}, ValueError, "cannot be differentiated"),
    ({"cond": {"label": 3}}, TypeError, "takes no conditions, got label"),
    ({"label": 3}, TypeError, r"cond=\{.label.: ...\}"),
    ({"system": torch.nn.Identity()}, TypeError, "must be an sm.System, got Identity"),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_bad_input_is_refused_by_name(
    change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    arguments = {
        "system": EXACT.flow(), "x": torch.zeros(3, 2), "t_span": (1.0, 0.1), **change
    }  # fmt: skip
    with sm.count_evaluations() as counter, pytest.raises(kind, match=message):
        sm.solve(**arguments)
    assert counter.calls == 0  # nothing half-done


def test_systems_refuse_the_wrong_direction_and_the_wrong_solver() -> None:
    x = torch.zeros(3, 2)
    reverse = sm.ReverseSDE(EXACT.model, (2,))
    with pytest.raises(ValueError, match=r"runs down.*use \(1, 0.1\)"):
        sm.solve(reverse, x, (0.1, 1.0), "euler-maruyama")
    with pytest.raises(ValueError, match="runs up"):
        sm.solve(EXACT.sde, x, (1.0, 0.1), "euler-maruyama")
    with pytest.raises(ValueError, match="is for ODEs and ReverseSDE is an SDE"):
        sm.solve(reverse, x, (1.0, 0.1), "ode:dopri5")
    with pytest.raises(ValueError, match="no adjoint"):
        sm.solve(reverse, x, (1.0, 0.1), "euler-maruyama", gradient="adjoint")


class Geometric(sm.SDE):
    """dx = 0.3 x dt + 0.5 x dB, whose noise depends on the state."""

    state_dependent_noise = True

    def f(self, t: Any, x: Tensor) -> Tensor:
        return 0.3 * x

    def g(self, t: Any, x: Tensor) -> Tensor:
        return 0.5 * x


@pytest.mark.parametrize("name", ["euler-maruyama", "sde:euler", "sde:milstein", "sde:srk"])
def test_noise_that_depends_on_the_state_is_integrated_in_the_ito_sense(name: str) -> None:
    """log x is N((0.3 - 0.125) t, 0.25 t); mean within 5 standard errors plus bias."""
    n = 4000
    x = torch.ones(n, 1, dtype=torch.float64)
    got = sm.solve(Geometric(), x, (0.0, 1.0), name, steps=50, generator=generator(4))
    logs = got.x.log()
    assert abs(float(logs.mean()) - 0.175) < 5 * 0.5 / math.sqrt(n) + 0.01
    assert abs(float(logs.std()) - 0.5) < 5 * 0.5 / math.sqrt(2 * n) + 0.01


@pytest.mark.parametrize("name", ["sde:heun", "sde:midpoint", "sde:euler_heun", "sde:log_ode"])
def test_stratonovich_methods_refuse_noise_that_depends_on_the_state(name: str) -> None:
    with pytest.raises(ValueError, match="Ito"):
        sm.solve(Geometric(), torch.ones(2, 1), (0.0, 1.0), name)


def test_wrong_network_output_is_refused() -> None:
    class Narrow(torch.nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x[:, :1]

    flow = sm.ProbabilityFlow(sm.ScoreModel(Narrow(), sm.VPSDE()))
    with pytest.raises(ValueError, match=r"network returned \(3, 1\) for x of shape \(3, 2\)"):
        sm.solve(flow, torch.zeros(3, 2), (1.0, 0.1))


def test_a_users_own_system_needs_only_a_drift() -> None:
    class Rotation(sm.System):
        stochastic = False
        t_min, t_max = 0.0, 10.0

        def drift(self, t: Any, x: Tensor) -> Tensor:
            return torch.stack([-x[:, 1], x[:, 0]], dim=1)

    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for name in ("ode:dopri5", "ode:rk4", "scipy:DOP853"):
        got = sm.solve(Rotation(), x, (0.0, math.pi / 2), name).x
        torch.testing.assert_close(
            got, torch.tensor([[0.0, 1.0]], dtype=torch.float64), rtol=0, atol=1e-4
        )
