"""Evaluations counted where they happen: in the models and in the divergence estimators.

Models call :func:`record` each time a network runs on a batch. Whoever wants to know opens
:func:`count_evaluations` around the work; counters nest, and each sees everything inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Evaluations:
    """What a stretch of work cost.

    Attributes:
        nfe: Network forward passes, each on a whole batch.
        rows: Network forward passes of single samples: the sizes of those batches, added up.
        vjps: Vector-Jacobian products through the network, each on a whole batch.
        vjp_rows: Vector-Jacobian products of single samples: the sizes of those batches, added up.
    """

    nfe: int = 0
    rows: int = 0
    vjps: int = 0
    vjp_rows: int = 0


_open_counters: ContextVar[tuple[Evaluations, ...]] = ContextVar("open_counters", default=())


@contextmanager
def count_evaluations() -> Iterator[Evaluations]:
    """Count every network evaluation made inside the block.

    Example:
        >>> import torch, sde_models as sm
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> with sm.count_evaluations() as cost:
        ...     _ = model.score(0.5, torch.zeros(3, 2))
        >>> cost.nfe
        1
    """
    counter = Evaluations()
    token = _open_counters.set((*_open_counters.get(), counter))
    try:
        yield counter
    finally:
        _open_counters.reset(token)


def record(nfe: int = 0, rows: int = 0, vjps: int = 0, vjp_rows: int = 0) -> None:
    """Add to every open counter."""
    for counter in _open_counters.get():
        counter.nfe += nfe
        counter.rows += rows
        counter.vjps += vjps
        counter.vjp_rows += vjp_rows
