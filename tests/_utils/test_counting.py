"""Evaluations are counted where they happen: nested, after errors, and in backward passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

import sde_models as sm
from sde_models._utils.counting import (
    EvaluationCounter,
    count_evaluations,
    record_call,
    record_vjps,
)
from sde_models.likelihood import traces
from sde_models.models.energy_model import EnergyModel
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes import VPSDE


class Tally(nn.Module):
    """A network that counts its own calls, and the samples in them."""

    def __init__(self, energy: bool = False) -> None:
        super().__init__()
        self.energy = energy
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.calls = self.rows = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        return (self.weight * x.square()).sum(1) if self.energy else self.weight * x


def test_counters_nest() -> None:
    with count_evaluations() as outer:
        record_call(5)
        with count_evaluations() as inner:
            record_call(3)
            record_call(4)
            record_vjps(6)
        record_vjps(8)
    record_call(100)
    assert inner == EvaluationCounter(calls=2, rows=7, vjps=6)
    assert outer == EvaluationCounter(calls=3, rows=12, vjps=14)
    assert outer.cost(2) == sm.Cost(nfe=6.0, vjps=7.0, calls=3)


def test_a_counter_closes_after_an_error() -> None:
    counter = EvaluationCounter()

    def fail() -> None:
        nonlocal counter
        with count_evaluations() as counter:
            record_call(1)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    record_call(1)
    assert counter.calls == 1


def test_threads_do_not_see_each_other() -> None:
    with count_evaluations() as counter:
        thread = Thread(target=record_call, args=(1,))
        thread.start()
        thread.join()
    assert counter.calls == 0


@pytest.mark.parametrize("method", ["score", "eps", "x0", "v"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
def test_every_question_to_a_score_model_costs_one_pass(prediction: str, method: str) -> None:
    network = Tally()
    model = ScoreModel(network, VPSDE(), prediction=prediction)
    with count_evaluations() as counter:
        getattr(model, method)(0.5, torch.ones(3, 2))
    assert counter == EvaluationCounter(calls=1, rows=3)
    assert network.calls == 1


@pytest.mark.parametrize("method", ["score", "eps", "x0", "v"])
def test_every_question_to_an_energy_model_costs_a_pass_and_a_product(method: str) -> None:
    network = Tally(energy=True)
    model = EnergyModel(network, VPSDE())
    with count_evaluations() as counter:
        getattr(model, method)(0.5, torch.ones(3, 2))
    assert counter == EvaluationCounter(calls=1, rows=3, vjps=3)
    assert network.calls == 1
    with count_evaluations() as counter:
        model.energy(0.5, torch.ones(3, 2))
    assert counter == EvaluationCounter(calls=1, rows=3)


def test_a_mixture_counts_like_a_network() -> None:
    model = GaussianMixture(torch.zeros(1, 2), 1.0).score_model(VPSDE())
    with count_evaluations() as counter:
        model.score(0.5, torch.ones(3, 2))
        model.x0(0.5, torch.ones(3, 2))
    assert counter == EvaluationCounter(calls=2, rows=6)


def test_a_refused_call_costs_nothing() -> None:
    model = ScoreModel(Tally(), VPSDE())
    with count_evaluations() as counter, pytest.raises(ValueError, match="outside"):
        model.score(2.0, torch.ones(3, 2))
    assert counter.calls == 0


@pytest.mark.parametrize("integrate", [odeint, odeint_adjoint])
def test_solver_and_backward_pass_are_counted_as_the_network_sees_them(
    integrate: object,
) -> None:
    """An adjoint solve runs the network again on the way back."""
    network = Tally()
    flow = ProbabilityFlow(ScoreModel(network, VPSDE()))
    x = torch.ones(3, 2, requires_grad=True)
    with count_evaluations() as counter:
        end = integrate(flow, x, torch.tensor([0.2, 0.8]), method="rk4", options={"step_size": 0.1})
        forward = counter.calls
        end[-1].sum().backward()
    assert forward == 24
    assert (counter.calls, counter.rows) == (network.calls, network.rows)
    assert (counter.calls > forward) == (integrate is odeint_adjoint)


MIXTURE = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.5).score_model(VPSDE())


def points(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def test_costs_add_up_and_are_read_aloud() -> None:
    path, trace = sm.Cost(nfe=40.0, calls=40), sm.Cost(nfe=33.0, vjps=66.0, calls=5)
    assert path + trace == sm.Cost(nfe=73.0, vjps=66.0, calls=45)
    assert (str(path), str(trace)) == ("40 evaluations", "33 evaluations and 66 products")
    assert str(sm.Cost(nfe=41 / 3, calls=20)) == "13.7 evaluations"


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_products_are_for_each_sample_however_many_go_together(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 nodes with one probe are 32 products, and as many passes next to the steps of the path."""
    monkeypatch.setattr(traces, "MOST_NUMBERS", 2 * at_once)
    lp = sm.log_prob(
        MIXTURE, points(32), "ddim", steps=20, intervals=32, divergence=sm.Hutchinson(1),
        estimate_solver_error=False,
    )  # fmt: skip
    steps, batches = lp.accepted, -(-32 * 32 // at_once)
    assert lp.cost == sm.Cost(nfe=steps + 32.0, vjps=32.0, calls=steps + batches)
    assert (lp.nfe, lp.vjps) == (lp.cost.nfe, lp.cost.vjps)


@pytest.mark.parametrize(("probes", "products"), [(sm.Exact(), 2), (sm.Hutchinson(5), 5)])
def test_both_methods_of_a_trace_count_alike(probes: sm.Divergence, products: int) -> None:
    """The augmented flow takes a trace at each evaluation of 10 steps of order 4."""
    augmented = sm.log_prob(
        MIXTURE, points(8), "ode:rk4", steps=10, divergence=probes, trace="augmented",
        estimate_solver_error=False,
    )  # fmt: skip
    assert augmented.cost == sm.Cost(nfe=40.0, vjps=40.0 * products, calls=40)
    apart = sm.log_prob(
        MIXTURE, points(8), "ode:rk4", steps=10, divergence=probes, trace="quadrature",
        intervals=12, estimate_solver_error=False,
    )  # fmt: skip
    path = 4 * apart.accepted
    assert apart.cost == sm.Cost(nfe=path + 12.0, vjps=12.0 * products, calls=path + 1)


def test_coarser_solves_are_part_of_the_cost() -> None:
    """All three are compared at six of the twelve nodes."""
    with count_evaluations() as counter:
        lp = sm.log_prob(MIXTURE, points(4), "ddim", steps=20, intervals=12)
    fine = sm.log_prob(
        MIXTURE, points(4), "ddim", steps=20, intervals=12, estimate_solver_error=False
    )
    compared = sm.Cost(nfe=6.0, vjps=12.0, calls=1)
    half, quarter = (sm.Cost(nfe=float(steps), calls=steps) for steps in (10, 5))
    assert lp.cost == counter.cost(4)
    assert lp.cost == fine.cost + half + quarter + compared + compared + compared
    assert lp.vjps == 2 * 12 + 3 * 2 * 6


OWN_STEPS: dict[str, Callable[[Tensor], Any]] = {
    "rk-batch": partial(sm.encode, MIXTURE, solver="rk-batch"),
    "adams-batch": partial(sm.encode, MIXTURE, solver="adams-batch"),
    "log_prob": partial(sm.log_prob, MIXTURE),
    "tol": lambda x: sm.log_prob(
        MIXTURE, x, tol=0.01, divergence="exact",
        generator=[torch.Generator().manual_seed(int(1e6 * row[0].abs())) for row in x],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN_STEPS)
def test_a_sample_costs_the_same_in_one_batch_or_two(name: str) -> None:
    """Samples that end early leave the batch: the mean is that of their own counts."""
    work, x = OWN_STEPS[name], points(12).double() * torch.tensor([0.1, 3.0]).double()
    whole, first, last = work(x), work(x[:8]), work(x[8:])
    for shorthand in ("nfe", "vjps"):
        parts = (8 * getattr(first, shorthand) + 4 * getattr(last, shorthand)) / 12
        assert getattr(whole, shorthand) == pytest.approx(parts, rel=1e-12)
    if name in ("rk-batch", "adams-batch"):  # the others solve several times
        assert whole.cost.calls == max(first.cost.calls, last.cost.calls)


def test_noise_of_each_sample_costs_the_same_in_one_batch_or_two() -> None:
    def draw(seeds: range) -> sm.Sample:
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sm.sample(MIXTURE, (len(seeds), 2), "adaptive-sde", dtype=torch.float64,
                         generator=own)  # fmt: skip

    whole, first, last = draw(range(9)), draw(range(6)), draw(range(6, 9))
    assert whole.nfe == pytest.approx((6 * first.nfe + 3 * last.nfe) / 9, rel=1e-12)


def test_what_is_done_to_samples_after_the_solve_adds_up() -> None:
    start = {"generator": torch.Generator().manual_seed(0), "steps": 10}
    clean = sm.sample(MIXTURE, (4, 2), "ddim", denoise=True, **start)
    assert clean.cost == sm.Cost(nfe=11.0, calls=11)
    dense = sm.sample(
        MIXTURE, (4, 2), "ddim", return_log_prob=True,
        density={"intervals": 12, "estimate_solver_error": False}, **start,
    )  # fmt: skip
    steps = dense.accepted
    assert dense.cost == sm.Cost(nfe=steps + 12.0, vjps=24.0, calls=steps + 1)
    bits = sm.bits_per_dim(
        MIXTURE, torch.zeros(6, 2, dtype=torch.uint8), levels=4, importance_samples=3, repeats=2,
        solver="ddim", steps=10, intervals=12, estimate_solver_error=False,
    )  # fmt: skip
    assert bits.cost == sum([bits.log_prob.cost] * 6, sm.Cost())
    assert (bits.vjps, bits.cost.calls) == (6 * 24.0, 6 * (bits.log_prob.accepted + 1))


def test_an_energy_model_costs_a_product_for_each_evaluation() -> None:
    model = EnergyModel(Tally(energy=True), VPSDE())
    got = sm.encode(model, points(5), "ode:rk4", steps=3)
    assert got.cost == sm.Cost(nfe=12.0, vjps=12.0, calls=12)


def test_a_forward_sde_costs_nothing() -> None:
    got = sm.solve(VPSDE(), points(3), (0.1, 0.9), "euler-maruyama", steps=4)
    assert got.cost == sm.Cost()


def test_a_step_and_an_error_know_the_cost_so_far() -> None:
    x, steps = points(8) * torch.tensor([0.1, 3.0]), []
    got = sm.encode(MIXTURE, x, "rk-batch", callback=steps.append)
    assert steps[-1].nfe == got.nfe < got.cost.calls
    with pytest.raises(sm.StepLimitError, match=r"\([\d.]+ evaluations\)") as caught:
        sm.encode(MIXTURE, x, "rk-batch", max_steps=got.accepted - 1)
    assert steps[-3].nfe < caught.value.nfe < got.nfe
