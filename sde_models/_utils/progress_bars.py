"""Progress bars: one that moves on a terminal and in a notebook, a few lines anywhere else."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

IN_NOTEBOOK = tqdm is not tqdm_asyncio
"""Whether tqdm has found one, in which bars are widgets and not text on standard error."""
PARTS = 10


class ProgressLines(tqdm_asyncio):  # type: ignore[misc]  # tqdm is untyped
    """tqdm's bar as a line for each tenth, for log files, pipes and continuous integration.

    Where the total is not known there is a line each time the count has doubled.
    """

    disable: bool

    def __init__(self, **arguments: Any) -> None:
        self._written, self._part = -1.0, -1
        super().__init__(**arguments)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if a tenth has been passed since the last."""
        part = int(PARTS * self.n / self.total + 1e-9) if self.total else int(self.n).bit_length()
        if part > self._part:
            self._part = part
            self._write()

    def close(self) -> None:
        """Write where it ended, if that is not the last line."""
        if self.disable:
            return
        if self.n > self._written:
            self._write()
        self.disable = True
        self._decr_instances(self)

    def _write(self) -> None:
        self._written = self.n
        self.fp.write(f"{self}\n")
        self.fp.flush()


def open_bar(**arguments: Any) -> Any:
    """Open a progress bar on standard error.

    Args:
        **arguments: Those of ``tqdm.tqdm``.

    Returns:
        tqdm's bar, or :class:`ProgressLines` where standard error is no terminal.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return (tqdm if terminal or IN_NOTEBOOK else ProgressLines)(**arguments)
