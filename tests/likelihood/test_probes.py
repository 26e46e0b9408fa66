"""Probes without replacement, and how many each node gets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.probe_allocation import needed_products
from sde_models.likelihood.probe_sequences import ProbeSequence
from sde_models.likelihood.traces import Traces


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimates(matrix: Tensor, count: int, batch: int) -> Tensor:
    """Means of forms of a matrix with the first probes of sequences, shape ``(batch,)``."""
    states = torch.zeros(1, batch, len(matrix), dtype=torch.float64)
    sequence = ProbeSequence.draw(states, generator())
    pairs = torch.zeros(batch, dtype=torch.long), torch.arange(batch)
    probes = sequence.at(pairs, torch.zeros(batch, dtype=torch.long), count).drawn.double()
    return torch.einsum("kbi,ij,kbj->kb", probes, matrix, probes).mean(0)


@pytest.mark.parametrize("size", [3, 8, 20])
def test_all_probes_of_a_sequence_give_the_trace(size: int) -> None:
    matrix = torch.randn(size, size, generator=generator(), dtype=torch.float64)
    length = 1 << (size - 1).bit_length()
    found = estimates(matrix, length, 5)
    torch.testing.assert_close(found, matrix.trace().expand(5))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_variance_of_probes_without_replacement(count: int) -> None:
    """For 16 dimensions, v / n (1 - (n - 1) / 15): 20,000 sequences know it within 5 x 1.1%."""
    matrix = torch.randn(16, 16, generator=generator(1), dtype=torch.float64)
    symmetric = 0.5 * (matrix + matrix.T)
    single = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    found = estimates(matrix, count, 20_000)
    assert (found.mean() - matrix.trace()).abs() < 5 * found.std() / math.sqrt(20_000)
    wanted = single / count * (1 - (count - 1) / 15)
    assert float(found.var() / wanted) == pytest.approx(1, abs=0.06)


def test_finer_nodes_keep_their_probes() -> None:
    nodes = Nodes.draw(sm.VPSDE(), 8, torch.zeros(6, 5), generator())
    sequence = ProbeSequence.draw(torch.zeros(8, 6, 5), generator(1))
    finer = sequence.finer(nodes, 3, torch.zeros(24, 6, 5), generator(2))
    assert torch.equal(nodes.among(finer.signs), sequence.signs)
    assert bool((finer.signs.abs() == 1).all())


def traces(unit: Tensor, products: float = 2.0) -> Traces:
    zero = torch.zeros_like(unit)
    return Traces(zero, (unit / products).sqrt(), zero + products, unit, zero > 0)


def test_products_reach_the_variance_with_the_fewest() -> None:
    """Slowly varying variances: the sum of w^2 v / n is the target, and no exchange is better."""
    weights = torch.full((40, 1), 0.3, dtype=torch.float64)
    unit = (torch.linspace(0, 3, 40, dtype=torch.float64).sin()[:, None] * 3).square() + 1e-3
    known = traces(unit)
    target = torch.tensor([0.02], dtype=torch.float64)
    total = known.products + needed_products(weights, known, target, 10**6)
    variance = float((weights.square() * unit / total).sum())
    assert 0.7 * 0.02 < variance < 1.03 * 0.02
    best = (weights * unit.sqrt()).sum() ** 2 / 0.02
    assert float(total.sum()) < 1.25 * float(best)


def test_number_of_probes_does_not_depend_on_the_estimates_of_the_node() -> None:
    weights = torch.full((12, 1), 0.3, dtype=torch.float64)
    unit = 1 + torch.rand(12, 1, generator=generator(), dtype=torch.float64)
    lucky = unit.clone()
    lucky[5] = 1e-6
    target = torch.tensor([0.01], dtype=torch.float64)
    # The sum over all nodes changes a little; the share of the node itself does not.
    before, after = (needed_products(weights, traces(u), target, 10**6) for u in (unit, lucky))
    assert float(after[5] / before[5]) > 0.75
    assert float(after[4] / before[4]) < 0.8


def test_exact_traces_where_probes_would_cost_as_much() -> None:
    weights = torch.full((12, 1), 0.3, dtype=torch.float64)
    unit = torch.ones(12, 1, dtype=torch.float64)
    unit[4:8] = 1e4
    needed = needed_products(weights, traces(unit), torch.tensor([0.01]).double(), 64, 64)
    assert bool(needed[5:7].isinf().all())
    assert bool(needed[:3].isfinite().all())
    exact = traces(unit)
    exact = Traces(exact.value, exact.stderr, exact.products, exact.unit, unit > 1)
    assert bool((needed_products(weights, exact, torch.tensor([1e4]).double(), 64) == 0).all())
