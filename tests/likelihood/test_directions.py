"""Directions in which Jacobians are large, and the trace of what is left."""

from __future__ import annotations

import torch
from torch import Tensor

import sde_models as sm
from sde_models.divergence.complement import Complement
from sde_models.likelihood.directions import find_directions

BATCH, SIZE = 3, 40


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_the_trace_in_directions_and_outside_of_them_is_the_trace() -> None:
    """By all probes of an exact trace, and on average over random ones of every kind."""
    matrix, x = normal(BATCH, SIZE, SIZE), normal(BATCH, SIZE, seed=1)
    basis = torch.linalg.qr(normal(BATCH, SIZE, 3, seed=2))[0].mT
    mean = normal(BATCH, seed=3)
    inside = torch.einsum("bkd,bde,bke->b", basis, matrix, basis)
    truth = matrix.diagonal(dim1=1, dim2=2).sum(1) - inside - mean * (SIZE - 3)

    def field(x: Tensor) -> Tensor:
        return torch.einsum("bde,be->bd", matrix, x)

    complement = Complement(basis, mean)
    trace = sm.Exact()(field, x, None, complement=complement)[1]
    torch.testing.assert_close(trace.value, truth)
    for estimator in (sm.Hutchinson(4000), sm.Hutchinson(4000, "sphere"), sm.XTrace(4)):
        drawn = estimator.draw(x, generator(4))
        trace = estimator(field, x, drawn, complement=complement)[1]
        assert ((trace.value - truth).abs() <= 4 * trace.stderr + 1e-9).all(), estimator


def sketches(matrices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Products of ``(M, D, D)`` with random signs, as those of BATCH equal samples; the signs."""
    draw = torch.rand(len(matrices), BATCH, SIZE, generator=generator(seed)).double()
    signs = draw.sub(0.5).sign()
    found = torch.einsum("mde,mbd->mbe", matrices, signs)
    return found - (found * signs).mean(2, keepdim=True) * signs, signs


def test_directions_of_low_rank_are_found_and_others_are_not_used() -> None:
    """Two directions that all nodes share; and Jacobians that have nothing in common."""
    pair = torch.linalg.qr(normal(SIZE, 2))[0]
    scales = 1 + torch.rand(20, 2, generator=generator(1)).double()
    low = torch.einsum("dk,mk,ek->mde", pair, scales, pair)
    everywhere = torch.ones(20, BATCH, dtype=torch.bool)
    variance = torch.full((BATCH,), 0.1, dtype=torch.float64)
    found = find_directions(sketches(low, 2)[0], *sketches(low[::3], 3), variance, everywhere)
    assert (found.count >= 2).all()
    complement = torch.eye(SIZE) - found.basis.mT @ found.basis
    assert float((complement @ pair).abs().max()) < 0.1
    rough = normal(20, SIZE, SIZE, seed=5)
    none = find_directions(sketches(rough, 2)[0], *sketches(rough[::3], 3), variance, everywhere)
    assert none.count.tolist() == [0] * BATCH


def test_directions_are_orthonormal_where_sketches_are_rounding() -> None:
    """The trace in them would be wrong otherwise."""
    tiny = 1e-17 * normal(20, BATCH, SIZE)
    one = torch.zeros(20, BATCH, dtype=torch.bool)
    one[0] = True
    variance = torch.full((BATCH,), 1e-40, dtype=torch.float64)
    found = find_directions(tiny, tiny[:8], tiny[:8].sign(), variance, one)
    identity = torch.eye(found.basis.shape[1], dtype=torch.float64).expand(BATCH, -1, -1)
    torch.testing.assert_close(found.basis @ found.basis.mT, identity)
