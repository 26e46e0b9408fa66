"""Numbers of Python, NumPy and torch are floats; booleans are refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import sde_models as sm
from sde_models._utils.arguments import (
    as_number,
    check_not_negative,
    check_positive,
    check_switch,
)
from sde_models.demo.run import DemoSettings
from sde_models.losses.times import log_normal_times
from sde_models.sdes.priors import IsotropicGaussian
from sde_models.solvers.langevin.levels import geometric_sigmas, langevin_epsilon, level_ratio

QUARTERS = [
    0.25, Fraction(1, 4), np.float32(0.25), np.float64(0.25), np.array(0.25), torch.tensor(0.25),
    torch.tensor(0.25, dtype=torch.float64, requires_grad=True),
]  # fmt: skip
ONES = [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)]
NONE = [
    True, False, np.True_, np.array(True), torch.tensor(True), "0.25", None, 1j, np.complex64(1),
    torch.tensor(1j), [0.25], np.array([0.25]), torch.tensor([0.25]),
]  # fmt: skip


@pytest.mark.parametrize("number", [*QUARTERS, *ONES], ids=repr)
def test_numbers_of_every_library_are_floats(number: Any) -> None:
    found = as_number("eta", number)
    assert type(found) is float
    assert found == (1 if any(number is one for one in ONES) else 0.25)
    assert check_positive("eta", number) == check_not_negative("eta", number) == found


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_what_is_no_number_is_refused(value: Any) -> None:
    for check in (as_number, check_positive, check_not_negative):
        with pytest.raises(ValueError, match=r"^eta must .*, got "):
            check("eta", value)


def test_ranges_are_kept() -> None:
    assert check_not_negative("eta", 0) == 0
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="eta must be positive and finite, got"):
            check_positive("eta", bad)
    for bad in (-1.0, math.nan, 1.0):
        with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\), got"):
            check_not_negative("eta", bad, below=1)
    with pytest.raises(ValueError, match="eta must be 0 or more"):
        check_not_negative("eta", math.inf)


@pytest.mark.parametrize("value", [None, "no", 0, 1])
def test_a_switch_is_true_or_false(value: Any) -> None:
    assert check_switch("denoise", False) is False
    with pytest.raises(ValueError, match="denoise must be True or False, got"):
        check_switch("denoise", value)


MODEL = sm.GaussianMixture(torch.zeros(1, 2), 0.5).score_model(sm.VPSDE())
X = torch.ones(3, 2)
GIVEN: dict[str, Any] = {
    "rtol": lambda v: sm.encode(MODEL, X, rtol=v),
    "atol": lambda v: sm.encode(MODEL, X, atol=v),
    "tol": lambda v: sm.log_prob(MODEL, X, tol=v),
    "eta": lambda v: sm.sample(MODEL, (3, 2), "ddim", steps=2, eta=v),
    "adapted tol": lambda v: sm.adapt_grid(MODEL, (2,), samples=2, tol=v),
    "sigma": lambda v: sm.losses.denoising_score_matching(MODEL, X, sigma=v, weighting="simple"),
    "t": lambda v: sm.losses.denoising_score_matching(MODEL, X, v, weighting="simple"),
    "score": lambda v: MODEL.score(v, X),
    "t_span": lambda v: sm.solve(sm.ProbabilityFlow(MODEL), X, (0.5, v), "ode:rk4", steps=2),
    "step": lambda v: sm.losses.finite_difference_sliced(MODEL, X, step=v),
    "gamma": lambda v: sm.losses.min_snr(v),
    "data_std": lambda v: sm.VPSDE(data_std=v),
    "t_max": lambda v: sm.VPSDE(t_max=v),
    "beta_max": lambda v: sm.VPSDE(beta_max=v),
    "sigma_max": lambda v: sm.VESDE(sigma_max=v),
    "churn": lambda v: sm.make_solver("heun-edm", churn=v),
    "churn_min": lambda v: sm.make_solver("heun-edm", churn=1, churn_min=v),
    "ratio": lambda v: sm.make_solver("dpmpp-2s", ratio=v),
    "first_step": lambda v: sm.make_solver("ode:dopri5", first_step=v),
    "max_step": lambda v: sm.make_solver("scipy:RK45", max_step=v),
    "safety": lambda v: sm.make_solver("adaptive-sde", safety=v),
    "snr": lambda v: sm.make_solver("pc", snr=v),
    "epsilon": lambda v: sm.make_solver("ald", epsilon=v),
    "tolerance": lambda v: sm.make_solver("picard", tolerance=v),
    "amplification": lambda v: sm.make_solver("flow-abm-4", amplification=v),
    "margin": lambda v: sm.data.LogitTransform(v),
    "data_range": lambda v: sm.data.dequantize(X.long(), 4, data_range=(0.0, v)),
    "alpha": lambda v: sm.data.TruncatedNormalDequantization(v, 1.0),
    "sigma of a cell": lambda v: sm.data.TruncatedNormalDequantization(1.0, v),
    "dropout": lambda v: sm.nn.UNet((1, 4, 4), channels=32, multipliers=(1,), blocks=1, dropout=v),
    "lowest": lambda v: sm.nn.FourierFeatures(4, lowest=v),
    "highest": lambda v: sm.nn.FourierFeatures(4, lowest=0.1, highest=v),
    "decay": lambda v: sm.losses.LearnedTimes(decay=v),
    "uniform": lambda v: sm.losses.LearnedTimes(uniform=v),
    "mean": lambda v: log_normal_times(MODEL.sde, X[:, 0] / 2, mean=v),
    "std of times": lambda v: log_normal_times(MODEL.sde, X[:, 0] / 2, std=v),
    "overlap": lambda v: level_ratio(10, v),
    "smallest": lambda v: geometric_sigmas(1.0, v, 1.5),
    "largest": lambda v: geometric_sigmas(v, 0.1, 1.5),
    "rho": lambda v: sm.grids.karras_grid(MODEL.sde, 1.0, 0.1, 4, v),
    "std": lambda v: IsotropicGaussian((2,), v),
    "demo tolerance": lambda v: DemoSettings(tolerance=v),
}


@pytest.mark.parametrize("name", GIVEN)
def test_every_number_takes_those_of_every_library_and_no_boolean(name: str) -> None:
    GIVEN[name](np.float32(0.25))
    GIVEN[name](torch.tensor(0.25))
    for value in (True, np.True_, "a"):
        with pytest.raises(
            (TypeError, ValueError), match=r" must .*, got|t_span must be two times"
        ):
            GIVEN[name](value)


@pytest.mark.parametrize(
    "use", [lambda v: geometric_sigmas(1.0, 0.1, v), lambda v: langevin_epsilon(v, 3)]
)
def test_the_ratio_of_levels_is_a_number_above_one(use: Any) -> None:
    torch.testing.assert_close(use(np.float32(1.25)), use(1.25))
    for value in (True, "a"):
        with pytest.raises(ValueError, match="ratio must be a number, got"):
            use(value)
    with pytest.raises(ValueError, match=r"must be above 1, got 1.0"):
        use(1)


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_a_prior_has_a_positive_std(std: float) -> None:
    with pytest.raises(ValueError, match="std must be positive and finite, got"):
        IsotropicGaussian((2,), std)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_the_demonstration_has_a_positive_tolerance(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be positive and finite, got"):
        DemoSettings(tolerance=tolerance)
