"""Grids adapted to a model: their nodes are where it is difficult, and they pay."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sde_models as sm

NARROW = sm.GaussianMixture(
    torch.tensor([[-1.2, 0.4], [0.9, 0.8], [0.1, -1.1]], dtype=torch.float64), 0.1
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def grid() -> sm.AdaptedGrid:
    return sm.adapt_grid(NARROW.score_model(sm.VPSDE()), samples=32, generator=generator())


@pytest.mark.parametrize("span", [(1.0, 1e-5), (1e-5, 1.0), (0.8, 0.2), (0.2, 0.8)])
@pytest.mark.parametrize("steps", [1, 7, 300])
def test_nodes_run_strictly_over_the_span(
    grid: sm.AdaptedGrid, span: tuple[float, float], steps: int
) -> None:
    nodes = grid(sm.VPSDE(), *span, steps)
    assert len(nodes) == steps + 1
    assert (nodes[0], nodes[-1]) == span
    assert bool((nodes.diff() * (span[1] - span[0]) > 0).all())


def test_up_is_down_reversed(grid: sm.AdaptedGrid) -> None:
    down, up = grid(sm.VPSDE(), 0.9, 0.1, 20), grid(sm.VPSDE(), 0.1, 0.9, 20)
    torch.testing.assert_close(down, up.flip(0))


def test_nodes_are_where_the_modes_part(grid: sm.AdaptedGrid) -> None:
    """Nothing happens where the noise is far below the width of the modes or far above the data:
    most nodes are between."""
    sde = sm.VPSDE()
    nodes = grid(sde, 1.0, 1e-5, 200)
    ratio = sde.sigma(nodes) / sde.alpha(nodes)
    between = (ratio > 0.05) & (ratio < 5.0)
    reach = sde.log_snr(torch.tensor([1e-5, 1.0], dtype=torch.float64)).diff().abs()
    even = 2 * torch.tensor(100.0).log() / reach  # what equal steps in log-SNR would put there
    assert between.double().mean() > 1.5 * even


def test_error_is_far_below_that_of_the_named_grids(grid: sm.AdaptedGrid) -> None:
    model = NARROW.score_model(sm.VPSDE())
    flow = sm.ProbabilityFlow(model)
    x = torch.randn(256, 2, generator=generator(1), dtype=torch.float64)
    truth = sm.solve(flow, x, (1.0, 1e-5), "ode:dopri8", rtol=1e-10, atol=1e-10).x

    def error(nodes: object) -> float:
        got = sm.solve(flow, x, (1.0, 1e-5), "flow-abm-4", steps=50, grid=nodes).x  # type: ignore[arg-type]
        return float((got - truth).square().mean().sqrt())

    adapted = error(grid)
    assert all(adapted < 0.6 * error(name) for name in sm.grids.GRIDS)


def test_same_seed_same_grid_and_another_seed_much_the_same(grid: sm.AdaptedGrid) -> None:
    model = NARROW.score_model(sm.VPSDE())
    again = sm.adapt_grid(model, samples=32, generator=generator())
    assert again == grid
    other = sm.adapt_grid(model, samples=32, generator=generator(9))
    assert other != grid
    distance = torch.tensor(other.work) - torch.tensor(grid.work)
    assert distance.abs().max() < 0.1


def test_cost_is_reported() -> None:
    with sm.count_evaluations() as counter:
        made = sm.adapt_grid(NARROW.score_model(sm.VPSDE()), samples=8, tol=1e-2)
    assert made.cost == counter.cost(8)
    assert 0 < made.nfe < 200


def test_saved_and_read_back(grid: sm.AdaptedGrid, tmp_path: Path) -> None:
    grid.save(tmp_path / "grid.json")
    assert sm.AdaptedGrid.load(tmp_path / "grid.json") == grid
    older = asdict(grid) | {"nfe": 90, "rows": 400}
    del older["cost"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    loaded = sm.AdaptedGrid.load(tmp_path / "older.json")
    assert (loaded.work, loaded.cost.calls) == (grid.work, 90)
    assert math.isnan(loaded.nfe)


def test_half_precision_network_and_float32() -> None:
    network = sm.nn.ResidualNetwork((2,), width=16, depth=1).to(torch.bfloat16).eval()
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3), event_shape=(2,))
    made = sm.adapt_grid(model, samples=4, tol=1e-1, generator=generator())
    assert made.work[-1] == pytest.approx(1.0)


def test_what_it_cannot_do_is_refused(grid: sm.AdaptedGrid) -> None:
    network = torch.nn.Identity()  # knows no event shape
    with pytest.raises(ValueError, match=r"give event_shape=, such as \(2,\) for points"):
        sm.adapt_grid(sm.ScoreModel(network, sm.VPSDE()))
    with pytest.raises(TypeError, match="expected a model"):
        sm.adapt_grid(network)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"was made for log-SNR from .* adapt one to this model"):
        grid(sm.VESDE(1e-4, 500.0), 1.0, 0.0, 10)

    class Plain(sm.SDE):
        def f(self, t: object, x: Tensor) -> Tensor:
            return -x

        def g(self, t: object, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    with pytest.raises(TypeError, match="Plain does not have"):
        grid(Plain(), 0.0, 1.0, 4)
