"""A make-believe device without double precision, such as Apple's, on any machine.

Its tensors live on the CPU and say that they do not. Inside :class:`NarrowDevice` every call of
torch is looked at: one that would make a float64 tensor on the device, or that mixes its tensors
with others that are not scalars, raises as the device would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps")
MOVES = ("to", "copy_", "cpu", "type_as", "__getitem__", "__setitem__", "index_put_")
"""What may be given tensors of two devices: moves, and places in a tensor."""


class Narrow(Tensor):
    """A tensor on the device."""

    device = DEVICE  # type: ignore[assignment]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class NarrowDevice(TorchFunctionMode):
    """The block in which the device exists."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


def narrow(x: Tensor) -> Tensor:
    """Put a tensor on the device."""
    return _placed(x, DEVICE, "narrow")


def wide(x: Tensor) -> Tensor:
    """Take a tensor off the device."""
    return x.as_subclass(Tensor)  # type: ignore[no-any-return]


def _call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", str(func))
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [isinstance(tensor, Narrow) for tensor in given]
    target = _target(name, args, kwargs) or (DEVICE if any(here) else None)
    mixed = any(not on and tensor.ndim for on, tensor in zip(here, given, strict=True))
    if any(here) and mixed and name not in MOVES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    with torch._C.DisableTorchFunctionSubclass():
        made = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if target is None or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):
        return made
    return tree_map(lambda leaf: _placed(leaf, target, name), made)


def _target(name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """Where a call is told to put its result; None if it is not told."""
    if name == "cpu":
        return torch.device("cpu")
    asked = [kwargs["device"]] if kwargs.get("device") is not None else []
    if name in ("to", "type_as"):
        asked += [a for a in args[1:] if isinstance(a, Tensor | torch.device | str)]
    for where in asked:
        return where.device if isinstance(where, Tensor) else torch.device(where)
    return None


def _on_cpu(leaf: Any) -> Any:
    is_here = isinstance(leaf, torch.device | str) and str(leaf) == str(DEVICE)
    return torch.device("cpu") if is_here else leaf


def _placed(leaf: Any, device: torch.device, name: str) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if device != DEVICE:
        return wide(leaf)
    if leaf.dtype == torch.float64:
        raise TypeError(f"{name}: cannot make a float64 tensor on a device that has no float64")
    return leaf.as_subclass(Narrow)
