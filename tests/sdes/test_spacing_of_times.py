"""Times are distinguished on the scale of their own clock, however small or large it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sde_models as sm

F64 = torch.float64
MIXTURE = sm.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=F64), 0.3)
TABLE = sm.list_solvers()


class Slower(sm.GaussianSDE):
    """Another SDE whose clock runs by a factor slower; a power of two leaves all digits alone."""

    def __init__(self, base: sm.GaussianSDE, factor: float) -> None:
        super().__init__(t_min=base.t_min * factor, t_max=base.t_max * factor)
        self.base, self.factor = base, factor

    def alpha(self, t: Any) -> Tensor:
        return self.base.alpha(torch.as_tensor(t) / self.factor)

    def sigma(self, t: Any) -> Tensor:
        return self.base.sigma(torch.as_tensor(t) / self.factor)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("t_min", "nodes"), [(1e-8, 2048), (1e-5, 2048), (1e-9, 64)])
def test_densities_close_to_the_data(t_min: float, nodes: int, dtype: torch.dtype) -> None:
    """Within the error, which at 2048 nodes is that of the steps, and what the prior leaves.

    The density is that of the decoded prior, and N(0, I) differs from the mixture at t = 1 by 3e-4
    nats: so much is left at the origin, where samples stand still and steps have no error.
    """
    x = torch.tensor([[-2.3, 0.2], [1.9, -0.4], [0.0, 0.0]], dtype=F64)
    found = sm.log_prob(MIXTURE.score_model(sm.VPSDE(t_min=t_min)), x.to(dtype), intervals=nodes)
    away = (found.value - MIXTURE.log_prob(x)).abs()
    assert bool((away < found.error + 5e-4).all())
    assert float(away.max()) < 2e-3
    if nodes == 2048:
        assert float(found.error.max()) < 5e-3


STEPPING = [name for name, s in TABLE.items() if not s.adaptive or s.library == "sde_models"]


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**10], ids=["fast", "slow"])
@pytest.mark.parametrize("name", STEPPING)
def test_no_solver_sees_how_fast_the_clock_runs(name: str, factor: float) -> None:
    """The SDE is the same at each scale, and so are samples, cost and states on the path."""
    solver, found = TABLE[name], []
    for scale in (1.0, factor):
        sde = Slower(sm.VPSDE(t_min=2.0**-20), scale)
        arguments: dict[str, Any] = {"rtol": 0.1, "atol": 0.1} if solver.adaptive else {"steps": 4}
        if not solver.equal_steps:
            arguments["path"] = [t * scale for t in (0.5, 0.25, 2.0**-18, 2.0**-20)]
        source = torch.Generator().manual_seed(0)
        model = MIXTURE.score_model(sde)
        found.append(sm.sample(model, (2, 2), name, dtype=F64, generator=source, **arguments))
    assert found[0].nfe == found[1].nfe
    torch.testing.assert_close(found[0].x, found[1].x, rtol=1e-8, atol=1e-8)
    if found[0].path is not None:
        torch.testing.assert_close(found[0].path, found[1].path, rtol=1e-8, atol=1e-8)


def test_times_that_were_rounded_are_the_ends_and_others_are_not() -> None:
    sde = sm.VPSDE(t_min=1e-8)
    flow, x = sm.ProbabilityFlow(MIXTURE.score_model(sde)), torch.ones(1, 2, dtype=F64)

    def times(*path: float) -> list[float]:
        given = torch.tensor(path, dtype=torch.float32)
        found = sm.solve(flow, x, (1.0, 1e-8), "ddim", steps=4, path=given).times
        assert found is not None
        return found.tolist()

    assert times(1.0, 0.1, 1e-8)[-1] == 1e-8
    assert times(0.1, 1.1e-8)[-1] == pytest.approx(1.1e-8, rel=1e-6)
    with pytest.raises(ValueError, match="path must be True, False, or times within"):
        times(1.0, 9e-9)
    grid = [1.0, 0.1, 1e-7]
    with pytest.raises(ValueError, match=r"grid runs from 1 to 1e-07, expected 1 to 1e-08"):
        sm.solve(flow, x, (1.0, 1e-8), "ddim", grid=grid)
    with pytest.raises(ValueError, match="leaves"):
        sm.solve(flow, x, (1.0, 9.99e-9), "ddim", steps=4)
    straight = sm.FlowMatchingSDE(t_max=1 - 1e-9)
    flow = sm.ProbabilityFlow(MIXTURE.score_model(straight))
    near = [straight.t_max, 1 - 2e-9, 1 - 4e-9, 0.5, 1e-3]
    found = sm.solve(flow, x, (straight.t_max, 1e-3), "ddim", steps=4, path=near)
    assert found.times is not None
    assert found.times.tolist() == near


def test_a_clock_that_is_inverted_by_bisection_keeps_small_times() -> None:
    sde = Slower(sm.VPSDE(t_min=1e-12), 1.0)
    t = torch.logspace(-12, 0, 50, dtype=F64)
    torch.testing.assert_close(sde.t_from_log_snr(sde.log_snr(t)), t, rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_rates_are_checked_on_the_scale_of_the_clock(scale: float) -> None:
    """The constant alpha of VE, rounded, is not taken to change."""

    class Rounded(Slower):
        def alpha(self, t: Any) -> Tensor:
            return 1 + 1e-16 * torch.sin(1e9 * torch.as_tensor(t) / self.factor)

        def alpha_rate(self, t: Any) -> Tensor:
            return torch.zeros_like(torch.as_tensor(t))

    Rounded(sm.VESDE(), scale).check_reversible()

    class Wrong(Slower):
        def sigma_rate(self, t: Any) -> Tensor:
            return 2 * super().sigma_rate(t)

    with pytest.raises(ValueError, match="sigma_rate of Wrong is not the derivative"):
        Wrong(sm.VESDE(), scale).check_reversible()
