"""What a solver is handed: the equation, the nodes, the tolerances, and a recorder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sde_models._shapes import describe_rows, non_finite_rows
from sde_models.base_systems import System
from sde_models.counting import Evaluations
from sde_models.errors import NonFiniteError, StepLimitError


@dataclass(frozen=True)
class Solution:
    """What a solve gives back.

    Attributes:
        x: State at the end of the span, shape ``(B, *event)``.
        nfe: Network forward passes, each on the whole batch. A forward SDE has no network: 0.
        accepted: Steps taken.
        rejected: Steps tried and thrown away by an adaptive solver; None where the library that
            ran it does not tell.
        times: Times of the saved states, shape ``(T,)``; None unless ``path`` was asked for.
        path: Saved states, shape ``(T, B, *event)``; None unless ``path`` was asked for.
    """

    x: Tensor
    nfe: int
    accepted: int
    rejected: int | None
    times: Tensor | None = None
    path: Tensor | None = None


class Recorder:
    """Counts steps, keeps the path, moves the progress bar and ends a solve that is too long.

    Args:
        times: Nodes of the solve; only the first and last for an adaptive solver.
        save_all: Keep the state at every step.
        save_at: Keep the state at these times.
        max_steps: Cap on tried steps, or None.
        progress: Show a bar.
        cost: Counter that the evaluations of this solve go into.
    """

    def __init__(
        self,
        times: Tensor,
        *,
        save_all: bool,
        save_at: Tensor | None,
        max_steps: int | None,
        progress: bool,
        cost: Evaluations,
    ) -> None:
        self.accepted = 0
        self.rejected: int | None = 0
        self.save_all = save_all
        self.save_at = save_at
        self.cost = cost
        self._max_steps = max_steps
        self._saved: list[tuple[float, Tensor]] = []
        self._start, self._end = float(times[0]), float(times[-1])
        self._bar = (
            tqdm(total=100.0, unit="%", bar_format="solve {percentage:3.0f}%|{bar}| {postfix}")
            if progress
            else None
        )

    def wants(self, t: float) -> bool:
        """Whether the state at this node is to be kept."""
        if self.save_all:
            return True
        return self.save_at is not None and bool((self.save_at == t).any())

    def save(self, t: float, x: Tensor) -> None:
        """Keep a state."""
        self._saved.append((t, x))

    def accept(self, t: float) -> None:
        """Note a step that ended at ``t``."""
        self.accepted += 1
        if self._bar is not None:
            done = 100 * (t - self._start) / (self._end - self._start)
            self._bar.set_postfix_str(f"t={t:.3g}, {self.cost.nfe} evaluations", refresh=False)
            self._bar.update(max(0.0, min(done, 100.0) - self._bar.n))

    def reject(self) -> None:
        """Note a step that was thrown away."""
        self.rejected = (self.rejected or 0) + 1

    def check_cap(self, t: float, x: Tensor) -> None:
        """End a solve that has tried as many steps as it may.

        Raises:
            StepLimitError: With the time and state reached.
        """
        tried = self.accepted + (self.rejected or 0)
        if self._max_steps is not None and tried >= self._max_steps:
            raise StepLimitError(
                f"{tried} steps tried and t={t:.6g} reached on the way from {self._start:g} to "
                f"{self._end:g} ({self.cost.nfe} evaluations): raise max_steps or loosen rtol and "
                "atol; the error carries the state as .x and the time as .t",
                t=t, x=x.detach(), nfe=self.cost.nfe,
            )  # fmt: skip

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def solution(self, x: Tensor) -> Solution:
        """Collect what was recorded."""
        times = path = None
        if self.save_all or self.save_at is not None:
            times = torch.tensor([t for t, _ in self._saved], dtype=torch.float64)
            path = torch.stack([state for _, state in self._saved])
        return Solution(x, self.cost.nfe, self.accepted, self.rejected, times, path)


@dataclass
class Problem:
    """An initial-value problem, checked and ready.

    Attributes:
        system: The equation.
        x: State at ``times[0]``, shape ``(B, *event)``.
        times: Nodes, float64 on the CPU; only the first and last for an adaptive solver.
        rtol: Relative tolerance; 0 for fixed steps.
        atol: Absolute tolerance, in units of x; 0 for fixed steps.
        generator: Source of noise, torch's global one if None.
        adjoint: Take gradients by the adjoint equation.
        recorder: Where steps and states are noted.
    """

    system: System
    x: Tensor
    times: Tensor
    rtol: float
    atol: float
    generator: torch.Generator | None
    adjoint: bool
    recorder: Recorder
    drift: GuardedDrift = field(init=False)

    def __post_init__(self) -> None:
        self.drift = GuardedDrift(self.system, self.recorder.cost)

    @property
    def direction(self) -> int:
        """Sign of dt."""
        return 1 if self.times[-1] > self.times[0] else -1

    def worst_error(self, error: Tensor) -> Tensor:
        """The largest of the samples' errors; what step control looks at."""
        return self.system.error_norm(error.reshape(self.x.shape)).max()

    def noise_scale(self, t: Tensor, x: Tensor) -> Tensor:
        """The noise scale, checked: a number, or broadcastable against ``x`` sample by sample.

        Raises:
            ValueError: If its shape does not fit.
        """
        scale = torch.as_tensor(self.system.noise_scale(t, x))
        fits = scale.ndim == x.ndim and all(
            a in (1, b) for a, b in zip(scale.shape, x.shape, strict=True)
        )
        if scale.ndim and not fits:
            raise ValueError(
                f"the noise scale of {type(self.system).__name__} has shape {tuple(scale.shape)} "
                f"for a state of shape {tuple(x.shape)}; wanted a number or that many dimensions, "
                "each of equal size or 1"
            )
        return scale

    def check_finite(self, x: Tensor) -> None:
        """Refuse an answer that is NaN or infinite though every drift was finite.

        Raises:
            NonFiniteError: With the rows.
        """
        rows = non_finite_rows(x)
        if rows:
            nfe, t = self.recorder.cost.nfe, float(self.times[-1])
            raise NonFiniteError(
                f"the solve ended at t={t:.6g} after {nfe} evaluations with NaN or infinite "
                f"values in {describe_rows(rows)}: take more steps, or look at the noise scale",
                t=t, x=x.detach(), nfe=nfe, rows=rows,
            )  # fmt: skip

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Keep the first state, and close the progress bar whatever happens."""
        start = float(self.times[0])
        try:
            if self.recorder.wants(start):
                self.recorder.save(start, self.x)
            yield self.recorder
        finally:
            self.recorder.close()
            self.drift.release()


class GuardedDrift(nn.Module):
    """The drift, watched: a NaN ends the solve where it appears, with its time and rows.

    A module, so that the adjoint finds the parameters.
    """

    def __init__(self, system: System, cost: Evaluations) -> None:
        super().__init__()
        self.system = system
        self._cost = cost

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the drift at model time ``t``.

        Raises:
            NonFiniteError: If any entry is NaN or infinite.
            ValueError: If the shape is not that of ``x``.
        """
        # Adaptive solvers probe beyond the end of their span, where sigma may be NaN.
        t = t.clamp(self.system.t_min, self.system.t_max)
        drift = self.system.drift(t, x)
        if not isinstance(drift, Tensor) or drift.shape != x.shape:
            got = f"shape {tuple(drift.shape)}" if isinstance(drift, Tensor) else repr(drift)
            raise ValueError(
                f"the drift of {type(self.system).__name__} has {got} for a state of shape "
                f"{tuple(x.shape)}; it must be a tensor of that shape"
            )
        if not bool(torch.isfinite(drift).all()):
            self._refuse(float(t.detach()), x, drift)
        return drift

    def release(self) -> None:
        """Let go of the solver's callbacks, which hold the problem, so that nothing waits for
        the garbage collector."""
        for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
            self.__dict__.pop(name, None)

    def _refuse(self, t: float, x: Tensor, drift: Tensor) -> None:
        diverged = non_finite_rows(x)
        rows = diverged or non_finite_rows(drift)
        cause = (
            "the state itself had already become NaN or infinite: take more steps or a tighter "
            "tolerance"
            if diverged
            else "the state there was finite: look at the network, its weights and its input"
        )
        raise NonFiniteError(
            f"NaN or infinite drift at t={t:.6g} after {self._cost.nfe} evaluations, in "
            f"{describe_rows(rows)}; {cause}",
            t=t, x=x.detach(), nfe=self._cost.nfe, rows=rows,
        )  # fmt: skip
