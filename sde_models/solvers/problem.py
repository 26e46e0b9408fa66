"""The problem that a solver integrates: equation, nodes, tolerances, and a recorder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sde_models._utils.errors import NonFiniteError
from sde_models._utils.randomness import Source, standard_normal_like
from sde_models._utils.shapes import describe_rows, has_finite_sum, non_finite_rows
from sde_models._utils.split_batches import draw_rows
from sde_models.sdes.system import AtNode, AtNodes, System
from sde_models.solvers.recording import Recorder


@dataclass
class Problem:
    """An initial-value problem, checked and ready.

    Attributes:
        system: The equation.
        x: State at ``times[0]``, shape ``(B, *event)``.
        times: Nodes, float64 on the CPU; only the first and last for an adaptive solver.
        rtol: Relative tolerance; 0 for fixed steps.
        atol: Absolute tolerance, in units of x; 0 for fixed steps.
        generator: Source of noise: one for all samples, one for each, or None for torch's global
            one.
        adjoint: Take gradients by the adjoint equation.
        recorder: Where steps and states are noted.
    """

    system: System
    x: Tensor
    times: Tensor
    rtol: float
    atol: float
    generator: Source
    adjoint: bool
    recorder: Recorder
    drift: GuardedDrift = field(init=False)

    def __post_init__(self) -> None:
        self.drift = GuardedDrift(self.system, self.recorder)

    @property
    def direction(self) -> int:
        """Sign of dt."""
        return 1 if self.times[-1] > self.times[0] else -1

    @property
    def inner_times(self) -> Tensor:
        """Times of ``path=`` within the span, float64 on the CPU.

        Shape ``(T,)``, or ``(T, B)`` where each sample has its own.
        """
        asked = self.recorder.save_at
        if asked is None or asked.ndim == 2:
            return self.times[:0] if asked is None else asked
        return asked[(asked != self.times[0]) & (asked != self.times[-1])]

    def at_nodes(self, times: Tensor | None = None) -> GuardedNodes:
        """The equation at the nodes of the solve, or at other times known beforehand."""
        times = self.times if times is None else times
        return GuardedNodes(self.system.at_nodes(times, self.x), times, self.recorder)

    def scales(self, times: Tensor | None = None) -> Scales:
        """Alpha, sigma and log-SNR at the nodes of the solve, or at other times."""
        sde = self.system.sde
        t = sde.times(self.times if times is None else times)
        return Scales(sde.alpha(t), sde.sigma(t), sde.log_snr(t), sde.data_std)

    def noise(self) -> Tensor:
        """Standard normal numbers in the shape of the state, from the generator."""
        return draw_rows(standard_normal_like, self.x, self.generator)

    def worst_error(self, error: Tensor) -> Tensor:
        """The largest of the samples' errors, which step control uses."""
        return self.system.error_norm(error.reshape(self.x.shape)).max()

    def noise_scale(self, t: Tensor, x: Tensor) -> Tensor:
        """The noise scale, checked as in :meth:`check_noise_scale`."""
        scale: Tensor = self.check_noise_scale(self.system.noise_scale(t.clone(), x.clone()), x)
        return scale

    def check_noise_scale(self, scale: Any, x: Tensor) -> Any:
        """Return a noise scale; refuse one that is no number and does not broadcast against x."""
        if isinstance(scale, float):
            return scale
        scale = torch.as_tensor(scale)
        fits = scale.ndim == x.ndim and all(
            a in (1, b) for a, b in zip(scale.shape, x.shape, strict=True)
        )
        if scale.ndim and not fits:
            raise ValueError(
                f"the noise scale of {type(self.system).__name__} has shape {tuple(scale.shape)} "
                f"for a state of shape {tuple(x.shape)}; expected a number or that many "
                "dimensions, each of equal size or 1"
            )
        return scale

    def spread(self, rows: Tensor, values: Tensor) -> Tensor:
        """A batch with these values in their rows and 0 elsewhere."""
        return torch.zeros_like(self.x).index_copy(0, rows, values.detach())

    def check_finite(self, x: Tensor) -> None:
        """Refuse a result that is NaN or infinite though every drift was finite."""
        rows = non_finite_rows(x)
        if rows:
            cost, t = self.recorder.cost, float(self.times[-1])
            raise NonFiniteError(
                f"the solve ended at t={t:.6g} after {cost} with NaN or infinite "
                f"values in {describe_rows(rows)}: take more steps, or look at the noise scale",
                t=t, x=x.detach(), nfe=cost.nfe, rows=rows,
            )  # fmt: skip

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Keep the first state, and close the progress bar whatever happens."""
        try:
            self.recorder.save(float(self.times[0]), self.x)
            yield self.recorder
            self.recorder.complete()
        finally:
            self.recorder.close()
            self.drift.release()


class GuardedDrift(nn.Module):
    """The drift with a check: a NaN ends the solve where it appears, with its time and rows.

    A user's system shares no tensor with the solver: its inputs and outputs are copied.

    A module, so that the adjoint finds the parameters.
    """

    def __init__(self, system: System, recorder: Recorder) -> None:
        super().__init__()
        self.system = system
        self._recorder = recorder

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the drift at model time ``t``."""
        # Adaptive solvers probe beyond the end of their span, where sigma may be NaN.
        t = t.clamp(self.system.t_min, self.system.t_max)
        drift = self.system.drift(t.clone(), x.clone())
        check_drift(self.system, drift, x)
        if not has_finite_sum(drift):
            refuse_non_finite("drift", float(t.detach().reshape(-1)[0]), x, drift, self._recorder)
        return drift.clone()

    def release(self) -> None:
        """Drop the solver's callbacks, which hold the problem, so that memory is freed at once."""
        for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
            self.__dict__.pop(name, None)


@dataclass(frozen=True)
class Scales:
    """Alpha, sigma and log-SNR at the nodes, in double precision, shape ``(K,)`` each.

    ``data_std`` is the standard deviation of a coordinate of the data.
    """

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    data_std: float


class GuardedNodes:
    """The equation at the nodes with a check: a NaN ends the solve where it appears.

    Args:
        nodes: The equation at the nodes.
        times: Their times.
        recorder: That of the solve, which has its cost.
    """

    def __init__(self, nodes: AtNodes, times: Tensor, recorder: Recorder) -> None:
        self._nodes = nodes
        self._times = times.tolist()
        self._recorder = recorder
        self.steps: list[float] = times.diff().tolist()

    @property
    def noise_scale(self) -> Callable[[int, Tensor], Any]:
        """The noise scale, as a function of a node and a state."""
        return self._nodes.noise_scale

    def drift(self, k: int, x: Tensor) -> Tensor:
        """The drift at node ``k``."""
        drift = self._nodes.drift(k, x)
        check_drift(self._nodes.system, drift, x)
        return self._finite("drift", k, x, drift).clone()

    def denoise(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0, eps) at node ``k``."""
        x0, eps = self._nodes.model.denoise(k, x)
        return self._finite("estimate of x0", k, x, x0), eps

    def x0(self, k: int, x: Tensor) -> Tensor:
        """The estimate of x0 alone, which costs less."""
        return self._finite("estimate of x0", k, x, self._nodes.model.x0(k, x))

    def weighted(self, of_x0: Tensor, of_eps: Tensor) -> AtNode:
        """The function of node and state that gives of_x0 x0 + of_eps eps."""
        estimate = self._nodes.model.weighted(of_x0, of_eps)
        return lambda k, x: self._finite("estimate", k, x, estimate(k, x))

    def _finite(self, what: str, k: int, x: Tensor, values: Tensor) -> Tensor:
        if not has_finite_sum(values):
            refuse_non_finite(what, self._times[k], x, values, self._recorder)
        return values


def check_drift(system: System, drift: Any, x: Tensor) -> None:
    """Refuse a drift that is no tensor of the shape of the state."""
    if not isinstance(drift, Tensor) or drift.shape != x.shape:
        got = f"shape {tuple(drift.shape)}" if isinstance(drift, Tensor) else repr(drift)
        raise ValueError(
            f"the drift of {type(system).__name__} has {got} for a state of shape "
            f"{tuple(x.shape)}; it must be a tensor of that shape"
        )


def refuse_non_finite(what: str, t: float, x: Tensor, values: Tensor, recorder: Recorder) -> None:
    """End a solve whose network has returned NaN or infinity; a sum that overflowed may pass."""
    diverged = non_finite_rows(x)
    rows = diverged or non_finite_rows(values)
    if not rows:
        return
    cause = (
        "the state itself had already become NaN or infinite: take more steps or a tighter "
        "tolerance"
        if diverged
        else "the state there was finite: look at the network, its weights and its input"
    )
    raise NonFiniteError(
        f"NaN or infinite {what} at t={t:.6g} after {recorder.cost}, in "
        f"{describe_rows(rows)}; {cause}",
        t=t, x=x.detach(), nfe=recorder.cost.nfe, rows=rows,
    )  # fmt: skip
