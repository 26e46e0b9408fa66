"""Ctrl-C and SIGTERM, put off until a step is finished and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

PUT_OFF = (signal.SIGINT, signal.SIGTERM)


class PutOffSignals:
    """Inside the block the first signal is only noted; a second one acts as usual.

    Python lets only the main thread take signals; in others nothing is changed.

    Args:
        active: Whether to put off anything.

    Attributes:
        received: The signal, once there was one.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> PutOffSignals:
        if self.active:
            self._before = {which: signal.signal(which, self._note) for which in PUT_OFF}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def leave(self, message: str) -> None:
        """Raise the exception of the signal.

        Raises:
            KeyboardInterrupt: After Ctrl-C, or where another process has received a signal.
            SystemExit: After SIGTERM, with the usual status 143.
        """
        if self.received is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)
        self._before = {}
