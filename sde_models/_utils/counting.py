"""Evaluations counted where they happen: in the models and in the divergence estimators.

Models call :func:`record_call` each time a network runs on a batch, and code that takes
vector-Jacobian products calls :func:`record_vjps`. :func:`count_evaluations` counts both inside its
block; counters nest. The work done for each sample is a :class:`Cost`, which does not depend on the
sizes of the batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a result cost. Two results with equal ``nfe + 2 vjps`` cost the same.

    Costs of work on the same samples add up.

    Attributes:
        nfe: Network forward passes for each sample, mean over the batch.
        vjps: Vector-Jacobian products through the network for each sample, likewise.
        calls: Network calls one after the other, each on as many samples as there were.

    Example:
        >>> cost = Cost(nfe=40.0, calls=40) + Cost(nfe=33.0, vjps=33.0, calls=5)
        >>> cost
        Cost(nfe=73.0, vjps=33.0, calls=45)
        >>> print(cost)
        73 evaluations and 33 products
    """

    nfe: float = 0.0
    vjps: float = 0.0
    calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nfe + other.nfe, self.vjps + other.vjps, self.calls + other.calls)

    def __str__(self) -> str:
        products = f" and {round(self.vjps, 1):g} products" if self.vjps else ""
        return f"{round(self.nfe, 1):g} evaluations{products}"


class HasCost:
    """Shorthands of a result with a :class:`Cost`."""

    cost: Cost

    @property
    def nfe(self) -> float:
        """Network forward passes for each sample."""
        return self.cost.nfe

    @property
    def vjps(self) -> float:
        """Vector-Jacobian products for each sample."""
        return self.cost.vjps


@dataclass
class EvaluationCounter:
    """Evaluations counted inside a block, on batches of any size.

    Attributes:
        calls: Network calls.
        rows: Network forward passes of single samples: the sizes of their batches, added up.
        vjps: Vector-Jacobian products of single samples, likewise.
    """

    calls: int = 0
    rows: int = 0
    vjps: int = 0

    def __add__(self, other: EvaluationCounter) -> EvaluationCounter:
        return EvaluationCounter(
            self.calls + other.calls, self.rows + other.rows, self.vjps + other.vjps
        )

    def cost(self, batch: int) -> Cost:
        """The cost, if it was work on so many samples."""
        return Cost(self.rows / batch, self.vjps / batch, self.calls)


_open_counters: ContextVar[tuple[EvaluationCounter, ...]] = ContextVar("open_counters", default=())


@contextmanager
def count_evaluations() -> Iterator[EvaluationCounter]:
    """Count every network evaluation made inside the block.

    Example:
        >>> import torch, sde_models as sm
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> with sm.count_evaluations() as counter:
        ...     _ = model.score(0.5, torch.zeros(3, 2))
        >>> counter.calls, counter.rows, counter.cost(3).nfe
        (1, 3, 1.0)
    """
    counter = EvaluationCounter()
    token = _open_counters.set((*_open_counters.get(), counter))
    try:
        yield counter
    finally:
        _open_counters.reset(token)


def record_call(rows: int) -> None:
    """Note a call of a network on a batch of so many samples."""
    for counter in _open_counters.get():
        counter.calls += 1
        counter.rows += rows


def record_vjps(count: int) -> None:
    """Note vector-Jacobian products: k with each of B samples count as k B."""
    for counter in _open_counters.get():
        counter.vjps += count
