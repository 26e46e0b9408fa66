"""adaptive-sde: its Brownian path, its marginals, its cost, and samples that leave the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.sdes.brownian import RememberedIncrements

EXACT = ProductMixture(sm.VPSDE(), (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def increments(n: int, seed: int = 0) -> RememberedIncrements:
    return RememberedIncrements(torch.zeros(n, 1, dtype=torch.float64), generator(seed))


def test_a_rejected_step_is_met_again() -> None:
    """Half of it, then the other half: together what the whole step was."""
    paths, rows = increments(3), torch.arange(3)
    whole = torch.ones(3, dtype=torch.float64)
    w = paths.draw(rows, whole)
    paths.settle(rows, whole, w, torch.zeros(3, dtype=torch.bool))
    first = paths.draw(rows, 0.5 * whole)
    paths.settle(rows, 0.5 * whole, first, torch.ones(3, dtype=torch.bool))
    second = paths.draw(rows, 0.5 * whole)
    torch.testing.assert_close(first + second, w)


def test_increments_have_the_law_of_a_brownian_motion_whatever_is_rejected() -> None:
    """Steps are rejected where their increment is large, which would bias naive redrawing.

    Mean and variance of the path at the end within 5 standard errors.
    """
    n = 20_000
    paths, rows = increments(n), torch.arange(n)
    at = torch.zeros(n, dtype=torch.float64)
    path = torch.zeros(n, dtype=torch.float64)
    naive = torch.zeros(n, dtype=torch.float64)
    source = generator(5)
    h = torch.full((n,), 0.25, dtype=torch.float64)
    while bool((at < 1).any()):
        open_rows = rows[at < 1 - 1e-12]
        if not len(open_rows):
            break
        step = torch.minimum(h[open_rows], 1 - at[open_rows])
        w = paths.draw(open_rows, step)
        ok = (w[:, 0].abs() < 1.2 * step.sqrt()) | (step < 0.02)
        paths.settle(open_rows, step, w, ok)
        h[open_rows] = torch.where(ok, torch.full_like(step, 0.25), step / 2)
        at[open_rows[ok]] += step[ok]
        path[open_rows[ok]] += w[ok, 0]
    for _ in range(4):  # what happens without memory: large increments are drawn anew
        w = 0.5 * torch.randn(n, generator=source, dtype=torch.float64)
        again = 0.5 * torch.randn(n, generator=source, dtype=torch.float64)
        naive += torch.where(w.abs() < 0.6, w, again)
    assert abs(float(path.mean())) < 5 / math.sqrt(n)
    assert abs(float(path.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(naive.var()) - 1) > 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
def test_every_eta_has_the_marginals(eta: float) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    x = EXACT.sample(2000, 1.0, generator(1))
    system = sm.ReverseSDE(EXACT.model, (2,), eta)
    got = sm.solve(system, x, (1.0, 1e-5), "adaptive-sde", generator=generator(2))
    EXACT.check_marginal(got.x, 1e-5, bias=0.03)


def test_error_falls_with_the_tolerance_and_cost_rises() -> None:
    """Distance to a tight solve on the same seed is no measure; the marginal's variance is."""
    mixture = sm.GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 0.3)
    system = sm.ReverseSDE(mixture.score_model(sm.VPSDE()), (1,))
    x = torch.randn(20_000, 1, generator=generator(1), dtype=torch.float64)
    errors, costs = [], []
    for tolerance in (1.0, 0.1):
        got = sm.solve(
            system, x, (1.0, 1e-5), "adaptive-sde",
            rtol=tolerance, atol=tolerance, generator=generator(2),
        )  # fmt: skip
        errors.append(abs(float(got.x.std()) / 0.3 - 1))
        costs.append(got.nfe)
    assert errors[1] < 0.25 * errors[0]
    assert costs[1] > 1.5 * costs[0]


def test_finished_samples_leave_the_batch() -> None:
    x = EXACT.sample(64, 1.0, generator(1))
    system = sm.ReverseSDE(EXACT.model, (2,))
    got = sm.solve(system, x, (1.0, 1e-5), "adaptive-sde", generator=generator(2))
    assert got.nfe < 0.95 * got.cost.calls
    assert got.cost.calls == got.accepted + (got.rejected or 0) + 1


class Shifted(torch.nn.Module):
    """A network whose answer says which sample's conditioning it was given."""

    def forward(self, t: Tensor, x: Tensor, *, shift: Tensor) -> Tensor:
        assert len(shift) == len(x)
        return shift.expand_as(x)


def test_conditioning_leaves_with_its_sample() -> None:
    """Each sample's x0 is its own shift, so that is where it ends."""
    model = sm.ScoreModel(Shifted(), sm.VPSDE(), "x0")
    shift = torch.linspace(-3, 3, 16, dtype=torch.float64)[:, None]
    x = torch.randn(16, 2, generator=generator(), dtype=torch.float64)
    system = sm.ReverseSDE(model, (2,))
    got = sm.solve(
        system, x, (1.0, 1e-5), "adaptive-sde",
        rtol=1e-2, atol=1e-2, generator=generator(1), cond={"shift": shift},
    )  # fmt: skip
    assert (got.x - shift).abs().max() < 0.1  # neighbours are 0.4 apart


def test_states_on_the_way_have_the_marginals() -> None:
    """False-alarm rate 1e-6 a time; the seed is fixed."""
    x = EXACT.sample(1500, 1.0, generator(1))
    system = sm.ReverseSDE(EXACT.model, (2,))
    asked = [0.7, 0.4, 0.1]
    got = sm.solve(
        system, x, (1.0, 1e-5), "adaptive-sde", path=asked, generator=generator(3)
    )  # fmt: skip
    assert got.times is not None
    assert got.path is not None
    assert got.times.tolist() == asked
    for t, state in zip(asked, got.path, strict=True):
        EXACT.check_marginal(state, t, bias=0.04)


def test_fewer_evaluations_than_euler_maruyama_for_the_same_error() -> None:
    """The variance of a narrow Gaussian: half of the evaluations, a smaller error."""
    mixture = sm.GaussianMixture(torch.zeros(1, 8, dtype=torch.float64), 0.2)
    system = sm.ReverseSDE(mixture.score_model(sm.VPSDE()), (8,))
    x = torch.randn(8000, 8, generator=generator(1), dtype=torch.float64)

    def error(solver: str, **effort: Any) -> tuple[float, int]:
        got = sm.solve(system, x, (1.0, 1e-5), solver, generator=generator(2), **effort)
        return abs(float(got.x.std()) / 0.2 - 1), got.cost.calls

    ours, spent = error("adaptive-sde")
    theirs, _ = error("euler-maruyama", steps=2 * spent, grid="uniform")
    assert ours < theirs


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"path": True}, "cannot use path=True"),
    ({"steps": 10}, "cannot use steps=.*rtol= and atol="),
    ({"rtol": 0.0}, "rtol must be positive"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_it_cannot_use_is_refused(change: dict[str, Any], message: str) -> None:
    system = sm.ReverseSDE(EXACT.model, (2,))
    with pytest.raises(ValueError, match=message):
        sm.solve(system, torch.zeros(2, 2), (1.0, 0.1), "adaptive-sde", **change)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="'safety' must be below 1"):
        sm.make_solver("adaptive-sde", safety=1.5)
    with pytest.raises(ValueError, match="needs alpha and sigma"):
        sm.solve(sm.VPSDE(), torch.zeros(2, 2), (1e-5, 1.0), "adaptive-sde")


def test_step_cap_carries_the_states_reached() -> None:
    system = sm.ReverseSDE(EXACT.model, (2,))
    x = EXACT.sample(4, 1.0, generator())
    with pytest.raises(sm.StepLimitError, match="raise max_steps") as caught:
        sm.solve(system, x, (1.0, 1e-5), "adaptive-sde", max_steps=3, generator=generator())
    assert caught.value.x is not None
    assert caught.value.x.shape == (4, 2)
