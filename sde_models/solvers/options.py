"""The options of a solve, which every function that solves takes as keywords, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar, cast

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number, check_positive, shown
from sde_models._utils.randomness import Source, as_source
from sde_models.sdes.base import rounding_of
from sde_models.sdes.grids import Grid, check_monotone
from sde_models.sdes.system import System
from sde_models.solvers.recording import Step

if TYPE_CHECKING:
    from sde_models.solvers.base import Solver


class NoOptions(TypedDict):
    """Of functions that take none besides their arguments."""


class StepOptions(TypedDict, total=False):
    """Options of :func:`~sde_models.solve` for its steps and its gradient."""

    steps: int | None
    rtol: float | None
    atol: float | None
    grid: Grid | None
    max_steps: int | None
    gradient: str | None
    callback: Callable[[Step], object] | None


class SolveOptions(StepOptions, total=False):
    """Options of :func:`~sde_models.solve`, which documents them.

    Those that are left out, or None, have the defaults given there.
    """

    path: bool | Tensor | Sequence[float] | None
    progress: bool


RENAMED = {
    "nodes": "intervals",
    "method": "trace",
    "accumulate": "gradient_accumulation_steps",
    "workers": "num_workers",
    "ema": "ema_decay",
    "lr": "learning_rate",
    "epochs": "steps",
}
"""Arguments that have another name, those of earlier versions and usual ones of other libraries."""

ELSEWHERE = {
    "seed": "give generator=torch.Generator().manual_seed(seed)",
    "device": "move the model, as in model.to(device), and the tensors",
    "cond": 'conditions go with the data, as items or batches (x0, {"label": label})',
}
"""Arguments that some functions do not take, and what to do there."""

Options = TypeVar("Options", bound=Mapping[str, Any])


def check_options(
    function: Callable[..., Any], options: Options, known: type = SolveOptions
) -> Options:
    """Return the keywords of a function without those that are None, which have their defaults.

    Args:
        function: Which is given them.
        options: The keywords.
        known: The options that it takes besides its other arguments, a typed dictionary.

    Raises:
        TypeError: For a keyword that it does not take, with the nearest name, and where conditions
            go.
    """
    for name in options:
        if name not in known.__annotations__:
            _refuse_option(function, name, known)
    return cast(Options, {name: value for name, value in options.items() if value is not None})


def _refuse_option(function: Callable[..., Any], name: str, known: type) -> NoReturn:
    """Raise for a keyword that a function does not take."""
    called, own = function.__name__, signature(function).parameters.values()
    names = [each.name for each in own if each.kind != each.VAR_KEYWORD]
    names += known.__annotations__
    if name == "generator":
        why = "use seed=, an integer" if "seed" in names else "it draws no random numbers"
        raise TypeError(f"{called} takes no generator=: {why}")
    renamed = [new for old, new in RENAMED.items() if old == name and new in names]
    if name in ELSEWHERE and not (name == "seed" and "generator" not in names):
        raise TypeError(f"{called} got an unexpected argument {name}=: {ELSEWHERE[name]}")
    near = renamed or get_close_matches(name, names, n=1, cutoff=0.7)
    guess = f"did you mean {near[0]}=?" if near else f"{called} takes {', '.join(names)}"
    cond = f"; a condition of the network is given as cond={{{name!r}: ...}}"
    raise TypeError(
        f"{called} got an unexpected argument {name}=: {guess}{cond if 'cond' in names else ''}"
    )


def check_span(system: System, t_span: tuple[float, float], method: Solver) -> tuple[float, float]:
    """Return the span as numbers within range; refuse one that cannot be run."""
    try:
        t0, t1 = (as_number("t", t) for t in t_span)
    except (TypeError, ValueError):
        raise ValueError(f"t_span must be two times (first, last), got {shown(t_span)}") from None
    if t0 == t1:
        raise ValueError(f"t_span starts and ends at t={t0:g}: there is nothing to integrate")
    low, high = system.t_min, system.t_max
    below, above = (rounding_of(end, high - low) for end in (low, high))
    for t in (t0, t1):
        if not low - below <= t <= high + above:
            raise ValueError(
                f"t_span ({t0:g}, {t1:g}) leaves [t_min, t_max] = [{low:g}, {high:g}] of "
                f"{type(system).__name__}"
            )
    direction = 1 if t1 > t0 else -1
    if direction not in system.directions:
        runs = "down, from noise to data" if direction > 0 else "up, from data to noise"
        raise ValueError(
            f"{type(system).__name__} runs {runs}, so t_span ({t0:g}, {t1:g}) has the wrong "
            f"direction: use ({t1:g}, {t0:g}), or ProbabilityFlow, which runs in both"
        )
    if direction not in method.directions:
        raise ValueError(
            f"solver {method.name!r} runs down, from noise to data, so t_span ({t0:g}, {t1:g}) has "
            "the wrong direction for it: use a deterministic one such as 'ode:dopri5'"
        )
    return min(max(t0, low), high), min(max(t1, low), high)


def check_arguments(method: Solver, options: StepOptions) -> None:
    """Refuse options that the solver cannot use, and values without a meaning."""
    if method.adaptive:
        unusable, hint = ["steps", "grid"], "it chooses its own steps: give rtol= and atol="
    else:
        unusable = ["rtol", "atol", "max_steps"]
        hint = "it takes fixed steps: give steps= and grid="
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for name in unusable:
        if name in given:
            raise ValueError(f"solver {method.name!r} cannot use {name}=; {hint}")
    for name in ("rtol", "atol"):
        check_positive(name, given.get(name, 1.0))


def check_noise_source(method: Solver, system: System, generator: Source, count: int) -> Source:
    """Return the source of a solve's noise; refuse one that would not be used."""
    if generator is not None and not method.draws_noise(system):
        raise ValueError(
            f"solver {method.name!r} cannot use generator=; it is deterministic here: leave it out"
        )
    return as_source(generator, count)


def check_callback(callback: Any) -> None:
    """Refuse what cannot be called."""
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a function of one sm.Step (index, t, x, nfe), got {callback!r}"
        )


def check_precision(method: Solver, x: Tensor, rtol: float | None) -> None:
    """Refuse a relative tolerance below the rounding of the state."""
    if not method.adaptive:
        return
    rtol = method.default_rtol if rtol is None else rtol
    rounding = torch.finfo(x.dtype).eps
    if rtol < rounding:
        raise ValueError(
            f"rtol={rtol:g} is below the rounding of {x.dtype}, {rounding:.2g}: no step would be "
            "small enough; loosen it, or use x.double()"
        )


def check_gradient(
    method: Solver,
    gradient: str | None,
    path: bool | Tensor | Sequence[float],
    x: Tensor,
    system: System,
) -> bool:
    """Return whether a graph is needed; refuse what would have no gradient, or silently none."""
    if gradient not in (None, "direct", "adjoint"):
        raise ValueError(f"gradient must be None, 'direct' or 'adjoint', got {gradient!r}")
    given = [(name, value) for name, value in system.given_tensors() if value.requires_grad]
    asked = (x.requires_grad or bool(given)) and torch.is_grad_enabled()
    needed = gradient is not None or asked
    if needed and not method.differentiable:
        raise ValueError(
            f"solver {method.name!r} cannot be differentiated, since SciPy works outside of "
            "autograd: use an 'ode:' solver, or x.detach()"
        )
    if gradient != "adjoint":
        return needed
    if not method.adjoint:
        raise ValueError(
            f"solver {method.name!r} has no adjoint: use gradient='direct' or an 'ode:' solver"
        )
    if path is True or (path is not False and not method.adaptive):
        raise ValueError(
            "gradient='adjoint' carries no gradient to the states of path=: use "
            "gradient='direct', or path= times with an adaptive solver"
        )
    if given:
        name = given[0][0]
        raise ValueError(
            f"gradient='adjoint' carries no gradient to the condition {name!r}: use "
            f"gradient='direct', or {name}.detach()"
        )
    return needed


def save_times(
    path: bool | Tensor | Sequence[float], span: tuple[float, float], own: int | None = None
) -> Tensor | None:
    """Return the times at which states are kept, None where all or none are.

    Args:
        path: What was given.
        span: First and last time of the solve.
        own: Number of samples, for a solver in which each can have times of its own.
    """
    if isinstance(path, bool):
        return None
    low, high = min(span), max(span)
    try:
        times = torch.as_tensor(path, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        times = torch.empty(0)
    if times.ndim == 2:
        return _own_times(times, span, own)
    for end, beyond in ((low, times < low), (high, times > high)):
        times = torch.where(_means_the_end(times, end, beyond, high - low), end, times)
    inside = bool(((times >= low) & (times <= high)).all())
    if times.ndim != 1 or len(times) == 0 or not inside:
        raise ValueError(
            f"path must be True, False, or times within ({span[0]:g}, {span[1]:g}), "
            f"got {shown(path)}"
        )
    if len(times) > 1:
        start, end = float(times[0]), float(times[-1])
        if (end - start) * (span[1] - span[0]) <= 0:
            raise ValueError(f"path must run as the span does, from {span[0]:g} to {span[1]:g}")
        check_monotone(times, start, end, "path")
    return times


def _own_times(times: Tensor, span: tuple[float, float], own: int | None) -> Tensor:
    """Return times with a column for each sample; refuse those that a solver cannot use."""
    if own is None:
        raise ValueError(
            f"path of shape {tuple(times.shape)} has times for each sample, which is for solvers "
            "in which each has its own steps, such as 'rk-batch': give one list of times for all"
        )
    if times.shape[1] != own or len(times) == 0:
        raise ValueError(
            f"path has shape {tuple(times.shape)} for a batch of {own}: times of shape (T, {own}) "
            "have a column for each sample"
        )
    start, end = span
    sign = 1.0 if end > start else -1.0
    ahead = sign * torch.cat([torch.full_like(times[:1], start), times, times[-1:]]).diff(dim=0)
    if not (bool((ahead[0] > 0).all()) and bool((ahead >= 0).all())):
        raise ValueError(f"path must run as the span does, from {start:g} to {end:g}")
    if not bool((sign * (end - times[-1]) >= 0).all()):
        raise ValueError(f"path must hold times within ({start:g}, {end:g})")
    return times


def _means_the_end(times: Tensor, end: float, beyond: Tensor, length: float) -> Tensor:
    """Which times are an end of the span that was rounded.

    Args:
        times: Times in float64.
        end: The end.
        beyond: Which times lie beyond it, where only the end can be meant.
        length: Length of the span.
    """
    away = (times - end).abs()
    in_single = times == float(torch.tensor(end, dtype=torch.float32))
    in_double = away <= 4 * torch.finfo(torch.float64).eps * abs(end)
    return (beyond & (away <= rounding_of(end, length))) | in_single | in_double
