"""Derivatives of a user's function with respect to x, where its graph may not lead to x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Any]


def value_with_graph(function: Function, x: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Evaluate a function at a copy of x, so that a derivative with respect to x can be taken.

    The function may change the copy. If x has no graph, nothing is checked. The value of a function
    that does not depend on x gets a graph along which its derivative is zero.

    Args:
        function: Of one tensor, sample by sample.
        x: Where, shape ``(B, *event)``.
        dtype: Of the copy; that of x if None.

    Raises:
        ValueError: If the value depends on x and its graph does not lead there, so that its
            derivative would be taken to be zero.
    """
    given = x.to(x.dtype if dtype is None else dtype, copy=True)
    node = given.grad_fn
    value = function(given)
    if node is None or not isinstance(value, Tensor) or _reaches(value, node):
        return value
    with torch.no_grad():
        elsewhere = function((1 + x.abs() + x).to(given.dtype))
    if not torch.allclose(elsewhere, value.detach(), rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "the network cuts the graph (no_grad or detach in its forward?), and log_prob "
            "and gradients need its derivative with respect to x: compute the output without them"
        )
    return value + 0 * x.sum().to(value.dtype)


def _reaches(value: Tensor, node: Any) -> bool:
    """Whether the graph of a value leads to a node."""
    stack, seen = [value.grad_fn], set()
    while stack:
        at = stack.pop()
        if at is node:
            return True
        if at is not None and at not in seen:
            seen.add(at)
            stack.extend(before for before, _ in at.next_functions)
    return False
