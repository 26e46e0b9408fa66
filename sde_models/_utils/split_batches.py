"""Random numbers for a part of a batch that do not depend on how the batch was cut.

A batch may be split over processes and over the steps of an accumulation. Numbers with one row for
each sample are drawn for the full batch, identically in every part, and each part takes its own
rows; results that parts report for their rows are pooled when the batch is done. So the split
changes rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_models._utils.randomness import Source, independent_parts

Drawn = TypeVar("Drawn", Tensor, Tensor | None)


class RowGenerator(torch.Generator):
    """The generator that a loss is given for some rows of a batch.

    :func:`draw_rows` takes the rows of this part from what is drawn for the whole batch. To all
    others it is a plain generator, with numbers of this part alone.

    Args:
        device: Where numbers are drawn.

    Attributes:
        whole: Source of the numbers of the whole batch.
        size: Samples in the whole batch.
        rows: Those of this part.

    Example:
        >>> generator = RowGenerator("cpu")
        >>> from sde_models._utils.randomness import standard_normal_like
        >>> halves = []
        >>> for rows in (slice(0, 2), slice(2, 4)):
        ...     generator.begin(rows, 4, seed=0, seed_of_part=1 + rows.start)
        ...     halves.append(draw_rows(standard_normal_like, torch.zeros(2, 3), generator))
        >>> whole = standard_normal_like(torch.zeros(4, 3), torch.Generator().manual_seed(0))
        >>> torch.equal(torch.cat(halves), whole)
        True
    """

    def __init__(self, device: torch.device | str) -> None:
        self.whole = torch.Generator(device)
        self.size, self.rows = 0, slice(0, 0)
        self._pooled: list[tuple[Callable[[Tensor], None], Tensor]] = []
        self._place = 0

    def begin(self, rows: slice, size: int, *, seed: int, seed_of_part: int) -> None:
        """Begin a part.

        Args:
            rows: Its rows of the batch.
            size: Samples in the batch.
            seed: Seed of the batch.
            seed_of_part: Another for what this part draws alone.
        """
        self.rows, self.size, self._place = rows, size, 0
        self.whole.manual_seed(seed)
        self.manual_seed(seed_of_part)

    def covers(self, x: Tensor) -> bool:
        """Whether ``x`` has the rows of this part, as a loss has that looks at all its data."""
        return len(x) == self.rows.stop - self.rows.start

    def pool(self, rows: Tensor, take: Callable[[Tensor], None]) -> None:
        """Keep rows ``(k, b)`` of this part; each part does the same in the same order."""
        if self._place == len(self._pooled):
            self._pooled.append((take, rows.new_zeros(len(rows), self.size)))
        self._pooled[self._place][1][:, self.rows] = rows
        self._place += 1

    def finish(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Pass on the rows that all parts have kept, when the batch is done.

        Args:
            add_up: Sum over the processes, each of which holds zeros for the rows of others.
        """
        pooled, self._pooled = self._pooled, []
        for take, rows in pooled:
            take(add_up(rows))


def draw_rows(
    draw: Callable[[Tensor, torch.Generator | None], Drawn],
    like: Tensor,
    generator: Source,
    dim: int = 0,
) -> Drawn:
    """Draw numbers with one row for each sample.

    Args:
        draw: Draws for a batch, called as ``draw(like, generator)``; it may return None.
        like: The samples, shape ``(B, *event)``.
        generator: Source of randomness. With a :class:`RowGenerator` of which these are the rows
            numbers are drawn for the whole batch; with one for each sample (``Streams``) each
            sample draws from its own.
        dim: The dimension of what is drawn that counts the samples.
    """
    if isinstance(generator, RowGenerator) and generator.covers(like):
        drawn = draw(like[:1].expand(generator.size, *like.shape[1:]), generator.whole)
        if drawn is None:
            return drawn
        return drawn.narrow(dim, generator.rows.start, len(like))
    parts: Any = [draw(like[rows], own) for rows, own in independent_parts(generator, len(like))]
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(parts, dim)


def pool_rows(
    rows: Tensor, generator: torch.Generator | None, take: Callable[[Tensor], None]
) -> None:
    """Call a function with rows ``(k, B)``: those of all parts, once the full batch is done.

    Without a :class:`RowGenerator` of which they are the rows they are complete, and given
    at once.
    """
    if isinstance(generator, RowGenerator) and generator.covers(rows.T):
        generator.pool(rows, take)
    else:
        take(rows)
