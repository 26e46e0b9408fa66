"""The verb: integrate a system from one time to another with any solver."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_models._shapes import check_batch
from sde_models.base_sdes import GaussianSDE
from sde_models.base_systems import System
from sde_models.counting import count_evaluations
from sde_models.grids import Grid, check_monotone, time_grid
from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem, Recorder, Solution
from sde_models.solvers.table import solver as find_solver

DEFAULT_TOLERANCE = 1e-5
DEFAULT_MAX_STEPS = 10_000


def solve(
    system: System,
    x: Tensor,
    t_span: tuple[float, float],
    solver: str | Solver = "ode:dopri5",
    *,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    grid: Grid | None = None,
    path: bool | Tensor | Sequence[float] = False,
    max_steps: int | None = None,
    generator: torch.Generator | None = None,
    gradient: str | None = None,
    progress: bool = False,
    **cond: Any,
) -> Solution:
    r"""Integrate a system from ``t_span[0]`` to ``t_span[1]``.

    Args:
        system: A :class:`~sde_models.ProbabilityFlow`, a :class:`~sde_models.ReverseSDE`, a
            forward :class:`~sde_models.SDE`, or another subclass of
            :class:`~sde_models.System`.
        x: State at ``t_span[0]``, shape ``(B, *event)``, floating.
        t_span: First and last model time. A forward SDE runs up, a reverse SDE down, the
            probability flow either way.
        solver: Name in :func:`~sde_models.solvers`, or an object of
            :func:`~sde_models.solver`.
        steps: Number of steps of a fixed-step solver, 200 if None.
        rtol: Relative tolerance of an adaptive solver, 1e-5 if None. The error of a step is
            judged by the root mean square over the worst sample.
        atol: Absolute tolerance of an adaptive solver in units of x, 1e-5 if None.
        grid: Nodes of a fixed-step solver: "log-snr", "uniform", "karras", a function
            ``(sde, t0, t1, steps)``, or the times themselves. If None "log-snr" where there is a
            log-SNR, else "uniform"; "uniform" for solvers that want equal steps.
        path: True to keep the state at every step, or times at which to keep it: a fixed-step
            solver then steps onto them, an adaptive one interpolates.
        max_steps: Cap on the steps tried by an adaptive solver, 10,000 if None.
        generator: Source of the noise of an SDE solver; torch's global one if None.
        gradient: "direct" to differentiate through the solver, "adjoint" for the adjoint
            equation. If None: direct where x requires a gradient, else no graph is kept, also
            not for the parameters.
        progress: Show a progress bar.
        **cond: Conditioning, handed to the network.

    Returns:
        The :class:`~sde_models.Solution`.

    Raises:
        TypeError: If ``x`` is not a floating tensor or ``system`` is not a system.
        ValueError: For a wrong shape, NaN in ``x``, times out of range or in a direction in which
            the system cannot run, a solver that cannot integrate the system, an argument that
            the solver cannot use, or tolerances and steps that are not positive.
        NonFiniteError: If the network returns NaN or infinity: with time, evaluations and rows.
        StepLimitError: If an adaptive solver reaches its cap: with the state reached.
        StepSizeError: If an adaptive solver needs steps below the precision of the state.

    Example:
        >>> model = sm.GaussianMixture([[-2.0], [2.0]], 0.3).score_model(sm.VPSDE())
        >>> x = torch.randn(8, 1)
        >>> solution = solve(sm.ProbabilityFlow(model), x, (1.0, 1e-5), "ode:rk4", steps=50)
        >>> solution.nfe
        200
    """
    method = find_solver(solver)
    if not isinstance(system, System):
        raise TypeError(
            f"{type(system).__name__} is no system: wrap a model in sm.ProbabilityFlow or "
            "sm.ReverseSDE, or subclass sm.SDE or sm.System"
        )
    method.check_system(system)
    check_batch(x, system.event_shape)
    span = _check_span(system, t_span)
    _check_arguments(method, steps, rtol, atol, grid, max_steps, generator)
    _check_precision(x, rtol)
    differentiate = _check_gradient(method, gradient, x)
    save_at = _save_times(path, span)
    times = torch.tensor(span, dtype=torch.float64)
    if not method.adaptive:
        times = _nodes(method, system, span, steps, grid, save_at)
    with contextlib.ExitStack() as stack:
        cost = stack.enter_context(count_evaluations())
        # Scores and traces that are derivatives cannot be taken in inference mode.
        stack.enter_context(torch.inference_mode(False))
        if not differentiate:
            stack.enter_context(torch.no_grad())
        recorder = Recorder(
            times,
            save_all=path is True,
            save_at=save_at,
            max_steps=(max_steps or DEFAULT_MAX_STEPS) if method.adaptive else None,
            progress=progress,
            cost=cost,
        )
        problem = Problem(
            system.conditioned(**cond),
            x if differentiate else x.detach().clone(),
            times,
            rtol=DEFAULT_TOLERANCE if rtol is None else rtol,
            atol=DEFAULT_TOLERANCE if atol is None else atol,
            generator=generator,
            adjoint=gradient == "adjoint",
            recorder=recorder,
        )
        with problem.recording():
            end = method.integrate(problem)
        return recorder.solution(end)


def _check_span(system: System, t_span: tuple[float, float]) -> tuple[float, float]:
    try:
        t0, t1 = (float(t) for t in t_span)
    except (TypeError, ValueError):
        raise ValueError(f"t_span must be two times (first, last), got {t_span!r}") from None
    if t0 == t1:
        raise ValueError(f"t_span starts and ends at t={t0:g}: there is nothing to integrate")
    low, high = system.t_min, system.t_max
    for t in (t0, t1):
        if not low * (1 - 1e-6) <= t <= high * (1 + 1e-6):
            raise ValueError(
                f"t_span ({t0:g}, {t1:g}) leaves [t_min, t_max] = [{low:g}, {high:g}] of "
                f"{type(system).__name__}"
            )
    direction = 1 if t1 > t0 else -1
    if direction not in system.directions:
        way = "down, from noise to data" if direction > 0 else "up, from data to noise"
        raise ValueError(
            f"{type(system).__name__} runs {way}, so t_span ({t0:g}, {t1:g}) is the wrong way "
            f"round: use ({t1:g}, {t0:g}), or ProbabilityFlow, which runs both ways"
        )
    return min(max(t0, low), high), min(max(t1, low), high)


def _check_arguments(
    method: Solver,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    grid: Grid | None,
    max_steps: int | None,
    generator: torch.Generator | None,
) -> None:
    unusable: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    hint = "it takes fixed steps: give steps= and grid="
    if method.adaptive:
        unusable = {"steps": steps, "grid": grid}
        hint = "it chooses its own steps: give rtol= and atol="
    for name, value in unusable.items():
        if value is not None:
            raise ValueError(f"solver {method.name!r} cannot use {name}=; {hint}")
    if generator is not None and not method.stochastic:
        raise ValueError(
            f"solver {method.name!r} cannot use generator=; it is deterministic: leave it out"
        )
    for name, tolerance in {"rtol": rtol, "atol": atol}.items():
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {tolerance!r}")
    for name, count in {"steps": steps, "max_steps": max_steps}.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} must be a whole number of 1 or more, got {count!r}")


def _check_precision(x: Tensor, rtol: float | None) -> None:
    rounding = torch.finfo(x.dtype).eps
    if rtol is not None and rtol < rounding:
        raise ValueError(
            f"rtol={rtol:g} is below the rounding of {x.dtype}, {rounding:.2g}: no step would be "
            "small enough; loosen it, or use x.double() and a model in float64"
        )


def _check_gradient(method: Solver, gradient: str | None, x: Tensor) -> bool:
    if gradient not in (None, "direct", "adjoint"):
        raise ValueError(f"gradient must be None, 'direct' or 'adjoint', got {gradient!r}")
    wanted = gradient is not None or (x.requires_grad and torch.is_grad_enabled())
    if wanted and not method.differentiable:
        raise ValueError(
            f"solver {method.name!r} cannot be differentiated, since SciPy works outside of "
            "autograd: use an 'ode:' solver, or x.detach()"
        )
    if gradient == "adjoint" and not method.adjoint:
        raise ValueError(
            f"solver {method.name!r} has no adjoint: use gradient='direct' or an 'ode:' solver"
        )
    return wanted


def _save_times(path: bool | Tensor | Sequence[float], span: tuple[float, float]) -> Tensor | None:
    if isinstance(path, bool):
        return None
    times = torch.as_tensor(path, dtype=torch.float64).detach().cpu()
    low, high = min(span), max(span)
    if times.ndim != 1 or len(times) == 0 or not bool(((times >= low) & (times <= high)).all()):
        raise ValueError(
            f"path must be True, False, or times within ({span[0]:g}, {span[1]:g}), got {path!r}"
        )
    if len(times) > 1:
        start, end = float(times[0]), float(times[-1])
        if (end - start) * (span[1] - span[0]) <= 0:
            raise ValueError(f"path must run the way of the span, from {span[0]:g} to {span[1]:g}")
        check_monotone(times, start, end, "path")
    return times


def _nodes(
    method: Solver,
    system: System,
    span: tuple[float, float],
    steps: int | None,
    grid: Grid | None,
    save_at: Tensor | None,
) -> Tensor:
    if method.equal_steps:
        if grid not in (None, "uniform") if isinstance(grid, str | None) else True:
            raise ValueError(
                f"solver {method.name!r} cannot use grid={grid!r}: its formula holds for equal "
                "steps in t only; leave grid out, or choose a one-step method such as 'ode:rk4'"
            )
        if save_at is not None:
            raise ValueError(
                f"solver {method.name!r} cannot step onto the times of path=: its formula holds "
                "for equal steps only; use path=True"
            )
        grid = "uniform"
    if grid is None:
        grid = "log-snr" if isinstance(system.sde, GaussianSDE) else "uniform"
    named = isinstance(grid, str) or callable(grid)
    if steps is None and named:
        steps = method.default_steps
    nodes = time_grid(system.sde, span, steps, grid)
    if save_at is not None:
        nodes = torch.cat([nodes, save_at]).unique()
        nodes = nodes if span[1] > span[0] else nodes.flip(0)
    return nodes


def coarser_arguments(
    method: Solver,
    *,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    grid: Grid | None,
    max_steps: int | None,
) -> dict[str, Any]:
    """Arguments of :func:`solve` for the same solve at ten times the tolerance or half the steps.

    The difference of the two answers estimates the error of the coarser one.
    """
    if method.adaptive:
        return {
            "rtol": 10 * (rtol or DEFAULT_TOLERANCE),
            "atol": 10 * (atol or DEFAULT_TOLERANCE),
            "max_steps": max_steps,
        }
    if grid is not None and not isinstance(grid, str) and not callable(grid):
        nodes = torch.as_tensor(grid, dtype=torch.float64)
        return {"grid": torch.cat([nodes[:-1:2], nodes[-1:]])}
    return {"steps": max(1, (steps or method.default_steps) // 2), "grid": grid}
