"""Errors of a solve, which say where it failed, and the look-up of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


class SolveError(RuntimeError):
    """A solve that could not be finished. Its tensors are copies.

    Attributes:
        t: Model time reached; shape ``(B,)`` where each sample has its own.
        x: State at that time, shape ``(B, *event)``, or None where there is none worth keeping.
        nfe: Network forward passes made until then for each sample, mean over the batch.
    """

    def __init__(self, message: str, *, t: float | Tensor, x: Tensor | None, nfe: float) -> None:
        super().__init__(message)
        self.t = t if isinstance(t, float | int) else t.detach().clone()
        self.x = None if x is None else x.detach().clone()
        self.nfe = nfe

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[SolveError], args: tuple[Any, ...], state: dict[str, Any]) -> SolveError:
    """Rebuild an error that went through pickle, as those of worker processes do."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class NonFiniteError(SolveError):
    """The drift became NaN or infinite.

    Attributes:
        rows: Indices of the samples concerned.
    """

    def __init__(
        self, message: str, *, t: float, x: Tensor | None, nfe: float, rows: list[int]
    ) -> None:
        super().__init__(message, t=t, x=x, nfe=nfe)
        self.rows = rows


class StepLimitError(SolveError):
    """An adaptive solve reached its cap on steps before the end of its span."""


class StepSizeError(SolveError):
    """An adaptive solver needed a step too small for the precision of the state."""


Named = TypeVar("Named")


def find_by_name(kind: str, name: str, known: Mapping[str, Named]) -> Named:
    """Look up a name.

    Args:
        kind: What is looked up, such as "solver"; for the error message.
        name: Its name.
        known: Objects by name.

    Raises:
        ValueError: For an unknown name, with the nearest ones.
        TypeError: For what is no string, with the known names.

    Example:
        >>> find_by_name("fruit", "apple", {"apple": 1, "pear": 2})
        1
    """
    if not isinstance(name, str):
        raise TypeError(f"{kind} must be a name ({', '.join(known)}), got {name!r}")
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; {nearest_names(name, known)}")
    return known[name]


FEW = 8
"""Names that an error lists even where one of them is near."""


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Say which of the known names are nearest to one that is not known."""
    known = list(known)
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    every = f"known: {', '.join(known)}"
    if not near:
        return every
    guess = f"did you mean {' or '.join(map(repr, near))}?"
    return f"{guess} {every}" if len(known) <= FEW else guess
