"""Hashes of the content of tensors and arrays, taken some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**26
"""Bytes of a tensor that are hashed at once."""


def hash_tensors(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors, and of a text.

    Args:
        tensors: Tensors by name, of any shape and on any device.
        text: Text that enters the digest too.

    Example:
        >>> hash_tensors({"a": torch.zeros(2)}) == hash_tensors({"a": torch.zeros(3)})
        False
    """
    digest = sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        _hash_bytes(value, digest.update)
    return digest.hexdigest()


def describe_array(value: Tensor | np.ndarray) -> str:
    """Dtype, shape and SHA-256 of the bytes of a tensor or array."""
    digest = sha256()
    _hash_bytes(value, digest.update)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"tensor {dtype} of shape {tuple(value.shape)} {digest.hexdigest()}"


def _hash_bytes(value: Tensor | np.ndarray, update: Callable[[Any], object]) -> None:
    """Hash the bytes of a tensor or array, some rows at a time."""
    if isinstance(value, np.ndarray):
        for part in _in_parts(value, value.nbytes):
            update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return
    value = value.detach()
    if value.is_meta:
        return
    if value.layout != torch.strided:
        value = value.to_dense()
    for part in _in_parts(value, value.numel() * value.element_size()):
        flat = part.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        update(flat.view(torch.uint8).numpy().data)


def _in_parts(value: Any, size: int) -> Iterable[Any]:
    if value.ndim == 0 or size <= AT_ONCE:
        return [value]
    rows = max(1, AT_ONCE * len(value) // size)
    return (value[first : first + rows] for first in range(0, len(value), rows))
