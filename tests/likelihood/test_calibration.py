"""Each part of the reported error by itself: it covers as often as is stated.

The full study, with more points and settings, is ``benchmarks/calibration.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
FINE = {"rtol": 1e-7, "atol": 1e-7}


class Case:
    """A mixture with its truth under an SDE."""

    def __init__(self, dim: int, sde: sm.GaussianSDE, points: int) -> None:
        generator = torch.Generator().manual_seed(dim)
        means = torch.randn(5, dim, generator=generator, dtype=torch.float64)
        stds = 0.1 + 0.3 * torch.rand(5, generator=generator, dtype=torch.float64)
        mixture = sm.GaussianMixture(means, stds)
        data = mixture.diffuse(sde, sde.t_min)
        self.x = data.sample(points, generator=generator)
        self.truth, self.prior = data.log_prob(self.x), mixture.diffuse(sde, sde.t_max)
        self.model = mixture.score_model(sde)

    def log_prob(self, **arguments: Any) -> sm.LogProb:
        generator = torch.Generator().manual_seed(3)
        return sm.log_prob(
            self.model, self.x, prior=self.prior, generator=generator, **arguments
        )  # fmt: skip


def within(off: list[Tensor], reported: list[Tensor]) -> float:
    """How often errors that are known cover."""
    errors = torch.cat(reported)
    known = ~errors.isnan()
    assert known.double().mean() > 0.6
    return float((torch.cat(off).abs() <= errors + 1e-7)[known].double().mean())


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_steps(tolerance: float) -> None:
    """300 points; covering 97% of the time, fewer than 93% have a chance of 2e-4."""
    off, reported = [], []
    for sde in SDES:
        for dim in (2, 64):
            case = Case(dim, sde, 30)
            half = 0.5 * tolerance
            lp = case.log_prob(
                rtol=half, atol=half, intervals=96
            )  # so many that only the steps err
            off.append(lp.value - case.truth)
            reported.append(lp.solver_error)
    assert within(off, reported) >= 0.93


@pytest.mark.parametrize("nodes", [24, 48])
def test_quadrature(nodes: int) -> None:
    """As for the steps."""
    off, reported = [], []
    for sde in SDES:
        for dim in (2, 64):
            case = Case(dim, sde, 30)
            lp = case.log_prob(intervals=nodes, **FINE)
            off.append(lp.value - case.truth)
            reported.append(lp.quadrature_error)
    assert within(off, reported) >= 0.93


PROBED = {"intervals": 40, "rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def probed() -> list[tuple[Case, Tensor]]:
    """Cases for estimated traces, and what the exact trace gives at the same steps and nodes."""
    cases = [Case(dim, sde, 60) for sde in SDES for dim in (2, 64)]
    return [(case, case.log_prob(divergence="exact", **PROBED).value) for case in cases]


@pytest.mark.parametrize(
    "divergence",
    [sm.Hutchinson(2), sm.Hutchinson(4, "gaussian"), sm.XTrace(2), sm.HutchPlusPlus(2)],
    ids=repr,
)
def test_probes(divergence: sm.Divergence, probed: list[tuple[Case, Tensor]]) -> None:
    """600 points; at 95%, fewer than 92% have a chance of 6e-4.

    Of few probes in two dimensions half have no spread at a node; the spectrum sees their errors.
    """
    off, reported = [], []
    for case, exact in probed:
        lp = case.log_prob(divergence=divergence, **PROBED)
        off.append(lp.value - exact)
        reported.append(torch.hypot(2 * lp.stderr, lp.quadrature_error))
    assert within(off, reported) >= 0.92
