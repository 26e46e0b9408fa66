"""Random numbers from a ``torch.Generator`` (or torch's global one) only.

A generator lives on one device. Numbers are drawn there and moved, so that a CPU generator gives
the same sample on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def standard_normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw independent N(0, 1) numbers."""
    where = _drawn_on(generator, device)
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
    where = _drawn_on(generator, x.device)
    drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=where)
    return drawn.to(x.device)


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw -1 or +1 with equal probability, with the shape, dtype and device of ``x``."""
    where = _drawn_on(generator, x.device)
    bits = torch.randint(0, 2, x.shape, generator=generator, device=where)
    return (2 * bits - 1).to(dtype=x.dtype, device=x.device)


def entropy_from(generator: torch.Generator | None) -> int:
    """Draw a seed for a library that keeps its own random state."""
    where = _drawn_on(generator, None)
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


def _drawn_on(
    generator: torch.Generator | None, device: torch.device | str | None
) -> torch.device | str | None:
    own = check_generator(generator)
    return device if own is None else own.device
