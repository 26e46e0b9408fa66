"""Times and coefficients of samples against batches of any event shape, and checks of batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from sde_models._utils.arguments import shown

Time = float | Tensor


def as_time(t: Time, like: Tensor | None = None) -> Tensor:
    """Turn a time into a floating tensor, with the dtype and device of ``like`` if one is given.

    Args:
        t: A number, or a floating tensor that is scalar or of shape ``(B,)``.
        like: A batch whose dtype and device the time takes.

    Raises:
        TypeError: If ``t`` is neither a number nor a tensor.
    """
    truth = isinstance(t, bool) or str(getattr(t, "dtype", None)) in ("bool", "torch.bool")
    if not isinstance(t, Tensor | SupportsFloat) or truth:
        raise TypeError(f"t must be a number or a tensor, scalar or of shape (B,), got {shown(t)}")
    if isinstance(t, Tensor):
        t = t if t.is_floating_point() else t.to(torch.get_default_dtype())
        return t if like is None else t.to(dtype=like.dtype, device=like.device)
    if like is None:
        return torch.tensor(float(t), dtype=torch.get_default_dtype())
    # Filled there: a number that is copied to an accelerator makes the host wait for it.
    return torch.full((), float(t), dtype=like.dtype, device=like.device)


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient so that it multiplies ``x`` sample by sample.

    Args:
        coefficient: Scalar, or one value for each sample, shape ``(B,)``.
        x: Batch of shape ``(B, *event)``.

    Returns:
        The scalar unchanged, or shape ``(B, 1, ..., 1)`` with the dimensions of ``x``.

    Raises:
        ValueError: If ``coefficient`` is neither scalar nor of shape ``(B,)``.
    """
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.ndim != 1 or coefficient.shape[0] != x.shape[0]:
        raise ValueError(
            f"a time is a scalar or has shape (B,) = ({x.shape[0]},) for a batch of shape "
            f"{tuple(x.shape)}; got shape {tuple(coefficient.shape)}"
        )
    return coefficient.reshape(-1, *(1,) * (x.ndim - 1))


def time_precision(x: Tensor) -> torch.dtype:
    """The dtype of times and steps for a state: double precision, where its device has any."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def leaf_copy(x: Tensor) -> Tensor:
    """A leaf with the values of ``x`` that a derivative can be taken at, in any autograd mode."""
    return x.detach().clone().requires_grad_()


_WAITS: ContextVar[bool] = ContextVar("waits", default=True)


@contextmanager
def without_waiting() -> Iterator[None]:
    """A block in which checks look at no numbers that are on an accelerator.

    Reading them makes the host wait until the device has finished its queue, which is too slow for
    each step of training. The training loop checks its data where they are loaded, and notices
    whatever remains by a loss that is not finite. Outside this block, as in a direct call of a
    loss, values are checked on any device. On the CPU the check is nearly free.
    """
    token = _WAITS.set(False)
    try:
        yield
    finally:
        _WAITS.reset(token)


def may_look_at(x: Tensor) -> bool:
    """Whether a check may look at the numbers of a tensor; see :func:`without_waiting`."""
    return x.device.type == "cpu" or _WAITS.get()


def check_batch(x: Tensor, event_shape: tuple[int, ...] | None = None, name: str = "x") -> None:
    """Refuse anything that is not a non-empty floating batch ``(B, *event)`` of finite numbers.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` has no batch dimension, no samples, another event shape than
            ``event_shape``, or holds NaN or infinite values.
    """
    check_floating(x, name)
    if x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"{name} is {x.dtype}, too coarse for the state of a solver: use {name}.float(); the "
            "network may stay in half precision"
        )
    check_event_shape(x, event_shape, name)
    check_not_empty(x, name)
    rows = non_finite_rows(x) if may_look_at(x) else []
    if rows:
        raise ValueError(f"{name} holds NaN or infinite values in {describe_rows(rows)}")


def check_floating(x: Tensor, name: str = "x") -> None:
    """Refuse what is not a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; use {_tensor_in(x)}"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"{name} has dtype {x.dtype}, expected a floating dtype: use {name}.float() for "
            "numbers, sm.bits_per_dim or sm.data.dequantize for images with integer levels"
        )


def _tensor_in(given: Any) -> str:
    """Where the tensor is in what was given, such as a result of sampling, or how to make one."""
    names = [name for name in ("z", "x") if isinstance(getattr(given, name, None), Tensor)]
    return f"its .{names[0]}" if names else "torch.as_tensor"


def check_event_shape(x: Tensor, event_shape: tuple[int, ...] | None, name: str = "x") -> None:
    """Refuse a batch without a batch dimension or with another event shape."""
    if x.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected (B, *event) with at least one event "
            f"dimension; for scalar events use {name}.reshape(-1, 1)"
        )
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(
            f"{name} has event shape {tuple(x.shape[1:])} (shape {tuple(x.shape)}), the model "
            f"expects {tuple(event_shape)}, that is a batch of shape "
            f"(B, {', '.join(map(str, event_shape))})"
        )


def check_not_empty(x: Tensor, name: str = "x") -> None:
    """Refuse a batch without samples, or whose samples hold no numbers."""
    if 0 in x.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: at least one sample is needed")
    if 0 in x.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, whose samples hold no numbers: each size must be "
            "1 or more"
        )


def has_finite_sum(values: Tensor) -> bool:
    """Whether the sum is finite: one quick pass, and no doubt about any entry if it is."""
    values = values.detach() if values.requires_grad else values
    return math.isfinite(values.sum().item())


def non_finite_rows(x: Tensor) -> list[int]:
    """Rows of a batch that hold NaN or infinite values."""
    if has_finite_sum(x):
        return []
    bad = ~torch.isfinite(x.detach()).reshape(x.shape[0], -1).all(dim=1)
    return [int(i) for i in bad.nonzero().flatten()]


def describe_rows(rows: list[int]) -> str:
    """Name the rows of a batch in an error, eight at most."""
    shown = ", ".join(map(str, rows[:8]))
    more = f", ... ({len(rows)} in all)" if len(rows) > 8 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more} of the batch"
