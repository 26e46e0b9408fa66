"""The error of the finest of three results: extrapolated, never below the changes, or unknown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models.likelihood.refinement import error_of_finest

STEPS, TOLERANCES = sm.make_solver("ddim"), sm.make_solver("adams-batch")


def results(*errors: float) -> list[Tensor]:
    """Two parts of results with these errors, half in each."""
    return [torch.full((2, 1), error / 2, dtype=torch.float64) for error in errors]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_errors_that_fall_by_a_power_of_the_step_are_covered(order: int) -> None:
    """The error is the geometric series, times a margin of at most 3, or the changes."""
    ratio = 2.0**-order
    coarsest = 1 / ratio**2
    error = float(error_of_finest(results(coarsest, 1 / ratio, 1.0), STEPS))
    assert error >= 1
    assert error <= max(3, coarsest)


def test_two_changes_of_opposite_parts_do_not_hide() -> None:
    """The sum does not change, its parts do."""
    parts = [torch.tensor([[a], [-a]], dtype=torch.float64) for a in (1.0, 0.1, 0.01)]
    for solver in (STEPS, TOLERANCES):
        assert float(error_of_finest(parts, solver)) >= 0.05


@pytest.mark.parametrize("solver", [STEPS, TOLERANCES], ids=repr)
def test_changes_that_grow_say_nothing(solver: sm.Solver) -> None:
    assert bool(error_of_finest(results(0.0, 0.1, 1.0), solver).isnan().all())
    # A little, and the last change is reported with a margin; small ones are as good as none.
    assert float(error_of_finest(results(0.0, 1.0, -1.0), solver)) >= 3 * 2 / 2**0.5 - 1e-9
    assert float(error_of_finest(results(0.0, 1e-6, 1e-3), solver)) < 1e-2


def test_factors_of_other_units() -> None:
    scipy = sm.make_solver("scipy:RK45")
    noise, other = (error_of_finest(results(1.0, 0.1, 0.01), s) for s in (TOLERANCES, scipy))
    assert float(other) == 3 * float(noise)


def test_two_results_report_twice_their_change() -> None:
    assert float(error_of_finest(results(0.3, 0.1), TOLERANCES)) == pytest.approx(0.4)
