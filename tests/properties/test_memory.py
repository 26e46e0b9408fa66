"""Memory is flat in the number of steps, unless the path is asked for."""

from __future__ import annotations

import tracemalloc
import weakref
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import sde_models as sm
from sde_models.solvers.one_step.euler_maruyama import EulerMaruyama

TABLE = sm.list_solvers()
BATCH, SIZE = 2048, 4
FEW, MANY = 40, 240
"""Steps; the fewer are more than any solver has under way at one time."""
SLACK = 4
"""States: what weights and Python's own objects may come to."""
STATE = 8 * BATCH * SIZE  # bytes in float64


class PeakBytes(TorchDispatchMode):
    """Measures the most memory that tensors made in the block hold at one time, in states."""

    def __init__(self) -> None:
        super().__init__()
        self._live = self._peak = 0
        self._known = WeakIdKeyDictionary()

    @property
    def states(self) -> float:
        """The peak so far."""
        return self._peak / STATE

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known[storage] = True
                self._live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self._peak = max(self._peak, self._live)
        return made

    def _freed(self, size: int) -> None:
        self._live -= size


class PeakArrays:
    """The same for NumPy, of which tracemalloc knows; it does not know of tensors, and is slow."""

    states = 0.0

    def __enter__(self) -> Self:
        tracemalloc.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.states = tracemalloc.get_traced_memory()[1] / STATE
        tracemalloc.stop()


class Bounded(nn.Module):
    """A smooth estimate of x0, so that adaptive solvers take more steps the less they may err."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x.tanh()


def peak(solver: str | sm.Solver, many: bool, **arguments: Any) -> tuple[float, sm.Solution]:
    """States that a solve holds at most, in few steps or in many."""
    method = sm.make_solver(solver)
    model = sm.ScoreModel(Bounded(), sm.VPSDE(t_min=1e-3), "x0")
    system: sm.System = sm.ProbabilityFlow(model)
    if not method.deterministic:
        system = sm.ReverseSDE(model, (SIZE,))
    if method.draws_noise(system):
        arguments["generator"] = torch.Generator().manual_seed(0)
    if method.adaptive:
        few = 0.1 if method.stochastic else 0.01
        tolerance = max(few * 5 ** (-1 - method.order), 1e-12) if many else few
        arguments |= {"rtol": tolerance, "atol": tolerance}
    else:
        arguments |= {"steps": MANY if many else FEW}
    x = torch.randn(BATCH, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with PeakArrays() if method.library == "scipy" else PeakBytes() as memory:
        got = sm.solve(system, x, (1.0, 0.01), method, **arguments)
    return memory.states, got


@pytest.mark.parametrize("name", TABLE)
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    few, short = peak(name, many=False)
    many, long = peak(name, many=True)
    assert long.accepted > short.accepted + 2 * SLACK
    assert many < few + SLACK


class Hoarder(EulerMaruyama):
    """A solver that keeps what it has been through."""

    name = "hoarder"

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library  # type: ignore[misc]

    def integrate(self, problem: Any) -> Tensor:
        kept = []
        reach = problem.recorder.reach

        def keep(t: float, x: Tensor) -> None:
            kept.append(x.numpy().copy() if self.library == "scipy" else x)
            reach(t, x)

        problem.recorder.reach = keep
        return super().integrate(problem)


@pytest.mark.parametrize("library", ["sde_models", "scipy"])
def test_a_solver_that_kept_its_states_would_be_seen(library: str) -> None:
    hoarder = Hoarder(library)
    few, _ = peak(hoarder, many=False)
    many, _ = peak(hoarder, many=True)
    assert many > few + MANY - FEW - SLACK


def test_a_path_costs_what_it_keeps() -> None:
    plain, _ = peak("ddim", many=False)
    kept, got = peak("ddim", many=False, path=True)
    assert got.path is not None
    assert len(got.path) == FEW + 1
    assert plain + FEW < kept < plain + 2 * FEW + SLACK  # they are stacked in the end
