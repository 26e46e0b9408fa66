"""Checks of numbers that need not be integers, of switches, and of the names of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from inspect import signature
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

LONGEST = 200
"""Characters of a value in an error."""


def shown(value: Any) -> str:
    """What was given, for an error: of arrays and tensors the shape, of anything long the start.

    Example:
        >>> shown("0.5"), shown(torch.zeros(500, 2))
        ("'0.5'", 'a Tensor of shape (500, 2)')
    """
    if getattr(value, "ndim", 0):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


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
        raise ValueError(f"{name} must {expected}, got {shown(value)}")
    return float(number)


def check_positive(name: str, value: Any, expected: str = "be positive and finite") -> float:
    """Return a positive, finite number as a float; arguments as above."""
    number = as_number(name, value, expected)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must {expected}, got {shown(value)}")
    return number


def check_not_negative(name: str, value: Any, below: float = math.inf) -> float:
    """Return a number of 0 or more, and below a bound, as a float; arguments as above."""
    expected = f"lie in [0, {below:g})" if below < math.inf else "be 0 or more, and finite"
    number = as_number(name, value, expected)
    if not 0 <= number < below:
        raise ValueError(f"{name} must {expected}, got {shown(value)}")
    return number


def check_switch(name: str, value: Any) -> bool:
    """Return True or False; refuse anything else, also None."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return value


class NamesArguments:
    """Base of classes whose constructors answer an unknown argument with those that they take.

    Example:
        >>> sm.VPSDE(beta=20)
        Traceback (most recent call last):
        ...
        TypeError: VPSDE got an unexpected keyword argument 'beta'; it takes beta_min, ...
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _naming(cls.__init__)  # type: ignore[method-assign]


def _naming(constructor: Callable[..., None]) -> Callable[..., None]:
    """The same constructor, for a TypeError with the name of the class and of its arguments."""
    _, *parameters = signature(constructor).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return constructor
    names = [parameter.name for parameter in parameters]

    @wraps(constructor)
    def checked(self: Any, *values: Any, **given: Any) -> None:
        for name in given:
            if name not in names:
                raise TypeError(
                    f"{type(self).__name__} got an unexpected keyword argument {name!r}; it takes "
                    f"{', '.join(names) or 'none'}"
                )
        constructor(self, *values, **given)

    return checked
