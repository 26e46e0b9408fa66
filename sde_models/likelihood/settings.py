"""The options of ``log_prob``, checked and looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict, cast

from torch import Tensor

from sde_models._utils.arguments import check_positive, check_switch
from sde_models._utils.errors import nearest_names
from sde_models._utils.integers import check_integer
from sde_models._utils.shapes import check_batch
from sde_models.divergence.base import Divergence
from sde_models.divergence.registry import find_divergence
from sde_models.models.base import Model, check_model
from sde_models.sdes.priors import Prior, check_prior
from sde_models.solvers import Solver, make_solver
from sde_models.solvers.options import SolveOptions, check_callback

DEFAULT_INTERVALS = 64
"""Number of nodes of a quadrature, where none is given."""
TRACES = ("quadrature", "augmented")


class TraceOptions(TypedDict, total=False):
    """Options of :func:`~sde_models.log_prob`, which documents them, beyond those of its solve."""

    trace: str | None
    divergence: str | Divergence | None
    intervals: int | None
    tol: float | None
    prior: Prior | None
    estimate_solver_error: bool


class LogProbOptions(TraceOptions, SolveOptions, total=False):
    """Options of :func:`~sde_models.log_prob` and of its solve."""


@dataclass(frozen=True)
class Settings:
    """The options of a call of :func:`~sde_models.log_prob`.

    Attributes:
        solver: Solver of the path.
        trace: "quadrature" or "augmented".
        estimator: Trace estimator.
        intervals: Number of nodes of a quadrature.
        tol: Total error in nats, or None.
        prior: Distribution at ``t_max``.
        estimate_solver_error: Whether to solve again more coarsely.
        options: Those of the solve.
    """

    solver: Solver
    trace: str
    estimator: Divergence
    intervals: int
    tol: float | None
    prior: Prior
    estimate_solver_error: bool
    options: SolveOptions

    @property
    def tolerances(self) -> tuple[float, float]:
        """Relative and absolute tolerance of the solve."""
        rtol, atol = self.options.get("rtol"), self.options.get("atol")
        return (
            self.solver.default_rtol if rtol is None else rtol,
            self.solver.default_atol if atol is None else atol,
        )

    @classmethod
    def of(
        cls, model: Model, x: Tensor, solver: str | Solver | None, options: Mapping[str, Any]
    ) -> Self:
        """Check the options of a call, and look up names.

        Args:
            model: What gives the score.
            x: Data or latents, shape ``(B, *event)``.
            solver: Name or object.
            options: Those of :func:`~sde_models.log_prob` that are not None.

        Raises:
            ValueError, TypeError: As :func:`~sde_models.log_prob`.
        """
        check_model(model)
        found = make_solver(model.sde.default_solver if solver is None else solver)
        check_batch(x, model.event_shape)
        check_callback(options.get("callback"))
        path = options.get("path")
        if path is not None and path is not False:
            raise ValueError("log_prob keeps no path: leave path= out, or use sm.encode")
        trace = options.get("trace")
        if trace is None:
            trace = "quadrature" if found.diffusion_only else "augmented"
        if trace not in TRACES:
            raise ValueError(f"unknown trace {trace!r}; {nearest_names(trace, TRACES)}")
        intervals, tol = options.get("intervals"), options.get("tol")
        if trace == "augmented" and intervals is not None:
            raise ValueError(
                "intervals= has no meaning for trace='augmented', which solves the integral with "
                "the path: leave it out, or use trace='quadrature'"
            )
        divergence = options.get("divergence")
        prior = check_prior(options.get("prior"), "log_prob")
        if divergence is None:
            divergence = "exact" if tol is None else "auto"
        if tol is not None:
            _check_tol(tol, found, trace, options)
        solve = {name: options[name] for name in SolveOptions.__annotations__ if name in options}
        return cls(
            solver=found,
            trace=trace,
            estimator=find_divergence(divergence, x[0].numel(), trace == "quadrature"),
            intervals=_check_intervals(intervals),
            tol=None if tol is None else float(tol),
            prior=model.sde.prior(tuple(x.shape[1:])) if prior is None else prior,
            estimate_solver_error=check_switch(
                "estimate_solver_error", options.get("estimate_solver_error", True)
            ),
            options=cast(SolveOptions, solve),
        )


def _check_tol(tol: Any, solver: Solver, trace: str, options: Mapping[str, Any]) -> None:
    """Refuse a tolerance without a meaning, and options that it chooses by itself.

    Raises:
        ValueError: With what to leave out.
    """
    check_positive("tol", tol, "be a positive number of nats")
    chosen = ("steps", "rtol", "atol", "grid", "intervals")
    given = [name for name in chosen if options.get(name) is not None]
    if given:
        raise ValueError(f"tol= chooses {given[0]} by itself: leave {given[0]}= or tol= out")
    if trace != "quadrature" or not solver.in_noise_units:
        raise ValueError(
            f"tol= needs a solver whose errors are in units of the noise, and trace='quadrature': "
            f"use solver='adams-batch' in place of {solver.name!r}"
        )


def _check_intervals(intervals: int | None) -> int:
    """Intervals of the quadrature; refuse a number of which there is no part for comparisons.

    Raises:
        ValueError: If they are odd or too few.
    """
    if intervals is None:
        return DEFAULT_INTERVALS
    count = check_integer("intervals", intervals)
    if count % 4 or count < 12:
        raise ValueError(
            f"intervals must be a multiple of 4, 12 or more, got {intervals!r}: the error "
            "of the steps follows from part of the nodes, equally spaced"
        )
    return count
