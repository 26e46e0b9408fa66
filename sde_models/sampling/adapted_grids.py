"""Time grids adapted to a model: nodes where an adaptive solver takes small steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sde_models._utils.arguments import check_positive
from sde_models._utils.atomic_files import atomic_write
from sde_models._utils.counting import Cost, HasCost
from sde_models._utils.integers import check_integer
from sde_models.models.base import Model, check_model, find_event_shape
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.solvers import Step, make_solver, solve

CELLS = 400
"""Cells in log-SNR on which the work is counted."""
WIDTH = 10
"""Cells to either side over which it is smoothed, so that neighbouring steps are similar."""
FLOOR = 0.03
"""Part of the nodes that is spread evenly over log-SNR."""
POWER = 4
"""Power of the mean over the samples: 1 is their average, infinity the sample with most steps."""


@dataclass(frozen=True)
class AdaptedGrid(HasCost):
    """A grid with nodes where the work is, for ``grid=`` of every function that solves.

    It holds for any number of steps, for any part of the time span, and in both directions.

    Attributes:
        log_snr: Log-SNR at the ends of the cells, falling in time, from ``t_max`` to ``t_min``.
        work: Part of the nodes before each of them, from 0 to 1.
        cost: What making it cost, for each of the samples that were decoded.
    """

    log_snr: tuple[float, ...]
    work: tuple[float, ...]
    cost: Cost

    def __call__(self, sde: SDE, t0: float, t1: float, steps: int) -> Tensor:
        """Times from ``t0`` to ``t1``, with equal work between neighbours.

        Raises:
            TypeError: If the SDE has no log-SNR.
            ValueError: If a time is outside of the span that the grid was made for.
        """
        if not isinstance(sde, GaussianSDE):
            raise TypeError(
                f"an adapted grid is in log-SNR, which {type(sde).__name__} does not have: use "
                "grid='uniform' or give the times"
            )
        ends = sde.log_snr(sde.times([t0, t1])).tolist()
        slack = 1e-3
        if min(ends) < self.log_snr[0] - slack or max(ends) > self.log_snr[-1] + slack:
            raise ValueError(
                f"this grid was made for log-SNR from {self.log_snr[0]:.4g} to "
                f"{self.log_snr[-1]:.4g}, and t from {t0:g} to {t1:g} needs {ends[0]:.4g} to "
                f"{ends[1]:.4g}: adapt one to this model by sm.adapt_grid(model)"
            )
        start, end = np.interp(ends, self.log_snr, self.work)
        levels = np.interp(np.linspace(start, end, steps + 1), self.work, self.log_snr)
        times = sde.t_from_log_snr(sde.times(levels.tolist())).detach().to("cpu", torch.float64)
        times[0], times[-1] = t0, t1
        return times

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        atomic_write(path, f"{json.dumps(asdict(self))}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; an older file, without a cost, gives NaN for it."""
        fields = json.loads(Path(path).read_text())
        cost = fields.get("cost", {"nfe": math.nan, "calls": fields.get("nfe")})
        return cls(tuple(fields["log_snr"]), tuple(fields["work"]), Cost(**cost))


def adapt_grid(
    model: Model,
    event_shape: Sequence[int] | None = None,
    *,
    samples: int = 64,
    tol: float = 1e-5,
    cond: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> AdaptedGrid:
    r"""Make a grid with nodes where a model's probability flow needs small steps.

    A few samples are decoded by an adaptive Runge-Kutta method of order 3 in which each has its own
    steps. A method of order p takes steps :math:`h \propto |x^{(p+1)}|^{-1/(p+1)}` at a given
    tolerance, which is also the best spacing for a method of fixed steps. Its error on a common
    grid is a sum of high powers of the samples' densities of steps :math:`\rho_i`, so the nodes
    have the density :math:`(\sum_i \rho_i^4)^{1/4}`, smoothed, and a few of them are spread evenly
    over log-SNR.

    Args:
        model: What gives the score, on a :class:`~sde_models.GaussianSDE`.
        event_shape: Shape of one sample; that of the model if None.
        samples: Number of samples that are decoded.
        tol: Relative and absolute tolerance, in units of x.
        generator: Source of the starting points; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`; one of several samples has
            ``samples`` rows.

    Returns:
        The grid; keep it with the model, by :meth:`AdaptedGrid.save`.

    Raises:
        ValueError: If no event shape is known, and whatever :func:`~sde_models.solve` raises.

    Example:
        >>> model = sm.GaussianMixture([[-2.0], [2.0]], 0.3).score_model(sm.VPSDE())
        >>> grid = adapt_grid(model, samples=8, tol=1e-3)
        >>> out = sm.sample(model, (16, 1), solver="flow-abm-4", steps=12, grid=grid)
        >>> out.accepted
        12
    """
    check_model(model)
    shape = find_event_shape(model, event_shape)
    samples, tol = check_integer("samples", samples), check_positive("tol", tol)
    sde: Any = model.sde
    dtype = torch.promote_types(model.dtype, torch.float32)
    start = sde.prior(shape).sample(
        (samples,), generator=generator, dtype=dtype, device=model.device
    )
    reached = [torch.full((samples,), sde.t_max, dtype=torch.float64)]

    def watch(step: Step) -> None:
        reached.append(torch.as_tensor(step.t).to("cpu", torch.float64))

    span = (sde.t_max, sde.t_min)
    solution = solve(
        ProbabilityFlow(model), start, span, make_solver("rk-batch", order=3),
        rtol=tol, atol=tol, callback=watch, cond=cond,
    )  # fmt: skip
    with torch.no_grad():
        steps = sde.log_snr(sde.times(torch.stack(reached))).to("cpu", torch.float64).numpy()
        ends = sde.log_snr(sde.times(list(span))).tolist()
    levels = np.linspace(ends[0], ends[1], CELLS + 1)
    densities = np.stack([_density(levels, np.unique(own)) for own in steps.T])
    work = _smoothed((densities**POWER).mean(0) ** (1 / POWER))
    return AdaptedGrid(tuple(levels.tolist()), tuple(work.tolist()), solution.cost)


def _density(levels: Any, own: Any) -> Any:
    """How many steps one sample made in each cell."""
    return np.diff(np.interp(levels, own, np.arange(len(own))))


def _smoothed(density: Any) -> Any:
    """Part of the nodes before each level, from the density of steps in each cell."""
    window = np.hanning(2 * WIDTH + 3)[1:-1]
    density = np.log(density / density.sum() + 1e-9)
    density = np.exp(
        np.convolve(np.pad(density, WIDTH, mode="edge"), window / window.sum(), "valid")
    )
    density = (1 - FLOOR) * density / density.sum() + FLOOR / len(density)
    return np.concatenate([[0.0], density.cumsum() / density.sum()])
