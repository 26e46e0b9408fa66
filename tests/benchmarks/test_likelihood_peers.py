"""Other libraries' log-densities agree with closed forms, before anything is compared with them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sde_models as sm

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("ScipyRecipe", "TorchdiffeqRecipe", "FlowMatchingPeer", "ZukoPeer", "KDiffusionPeer")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What log-densities are compared on."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("common.likelihood_models")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipes and other libraries."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("common.likelihood_peers")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_integrates_the_flow_that_it_is_given(
    models: ModuleType, peers: ModuleType, name: str
) -> None:
    # zuko's probes are Gaussian, which are exact nowhere; signs are, for a diagonal Jacobian.
    peer = getattr(peers, name)(exact=name == "ZukoPeer", rtol=1e-9, atol=1e-9)
    if missing := peers.absent(peer):
        pytest.skip(missing)
    [(_, difference)] = models.disagreements([peer])
    assert difference < 1e-6


def test_the_exact_trace_of_coordinates_that_depend_on_each_other(
    models: ModuleType, peers: ModuleType
) -> None:
    density = models.mixture(5, 0)
    model = density.score_model(sm.VPSDE())
    x = density.sample(3, generator=torch.Generator().manual_seed(0))
    truth = models.solved_mixture(model, x).value
    peer = peers.TorchdiffeqRecipe(exact=True, rtol=1e-8, atol=1e-8)
    with sm.count_evaluations() as counter:
        found = peer.log_prob(model, x, seed=0)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    assert counter.vjps == 0  # its products are counted by the evaluation
    assert peer.products(x) == 5
    one = replace(peer, exact=False)
    assert (one.log_prob(model, x, seed=0) - truth).abs().max() > 1e-2


def test_a_library_that_is_absent_says_what_to_install(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peers.MODULES, "zuko", ("no_such_module", "zuko"))
    assert peers.absent(peers.ZukoPeer()) == "these likelihoods need zuko: pip install zuko"
    assert peers.absent(peers.ScipyRecipe()) == ""


def test_targets_compare_the_cheapest_that_is_as_accurate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("common.likelihood_report")

    def row(method: str, error: float, cost: float, seconds: float, tol: float | None) -> object:
        return report.Row(
            "digits", method, tol is not None, "exact" in method, error, cost, seconds, tol=tol
        )

    rows = [
        row(report.RECIPE, 2.0, 1000, 1.0, None),
        row("torchdiffeq dopri5, exact trace, 1e-05", 0.001, 9000, 5.0, None),
        row("tol = 3 nats", 2.5, 10, 0.01, 3.0),
        row("tol = 1 nats", 1.5, 100, 0.3, 1.0),
        row("tol = 0.3 nats", 0.2, 3000, 0.1, 0.3),
    ]
    recipe, exact, *earlier = report.targets(rows)
    assert (recipe.method, recipe.ratio, recipe.time_ratio) == ("tol = 1 nats", 0.1, 0.1)
    assert recipe.verdict == "at most 0.200: reached"
    assert (exact.method, exact.verdict) == ("", "at most 0.333: **missed**")
    assert [target.verdict.split(": ")[1] for target in earlier] == ["reached", "**missed**"]
    table = report.as_markdown(rows, ["a note"])
    assert "none so accurate" in table
    assert table.endswith("- a note")
