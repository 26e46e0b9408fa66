"""The step-size controller, for errors whose dependence on the step is known."""

from __future__ import annotations

import pytest
import torch

from sde_models.solvers.adaptive.step_control import (
    StepControl,
    integral,
    is_accepted,
    proportional_integral,
)

CONTROL = StepControl(safety=0.8, shrink=0.2, grow=4.0)
HERE = torch.tensor([True])


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("step", [0.3, 1.0, 2.5])
def test_integral_control_finds_the_step_at_once(order: int, step: float) -> None:
    """Where E = (h / H)^k, the next step is the share of H that is safe, whatever h was."""
    largest = 1.1
    error = torch.tensor([(step / largest) ** order], dtype=torch.float64)
    factor = CONTROL.factor(integral(error, 1 / order), HERE)
    assert float(step * factor) == pytest.approx(0.8 * largest, rel=1e-12)


@pytest.mark.parametrize("order", [3, 5])
def test_proportional_integral_control_settles_where_its_factor_is_one(order: int) -> None:
    """Constant errors E give the factor theta E^(-0.65 / p), which is 1 at E = theta^(p / 0.65)."""
    step, before = 0.1, torch.ones(1, dtype=torch.float64)
    for _ in range(200):
        error = torch.tensor([step**order], dtype=torch.float64)
        factor = CONTROL.factor(proportional_integral(error, before, order), HERE)
        step, before = float(step * factor), error
    assert float(before) == pytest.approx(0.8 ** (order / 0.65), rel=1e-9)


def test_a_rejected_step_is_judged_by_its_own_error() -> None:
    error = torch.tensor([8.0, 8.0], dtype=torch.float64)
    before = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    assert proportional_integral(error, before, 3).tolist() == pytest.approx([0.5, 0.5])


def test_steps_change_within_limits_and_not_up_after_a_rejection() -> None:
    suggested = torch.tensor([0.0, 1.0, 100.0, 100.0])
    may_grow = torch.tensor([True, True, True, False])
    factors = CONTROL.factor(suggested, may_grow)
    torch.testing.assert_close(factors, torch.tensor([0.2, 0.8, 4.0, 1.0]))


def test_no_error_grows_the_step_and_an_unknown_one_is_rejected() -> None:
    errors = torch.tensor([0.0, 1.0, 1.0001, torch.inf, torch.nan])
    assert is_accepted(errors).tolist() == [True, True, False, False, False]
    assert float(CONTROL.factor(integral(errors[:1], 0.5), HERE)) == 4.0
    assert float(CONTROL.factor(integral(errors[3:4], 0.5), ~HERE)) == pytest.approx(0.2)
