"""An integral of the divergence to a tolerance, with nodes and probes where they are needed.

A pilot, whose traces do not enter the estimate, finds the nodes that each sample needs. Each node
then gets a probe of its own, then as many as the variance of its neighbours asks for, or the exact
trace where those would cost as much. An estimate that took more where its own traces look bad would
be biased, since skewed ones look well where they are small.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sde_models._utils.randomness import Source, of_some_rows, rademacher_like
from sde_models._utils.split_batches import draw_rows
from sde_models.likelihood.adaptive_paths import Paths, PathSolver
from sde_models.likelihood.pilot import Pilot
from sde_models.likelihood.quadrature import TraceIntegral
from sde_models.likelihood.strategies import QuadratureLikelihood
from sde_models.likelihood.trace_sampling import PROBES_SHARE, TraceSampler

MOST_NODES = 1024
RESOLVED = 0.9
"""Part of the error that nodes may have."""


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
    rows = torch.arange(len(strategy.x), device=strategy.x.device)
    nodes = strategy.pilot.finer(solver.first)
    states = solver.states(strategy, paths, nodes)
    if strategy.estimator.exact:
        return _estimate(TraceSampler(strategy, nodes, states, source), target, paths, solver)
    signs = draw_rows(rademacher_like, strategy.x.detach(), source).flatten(1)
    pilot = Pilot(strategy, nodes, states, signs)
    others, probes = paths.sketches.transpose(0, 1), strategy.pilot_probes
    probes = others if probes is None else probes[0].flatten(2).to(others)
    pilot.begin(others, probes, (PROBES_SHARE * target / 2).square())
    result: TraceIntegral | None = None
    while True:
        integral = pilot.integral()
        result = integral if result is None else result
        late = integral.error > RESOLVED * target[rows]
        late &= torch.tensor(2 * pilot.nodes.count <= MOST_NODES)
        done, late = (part.nonzero().flatten() for part in (~late, late))
        if len(done):
            own, some = rows[done], pilot.of_rows(done)
            sampler = TraceSampler(
                some.strategy, some.nodes, some.states, of_some_rows(source, own), some
            )
            result = result.put((own,), _estimate(sampler, target[own], paths.at(own), solver))
        if not len(late):
            return result
        rows = rows[late]
        pilot = _finer(pilot.of_rows(late), paths.at(rows), solver)


def _estimate(
    sampler: TraceSampler, target: Tensor, paths: Paths, solver: PathSolver
) -> TraceIntegral:
    """The integral at nodes that a pilot found, doubled where its own traces show them too few."""
    strategy, source = sampler.strategy, sampler.source
    rows = torch.arange(len(target), device=target.device)
    result: TraceIntegral | None = None
    while True:
        aim = target[rows]
        sampler.begin(1 if sampler.probes else strategy.estimator.count_products(strategy.size))
        nodes = torch.zeros_like(aim)
        if sampler.pilot is not None:
            nodes = sampler.pilot.integral().error
            sampler.reach((aim.square() - nodes.square()).clamp(min=0.1 * aim.square()).sqrt())
        integral = sampler.integral()
        integral = replace(integral, error=torch.maximum(integral.error, nodes))
        result = integral if result is None else result.put((rows,), integral)
        late = (torch.hypot(2 * integral.stderr, integral.error) > aim).nonzero().flatten()
        if not len(late) or 2 * sampler.nodes.count > MOST_NODES:
            return result
        rows = rows[late]
        own, part = paths.at(rows), strategy.part(rows)
        pilot = None
        if sampler.pilot is None:
            states = solver.states(part, own, sampler.nodes.of_rows(late).finer(2))
        else:
            pilot = _finer(sampler.pilot.of_rows(late), own, solver)
            states = pilot.states
        sampler = sampler.finer(late, part, states, of_some_rows(source, rows), pilot)


def _finer(pilot: Pilot, paths: Paths, solver: PathSolver) -> Pilot:
    return pilot.finer(solver.states(pilot.strategy, paths, pilot.nodes.finer(2)))
