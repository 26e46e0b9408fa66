"""Fixed-step methods of other libraries find every time they ask for prepared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers.problem import GuardedDrift, Problem

TABLE = sm.list_solvers()
LIBRARIES = [
    name
    for name, solver in TABLE.items()
    if solver.library in ("torchdiffeq", "torchsde") and not solver.adaptive
]
EXACT = ProductMixture(sm.VPSDE(), (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for at a time that was not prepared."""
    misses: list[str] = []
    drift, noise_scale = GuardedDrift.forward, Problem.noise_scale

    def noting_drift(self: GuardedDrift, t: Tensor, x: Tensor) -> Tensor:
        misses.append("drift")
        return drift(self, t, x)

    def noting_scale(self: Problem, t: Tensor, x: Tensor) -> Tensor:
        misses.append("noise_scale")
        return noise_scale(self, t, x)

    monkeypatch.setattr(GuardedDrift, "forward", noting_drift)
    monkeypatch.setattr(Problem, "noise_scale", noting_scale)
    return misses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_evaluation_is_at_a_prepared_time(
    name: str, dtype: torch.dtype, asked: list[str]
) -> None:
    """In both directions, on a grid of unequal steps, where the solver takes one."""
    solver = TABLE[name]
    x = EXACT.sample(3, 0.5, generator()).to(dtype)
    systems: list[tuple[sm.System, tuple[float, float]]] = [
        (sm.ProbabilityFlow(EXACT.model), (1.0, 1e-5)),
        (sm.ProbabilityFlow(EXACT.model), (1e-5, 1.0)),
    ]
    if solver.stochastic:
        systems = [(sm.ReverseSDE(EXACT.model, (2,)), (1.0, 1e-5)), (EXACT.sde, (1e-5, 1.0))]
    for system, span in systems:
        sm.solve(system, x, span, name, steps=60)
        assert asked == []


def test_other_times_are_evaluated_as_they_stand(asked: list[str]) -> None:
    """torchdiffeq's perturb asks for the number after or before a node; the answer is the same."""
    x = EXACT.sample(3, 1.0, generator())
    plain = sm.solve(EXACT.flow(), x, (1.0, 0.1), "ode:rk4", steps=10).x
    assert asked == []
    perturbed = sm.solve(
        EXACT.flow(), x, (1.0, 0.1), sm.make_solver("ode:rk4", perturb=True), steps=10
    )
    assert len(asked) >= 20
    torch.testing.assert_close(perturbed.x, plain, rtol=1e-9, atol=1e-9)


def test_prepared_drifts_keep_their_gradients() -> None:
    """By the fixed-step method itself, against the adjoint, which prepares nothing."""
    x = EXACT.sample(3, 0.5, generator()).requires_grad_()
    gradients = []
    for way in ("direct", "adjoint"):
        end = sm.solve(EXACT.flow(), x, (0.5, 0.1), "ode:rk4", steps=60, gradient=way).x
        gradients.append(torch.autograd.grad(end.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


class Flat(sm.System):
    """A drift that would broadcast, and is wrong."""

    stochastic = False
    t_min, t_max = 0.0, 1.0

    def drift(self, t: Any, x: Tensor) -> Tensor:
        return -x[:, :1]

    def noise_scale(self, t: Any, x: Tensor) -> Tensor:
        return torch.ones(())


@pytest.mark.parametrize(
    "name", [name for name, solver in TABLE.items() if not solver.diffusion_only]
)
def test_a_drift_of_another_shape_is_refused(name: str) -> None:
    system = Flat()
    system.stochastic = not TABLE[name].deterministic
    with pytest.raises(ValueError, match=r"drift of Flat has shape \(3, 1\) for a state of shape"):
        sm.solve(system, torch.ones(3, 2), (0.0, 1.0), name)


def test_a_brownian_motion_of_another_shape_is_refused() -> None:
    import torchsde

    brownian = torchsde.BrownianInterval(t0=-1.0, t1=0.0, size=(3, 2), dtype=torch.float64)
    solver = sm.make_solver("sde:euler", brownian=brownian)
    x = EXACT.sample(4, 1.0, generator())
    with pytest.raises(ValueError, match=r"brownian has shape \(3, 2\), expected .* \(4, 2\)"):
        sm.solve(sm.ReverseSDE(EXACT.model, (2,)), x, (1.0, 0.1), solver, steps=4)
