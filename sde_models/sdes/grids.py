r"""Time grids: where a fixed-step solver puts its nodes.

For samplers the grid matters as much as the solver. Each grid here is a function
``(sde, t0, t1, steps)`` that returns ``steps + 1`` times from ``t0`` to ``t1``, in either
direction, in float64 on the CPU (the solver casts them last).

References:
    Lu et al. 2022, DPM-Solver, arXiv:2206.00927 (uniform log-SNR); Karras et al. 2022,
    equation 5, arXiv:2206.00364; Song et al. 2020, DDIM, arXiv:2010.02502 (quadratic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sde_models._utils.arguments import check_positive
from sde_models._utils.errors import find_by_name
from sde_models.sdes.base import SDE, rounding_of
from sde_models.sdes.gaussian import GaussianSDE

__all__ = [
    "GRIDS",
    "Grid",
    "karras_grid",
    "log_snr_grid",
    "quadratic_grid",
    "times_of_sigmas",
    "uniform_grid",
]

Grid = str | Tensor | Sequence[float] | Callable[[SDE, float, float, int], Tensor]


def uniform_grid(sde: SDE, t0: float, t1: float, steps: int) -> Tensor:
    """Equal steps in t.

    Example:
        >>> uniform_grid(sm.VPSDE(), 1.0, 0.5, 2)
        tensor([1.0000, 0.7500, 0.5000], dtype=torch.float64)
    """
    return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


def quadratic_grid(sde: SDE, t0: float, t1: float, steps: int) -> Tensor:
    r"""Equal steps in :math:`\sqrt t`, as Song et al. 2020 (DDIM) use.

    Example:
        >>> quadratic_grid(sm.VPSDE(), 1.0, 0.0, 2)
        tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    return _with_ends(uniform_grid(sde, t0**0.5, t1**0.5, steps).square(), t0, t1)


def log_snr_grid(sde: SDE, t0: float, t1: float, steps: int) -> Tensor:
    """Equal steps in log-SNR.

    Example:
        >>> sde = sm.VPSDE()
        >>> sde.log_snr(log_snr_grid(sde, 1.0, 0.01, 100)).diff().std() < 1e-12
        tensor(True)
    """
    sde = _gaussian(sde, "log-snr")
    ends = sde.log_snr(sde.times([t0, t1])).detach()
    levels = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    return _with_ends(sde.t_from_log_snr(sde.times(levels)), t0, t1)


def karras_grid(sde: SDE, t0: float, t1: float, steps: int, rho: float = 7.0) -> Tensor:
    r"""Equal steps in :math:`(\sigma/\alpha)^{1/\rho}`.

    Args:
        sde: Forward SDE with a Gaussian kernel.
        t0: First time.
        t1: Last time.
        steps: Number of intervals.
        rho: The larger, the more nodes at low noise; 7 under the name "karras". For another give
            ``grid=functools.partial(sm.grids.karras_grid, rho=5)``.

    Example:
        >>> sde = sm.VESDE(0.01, 50.0)
        >>> root = sde.sigma(karras_grid(sde, 1.0, 0.0, 10)) ** (1 / 7)
        >>> root.diff().std() < 1e-12
        tensor(True)
    """
    sde = _gaussian(sde, "karras")
    rho = check_positive("rho", rho)
    ends = torch.exp(-0.5 * sde.log_snr(sde.times([t0, t1])).detach() / rho)
    roots = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    return _with_ends(sde.t_from_log_snr(sde.times(-2 * rho * roots.log())), t0, t1)


GRIDS: dict[str, Callable[[SDE, float, float, int], Tensor]] = {
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "log-snr": log_snr_grid,
    "karras": karras_grid,
}


def time_grid(
    sde: SDE | None, t_span: tuple[float, float], steps: int | None, grid: Grid
) -> Tensor:
    """Lay out the nodes of a fixed-step solve.

    Args:
        sde: Forward SDE whose model time is used. With None, ``grid`` is "uniform", "quadratic" or
            times.
        t_span: First and last time.
        steps: Number of intervals; None with times given.
        grid: Name, function ``(sde, t0, t1, steps)``, or the times themselves.

    Returns:
        Times from ``t_span[0]`` to ``t_span[1]``, float64, strictly monotone.

    Raises:
        ValueError: For an unknown name, ``steps`` given together with times, or times that are not
            monotone, repeat, or do not start and end with the span.
    """
    t0, t1 = t_span
    if isinstance(grid, str):
        grid = find_by_name("grid", grid, GRIDS)
    if callable(grid):
        if steps is None:
            raise ValueError("a grid given by name or function needs steps, got None: give steps=")
        if sde is None and grid not in (uniform_grid, quadratic_grid):
            raise ValueError(
                "this system has no forward SDE: use grid='uniform', grid='quadratic', or give the "
                "times"
            )
        times = torch.as_tensor(grid(sde, t0, t1, steps), dtype=torch.float64)  # type: ignore[arg-type]
    else:
        if steps is not None:
            raise ValueError("grid gives the times themselves: leave steps out")
        try:
            times = torch.as_tensor(grid, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"grid must be a name ({', '.join(GRIDS)}), a function (sde, t0, t1, steps), or "
                f"times, got {grid!r}"
            ) from None
    check_monotone(times, t0, t1)
    return _with_ends(times, t0, t1)


def check_monotone(times: Tensor, t0: float, t1: float, name: str = "grid") -> None:
    """Refuse times that do not run strictly from ``t0`` to ``t1``."""
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"{name} must hold two or more times, got shape {tuple(times.shape)}")
    values = times.tolist()
    if not all(map(math.isfinite, values)):
        bad = next(i for i, value in enumerate(values) if not math.isfinite(value))
        raise ValueError(f"{name} must hold finite times, entry {bad} is {values[bad]}")
    for i, (a, b) in enumerate(pairwise(values), start=1):
        if not (a < b if t0 < t1 else a > b):
            what = f"repeats the time {a:g}" if a == b else f"turns back from {a:g} to {b:g}"
            raise ValueError(f"{name} must run strictly from {t0:g} to {t1:g}; entry {i} {what}")
    ends = ((values[0], t0), (values[-1], t1))
    if any(abs(given - end) > rounding_of(end, abs(t1 - t0)) for given, end in ends):
        raise ValueError(
            f"{name} runs from {values[0]:.9g} to {values[-1]:.9g}, expected {t0:.9g} to "
            f"{t1:.9g}: let it start and end with the span"
        )


def _with_ends(times: Tensor, t0: float, t1: float) -> Tensor:
    """Put the exact end points in place of rounded ones."""
    values = times.detach().tolist()
    values[0], values[-1] = t0, t1
    return torch.tensor(values, dtype=torch.float64)


def _gaussian(sde: SDE, name: str) -> GaussianSDE:
    if not isinstance(sde, GaussianSDE):
        raise ValueError(
            f"grid={name!r} needs alpha and sigma, which {type(sde).__name__} does not have; use "
            "grid='uniform' or give the times"
        )
    return sde


def times_of_sigmas(sde: GaussianSDE, sigmas: Tensor | Sequence[float]) -> Tensor:
    r"""Times at which an SDE has these noise levels, to be given as ``grid=``.

    Args:
        sde: Forward SDE with a Gaussian kernel.
        sigmas: Noise levels :math:`\sigma / \alpha`, in units of the data; for VE sigma itself.

    Returns:
        Shape of ``sigmas``, float64.

    Raises:
        TypeError: If the SDE has no alpha and sigma.
        ValueError: If a level lies outside the range of the SDE between ``t_min`` and ``t_max``.

    Example:
        >>> sde = sm.VESDE(0.01, 50.0)
        >>> times_of_sigmas(sde, [50.0, 1.0, 0.01])
        tensor([1.0000, 0.5407, 0.0000], dtype=torch.float64)
    """
    if not getattr(sde, "gaussian", False):
        raise TypeError(f"{type(sde).__name__} has no alpha and sigma: give a GaussianSDE")
    levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    ends = sde.log_snr(sde.times([sde.t_min, sde.t_max])).detach().cpu()
    low, high = torch.exp(-0.5 * ends).tolist()
    slack = 1e-6  # ends that were rounded to float32
    inside = (levels >= low * (1 - slack)) & (levels <= high * (1 + slack))
    if not bool(inside.all()):
        wrong = float(levels[~inside][0])
        raise ValueError(
            f"{type(sde).__name__} has the noise levels sigma / alpha from {low:g} to {high:g}, "
            f"and {wrong:g} is none of them: leave it out, or make an SDE that reaches it"
        )
    times = sde.t_from_log_snr(sde.times(-2 * levels.clamp(low, high).log())).detach().cpu()
    return times.clamp(sde.t_min, sde.t_max)
