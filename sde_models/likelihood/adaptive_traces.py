"""An integral of the divergence to a tolerance, with nodes and probes where they are needed.

Each node gets a few probes, then as many as the variance of the others asks for, or the exact
trace where those would cost as much. Where the spectrum shows that the nodes are too few, they are
doubled for these samples first.
"""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from torch import Tensor

from sde_models._utils.randomness import Source, of_some_rows
from sde_models.likelihood.adaptive_paths import Paths, PathSolver
from sde_models.likelihood.quadrature import TraceIntegral
from sde_models.likelihood.strategies import QuadratureLikelihood
from sde_models.likelihood.trace_sampling import TraceSampler

MOST_NODES = 1024
FIRST_PROBES = 2
FROM_NODES, FALLS, MOST_EXCESS = 4.0, 6.0, 30.0
"""The nodes are too few where the spectrum has more than FROM_NODES times the variance of the
probes, and fell by FALLS or more with the last doubling, as that of a smooth integrand does. What
does not fall is noise, whatever its estimate says, and its variance is taken as up to MOST_EXCESS
times that estimate."""


def integrate_to(
    target: Tensor, strategy: QuadratureLikelihood, paths: Paths, solver: PathSolver, source: Source
) -> TraceIntegral:
    """Integrate the divergence along paths to an error at 95%.

    Args:
        target: The error, shape ``(B,)``.
        strategy: Gives the traces.
        paths: The paths.
        solver: Finds their states at more nodes.
        source: Source of the probes.
    """
    nodes = strategy.pilot.finer(solver.first)
    states = solver.states(strategy, paths, nodes)
    sampler = TraceSampler(strategy, nodes, states, source)
    sampler.begin(max(FIRST_PROBES, strategy.estimator.count_products(strategy.size)))
    rows = torch.arange(len(strategy.x), device=strategy.x.device)
    before = torch.full_like(target, math.inf)
    result = integral = sampler.integral()
    while True:
        if not sampler.exact:
            aims = _target_of_probes(integral, target[rows], before)
            sampler.reach(aims)
            integral = sampler.integral()
        result = _put(result, rows, integral)
        bar = torch.hypot(2 * integral.stderr, integral.error)
        late = (bar > target[rows]).nonzero().flatten()
        if not len(late) or 2 * sampler.nodes.count > MOST_NODES:
            return result
        rows, before = rows[late], integral.total[late]
        part = strategy.part(rows)
        states = solver.states(part, paths.at(rows), sampler.nodes.of_rows(late).finer(2))
        sampler = sampler.finer(late, part, states, of_some_rows(source, rows))
        if sampler.exact:
            sampler.begin(1)
        else:
            sampler.reach(aims[late])
        integral = sampler.integral()


def _target_of_probes(integral: TraceIntegral, target: Tensor, before: Tensor) -> Tensor:
    """The error to reach by more probes, shape ``(B,)``; infinite where more nodes come first.

    Args:
        integral: The integral so far.
        target: Error to reach.
        before: Variance by the spectrum of half as many nodes.
    """
    noise = integral.stderr.square()
    beyond = integral.total > FROM_NODES * noise
    unresolved = beyond & (FALLS * integral.total < before) & (integral.error > 0.5 * target)
    excess = (integral.total / noise.clamp(min=torch.finfo(noise.dtype).tiny)).clamp(1, MOST_EXCESS)
    excess = torch.where(beyond, excess, 1.0)
    return (target / excess.sqrt()).masked_fill(unresolved, math.inf)


def _put(values: TraceIntegral, rows: Tensor, part: TraceIntegral) -> TraceIntegral:
    return TraceIntegral(
        *(
            getattr(values, f.name).index_copy(0, rows, getattr(part, f.name))
            for f in fields(values)
        )
    )
