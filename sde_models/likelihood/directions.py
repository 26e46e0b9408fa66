r"""Directions in which the Jacobians along a path are large.

Products :math:`J^\top v` with random probes at the nodes are sketches of the rows of the Jacobians.
Their leading principal directions are common to all nodes of a sample. Their use is tried on other
sketches, which had no part in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_models._utils.fields import Fields

COUNTS = (0, 1, 2, 3, 4, 6, 8, 12)
GAIN = 0.8
"""Directions are used where they take at most this part of the products needed without."""
NEGLIGIBLE = 0.01
"""Noise of less than this part of the variance needs no directions."""
LEAST, FEW = 3, 0.3
"""As many are used in any case where no more than this part of the nodes is active: a node of a
narrow peak is not like its neighbours, so that only its own sketch shows its directions."""


@dataclass(frozen=True)
class Directions(Fields):
    """Directions for each sample.

    Attributes:
        basis: Orthonormal ones, shape ``(B, K, D)``, the most important first.
        count: How many of them are used, shape ``(B,)``.
        pays: Noise of a node from which they save products, shape ``(B,)``.
    """

    basis: Tensor
    count: Tensor
    pays: Tensor


def find_directions(
    sketches: Tensor, others: Tensor, probes: Tensor, variance: Tensor, active: Tensor
) -> Directions:
    """Find as many directions as save products.

    Args:
        sketches: Products less their isotropic part, times weights, shape ``(M, B, D)``.
        others: The same with other probes, shape ``(N, B, D)``.
        probes: These probes.
        variance: Variance of the integral that probes may leave, shape ``(B,)``.
        active: Nodes at which the directions are used, shape ``(M, B)``.
    """
    size = sketches.shape[2]
    own, held = (part.transpose(0, 1).nan_to_num(0, 0, 0) for part in (sketches, others))
    left = _left_outside(own, held, probes.transpose(0, 1))
    usable = [c for c in COUNTS if c < left.shape[1] and 2 * c <= size]
    counts = torch.tensor(usable, device=left.device)
    ratio = left[:, counts] / left[:, :1].clamp(min=torch.finfo(left.dtype).tiny)
    # One probe may see little of what there is, at all nodes.
    seen = torch.linalg.vector_norm(own, dim=2).sum(1)
    total = torch.maximum(seen, left[:, 0] * (len(others) > 0))
    noise = total[:, None] * ratio
    nodes = active.sum(0)[:, None]
    needed = (2 * noise.square() / variance[:, None]).clamp(max=nodes * size)
    cost = torch.maximum(needed, 2 * nodes) + nodes * counts
    best = cost.argmin(1)
    saves = cost.gather(1, best[:, None])[:, 0] < GAIN * cost[:, 0]
    count = torch.where(saves, counts[best], 0)
    few = (active.to(noise).mean(0) <= FEW) & (noise[:, 0].square() > NEGLIGIBLE * variance)
    count = torch.where(few, count.clamp(min=min(LEAST, usable[-1])), count)
    leading = _principal(torch.cat([own, held], 1))[:, : max(1, int(count.max()))]
    # The rows are orthonormal to single precision only, and the trace has to be exact.
    basis = torch.linalg.qr(leading.mT)[0].mT
    tiny = torch.finfo(total.dtype).tiny
    pays = count * variance * seen / total.square().clamp(min=tiny)
    return Directions(basis, count, pays)


def _left_outside(own: Tensor, held: Tensor, probes: Tensor) -> Tensor:
    """Sums of the lengths of held sketches outside of the first k directions, for all k.

    Those of one half are measured with the directions that the others have: ``(B, 1 + K)``.
    """
    halves = torch.arange(held.shape[1], device=held.device) % 2 == 0
    found = [
        _lengths_outside(
            _principal(torch.cat([own, held[:, ~half]], 1)), held[:, half], probes[:, half]
        )
        for half in (halves, ~halves)
    ]
    most = min(part.shape[2] for part in found)
    return torch.cat([part[..., :most] for part in found], 1).sum(1)


def _lengths_outside(directions: Tensor, sketches: Tensor, probes: Tensor) -> Tensor:
    """Lengths of sketches outside of the first k directions, for all k: ``(B, N, 1 + K)``.

    Less their part along the probe outside of these: it belongs to a multiple of the identity.

    Args:
        directions: Shape ``(B, K, D)``.
        sketches: Shape ``(B, N, D)``.
        probes: Their probes.
    """
    parts = []
    for one, other in ((sketches, sketches), (sketches, probes), (probes, probes)):
        along = ((one @ directions.mT) * (other @ directions.mT)).cumsum(2)
        total = (one * other).sum(2, keepdim=True)
        parts.append(torch.cat([total, total - along], 2))
    length, common, probe = parts
    return (length - common.square() / probe.clamp(min=1)).clamp(min=0).sqrt()


def _principal(vectors: Tensor) -> Tensor:
    """Principal directions of vectors ``(B, M, D)`` as rows; zeros where none is left."""
    values, parts = torch.linalg.eigh(vectors @ vectors.mT)
    values, parts = values.flip(-1), parts.flip(-1)
    least = 1e3 * torch.finfo(values.dtype).eps * values[:, :1]
    scale = values.rsqrt().masked_fill(values <= least, 0)
    return (parts * scale[:, None]).mT @ vectors
