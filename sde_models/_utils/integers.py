"""One check of integers: counts, sizes and seeds."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from sde_models._utils.arguments import shown


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return an integer of Python, NumPy or torch as an int.

    Args:
        name: Name of the argument, for the message.
        value: What was given.
        least: Least value that is accepted.
        most: Largest value that is accepted; None for any.

    Raises:
        ValueError: If it is no integer, also for True and False, or out of range.

    Example:
        >>> import numpy
        >>> check_integer("steps", numpy.int64(20))
        20
        >>> check_integer("steps", 2.5)
        Traceback (most recent call last):
        ...
        ValueError: steps must be an integer of 1 or more, got 2.5
    """
    number = _as_integer(value)
    if number is None or number < least or (most is not None and number > most):
        span = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {span}, got {shown(value)}")
    return number


def check_integers(name: str, values: Any) -> tuple[int, ...]:
    """Return integers of 1 or more as a tuple, such as the sizes of an event shape."""
    numbers = [_as_integer(value) for value in values] if isinstance(values, Iterable) else [None]
    found = tuple(number for number in numbers if number is not None and number >= 1)
    if len(found) < len(numbers):
        raise ValueError(f"{name} must hold integers of 1 or more, got {shown(values)}")
    return found


def _as_integer(value: Any) -> int | None:
    """An int, or None for what is no integer; a boolean is none."""
    if isinstance(value, bool) or str(getattr(value, "dtype", None)) in ("bool", "torch.bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
