"""Latents: the probability flow carries data to noise and back, one to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from torch import Tensor

from sde_models._utils.counting import Cost, HasCost
from sde_models.models.base import Model, check_model
from sde_models.models.systems import ProbabilityFlow
from sde_models.solvers import Solution, Solver, make_solver, solve
from sde_models.solvers.options import SolveOptions, check_options


@dataclass(frozen=True)
class Encoding(HasCost):
    """Latents ``z`` at ``t_max`` and what they cost; they have the shape of the data.

    The other attributes are those of :class:`~sde_models.Solution`.
    """

    z: Tensor
    cost: Cost
    accepted: int
    rejected: int | None
    times: Tensor | None = None
    path: Tensor | None = None


@dataclass(frozen=True)
class Decoding(Solution):
    """Decoded data and what they cost; ``x`` has the shape of the latents.

    The other attributes are those of :class:`~sde_models.Solution`.
    """


def encode(
    model: Model,
    x: Tensor,
    solver: str | Solver = "rk-batch",
    *,
    cond: Mapping[str, Any] | None = None,
    **options: Unpack[SolveOptions],
) -> Encoding:
    """Carry data along the probability flow from ``t_min`` to their latents at ``t_max``.

    Nothing is denoised, so :func:`decode` brings the data back to within the solver's tolerance.

    Args:
        model: What gives the score.
        x: Data, shape ``(B, *event)``, floating.
        solver: An ODE solver in :func:`~sde_models.list_solvers`.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        **options: Those of :func:`~sde_models.solve`.

    Raises:
        ValueError, TypeError: What :func:`~sde_models.solve` raises.

    Example:
        >>> model = sm.GaussianMixture([[-2.0], [2.0]], 0.5).score_model(sm.VPSDE())
        >>> x = torch.tensor([[-2.2], [1.7]], dtype=torch.float64)
        >>> z = encode(model, x, rtol=1e-7, atol=1e-7).z
        >>> bool((decode(model, z, rtol=1e-7, atol=1e-7).x - x).abs().max() < 1e-5)
        True
    """
    check_model(model)
    options = check_options(encode, options)
    span = (model.sde.t_min, model.sde.t_max)
    solution = solve(ProbabilityFlow(model), x, span, solver, cond=cond, **options)
    fields = dict(vars(solution))
    return Encoding(z=fields.pop("x"), **fields)


def decode(
    model: Model,
    z: Tensor,
    solver: str | Solver = "rk-batch",
    *,
    cond: Mapping[str, Any] | None = None,
    **options: Unpack[SolveOptions],
) -> Decoding:
    """Carry latents at ``t_max`` along the probability flow back to data at ``t_min``.

    Args:
        model: What gives the score.
        z: Latents, shape ``(B, *event)``, floating.
        solver: An ODE solver in :func:`~sde_models.list_solvers`.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        **options: Those of :func:`~sde_models.solve`. Where ``z`` requires a gradient, or with
            ``gradient="direct"`` or ``"adjoint"``, the result carries a graph.

    Raises:
        ValueError: For a solver that draws noise.
        ValueError, TypeError: What :func:`~sde_models.solve` raises.
    """
    check_model(model)
    options = check_options(decode, options)
    flow, method = ProbabilityFlow(model), make_solver(solver)
    if method.draws_noise(flow):
        raise ValueError(
            f"solver {method.name!r} draws noise here, so that decoding would not be a function "
            "of the latents: use it without noise, another such as 'rk-batch', or sm.sample"
        )
    span = (model.sde.t_max, model.sde.t_min)
    return Decoding(**vars(solve(flow, z, span, method, cond=cond, **options)))
