"""Integrate a system from one time to another with any solver."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from sde_models._utils.arguments import check_switch
from sde_models._utils.counting import count_evaluations
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import Source
from sde_models._utils.shapes import check_batch
from sde_models._utils.user_networks import check_is_function
from sde_models.sdes.grids import Grid, time_grid
from sde_models.sdes.system import System
from sde_models.solvers.base import Solver
from sde_models.solvers.options import (
    SolveOptions,
    check_arguments,
    check_callback,
    check_gradient,
    check_noise_source,
    check_options,
    check_precision,
    check_span,
    save_times,
)
from sde_models.solvers.problem import Problem
from sde_models.solvers.progress import SolveProgress
from sde_models.solvers.recording import Recorder, Solution
from sde_models.solvers.registry import make_solver

DEFAULT_MAX_STEPS = 10_000


def solve(
    system: System,
    x: Tensor,
    t_span: tuple[float, float],
    solver: str | Solver = "ode:dopri5",
    *,
    cond: Mapping[str, Any] | None = None,
    generator: Source = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    r"""Integrate a system from ``t_span[0]`` to ``t_span[1]``.

    Args:
        system: A :class:`~sde_models.ProbabilityFlow`, a :class:`~sde_models.ReverseSDE`, a
            forward :class:`~sde_models.SDE`, or another subclass of
            :class:`~sde_models.System`.
        x: State at ``t_span[0]``, shape ``(B, *event)``, floating.
        t_span: First and last model time. A forward SDE runs up, a reverse SDE down, the
            probability flow in either direction.
        solver: Name in :func:`~sde_models.list_solvers`, or an object of
            :func:`~sde_models.make_solver`.
        cond: Conditions by name, given to the network. A tensor, array or list has a row for each
            sample, or a first dimension of 1; numbers, strings, None and tensors without
            dimensions are shared by all samples. ``model.bind(name=...)`` shares anything else.
        generator: Source of the noise of an SDE solver; torch's global one if None. A sequence
            with one for each sample makes the noise of a sample the same in every batch.
        steps: Number of steps of a fixed-step solver; if None 200, or fewer for most solvers made
            for diffusion: their ``default_steps``.
        rtol: Relative tolerance of an adaptive solver, 1e-5 if None (0.2 for "adaptive-sde").
            The error of a step is judged by the root mean square over the worst sample.
        atol: Absolute tolerance of an adaptive solver in units of x, 1e-5 if None (0.1 likewise).
        grid: Nodes of a fixed-step solver: "log-snr", "uniform", "quadratic", "karras", a
            function ``(sde, t0, t1, steps)`` such as :func:`~sde_models.adapt_grid` makes, or the
            times themselves. If None that of the solver, else "log-snr" where there is a log-SNR
            and "uniform" where there is none or the solver needs equal steps.
        max_steps: Cap on the steps tried by an adaptive solver, 10,000 if None.
        path: True to keep the state at every step, or times at which to keep it: a fixed-step
            solver then steps onto them, an adaptive one interpolates. Solvers in which each sample
            has its own steps take times of shape ``(T, B)`` too, a column for each.
        gradient: "direct" to differentiate through the solver, "adjoint" for the adjoint
            equation. If None: direct where x or a condition requires a gradient, else no graph
            is kept, also not for the parameters.
        progress: Show a progress bar; about ten lines where standard error is no terminal.
        callback: Called with a :class:`~sde_models.Step` (index, t, x, nfe) after each step;
            its result is ignored, and an exception ends the solve.

    Returns:
        The :class:`~sde_models.Solution`.

    Raises:
        TypeError: If ``x`` is not a floating tensor, ``system`` is not a system, for an unknown
            option, or for conditions of a system without a network.
        ValueError: For a wrong shape, NaN in ``x``, times out of range or in a direction in which
            the system cannot run, a solver that cannot integrate the system, an argument that
            the solver cannot use, tolerances and steps that are not positive, a condition with
            another number of rows, or a network in training mode whose output is then random or
            depends on the batch.
        NonFiniteError: If the network returns NaN or infinity: with time, evaluations and rows.
        StepLimitError: If an adaptive solver reaches its cap: with the state reached.
        StepSizeError: If an adaptive solver needs steps below the precision of the state.

    Example:
        >>> model = sm.GaussianMixture([[-2.0], [2.0]], 0.3).score_model(sm.VPSDE())
        >>> x = torch.randn(8, 1)
        >>> solution = solve(sm.ProbabilityFlow(model), x, (1.0, 1e-5), "ode:rk4", steps=50)
        >>> solution.nfe
        200.0
    """
    method = make_solver(solver)
    options = check_options(solve, options)
    rtol, atol, grid = options.get("rtol"), options.get("atol"), options.get("grid")
    path, gradient = options.get("path"), options.get("gradient")
    path = False if path is None else path
    progress = check_switch("progress", options.get("progress", False))
    callback = options.get("callback")
    if not isinstance(system, System):
        raise TypeError(
            f"system must be an sm.System, got {type(system).__name__}: wrap a model in "
            "sm.ProbabilityFlow or sm.ReverseSDE, or subclass sm.SDE or sm.System"
        )
    method.check_system(system)
    check_batch(x, system.event_shape)
    span = check_span(system, t_span, method)
    steps, max_steps = options.get("steps"), options.get("max_steps")
    steps = None if steps is None else check_integer("steps", steps)
    max_steps = None if max_steps is None else check_integer("max_steps", max_steps)
    check_arguments(method, options)
    source = check_noise_source(method, system, generator, len(x))
    check_callback(callback)
    check_precision(method, x, rtol)
    system = system.conditioned(cond, x)
    check_is_function(system)
    differentiate = check_gradient(method, gradient, path, x, system)
    save_at = save_times(path, span, len(x) if method.own_steps else None)
    times = torch.tensor(span, dtype=torch.float64)
    if not method.adaptive:
        times = _nodes(method, system, span, steps, grid, save_at)
    with contextlib.ExitStack() as stack:
        counter = stack.enter_context(count_evaluations())
        # Scores and traces that are derivatives cannot be taken in inference mode.
        stack.enter_context(torch.inference_mode(False))
        if not differentiate:
            stack.enter_context(torch.no_grad())
        recorder = Recorder(
            times,
            save_all=path is True,
            save_at=save_at,
            max_steps=(max_steps or DEFAULT_MAX_STEPS) if method.adaptive else None,
            progress=SolveProgress(system, times) if progress else None,
            callback=callback,
            counter=counter,
            batch=len(x),
        )
        problem = Problem(
            system,
            x if differentiate else x.detach().clone(),
            times,
            rtol=method.default_rtol if rtol is None else float(rtol),
            atol=method.default_atol if atol is None else float(atol),
            generator=source,
            adjoint=gradient == "adjoint",
            recorder=recorder,
        )
        with problem.recording():
            end = method.integrate(problem)
            problem.check_finite(end)
        return recorder.solution(end)


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
        grid = "uniform" if system.sde is None else system.sde.default_grid
        grid = method.default_grid or grid
    named = isinstance(grid, str) or callable(grid)
    if steps is None and named:
        steps = method.default_steps
    nodes = time_grid(system.sde, span, steps, grid)
    return nodes if save_at is None else _with_nodes(nodes, save_at)


def _with_nodes(nodes: Tensor, save_at: Tensor) -> Tensor:
    """Add times to step onto; a node that differs from one of them by rounding is dropped."""
    gaps = nodes.diff().abs()
    near = 1e-3 * torch.minimum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]])).clamp(
        max=1e-3 * float(gaps.sum())
    )
    doubled = ((nodes[:, None] - save_at).abs() < near[:, None]).any(dim=1)
    doubled[0] = doubled[-1] = False
    merged = torch.cat([nodes[~doubled], save_at]).unique()
    return merged if nodes[-1] > nodes[0] else merged.flip(0)
