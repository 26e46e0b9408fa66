"""Conditions: what a network is given besides (t, x), with a row for each sample or shared by all.

A tensor, array or list has one row for each sample, or a single one that all share. Numbers,
strings, None and tensors without dimensions are shared. Mappings hold any of these. Whatever else
all samples share is bound to the model. Which of the two a condition is follows from the batch that
it is given with, once: parts of that batch never look at a length again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

Place = tuple[str, ...]
"""Names that lead to a condition, of which there are several in mappings of mappings."""

Rows = Tensor | slice


class Conditions(dict[str, Any]):
    """Conditions of a batch by name, and which of them have a row for each sample.

    Args:
        values: The conditions by name.
        per_sample: Places of the conditions that have a row for each sample.
        count: Number of samples.

    Attributes:
        repeatable: Whether samples may be repeated in a batch. False for a single sample with
            tensors of one row: the row may belong to the sample or be shared.
    """

    def __init__(
        self, values: Mapping[str, Any], per_sample: frozenset[Place], count: int, repeatable: bool
    ) -> None:
        super().__init__(values)
        self.per_sample, self.count, self.repeatable = per_sample, count, repeatable

    def take(self, rows: Rows) -> Conditions:
        """Conditions of some samples, in any order and number.

        Args:
            rows: Their indices, shape ``(n,)``, or a slice.
        """
        count = len(rows) if isinstance(rows, Tensor) else len(range(*rows.indices(self.count)))

        def part(place: Place, value: Any) -> Any:
            return _rows_of(value, rows) if place in self.per_sample else value

        return self._with(_each(self, part), count)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        """The same with a function of each tensor, such as one that moves it to a device."""

        def result(place: Place, value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        return self._with(_each(self, result), self.count)

    def _with(self, values: Mapping[str, Any], count: int) -> Conditions:
        return Conditions(values, self.per_sample, count, self.repeatable)


def as_conditions(cond: Mapping[str, Any] | None, count: int, device: Any = None) -> Conditions:
    """Conditions of a batch, each with a row for each sample or shared.

    Args:
        cond: Conditions by name, or None; ``Conditions`` are returned unchanged.
        count: Number of samples.
        device: Device of the tensors that are made from arrays and lists of numbers.

    Raises:
        TypeError: If they are not given by name, or one is of a kind that has no rows.
        ValueError: If one has neither a row for each sample nor a single one, or a name that every
            network has already.

    Example:
        >>> found = as_conditions({"label": [3, 1, 4], "scale": 2.0}, 3)
        >>> found.take(torch.tensor([2, 2]))
        {'label': tensor([4, 4]), 'scale': 2.0}
    """
    if isinstance(cond, Conditions) and cond.count == count:
        return cond
    values = _each(by_name(cond), lambda place, value: _as_value(place, value, device))
    rows = {place: value for place, value in _leaves(values) if _has_rows(value)}
    for place, value in rows.items():
        if len(value) not in (1, count):
            raise ValueError(_wrong_length(place, value, count))
    own = frozenset(place for place, value in rows.items() if len(value) == count != 1)
    return Conditions(values, own, count, count != 1 or not rows)


def by_name(cond: Any) -> Mapping[str, Any]:
    """Return conditions; refuse what is not given by name, and names that every network has.

    Args:
        cond: Conditions by name; None for none.

    Raises:
        TypeError: If they are not given by name.
        ValueError: For the names of the arguments of every network: self, t and x.
    """
    if cond is None:
        return {}
    if not isinstance(cond, Mapping):
        raise TypeError(
            f"cond must be a dictionary such as {{'label': labels}}, got {type(cond).__name__}"
        )
    for name in cond:
        if not isinstance(name, str):
            raise TypeError(f"cond must have names as keys, got {name!r}")
        if name in ("self", "t", "x"):
            raise ValueError(
                f"a condition cannot be named {name!r}, which every network has as an argument "
                "already: use another name"
            )
    return cond


def find_tensors(cond: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """The tensors in conditions with their places, also in whatever :func:`copied` looks into."""
    return [found for name, value in cond.items() for found in _tensors_in(value, name)]


def _tensors_in(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
    for key, part in parts:
        yield from _tensors_in(part, f"{place}[{key!r}]")


def stack_conditions(conds: Sequence[Mapping[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    """Conditions of a batch from those of each of its samples.

    Numbers, arrays, tensors, and lists and tuples of numbers become rows of a tensor, anything else
    entries of a list; None of every sample stays None.

    Args:
        conds: Conditions of each sample, by name.
        dtype: Of the floating ones.

    Raises:
        ValueError: If samples have other names, or rows of other shapes, than the first.

    Example:
        >>> stack_conditions([{"w": [0, 10], "text": "a"}, {"w": [1, 11], "text": "b"}], torch.half)
        {'w': tensor([[ 0, 10],
                [ 1, 11]]), 'text': ['a', 'b']}
    """
    leaves = [dict(_leaves(cond)) for cond in conds]

    def stacked(place: Place, _: Any) -> Any:
        rows = [_as_row(each[place]) for each in leaves]
        if not any(isinstance(row, Tensor) for row in rows):
            return None if all(row is None for row in rows) else rows
        kinds = [tuple(row.shape) if isinstance(row, Tensor) else type(row) for row in rows]
        if len(set(kinds)) > 1:
            other = next(kind for kind in kinds if kind != kinds[0])
            raise ValueError(
                f"cond[{_spell(place)}] of the samples of a batch has shapes {kinds[0]} and "
                f"{other}; expected the same for every sample: pad them, or leave None out"
            )
        batch = torch.stack(rows)
        return batch.to(dtype) if batch.is_floating_point() else batch

    for each in leaves:
        if each.keys() != leaves[0].keys():
            names = [", ".join(map(_spell, found)) or "none" for found in (leaves[0], each)]
            raise ValueError(
                f"the samples of a batch have different conditions, {names[0]} and {names[1]}: "
                "give every sample the same names"
            )
    return _each(conds[0], stacked)


def _as_row(value: Any) -> Any:
    """The condition of one sample as a tensor, if it holds numbers."""
    if isinstance(value, list | tuple | np.ndarray | Number | np.generic):
        try:
            array = np.array(value, order="C")  # of strides that torch takes
        except ValueError:  # ragged
            return value
        return torch.as_tensor(array) if array.dtype.kind in "biufc" else value
    return value


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)


def _as_value(place: Place, value: Any, device: Any) -> Any:
    """A condition as a tensor, a list, or something that is shared."""
    if isinstance(value, Tensor):
        return leave_inference_mode(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biufc":
            backwards = any(stride < 0 for stride in value.strides)  # torch has no such tensors
            return _numbers(place, value.copy() if backwards else value, device)
        return value.tolist()
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return _numbers(place, value, device) if _are_numbers(value) else list(value)
    if value is None or isinstance(value, str | bytes | Number | np.generic):
        return value
    raise TypeError(
        f"cond[{_spell(place)}] is a {type(value).__name__}; expected a tensor, array or list with "
        f"a row for each sample, a number, a string or None. If all samples share it, use "
        f"model.bind({place[0]}=...)"
    )


def _numbers(place: Place, value: Any, device: Any) -> Tensor:
    """An array, or a list of numbers and lists, as a tensor."""
    try:
        make = torch.as_tensor if isinstance(value, np.ndarray) else torch.tensor
        return make(value, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        listed = f"a {type(value).__name__} that begins with {value[0]!r:.40}"
        given = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else listed
        raise ValueError(
            f"cond[{_spell(place)}] is {given}, of which torch makes no tensor: {error}. Expected "
            "are numbers in rows of equal length; strings or tensors may be listed one for each "
            "sample"
        ) from error


def _are_numbers(value: Any) -> bool:
    """Whether a list holds numbers, or lists of them, and nothing else."""
    if not isinstance(value, list | tuple):
        return isinstance(value, Number)
    return bool(value) and all(map(_are_numbers, value))


def _wrong_length(place: Place, value: Any, count: int) -> str:
    given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"length {len(value)}"
    return (
        f"cond[{_spell(place)}] has {given} for {count} sample{'s' * (count != 1)}: give it a row "
        f"for each sample or a first dimension of 1, or use model.bind({place[0]}=...) if all "
        "samples share it"
    )


def _spell(place: Place) -> str:
    return "][".join(map(repr, place))


def _rows_of(value: Any, rows: Rows) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
    return [value[i] for i in rows.tolist()] if isinstance(rows, Tensor) else value[rows]


def _each(
    cond: Mapping[str, Any], function: Callable[[Place, Any], Any], place: Place = ()
) -> dict[str, Any]:
    """Conditions with a function of each, also of those in mappings."""
    return {
        name: _each(value, function, (*place, name))
        if isinstance(value, Mapping)
        else function((*place, name), value)
        for name, value in cond.items()
    }


def _leaves(cond: Mapping[str, Any], place: Place = ()) -> list[tuple[Place, Any]]:
    found: list[tuple[Place, Any]] = []
    for name, value in cond.items():
        inner = (*place, name)
        found += _leaves(value, inner) if isinstance(value, Mapping) else [(inner, value)]
    return found


def leave_inference_mode(value: Any) -> Any:
    """A tensor made in inference mode as one that autograd can take; anything else as it is."""
    if not (isinstance(value, Tensor) and value.is_inference()):
        return value
    with torch.inference_mode(False):
        return value.clone()


def copied(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Tensors and arrays copied, also those in mappings, lists, tuples and dataclasses, which stay
    of their class; anything else as it is. Floating tensors get the dtype, if one is given.
    """

    def copy_of(entry: Any) -> Any:
        return copied(entry, dtype)

    if isinstance(value, Tensor):
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (dict, Conditions):
        return {key: copy_of(entry) for key, entry in value.items()}
    other: Any
    if isinstance(value, MutableMapping):
        other = copy(value)
        other.update({key: copy_of(entry) for key, entry in value.items()})
        return other
    if is_dataclass(value) and not isinstance(value, type):
        other = copy(value)
        for field in fields(value):
            object.__setattr__(other, field.name, copy_of(getattr(value, field.name)))
        return other
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copy_of, value))
    return type(value)(map(copy_of, value)) if type(value) in (list, tuple) else value
