"""The progress bar of a solve."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sde_models._utils.counting import Cost
from sde_models._utils.progress_bars import open_bar
from sde_models.sdes.system import System
from sde_models.solvers.clocks import has_gaussian_clock


class SolveProgress:
    """A bar that shows the share of the work that is done.

    Each fixed step counts the same, whatever the grid. Adaptive steps are spread nearly evenly over
    the log-SNR, which is the measure where there is one; elsewhere it is t.

    Args:
        system: The equation.
        times: Nodes of the solve; only the first and last for an adaptive solver.
    """

    def __init__(self, system: System, times: Tensor) -> None:
        self._system = system
        self._range = float(times.min()), float(times.max())
        self._gaussian = has_gaussian_clock(system)
        nodes = self._read(times)
        if not np.isfinite(nodes).all():
            self._gaussian, nodes = False, times.numpy()
        self._sign = math.copysign(1, nodes[-1] - nodes[0])
        self._nodes, self._shares = self._sign * nodes, np.linspace(0, 100, len(nodes))
        self._bar = open_bar(
            total=100.0, unit="%", bar_format="solve {percentage:3.0f}%|{bar}|{postfix}"
        )

    def reach(self, t: float, cost: Cost) -> None:
        """Move to time ``t``, that of the least advanced sample where each has its own."""
        at = self._sign * self._read(torch.tensor([t], dtype=torch.float64).clamp(*self._range))
        self._bar.set_postfix_str(f"t={t:.3g}, {cost}", refresh=False)
        share = float(np.interp(at, self._nodes, self._shares)[0])
        self._bar.update(max(0.0, share - self._bar.n))

    def complete(self) -> None:
        """Move to the end, if rounding has left anything."""
        left = 100.0 - self._bar.n
        if left > 0:
            self._bar.update(left)

    def close(self) -> None:
        """Close the bar where it is."""
        self._bar.close()

    @torch.no_grad()
    def _read(self, t: Tensor) -> np.ndarray:
        """The clock at some times."""
        if not self._gaussian:
            return t.numpy()
        sde = self._system.sde
        values: np.ndarray = sde.log_snr(sde.times(t)).to("cpu", torch.float64).numpy()
        return values
