"""Random numbers from a ``torch.Generator`` (or torch's global one) only, or from one per sample.

A generator lives on one device. Numbers are drawn there and moved, so that a CPU generator gives
the same sample on every device.

A single generator draws for all samples of a batch at once, and the numbers of a sample then depend
on how many others there are. With a generator of its own they do not. Solvers in which samples
leave the batch, or which look at some of them again, take the generators along with the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Source: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""What ``generator=`` takes: one for all samples, one for each, or None for torch's global one."""


class Streams(tuple[torch.Generator, ...]):
    """A generator for each row of a batch; :func:`as_source` makes it of what a user gives."""


def drawn_on(
    generator: torch.Generator | None, device: torch.device | str | None
) -> torch.device | str | None:
    """The device where numbers are drawn: that of a generator, or without one that given."""
    own = check_generator(generator)
    return device if own is None else own.device


def standard_normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw independent N(0, 1) numbers."""
    where = drawn_on(generator, device)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=where).to(device)


def standard_normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw N(0, 1) numbers with the shape, dtype and device of ``x``."""
    return standard_normal(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def sphere_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions of length sqrt(D), uniform over the sphere, along the last dimension."""
    drawn = standard_normal_like(x, generator)
    lengths = torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
    return drawn * (math.sqrt(x.shape[-1]) / lengths)


def uniform_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw numbers uniform on [0, 1) with the shape, dtype and device of ``x``."""
    where = drawn_on(generator, x.device)
    drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=where)
    return drawn.to(x.device)


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw -1 or +1 with equal probability, with the shape, dtype and device of ``x``."""
    where = drawn_on(generator, x.device)
    bits = torch.randint(0, 2, x.shape, generator=generator, device=where)
    return (2 * bits - 1).to(dtype=x.dtype, device=x.device)


def entropy_from(generator: torch.Generator | None) -> int:
    """Draw a seed for a library that keeps its own random state."""
    where = drawn_on(generator, None)
    return int(torch.randint(0, 2**62, (), generator=generator, device=where).item())


def check_generator(generator: Any) -> torch.Generator | None:
    """Return a generator, or None; refuse what is neither."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, list | tuple):
        raise TypeError(
            f"generator must be a single torch.Generator here, got a {type(generator).__name__} of "
            f"{len(generator)}: one for each sample is for sm.sample, sm.solve, sm.log_prob and "
            "sm.bits_per_dim"
        )
    raise TypeError(
        f"generator must be a torch.Generator, got {generator!r}: use "
        "torch.Generator().manual_seed(0)"
    )


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
