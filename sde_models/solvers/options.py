"""The options of a solve, which every function that solves takes as keywords."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypedDict

from torch import Tensor

from sde_models.sdes.grids import Grid
from sde_models.solvers.recording import Step


class StepOptions(TypedDict, total=False):
    """Options of :func:`~sde_models.solve` for its steps and its gradient."""

    steps: int | None
    rtol: float | None
    atol: float | None
    grid: Grid | None
    max_steps: int | None
    gradient: str | None
    callback: Callable[[Step], object] | None


class SolveOptions(StepOptions, total=False):
    """Options of :func:`~sde_models.solve`, which documents them.

    Those that are left out, or None, have the defaults given there.
    """

    path: bool | Tensor | Sequence[float] | None
    progress: bool


def check_options(
    function: str,
    options: Mapping[str, Any],
    known: type = SolveOptions,
    further: Iterable[str] = (),
) -> None:
    """Raise for keywords that a function does not take.

    Args:
        function: Its name.
        options: The keywords.
        known: The options that it takes, a typed dictionary.
        further: Names of its other arguments, for the nearest name.

    Raises:
        TypeError: With the nearest name, and where conditions go.
    """
    names = known.__annotations__
    for name in options:
        if name == "generator":
            raise TypeError(f"{function} takes no generator=, since it draws no random numbers")
        if name not in names:
            near = get_close_matches(name, [*names, *further], n=1, cutoff=0.7)
            guess = f"did you mean {near[0]}=?" if near else f"{function} takes {', '.join(names)}"
            raise TypeError(
                f"{function} got an unexpected argument {name}=: {guess}; a condition of the "
                f"network is given as cond={{{name!r}: ...}}"
            )
