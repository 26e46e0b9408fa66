"""Settings of results as short text that can be stored and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from sde_models._utils.integers import check_integer
from sde_models.models.base import Model


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
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(value: Any) -> str:
    """Describe a setting, identically in every process; tensors and modules by their contents.

    Example:
        >>> describe({"solver": "adams-batch", "intervals": 32})
        "{'solver': 'adams-batch', 'intervals': 32}"
    """
    if isinstance(value, nn.Module):
        tensors = dict(value.named_parameters()) | dict(value.named_buffers())
        return f"{type(value).__name__} {hash_tensors(tensors, _without_addresses(value))}"
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)} {hash_tensors({'': value})}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe, value)) + "]"
    return _without_addresses(value)


def describe_levels(levels: int | None, model: Model) -> dict[str, str | int | None]:
    """The number of levels as a setting, and with it the range of a model that has one."""
    if levels is None:
        return {"levels": None}
    spread = {} if model.data_range is None else {"data_range": str(model.data_range)}
    return {"levels": check_integer("levels", levels, least=2), **spread}


def list_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings that differ, with both values.

    Example:
        >>> list_differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        ['b: 2 there, 3 now']
    """
    return [
        f"{name}: {there.get(name, 'not given')} there, {now.get(name, 'not given')} now"
        for name in sorted({*there, *now})
        if name not in there or name not in now or there[name] != now[name]
    ]


def _without_addresses(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
