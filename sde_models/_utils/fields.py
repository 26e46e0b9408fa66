"""Data classes of tensors that are indexed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

from torch import Tensor


class Fields:
    """Base of data classes whose fields are all tensors of the same leading shape."""

    def each(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A function of every field."""
        return type(self)(*(function(getattr(self, field.name)) for field in fields(self)))  # type: ignore[arg-type]

    def at(self, index: Any) -> Self:
        """Part of every field."""
        return self.each(lambda value: value[index])

    def put(self, index: tuple[Tensor, ...], others: Self) -> Self:
        """With others at these places."""
        return type(self)(
            *(
                getattr(self, field.name).index_put(index, getattr(others, field.name))
                for field in fields(self)  # type: ignore[arg-type]
            )
        )
