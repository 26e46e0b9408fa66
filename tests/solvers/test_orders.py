"""Every fixed-step solver has the order that it declares, to within 0.25, by halving its step.

Those of ODEs are measured on the exact flow map of a mixture. Those of SDEs whose linear part is
solved exactly are measured against themselves, driven by one noise: that of two small steps makes
the noise of the large one exactly. The others are measured in the tests of their family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers.multistep.base import MultistepSolver
from sde_models.solvers.problem import Problem, Scales

TABLE = sm.list_solvers()
FIXED_ODE = [name for name, s in TABLE.items() if s.deterministic and not s.adaptive]
EXPONENTIAL_SDE = [
    name for name, s in TABLE.items() if isinstance(s, MultistepSolver) and s.integrates == ("SDE",)
]


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("name", FIXED_ODE)
def test_order_of_ode_solvers(name: str, direction: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    t0, t1 = (0.7, 0.3) if direction == "down" else (0.3, 0.7)
    x = exact.sample(32, t0, torch.Generator().manual_seed(0))
    truth = exact.flow_map(x, t0, t1)

    def error(steps: int) -> float:
        got = sm.solve(exact.flow(), x, (t0, t1), name, steps=steps).x
        return float((got - truth).square().mean().sqrt())

    slope = math.log2(error(60) / error(240)) / 2
    assert abs(slope - TABLE[name].order) < 0.25


def coupled(noise: Tensor, decay: Tensor, amplitude: Tensor) -> Iterator[Tensor]:
    """Standardised noise of K/r equal groups of steps, from that of K, in the law of the steps.

    Args:
        noise: Standard normal numbers of each small step, shape ``(K, *x)``.
        decay: Factors of the state in the small steps.
        amplitude: Factors of the noise in the small steps.
    """
    for k in range(0, len(noise), 2):
        both = decay[k + 1] * amplitude[k] * noise[k] + amplitude[k + 1] * noise[k + 1]
        yield both / torch.hypot(decay[k + 1] * amplitude[k], amplitude[k + 1])


@pytest.mark.parametrize("name", EXPONENTIAL_SDE)
def test_strong_order_of_exponential_sde_solvers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    system = sm.ReverseSDE(exact.model, (2,))
    solver = TABLE[name]
    assert isinstance(solver, MultistepSolver)
    generator = torch.Generator().manual_seed(0)
    x = exact.sample(300, 0.7, generator)
    steps = 1024
    noise = torch.randn(steps, *x.shape, generator=generator, dtype=torch.float64)
    ends = {}
    while steps >= 16:
        grid = sm.grids.log_snr_grid(exact.sde, 0.7, 0.3, steps)
        sde = exact.sde
        scales = Scales(sde.alpha(grid), sde.sigma(grid), sde.log_snr(grid), sde.data_std)
        weights = solver.weights(scales, 1.0)
        assert weights.noise is not None
        draws = iter(noise)
        monkeypatch.setattr(Problem, "noise", lambda *_, draws=draws: next(draws))
        ends[steps] = sm.solve(system, x, (0.7, 0.3), name, grid=grid).x
        noise = torch.stack(list(coupled(noise, weights.state, weights.noise)))
        steps //= 2
    errors = [float((ends[n] - ends[1024]).square().mean().sqrt()) for n in (16, 32, 64)]
    slope = math.log2(errors[0] / errors[2]) / 2
    assert abs(slope - solver.order) < 0.25
