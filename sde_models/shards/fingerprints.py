"""Settings of results as short text that can be stored and compared.

Text stands for content: it is the same for the same value built anew, in another process and on
another device, and it differs where the content differs, in a single bit of a tensor too.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from enum import Enum
from functools import cached_property
from hashlib import sha256
from inspect import getattr_static
from itertools import takewhile
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property
from torch.utils.data import Subset, TensorDataset

from sde_models._utils.integers import check_integer
from sde_models._utils.seeds import global_seed
from sde_models.models.base import Model
from sde_models.shards.tensor_hashes import describe_array

LONGEST = 200
"""Characters of a description from which on it is hashed."""

ITEMS = 64
"""Items of a dataset that are compared at most."""

MOST_DIFFERENCES, LONGEST_DIFFERENCE = 5, 100
"""Settings that an error lists at most, and their characters, if their names are short."""

OPAQUE = (
    torch.Generator, random.Random,
    np.random.Generator, np.random.RandomState, np.random.BitGenerator,
)  # fmt: skip
"""What changes with every number that it draws."""

INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_is_torch_compile"}
"""Attributes of torch's own: hooks, the training flag, and the tensors and modules by name."""

PLAIN: tuple[type[Any], ...] = (bool, int, float, complex, str)

CPU = torch.device("cpu")


def describe(value: Any, *, trained: bool = True) -> str:
    """Describe any value by its content.

    Numbers, text and enumerations are described by value; tensors and arrays by dtype, shape and
    bytes; collections by their entries, mappings in any order; modules by class, tensors and plain
    attributes; functions by name, code, defaults and what they enclose; other objects by class and
    by what :mod:`pickle` would keep of them. What cannot be pickled, a lock for example, and
    generators are described by class. Attributes that a class names in ``described_apart`` are
    left out: those that change with use, such as a counter of calls.

    The code of classes and of this library is not compared, nor are global variables of functions.

    Args:
        value: The value.
        trained: Whether to compare what training changes, the parameters and buffers of modules, by
            content. Otherwise they are compared by dtype and shape.

    Example:
        >>> describe({"solver": "adams-batch", "intervals": 32})
        "{'intervals': 32, 'solver': 'adams-batch'}"
        >>> describe(torch.ones(2)) == describe(torch.tensor([1.0, 1.0000001]))
        False
    """
    return _Description(trained)(value)


def describe_module(name: str, module: nn.Module, *, trained: bool = True) -> dict[str, str]:
    """Describe a module and those directly in it entry by entry, so that a difference has a name.

    Args:
        name: Name of the module.
        module: The module.
        trained: As for :func:`describe`.

    Example:
        >>> found = describe_module("sde", sm.VPSDE(data_std=0.5))
        >>> found["sde"], found["sde.data_std"]
        ('sde_models.VPSDE', '0.5')
    """
    description = _Description(trained)

    def entries(name: str, module: nn.Module, depth: int) -> Iterator[tuple[str, str]]:
        module = _unwrap(module)
        yield name, _name(type(module))
        for key, entry in description.entries_of(module).items():
            if depth and isinstance(entry, nn.Module):
                yield from entries(f"{name}.{key}", entry, depth - 1)
            else:
                yield f"{name}.{key}", description(entry)

    return dict(entries(name, module, 1))


def describe_data(data: Any) -> str:
    """Describe a dataset, or a function that draws data.

    Tensors, arrays, a ``TensorDataset`` and shards are compared in full. Of another dataset are
    compared the class, the length and at most 64 items: the first, the last, and others evenly
    between; items that differ when they are read again with the same seed are not.

    Example:
        >>> describe_data(torch.zeros(3)) == describe_data(torch.ones(3))
        False
    """
    if isinstance(data, Subset):
        return describe([describe_data(data.dataset), data.indices])
    if isinstance(data, TensorDataset):
        return describe(data.tensors)
    if hasattr(data, "describe_content"):
        return str(data.describe_content())
    listed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, Tensor | np.ndarray) or not listed:
        return describe(data)
    length = len(data)
    count = min(length, ITEMS)
    places = [k * (length - 1) // max(1, count - 1) for k in range(count)]
    items, again = ([_describe_item(data, k) for k in places] for _ in range(2))
    content = sha256(" ".join(items).encode()).hexdigest() if items == again else "drawn anew"
    return f"{_name(type(data))} of length {length} {content}"


def describe_levels(levels: int | None, model: Model) -> dict[str, str | int | None]:
    """The number of levels as a setting, and with it the range of a model that has one."""
    if levels is None:
        return {"levels": None}
    spread = {} if model.data_range is None else {"data_range": str(model.data_range)}
    return {"levels": check_integer("levels", levels, least=2), **spread}


def list_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings that differ, with both values: the first few, each in half a line.

    Example:
        >>> list_differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        ['b: 2 there, 3 now']
    """
    lines: list[tuple[bool, str]] = []
    for name in sorted({*there, *now}):
        if name in there and name in now and there[name] == now[name]:
            continue
        full = [str(run.get(name, "not given")) for run in (there, now)]
        short = [re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", value) for value in full]
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*short, strict=False))))
        room = max(24, (LONGEST_DIFFERENCE - len(f"{name}:  there,  now")) // 2)
        shown = [_cut(value, room, same) for value in short]
        lines.append((shown != full, f"{name}: {shown[0]} there, {shown[1]} now"))
    lines.sort(key=lambda line: line[0])  # those that can be read in full come first
    more = len(lines) - MOST_DIFFERENCES
    return [text for _, text in lines[:MOST_DIFFERENCES]] + [f"and {more} more"] * (more > 0)


def _cut(value: str, room: int, same: int) -> str:
    """A long value as its start and the word at which it differs, after ``same`` characters."""
    if len(value) <= room:
        return value
    head = room - 12
    start = max(head, value.rfind(" ", 0, same) + 1, same - 4)
    return f"{value[:head]}...{value[start : start + 9]}"


class _Description:
    """Text of values; what is met again has the text of before, also within itself."""

    def __init__(self, trained: bool) -> None:
        self.trained = trained
        self.known: dict[int, tuple[Any, str]] = {}  # with the value, so that its id is not reused

    def __call__(self, value: Any) -> str:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Enum):
            return f"{_name(type(value))}.{value.name}"
        for kind in PLAIN:
            if isinstance(value, kind):
                return repr(kind(value))
        if value is None:
            return "None"
        if isinstance(value, bytes | bytearray):
            return f"bytes {sha256(value).hexdigest()}"
        value = _unwrap(value)
        if id(value) not in self.known:
            self.known[id(value)] = value, f"{_name(type(value))} within itself"
            self.known[id(value)] = value, self._shortened(value)
        return self.known[id(value)][1]

    def entries_of(self, module: nn.Module) -> dict[str, Any]:
        """Tensors, modules and plain attributes of a module, by name."""
        plain = _without_caches(module, vars(module))
        tensors = {
            name: entry if self.trained else _kind(entry)
            for named in (module.named_parameters, module.named_buffers)
            for name, entry in named(recurse=False, remove_duplicate=False)
        }
        kept = {name: entry for name, entry in plain.items() if name not in INTERNAL}
        return kept | tensors | dict(module._modules)

    def _shortened(self, value: Any) -> str:
        text = self._text(value)
        if len(text) <= LONGEST:
            return text
        return f"{_name(type(value))} {sha256(text.encode()).hexdigest()}"

    def _text(self, value: Any) -> str:
        if isinstance(value, Tensor):
            fixed = self.trained or not value.requires_grad
            return describe_array(value) if fixed else _kind(value)
        if isinstance(value, np.ndarray):
            return self(value.tolist()) if value.dtype.hasobject else describe_array(value)
        if isinstance(value, nn.Module):
            # In their order, in which a Sequential calls them.
            parts = (f"{name!r}: {self(part)}" for name, part in self.entries_of(value).items())
            return _name(type(value)) + self._joined(parts)
        if isinstance(value, Mapping):
            return self._joined(sorted(f"{self(key)}: {self(part)}" for key, part in value.items()))
        if isinstance(value, list | tuple | deque):
            kind = _name(type(value)) if hasattr(value, "_fields") else ""
            return f"{kind}[{', '.join(map(self, value))}]"
        if isinstance(value, Set):
            return "set " + self._joined(sorted(map(self, value)))
        if isinstance(value, type | ModuleType):
            return _name(value)
        if isinstance(value, CodeType):
            return "code" + self([value.co_code, value.co_names, value.co_consts])
        if isinstance(value, FunctionType):
            return _name(value) + self._joined(self._parts_of_function(value))
        return self._text_of_object(value)

    def _parts_of_function(self, function: FunctionType) -> Iterable[str]:
        if not _is_ours(function):  # a run may go on with its next version
            yield self(function.__code__)
        yield self(function.__defaults__)
        yield self(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield self(cell.cell_contents)
            except ValueError:
                yield "empty"

    def _text_of_object(self, value: Any) -> str:
        name = _name(type(value))
        if isinstance(value, OPAQUE):
            return name
        if isinstance(value, Distribution | Transform):
            return name + self(_state_of_torch(value))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # locks, open files and others that exist in one process only
            return name
        if isinstance(reduced, str):
            return f"{name} {reduced}"
        function, arguments, state, *items = (*reduced, None, None, None)[:5]
        if isinstance(state, dict):
            state = _without_caches(value, state)
        made = [entry for entry in (function, *arguments) if not _is_of(entry, type(value))]
        filled = [None if entries is None else list(entries) for entries in items]
        rest = [
            part for part in (made, state, *filled)
            if not (part is None or (isinstance(part, list | dict) and not part))
        ]  # fmt: skip
        return f"{name}({', '.join(map(self, rest))})"

    @staticmethod
    def _joined(parts: Iterable[str]) -> str:
        return "{" + ", ".join(parts) + "}"


def _kind(value: Tensor) -> str:
    fixed = "" if value.requires_grad else ", fixed"
    return f"{value.dtype} of shape {tuple(value.shape)}{fixed}"


def _unwrap(value: Any) -> Any:
    """What torch.compile was given."""
    if isinstance(value, nn.Module):
        return getattr(value, "_orig_mod", value)
    if isinstance(value, FunctionType):
        return getattr(value, "_torchdynamo_orig_callable", value)
    return value


def _is_ours(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] == __name__.partition(".")[0]


def _is_of(entry: Any, kind: type) -> bool:
    """Whether an entry of what pickle keeps says no more than the class of the object."""
    return entry is kind or getattr(entry, "__module__", None) == "copyreg"


def _name(thing: Any) -> str:
    """Name of a class, function or module, the same where a main program runs in workers."""
    if isinstance(thing, ModuleType):
        return thing.__name__
    module = str(thing.__module__).replace("__mp_main__", "__main__")
    if module == "builtins":
        return str(thing.__qualname__)
    # Files of this library may move.
    return f"{module.partition('.')[0] if _is_ours(thing) else module}.{thing.__qualname__}"


def _without_caches(value: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of an object, except those that change with use."""
    kind = type(value)
    apart = getattr(kind, "described_apart", ())
    return {
        name: entry
        for name, entry in state.items()
        if not (name in apart or isinstance(getattr_static(kind, name, None), cached_property))
    }


def _state_of_torch(value: Distribution | Transform) -> dict[str, Any]:
    """Attributes of a distribution or transform, whose caches are those before any use."""
    kept = {name: entry for name, entry in vars(value).items() if name != "_cached_x_y"}
    if isinstance(value, Transform):
        if not isinstance(value, _InverseTransform):  # which is made of it
            kept.pop("_inv", None)
        return kept
    lazy = {
        name
        for kind in type(value).__mro__
        for name, entry in vars(kind).items()
        if isinstance(entry, lazy_property)
    }
    given = lazy & value.arg_constraints.keys()
    kept = {name: entry for name, entry in kept.items() if name not in lazy}
    return kept | {name: getattr(value, name) for name in given}


def _describe_item(data: Any, index: int) -> str:
    with global_seed(0, CPU):
        item = data[index]
    return describe(item)
