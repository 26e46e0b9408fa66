"""Drawing samples: from the prior at ``t_max`` down to the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from sde_models._utils.arguments import check_switch, shown
from sde_models._utils.conditions import as_conditions, copied
from sde_models._utils.counting import count_evaluations
from sde_models._utils.errors import NonFiniteError, nearest_names
from sde_models._utils.integers import check_integers
from sde_models._utils.randomness import Source, as_source
from sde_models._utils.shapes import describe_rows, non_finite_rows
from sde_models._utils.split_batches import draw_rows
from sde_models.likelihood.log_densities import LogProb, decode_with_log_prob
from sde_models.likelihood.settings import LogProbOptions
from sde_models.models.base import Model, check_model
from sde_models.models.systems import ProbabilityFlow, ReverseSDE
from sde_models.sdes.priors import Prior, check_prior
from sde_models.solvers import Solution, Solver, make_solver, solve
from sde_models.solvers.options import SolveOptions, StepOptions, check_options


class SampleOptions(StepOptions, total=False):
    """Options of :func:`sample`, which documents them, and of its steps."""

    eta: float | None
    denoise: bool
    return_log_prob: bool
    density: LogProbOptions | None
    prior: Prior | None
    dtype: torch.dtype | None
    device: torch.device | str | None


@dataclass(frozen=True)
class Sample(Solution):
    """Samples and what they cost; ``x`` has shape ``(n, *event)``.

    The other attributes are those of :class:`~sde_models.Solution`.

    Attributes:
        log_prob: Log-densities of the samples, with their errors, if they were asked for.
    """

    log_prob: LogProb | None = None


def sample(
    model: Model,
    shape: Sequence[int],
    solver: str | Solver = "rk-batch",
    *,
    cond: Mapping[str, Any] | None = None,
    generator: Source = None,
    eta: float | None = None,
    denoise: bool = False,
    return_log_prob: bool = False,
    density: LogProbOptions | None = None,
    prior: Prior | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Unpack[SolveOptions],
) -> Sample:
    """Draw samples from a model.

    An ODE solver integrates the probability flow, an SDE solver the reverse SDE, one that can do
    both (``ddim``) the flow unless ``eta`` is given. All start from the prior at ``t_max`` and end
    at ``t_min``.

    Args:
        model: What gives the score.
        shape: ``(n, *event)``.
        solver: Name in :func:`~sde_models.list_solvers`, or an object of
            :func:`~sde_models.make_solver`.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        generator: Source of all randomness; torch's global one if None. A sequence with one for
            each sample, ``[torch.Generator().manual_seed(s) for s in seeds]``, makes a sample the
            same alone and in every batch: to rounding, or to the tolerance for solvers without
            noise whose samples share their steps ("ode:", "scipy:" and "picard").
        eta: Stochasticity of the reverse SDE; ODE solvers raise ValueError for it.
        denoise: Replace the result by the model's estimate of x0 at ``t_min``.
        return_log_prob: Also give the log-densities of the samples under the probability flow,
            integrated along the paths by which they were drawn. For ODE solvers.
        density: Options of :func:`~sde_models.log_prob` for these, such as
            ``{"divergence": "auto"}``.
        prior: Distribution at ``t_max``, in place of the SDE's own.
        dtype: Floating dtype of the state, the model's if None. The network is called in its own:
            ``torch.float64`` gives samples of a network in float32 without the solver's rounding.
        device: Device, the model's if None.
        **options: ``steps``, ``grid``, ``rtol``, ``atol``, ``path``, ``max_steps``,
            ``gradient``, ``progress``, ``callback`` of :func:`~sde_models.solve`.

    Raises:
        ValueError: If ``shape`` is not ``(n, *event)`` with n of 1 or more or does not fit the
            model, if ``generator`` has not one entry for each sample, and whatever
            :func:`~sde_models.solve` raises.

    Example:
        >>> model = sm.GaussianMixture([[-2.0], [2.0]], 0.1).score_model(sm.VPSDE())
        >>> out = sample(model, (16, 1), solver="euler-maruyama", steps=50)
        >>> out.x.shape, out.nfe
        (torch.Size([16, 1]), 50.0)

        The samples of seeds 3 and 7, whatever else is drawn with them:

        >>> def draw(seeds):
        ...     own = [torch.Generator().manual_seed(s) for s in seeds]
        ...     return sample(model, (len(seeds), 1), "ddim", eta=1.0, steps=20, generator=own).x
        >>> torch.allclose(draw([7, 1, 3])[[2, 0]], draw([3, 7]))
        True
    """
    check_model(model)
    method = make_solver(solver)
    options = check_options(sample, options)
    for name, value in {"denoise": denoise, "return_log_prob": return_log_prob}.items():
        check_switch(name, value)
    event_shape = _check_shape(model, shape)
    source = as_source(generator, shape[0])
    # A network in half precision still has a state in single precision.
    dtype = torch.promote_types(model.dtype, torch.float32) if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype such as torch.float32, got {dtype!r}")
    check_prior(prior, "sample")
    device = model.device if device is None else device
    if prior is None:
        start = model.sde.prior(event_shape).sample(
            shape[:1], generator=source, dtype=dtype, device=device
        )
    else:
        like = torch.empty(tuple(shape), dtype=dtype, device=device)
        start = draw_rows(partial(_draw_from, prior), like, source)
    if return_log_prob:
        stochastic = eta is not None or method.draws_noise(ProbabilityFlow(model))
        _check_has_density(method, stochastic, denoise, options)
        own: LogProbOptions = {"prior": prior, **_density_options(density), **options}
        found, solution = decode_with_log_prob(
            model, start, method, cond=cond, generator=source, **own
        )
        return Sample(**{**vars(solution), "log_prob": found, "cost": found.cost})
    if density is not None:
        raise ValueError("density= is for log-densities: give return_log_prob=True with it")
    system: ProbabilityFlow | ReverseSDE
    if eta is not None and not method.stochastic:
        raise ValueError(
            f"solver {method.name!r} cannot use eta=; it integrates the probability flow, which "
            "is eta = 0: leave it out, or choose an SDE solver such as 'euler-maruyama'"
        )
    if method.deterministic and eta is None:
        system = ProbabilityFlow(model)
    else:
        system = ReverseSDE(model, event_shape, 1.0 if eta is None else eta)
    noise = source if method.draws_noise(system) else None
    span = (model.sde.t_max, model.sde.t_min)
    solution = solve(system, start, span, method, cond=cond, generator=noise, **options)
    if denoise:
        solution = _denoised(model, solution, cond)
    return Sample(**vars(solution))


def _density_options(density: Any) -> LogProbOptions:
    """Options for the log-densities of samples.

    Raises:
        TypeError: If they are no dictionary, or one is not an option of a log-density.
    """
    if density is None:
        return {}
    if not isinstance(density, Mapping):
        raise TypeError(
            "density must be a dictionary of options of sm.log_prob such as "
            f'{{"divergence": "auto"}}, got {density!r}'
        )
    for name in density:
        if name not in LogProbOptions.__annotations__:
            raise TypeError(
                f"density={{{name!r}: ...}} is no option of the densities of samples, whose path "
                f"is that of the samples; {nearest_names(name, LogProbOptions.__annotations__)}"
            )
    return cast(LogProbOptions, density)


def _draw_from(prior: Prior, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A draw from a user's prior, which is given a generator only where there is one."""
    source = {} if generator is None else {"generator": generator}
    return prior.sample(like.shape[:1], **source).to(like).reshape(like.shape)


def _check_has_density(
    method: Solver, stochastic: bool, denoise: bool, options: SolveOptions
) -> None:
    """Raise ValueError for samples whose density is not that of the probability flow."""
    if stochastic or not method.deterministic:
        raise ValueError(
            f"return_log_prob= is for samples of the probability flow, and solver {method.name!r} "
            "draws noise here: use 'adams-batch' or another ODE solver, or "
            "sm.log_prob(model, out.x) for the density that the flow has there"
        )
    if denoise:
        raise ValueError(
            "return_log_prob= cannot go with denoise=: the density of denoised samples is not known"
        )
    path = options.get("path")
    if path is not None and path is not False:
        raise ValueError("return_log_prob= cannot go with path=: use sm.decode for the path")


def _denoised(model: Model, solution: Solution, cond: Mapping[str, Any] | None) -> Solution:
    """The solution with the model's estimate of x0 in place of its end."""
    x, t = solution.x, model.sde.t_min
    given = copied(as_conditions(cond, len(x), x.device))
    with count_evaluations() as counter, torch.set_grad_enabled(x.requires_grad):
        clean = model.x0(t, x.clone(), **given).clone()
    cost = solution.cost + counter.cost(len(x))
    if rows := non_finite_rows(clean):
        raise NonFiniteError(
            f"the denoised samples at t={t:g} are NaN or infinite in {describe_rows(rows)}: look "
            "at the network there, or leave denoise out",
            t=t, x=clean.detach(), nfe=cost.nfe, rows=rows,
        )  # fmt: skip
    return replace(solution, x=clean, cost=cost)


def _check_shape(model: Model, shape: Sequence[int]) -> tuple[int, ...]:
    given = check_integers("shape", shape) if isinstance(shape, Sequence) else ()
    if len(given) < 2:
        raise ValueError(
            f"shape must be (n, *event), got {shown(shape)}; for ten points in the plane (10, 2)"
        )
    if model.event_shape is not None and given[1:] != model.event_shape:
        raise ValueError(
            f"shape {given} has events of shape {given[1:]}, the model expects "
            f"{model.event_shape}: use {(given[0], *model.event_shape)}"
        )
    return given[1:]
