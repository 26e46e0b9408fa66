"""The trace estimators by name."""

from __future__ import annotations

from collections.abc import Callable

from sde_models._utils.errors import nearest_names
from sde_models.divergence.base import Divergence
from sde_models.divergence.exact import Exact
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.divergence.low_rank import HutchPlusPlus, XTrace

SMALL = 32
"""Largest event for which the exact trace costs no more than a good estimate."""

DIVERGENCES: dict[str, Callable[[], Divergence]] = {
    "exact": Exact,
    "hutchinson": Hutchinson,
    "hutch++": HutchPlusPlus,
    "xtrace": XTrace,
}


def find_divergence(
    divergence: str | Divergence, size: int, along_a_path: bool = True
) -> Divergence:
    """Look up a trace estimator by name; an object is returned as it is.

    Args:
        divergence: Name or object. "auto" is exact for small events. For larger ones it is
            Hutchinson, with two probes at each node of a path, or 16 where there are no nodes.
        size: Numbers in an event.
        along_a_path: Whether the trace is taken at the nodes of a path that is known.

    Raises:
        TypeError: If it is neither a name nor an estimator.
        ValueError: For an unknown name, with the nearest ones, or an event that is too large.
    """
    if isinstance(divergence, Divergence):
        divergence.check_size(size)
        return divergence
    if not isinstance(divergence, str):
        raise TypeError(
            f"divergence must be a name or an object such as sm.Hutchinson(probes=4), got "
            f"{divergence!r}"
        )
    if divergence == "auto":
        if size <= SMALL:
            return Exact()
        return Hutchinson(2 if along_a_path else 16)
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"unknown divergence {divergence!r}; {nearest_names(divergence, DIVERGENCES)}; or "
            "'auto', or an object such as sm.Hutchinson(probes=4)"
        )
    found = DIVERGENCES[divergence]()
    found.check_size(size)
    return found
