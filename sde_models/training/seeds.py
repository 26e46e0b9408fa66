"""Random numbers that follow from a seed and a place in the run, and from no history.

A run that is stopped and resumed, or spread over another number of processes, draws the same.
"""

from __future__ import annotations

from hashlib import sha256

import torch


def seed_at(seed: int, *place: int | str) -> int:
    """Mix a seed and a place into a new seed.

    Args:
        seed: Seed of the run.
        *place: What tells this use of random numbers from all others, such as a step.

    Example:
        >>> seed_at(0, "order", 7) == seed_at(0, "order", 7), seed_at(0, 1) == seed_at(1, 0)
        (True, False)
    """
    mixed = sha256(" ".join(map(str, (seed, *place))).encode()).digest()
    return int.from_bytes(mixed[:8], "big") >> 1


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """A generator on the CPU for one place; arguments as in :func:`seed_at`."""
    return torch.Generator().manual_seed(seed_at(seed, *place))
