"""Checks of numbers that need not be integers, and of switches."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor


def as_number(name: str, value: Any, expected: str = "be a number") -> float:
    """Return a real number of Python, NumPy or torch as a float.

    Args:
        name: Name of the argument, for the message.
        value: What was given; of arrays and tensors those without dimensions.
        expected: What it must do, for the message.

    Raises:
        ValueError: If it is no number, also for True and False.

    Example:
        >>> as_number("eta", torch.tensor(0.5))
        0.5
        >>> as_number("eta", True)
        Traceback (most recent call last):
        ...
        ValueError: eta must be a number, got True
    """
    held = isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0
    number = value.item() if held else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ValueError(f"{name} must {expected}, got {value!r}")
    return float(number)


def check_positive(name: str, value: Any, expected: str = "be positive and finite") -> float:
    """Return a positive, finite number as a float; arguments as above."""
    number = as_number(name, value, expected)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must {expected}, got {value!r}")
    return number


def check_not_negative(name: str, value: Any, below: float = math.inf) -> float:
    """Return a number of 0 or more, and below a bound, as a float; arguments as above."""
    expected = f"lie in [0, {below:g})" if below < math.inf else "be 0 or more, and finite"
    number = as_number(name, value, expected)
    if not 0 <= number < below:
        raise ValueError(f"{name} must {expected}, got {value!r}")
    return number


def check_switch(name: str, value: Any) -> bool:
    """Return True or False; refuse anything else, also None."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value
