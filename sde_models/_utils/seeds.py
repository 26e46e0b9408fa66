"""Random numbers that follow from a seed and a place in the work, and from no history.

Work that is stopped and resumed, or spread over another number of processes, draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import torch


def seed_at(seed: int, *place: int | str) -> int:
    """Mix a seed and a place into a new seed.

    Args:
        seed: Seed of all the work.
        *place: What distinguishes this use of random numbers from all others, such as a step, or
            the index of the first sample of a batch.

    Example:
        >>> seed_at(0, "order", 7) == seed_at(0, "order", 7), seed_at(0, 1) == seed_at(1, 0)
        (True, False)
    """
    mixed = sha256(" ".join(map(str, (seed, *place))).encode()).digest()
    return int.from_bytes(mixed[:8], "big") >> 1


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """A generator on the CPU, which gives the same numbers on every device, for one place.

    Arguments as in :func:`seed_at`.
    """
    return torch.Generator().manual_seed(seed_at(seed, *place))


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python; afterwards they are as before.

    Args:
        seed: What all of them follow from.
        device: Whose generator is seeded besides that of the CPU.

    Example:
        >>> before = torch.get_rng_state()
        >>> with global_seed(1, torch.device("cpu")):
        ...     drawn = torch.rand(())
        >>> bool(drawn == torch.rand((), generator=torch.Generator().manual_seed(1)))
        True
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002, what others draw from
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":  # this one alone: torch.manual_seed changes all there are
                torch.cuda.default_generators[device.index].manual_seed(seed)
            elif device.type != "cpu":
                torch.get_device_module(device).manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
