"""One generator for each sample, so that a sample is the same alone and in any batch.

A single generator draws for all samples of a batch at once, and the numbers of a sample then depend
on how many others there are. With a generator of its own they do not. Solvers in which samples
leave the batch, or which look at some of them again, take the generators along with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_models._utils.randomness import check_generator, entropy_from

Source: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""What ``generator=`` takes: one for all samples, one for each, or None for torch's global one."""


class Streams(tuple[torch.Generator, ...]):
    """A generator for each row of a batch; :func:`as_source` makes it of what a user gives."""


def as_source(generator: Any, count: int) -> Source:
    """Check what was given as ``generator=``.

    Args:
        generator: A generator, a sequence of generators, or None.
        count: Number of samples.

    Returns:
        The generator, :class:`Streams` of a sequence, or None.

    Raises:
        TypeError: If it is none of these, or an entry is no generator.
        ValueError: If there is not one for each sample, or one is given twice.
    """
    if isinstance(generator, Streams):
        return generator
    if not isinstance(generator, Sequence) or isinstance(generator, str):
        return check_generator(generator)
    for i, own in enumerate(generator):
        if not isinstance(own, torch.Generator):
            raise TypeError(
                f"generator[{i}] must be a torch.Generator, got {own!r}: use "
                "[torch.Generator().manual_seed(s) for s in seeds]"
            )
    if len(generator) != count:
        raise ValueError(
            f"generator has {len(generator)} entries for a batch of {count}: give one generator "
            "for each sample, or a single one for all"
        )
    if len(set(map(id, generator))) < count:
        raise ValueError(
            "generator has the same torch.Generator twice, and two samples would share its "
            "numbers: give each sample its own, with equal seeds if they are to be equal"
        )
    return Streams(generator) or None


def independent_parts(source: Source, count: int) -> list[tuple[slice, torch.Generator | None]]:
    """The parts of a batch with a generator of their own: each sample, or all together."""
    if isinstance(source, Streams):
        return [(slice(i, i + 1), own) for i, own in enumerate(source)]
    return [(slice(0, count), check_generator(source))]


def repeatable(source: Source, count: int, device: torch.device) -> Callable[[], Source]:
    """A maker of sources that give the same numbers each time, seeded from this one.

    Args:
        source: Source of the seeds.
        count: Number of samples.
        device: Where the numbers are drawn if the source is None; else where its generators are.
    """
    parts = [own for _, own in independent_parts(source, count)]
    seeded = [(device if own is None else own.device, entropy_from(own)) for own in parts]

    def make() -> Source:
        made = [torch.Generator(where).manual_seed(seed) for where, seed in seeded]
        return Streams(made) if isinstance(source, Streams) else made[0]

    return make


def of_some_rows(source: Source, rows: Tensor) -> Source:
    """The source for some rows of a batch, which may repeat."""
    if isinstance(source, Streams):
        return Streams(source[i] for i in rows.tolist())
    return source
