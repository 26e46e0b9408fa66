"""Trace estimators: exact ones exact, random ones unbiased with the variance theory gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models.divergence import standard_error

B, D, N = 3, 5, 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_field(matrix: Tensor, shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    def field(x: Tensor) -> Tensor:
        return (x.flatten(1) @ matrix.T).reshape(-1, *shape).tanh()

    return field


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 64, None])
def test_exact_is_the_trace_of_autograds_jacobian(
    shape: tuple[int, ...], chunk: int | None
) -> None:
    matrix = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
    field = linear_field(matrix, shape)
    x = torch.randn(B, *shape, generator=generator(1), dtype=torch.float64)
    with sm.count_evaluations() as cost:
        value, trace = sm.Exact(chunk=chunk)(field, x, None)
    assert cost.vjps == 6
    assert torch.equal(value, field(x))
    for i in range(B):
        jacobian = torch.autograd.functional.jacobian(field, x[i : i + 1]).reshape(6, 6)
        torch.testing.assert_close(trace[i, 0], jacobian.trace())


@pytest.mark.parametrize(
    ("distribution", "variance"),
    [
        # Var(e'Je) with S the symmetric part of J: 2 sum_{i != j} S_ij^2, or 2 ||S||^2
        ("rademacher", lambda s: 2 * (s.square().sum() - s.diagonal().square().sum())),
        ("gaussian", lambda s: 2 * s.square().sum()),
    ],
)
def test_hutchinson_is_unbiased_with_the_known_variance(distribution: str, variance) -> None:  # type: ignore[no-untyped-def]
    """Mean within 5 standard errors (false-alarm rate 6e-7 a sample), variance within 10%."""
    matrix = torch.randn(D, D, generator=generator(), dtype=torch.float64)
    x = torch.randn(B, D, generator=generator(1), dtype=torch.float64)
    estimator = sm.Hutchinson(N, distribution)
    drawn = estimator.draw(x, generator(2))
    _, estimates = estimator(lambda y: y @ matrix.T, x, drawn)
    assert estimates.shape == (B, N)
    deviation = (estimates.mean(1) - matrix.trace()).abs()
    assert bool((deviation < 5 * standard_error(estimates)).all())
    symmetric = 0.5 * (matrix + matrix.T)
    torch.testing.assert_close(estimates.var(), variance(symmetric).reshape(()), rtol=0.1, atol=0.0)


def test_estimates_carry_a_graph_only_when_gradients_are_on() -> None:
    x = torch.randn(B, D, generator=generator(), dtype=torch.float64, requires_grad=True)
    _, trace = sm.Exact()(lambda y: y**3, x, None)
    (gradient,) = torch.autograd.grad(trace.sum(), x)
    torch.testing.assert_close(gradient, 6 * x.detach())
    with torch.no_grad():
        value, trace = sm.Exact()(lambda y: y**3, x, None)
    assert not value.requires_grad
    assert not trace.requires_grad


def test_a_field_that_does_not_depend_on_x_has_no_divergence() -> None:
    x = torch.zeros(B, D)
    _, trace = sm.Exact()(lambda y: torch.ones(B, D), x, None)
    assert torch.equal(trace, torch.zeros(B, 1))


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_counts_are_checked(count: float) -> None:
    with pytest.raises(ValueError, match="probes must be a whole number of 1 or more"):
        sm.Hutchinson(count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk must be a whole number"):
        sm.Exact(chunk=count)  # type: ignore[arg-type]


def test_unknown_distribution_brings_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        sm.Hutchinson(2, "gausian")
    with pytest.raises(ValueError, match="needs the probes"):
        sm.Hutchinson(2)(lambda y: y, torch.zeros(B, D), None)


class Cube(torch.autograd.Function):
    """x^3 with a backward pass in NumPy, which torch cannot batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * gradient.numpy())


def test_operations_that_cannot_be_batched_are_taken_one_at_a_time() -> None:
    x = torch.randn(B, D, generator=generator(), dtype=torch.float64)
    with torch.no_grad(), sm.count_evaluations() as cost:
        _, trace = sm.Exact()(Cube.apply, x, None)
    torch.testing.assert_close(trace[:, 0], 3 * x.square().sum(1))
    assert cost.vjps == D
