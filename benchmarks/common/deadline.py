"""A time limit that stops what runs too long."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Deadline:
    """The time that is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds from now on."""
        return self.end - time.monotonic()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """A block that is interrupted when there is none left.

        Raises:
            TimeoutError: Then.
        """

        def interrupt(*_: object) -> None:
            raise TimeoutError("no time was left for it")

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
