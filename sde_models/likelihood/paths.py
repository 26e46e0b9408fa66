r"""Paths of samples, with their states at the nodes of a quadrature.

A path that a solver found is not the flow's, and a log-density computed along it is off by
:math:`\int \nabla \log q \cdot r`, with the defect r of the path and the flow's own density q,
which nobody knows where the network is no exact score. So the error is measured: the path is solved
at three resolutions, and the log-density of each computed with the same probes at a few nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models.likelihood.nodes import Nodes
from sde_models.models.systems import ProbabilityFlow
from sde_models.solvers import Solution, Solver, solve
from sde_models.solvers.options import SolveOptions

KEPT = 128
"""States that are kept of an adaptive solver that has one list of times for all samples."""
ROUNDINGS = 2.0
"""Roundings by which a start is moved."""
NEIGHBOURS = 4
"""States that a cubic polynomial between kept ones goes through."""


@dataclass(frozen=True)
class Path:
    """A solve of the flow.

    Attributes:
        states: States at the nodes, from the data on, shape ``(M, B, *event)``.
        z: Where they are at ``t_max``.
        x: Where they are at ``t_min``.
        solution: The solve.
    """

    states: Tensor
    z: Tensor
    x: Tensor
    solution: Solution


def solve_path(
    flow: ProbabilityFlow,
    start: Tensor,
    nodes: Nodes,
    solver: Solver,
    options: SolveOptions,
    *,
    decodes: bool = False,
) -> Path:
    """Solve the flow from the data on, or down from latents, and find the states at the nodes.

    Where each sample has its own steps the solver gives them; fixed steps and those that a batch
    shares are interpolated.

    Args:
        flow: The probability flow.
        start: Data, or latents, shape ``(B, *event)``.
        nodes: The nodes.
        solver: Solver of the path.
        options: Those of :func:`~sde_models.solve`.
        decodes: Whether ``start`` are latents.
    """
    span = (flow.t_min, flow.t_max)
    given = options.copy()
    times = nodes.times.flip(0) if decodes else nodes.times
    given["path"] = times if solver.own_steps else _shared(flow, solver)
    if not solver.own_steps and solver.adaptive and decodes:
        given["path"] = given["path"].flip(0)  # type: ignore[union-attr]
    solution = solve(flow, start, span[::-1] if decodes else span, solver, **given)
    kept: Any = solution.path
    at: Any = solution.times
    kept, at = (kept.flip(0), at.flip(0)) if decodes else (kept, at)
    states = kept if solver.own_steps else interpolate(flow.sde, at, kept, nodes)
    ends = (start, solution.x) if not decodes else (solution.x, start)
    return Path(states, z=ends[1], x=ends[0], solution=solution)


def moved(x: Tensor, rtol: float = 0.0, atol: float = 0.0) -> Tensor:
    """Data moved by a few roundings and by tolerances in units of x, all samples alike.

    The change of a log-density from such a start shows what errors of this size do.
    """
    scale = x.detach().abs()
    size = scale.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
    rounding = ROUNDINGS * torch.finfo(x.dtype).eps * torch.maximum(scale, size)
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))
    return x + (rounding + rtol * scale + atol) * noise.to(x)


def _shared(flow: ProbabilityFlow, solver: Solver) -> bool | Tensor:
    """Times at which a solver keeps states for all samples: its own nodes, or some in between."""
    if not solver.adaptive:
        return True
    sde: Any = flow.sde
    first, last = sde.log_snr(sde.times([sde.t_min, sde.t_max])).tolist()
    levels = torch.linspace(first, last, KEPT + 1, dtype=torch.float64)
    times = sde.t_from_log_snr(sde.times(levels)).detach().to("cpu", torch.float64)
    times[0], times[-1] = sde.t_min, sde.t_max
    return times


def interpolate(sde: Any, times: Tensor, states: Tensor, nodes: Nodes) -> Tensor:
    r"""States at the nodes, by polynomials of :math:`\sigma/\alpha` through neighbouring states.

    In that variable :math:`x / \alpha = \hat x_0 + (\sigma / \alpha)\, \hat\epsilon` is a straight
    line where the estimates do not change.

    Args:
        sde: Forward SDE.
        times: Times of the states, rising, shape ``(K,)``.
        states: States, shape ``(K, B, *event)``.
        nodes: Where they are needed.
    """
    clock = sde.times(times)
    alpha, level = sde.alpha(clock).double().cpu(), _level(sde, clock)
    inner = sde.times(nodes.times)
    at, scale = _level(sde, inner), sde.alpha(inner).double().cpu()
    count = min(NEIGHBOURS, len(times))
    first = (torch.searchsorted(level, at.contiguous()) - count // 2).clamp(0, len(level) - count)
    index = first[None] + torch.arange(count)[:, None, None]
    known = level[index]
    weights = torch.ones_like(known)
    for i in range(count):
        for j in range(count):
            if i != j:
                weights[i] = weights[i] * (at - known[j]) / (known[i] - known[j])
    weights = (weights * scale / alpha[index]).to(states)
    samples = torch.arange(states.shape[1], device=states.device)
    total = torch.zeros_like(states[index[0].to(states.device), samples])
    for weight, rows in zip(weights, index.to(states.device), strict=True):
        part = states[rows, samples]
        total = total + weight.to(part).reshape(*weight.shape, *[1] * (part.ndim - 2)) * part
    return total


def _level(sde: Any, times: Tensor) -> Tensor:
    return torch.exp(-0.5 * sde.log_snr(times)).double().cpu()
