"""Work on many samples in parts that fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

SHORTAGE = (
    "out of memory",
    "not enough memory",
    "DefaultCPUAllocator",
    "_STATUS_ALLOC_FAILED",  # CUBLAS, CUDNN and CUSOLVER
)
"""Text in a RuntimeError when memory runs out, on an accelerator or on the CPU."""


class FittingParts:
    """Ranges of samples, worked on in parts that are halved where memory runs out.

    Args:
        size: Samples in a part, to begin with.
        relief: How to use less memory, for the error if a single sample does not fit.

    Attributes:
        size: Samples in a part as of now; it never grows.

    Example:
        >>> parts = FittingParts(4, "a smaller network")
        >>> parts.run(lambda first, last: (first, last), 0, 10)
        [(0, 4), (4, 8), (8, 10)]
    """

    def __init__(self, size: int, relief: str) -> None:
        self.size = size
        self.relief = relief

    def run(self, work: Callable[[int, int], Result], first: int, last: int) -> list[Result]:
        """Work on the samples from ``first`` up to ``last``, that one excluded.

        Args:
            work: Called with the first sample of a part and the one after its last.
            first: First sample.
            last: The one after the last sample.

        Returns:
            What ``work`` returned for each part, in order.

        Raises:
            torch.OutOfMemoryError: If a single sample does not fit.
        """
        results = []
        while first < last:
            end = min(first + self.size, last)
            try:
                result = work(first, end)
            except (RuntimeError, MemoryError) as error:
                known = isinstance(error, torch.OutOfMemoryError | MemoryError)
                if not (known or any(text in str(error) for text in SHORTAGE)):
                    raise
                if end - first == 1:
                    raise torch.OutOfMemoryError(
                        f"memory runs out with sample {first} alone ({error}): use {self.relief}"
                    ) from error
            else:
                results.append(result)
                first = end
                continue
            # Past the except block the error no longer holds the tensors of its frames.
            self.size = (end - first + 1) // 2
            gc.collect()
            torch.cuda.empty_cache()
        return results
