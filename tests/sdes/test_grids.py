"""Time grids: the spacing they promise, for every SDE, both ways, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import sde_models as sm
from sde_models.sdes.grids import GRIDS, karras_grid, log_snr_grid, time_grid, uniform_grid

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


@every_sde
@pytest.mark.parametrize("name", GRIDS)
def test_spacing_and_ends(sde: sm.GaussianSDE, name: str) -> None:
    spaced = {
        "uniform": lambda t: t,
        "quadratic": torch.sqrt,
        "log-snr": sde.log_snr,
        "karras": lambda t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
    }[name]
    inner = (sde.t_min + 0.1, sde.t_max - 0.2)
    for t0, t1 in [(sde.t_min, sde.t_max), (sde.t_max, sde.t_min), inner, inner[::-1]]:
        times = time_grid(sde, (t0, t1), 30, name)
        assert times.dtype == torch.float64
        assert len(times) == 31
        assert times[[0, -1]].tolist() == [t0, t1]
        steps = spaced(times).diff()
        torch.testing.assert_close(steps, steps.mean().expand(30), rtol=1e-8, atol=0)


def test_karras_follows_the_papers_formula() -> None:
    """Equation 5 of Karras et al. 2022 with rho = 7, on VE, where sigma is theirs."""
    sde = sm.VESDE(0.002, 80.0)
    got = sde.sigma(karras_grid(sde, 1.0, 0.0, 17))
    i = torch.arange(18, dtype=torch.float64)
    rho = 7.0
    wanted = (80 ** (1 / rho) + i / 17 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)


def test_grids_refuse_an_sde_without_a_log_snr() -> None:
    sde = sm.SDE(t_max=2.0)
    assert time_grid(sde, (0.0, 2.0), 4, "uniform").tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert time_grid(None, (0.0, 2.0), 2, uniform_grid).tolist() == [0.0, 1.0, 2.0]
    for name in ("log-snr", "karras"):
        with pytest.raises(ValueError, match="needs alpha and sigma"):
            time_grid(sde, (0.0, 2.0), 4, name)
    with pytest.raises(ValueError, match="no forward SDE"):
        time_grid(None, (0.0, 2.0), 4, log_snr_grid)
    with pytest.raises(ValueError, match="needs steps, got None"):
        time_grid(sde, (0.0, 2.0), None, "uniform")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], "two or more times"),
        ([1.0, float("nan"), 0.1], "must hold finite times, entry 1 is nan"),
        ([0.1, 0.5, 1.0], "turns back"),
        ([1.0, 0.5, 0.5, 0.1], "entry 2 repeats the time 0.5"),
        ([1.0, 0.5, 0.2], "runs from 1 to 0.2, expected 1 to 0.1"),
    ],
)
def test_times_of_ones_own_are_checked(times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_grid(sm.VPSDE(), (1.0, 0.1), None, times)
