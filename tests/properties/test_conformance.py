"""The matrix SDE x solver x direction x event shape x span against closed forms.

ODE solvers carry a few points along the probability flow of a mixture, whose exact flow map is
known. Fixed-step ones must show their order on the way, adaptive ones keep to their tolerance. SDE
solvers run the forward SDE from exact samples up, and the reverse SDE from exact samples down;
what comes out is tested against the exact marginal. No solver is treated by name.
"""

from __future__ import annotations

import pytest
import torch
from support.marginals import ProductMixture

import sde_models as sm

TABLE = sm.list_solvers()
SDES = {
    "vp": sm.VPSDE(),
    "sub-vp": sm.SubVPSDE(),
    "ve": sm.VESDE(),
    "cosine": sm.CosineSDE(),
    "flow-matching": sm.FlowMatchingSDE(),
}
EVENT_SHAPES = [(2,), (1, 4, 4)]
SPANS = {"whole": (0.0, 1.0), "start": (0.0, 0.4), "inside": (0.3, 0.7), "end": (0.5, 1.0)}

sde_and_shape = [
    pytest.mark.parametrize("sde", list(SDES.values()), ids=list(SDES)),
    pytest.mark.parametrize("event_shape", EVENT_SHAPES, ids=str),
    pytest.mark.parametrize("span", list(SPANS.values()), ids=list(SPANS)),
]


def matrix(test):  # type: ignore[no-untyped-def]
    """Parametrise a test over SDE, event shape and span."""
    for mark in sde_and_shape:
        test = mark(test)
    return test


def times(sde: sm.GaussianSDE, span: tuple[float, float]) -> tuple[float, float]:
    """A span given in fractions of [t_min, t_max]."""
    low, high = (sde.t_min + part * (sde.t_max - sde.t_min) for part in span)
    return low, high


def names(**wanted: bool) -> list[str]:
    """Solvers whose declarations match."""
    return [
        name
        for name, solver in TABLE.items()
        if all(getattr(solver, key) == value for key, value in wanted.items())
    ]


@pytest.mark.parametrize("solver", names(deterministic=True, adaptive=True))
@matrix
def test_adaptive_ode_solver_keeps_to_its_tolerance(
    solver: str, sde: sm.GaussianSDE, event_shape: tuple[int, ...], span: tuple[float, float]
) -> None:
    exact = ProductMixture(sde, event_shape)
    low, high = times(sde, span)
    generator = torch.Generator().manual_seed(0)
    for t0, t1 in [(low, high), (high, low)]:
        x = exact.sample(4, t0, generator)
        got = sm.solve(exact.flow(), x, (t0, t1), solver, rtol=1e-5, atol=1e-5).x
        error = (got - exact.flow_map(x, t0, t1)).abs().max() / exact.spread(t1)
        assert error < 1e-2


@pytest.mark.parametrize("solver", names(deterministic=True, adaptive=False))
@matrix
def test_fixed_step_ode_solver_has_its_order(
    solver: str, sde: sm.GaussianSDE, event_shape: tuple[int, ...], span: tuple[float, float]
) -> None:
    exact = ProductMixture(sde, event_shape)
    low, high = times(sde, span)
    generator = torch.Generator().manual_seed(0)
    order = TABLE[solver].order
    fine = {1: 80, 2: 120}.get(order, 200)
    if TABLE[solver].diffusion_only and order > 2:  # these begin with steps of a lower order
        fine = 800 if order == 5 else 400
    for t0, t1 in [(low, high), (high, low)]:
        x = exact.sample(8, t0, generator)
        truth = exact.flow_map(x, t0, t1)
        errors = []
        for steps in (fine // 4, fine):
            got = sm.solve(exact.flow(), x, (t0, t1), solver, steps=steps).x
            errors.append(float((got - truth).square().mean().sqrt() / exact.spread(t1)))
        rounding = 1e-10
        assert errors[1] < max(errors[0] * 4 ** (0.5 - order), rounding)
        assert errors[1] < (0.5 if order == 1 else 0.5**order / 2)


@pytest.mark.parametrize("solver", names(stochastic=True))
@matrix
def test_sde_solver_reaches_the_marginal_backward(
    solver: str, sde: sm.GaussianSDE, event_shape: tuple[int, ...], span: tuple[float, float]
) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    exact = ProductMixture(sde, event_shape)
    low, high = times(sde, span)
    generator = torch.Generator().manual_seed(1)
    x = exact.sample(1000, high, generator)
    system = sm.ReverseSDE(exact.model, event_shape)
    effort = {} if TABLE[solver].adaptive else {"steps": 100}
    got = sm.solve(system, x, (high, low), solver, generator=generator, **effort)
    exact.check_marginal(got.x, low, bias=0.05)


@pytest.mark.parametrize("solver", names(stochastic=True, diffusion_only=False))
@matrix
def test_sde_solver_reaches_the_marginal_forward(
    solver: str, sde: sm.GaussianSDE, event_shape: tuple[int, ...], span: tuple[float, float]
) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    exact = ProductMixture(sde, event_shape)
    low, high = times(sde, span)
    generator = torch.Generator().manual_seed(2)
    x = exact.sample(1000, low, generator)
    got = sm.solve(sde, x, (low, high), solver, steps=100, generator=generator)
    exact.check_marginal(got.x, high, bias=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.5])
@matrix
def test_every_eta_has_the_same_marginals(
    eta: float, sde: sm.GaussianSDE, event_shape: tuple[int, ...], span: tuple[float, float]
) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    exact = ProductMixture(sde, event_shape)
    low, high = times(sde, span)
    generator = torch.Generator().manual_seed(3)
    x = exact.sample(1000, high, generator)
    system = sm.ReverseSDE(exact.model, event_shape, eta)
    got = sm.solve(system, x, (high, low), "sde:heun", steps=100, generator=generator)
    exact.check_marginal(got.x, low, bias=0.05)
