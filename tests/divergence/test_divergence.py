"""Trace estimators: exact ones exact, random ones unbiased, with errors as they report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models.divergence.exact import LARGEST_EXACT
from sde_models.divergence.registry import find_divergence

B, D, N = 3, 5, 8_000
RANDOM: list[sm.Divergence] = [
    sm.Hutchinson(1),
    sm.Hutchinson(4),
    sm.Hutchinson(4, "gaussian"),
    sm.Hutchinson(4, "sphere"),
    sm.HutchPlusPlus(2),
    sm.HutchPlusPlus(4),
    sm.XTrace(2),
    sm.XTrace(4),
    sm.XTrace(6),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_field(matrix: Tensor, shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    def field(x: Tensor) -> Tensor:
        return (x.flatten(1) @ matrix.T).reshape(-1, *shape).tanh()

    return field


def random_matrix(size: int, kind: str) -> Tensor:
    """Matrices without structure, and symmetric ones with flat and with decaying spectra."""
    matrix = torch.randn(size, size, generator=generator(), dtype=torch.float64)
    if kind == "any":
        return matrix
    axes = torch.linalg.qr(matrix)[0]
    k = torch.arange(size, dtype=torch.float64)
    spectrum = {"flat": 1 - k / size, "decaying": 0.7**k, "two signs": (-1) ** k / (1 + k)}[kind]
    return axes @ torch.diag(spectrum) @ axes.T


def at_many(estimator: sm.Divergence, matrix: Tensor, count: int, seed: int) -> tuple[Tensor, ...]:
    """Independent answers and their standard errors."""
    x = torch.zeros(count, len(matrix), dtype=torch.float64)
    _, trace = estimator(lambda y: y @ matrix.T, x, estimator.draw(x, generator(seed)))
    return trace.value, trace.stderr


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 64, None])
def test_exact_is_the_trace_of_autograds_jacobian(
    shape: tuple[int, ...], chunk: int | None
) -> None:
    matrix = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
    field = linear_field(matrix, shape)
    x = torch.randn(B, *shape, generator=generator(1), dtype=torch.float64)
    with sm.count_evaluations() as counter:
        value, trace = sm.Exact(chunk=chunk)(field, x, None)
    assert counter.vjps == 6 * B
    assert torch.equal(value, field(x))
    assert torch.equal(trace.stderr, torch.zeros_like(trace.value))
    for i in range(B):
        jacobian = torch.autograd.functional.jacobian(field, x[i : i + 1]).reshape(6, 6)
        torch.testing.assert_close(trace.value[i], jacobian.trace())


@pytest.mark.parametrize("kind", ["any", "flat", "decaying", "two signs"])
@pytest.mark.parametrize("estimator", RANDOM, ids=repr)
def test_unbiased_on_random_matrices(estimator: sm.Divergence, kind: str) -> None:
    """8,000 answers: their mean within 5 of its standard errors, false alarms 6e-7."""
    matrix = random_matrix(20, kind)
    answers, _ = at_many(estimator, matrix, N, seed=2)
    assert (answers.mean() - matrix.trace()).abs() < 5 * answers.std() / math.sqrt(N) + 1e-10


@pytest.mark.parametrize("kind", ["flat", "decaying", "two signs"])
@pytest.mark.parametrize("estimator", RANDOM, ids=repr)
def test_standard_error_is_the_spread_of_the_answers(estimator: sm.Divergence, kind: str) -> None:
    """On symmetric matrices, as Jacobians of scores are; XTrace reports up to 1.4 times too much.

    A single Rademacher probe does not know the diagonal, which makes no error, and counts it.
    """
    matrix = random_matrix(20, kind)
    answers, reported = at_many(estimator, matrix, N, seed=3)
    ratio = float(reported.square().mean().sqrt() / answers.std())
    safe = isinstance(estimator, sm.XTrace) or estimator.probes == 1
    assert 0.96 < ratio < (1.45 if safe else 1.04)


@pytest.mark.parametrize("estimator", RANDOM, ids=repr)
def test_standard_error_is_on_the_safe_side_without_symmetry(estimator: sm.Divergence) -> None:
    answers, reported = at_many(estimator, random_matrix(20, "any"), N, seed=3)
    assert 0.96 < float(reported.square().mean().sqrt() / answers.std()) < 1.6


@pytest.mark.parametrize("estimator", RANDOM, ids=repr)
def test_unbiased_on_a_network(estimator: sm.Divergence) -> None:
    """5 standard errors of 4,000 answers at one point, false alarms 6e-7."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(12, 32), torch.nn.Tanh(), torch.nn.Linear(32, 12)
    ).double()
    x = torch.randn(1, 12, generator=generator(), dtype=torch.float64)
    truth = sm.Exact()(network, x, None)[1].value
    points = x.expand(4000, -1).clone()
    _, trace = estimator(network, points, estimator.draw(points, generator(1)))
    answers = trace.value.detach()
    assert (answers.mean() - truth).abs() < 5 * answers.std() / math.sqrt(4000) + 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-3)])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_low_rank_estimators_are_exact_below_their_budget(
    rank: int, dtype: torch.dtype, tolerance: float
) -> None:
    left, right = torch.randn(2, 30, 3, generator=generator(), dtype=dtype)
    low = left[:, :rank] @ right[:, :rank].T
    x = torch.randn(B, 30, generator=generator(1), dtype=dtype)
    identity = torch.eye(30, dtype=dtype)
    cases: list[tuple[sm.Divergence, Tensor, float]] = [
        (sm.HutchPlusPlus(3), low, 0.0),
        (sm.XTrace(4), low, 0.0),
        (sm.XTrace(4), low + 1.7 * identity, 0.0),  # whatever the multiple of the identity
        (sm.XTrace(9), low - 0.3 * identity, 0.0),
        (sm.HutchPlusPlus(3), low + 1.7 * identity, 1.7),  # if it is known
    ]
    for estimator, matrix, isotropic in cases:
        drawn = estimator.draw(x, generator(2))
        _, trace = estimator(lambda y, matrix=matrix: y @ matrix.T, x, drawn, isotropic)
        wanted = matrix.trace().expand(B)
        torch.testing.assert_close(trace.value, wanted, rtol=0, atol=tolerance)
        assert float(trace.stderr.max()) <= tolerance


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
def test_what_is_known_of_a_jacobian_makes_no_error(distribution: str) -> None:
    """A multiple of the identity for each sample."""
    factors = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    x = torch.randn(B, 6, generator=generator(), dtype=torch.float64)
    estimator = sm.Hutchinson(2, distribution)
    _, trace = estimator(
        lambda y: factors[:, None] * y, x, estimator.draw(x, generator(1)), factors
    )
    torch.testing.assert_close(trace.value, 6 * factors)
    torch.testing.assert_close(trace.stderr, torch.zeros(B, dtype=torch.float64))


@pytest.mark.parametrize(
    ("estimator", "products"),
    [(sm.Exact(), 12), (sm.Hutchinson(5), 5), (sm.HutchPlusPlus(3), 9), (sm.XTrace(3), 6),
     (sm.XTrace(8), 12), (sm.HutchPlusPlus(8), 12)],
    ids=repr,
)  # fmt: skip
def test_products_are_as_many_as_are_reported(estimator: sm.Divergence, products: int) -> None:
    x = torch.randn(B, 3, 4, generator=generator())
    with sm.count_evaluations() as counter:
        _, trace = estimator(lambda y: y**2, x, estimator.draw(x, generator(1)))
    assert estimator.count_products(12) == products
    assert counter.vjps == B * products
    assert trace.estimates.shape == (B, estimator.probes)


@pytest.mark.parametrize("estimator", RANDOM, ids=repr)
def test_estimates_are_differentiable(estimator: sm.Divergence) -> None:
    """The mean of 3,000 gradients is that of the exact trace, within 5 errors (6e-7)."""
    count = 3000
    x = torch.full((count, 12), 0.7, dtype=torch.float64, requires_grad=True)
    mixing = torch.randn(12, 12, generator=generator(), dtype=torch.float64) / 4

    def field(y: Tensor) -> Tensor:
        return (y @ mixing.T).tanh() @ mixing

    def gradients(one: sm.Divergence) -> Tensor:
        _, trace = one(field, x, one.draw(x, generator(1)))
        return torch.autograd.grad(trace.value.sum(), x)[0]

    truth, found = gradients(sm.Exact())[0], gradients(estimator)
    error = found.std(0) / math.sqrt(count)
    assert bool(((found.mean(0) - truth).abs() < 5 * error + 1e-10).all())


def test_estimates_carry_a_graph_only_when_gradients_are_on() -> None:
    x = torch.randn(B, D, generator=generator(), dtype=torch.float64, requires_grad=True)
    _, trace = sm.Exact()(lambda y: y**3, x, None)
    (gradient,) = torch.autograd.grad(trace.value.sum(), x)
    torch.testing.assert_close(gradient, 6 * x.detach())
    for estimator in (sm.Exact(), *RANDOM):
        with torch.no_grad():
            value, trace = estimator(lambda y: y**3, x, estimator.draw(x, generator(1)))
        assert not value.requires_grad
        assert not trace.estimates.requires_grad
        assert not trace.stderr.requires_grad


@pytest.mark.parametrize("estimator", [sm.Exact(), *RANDOM], ids=repr)
def test_a_field_that_does_not_depend_on_x_has_no_divergence(estimator: sm.Divergence) -> None:
    x = torch.zeros(B, 30)
    _, trace = estimator(lambda y: torch.ones(B, 30), x, estimator.draw(x, generator(1)))
    assert torch.equal(trace.value, torch.zeros(B))
    assert torch.equal(trace.stderr, torch.zeros(B))


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_counts_are_checked(count: float) -> None:
    made: list[Callable[[Any], object]] = [sm.Hutchinson, sm.XTrace, sm.HutchPlusPlus]
    for make in made:
        with pytest.raises(ValueError, match="probes must be an integer of"):
            make(count)
    with pytest.raises(ValueError, match="chunk must be an integer"):
        sm.Exact(chunk=count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit must be an integer"):
        sm.Exact(limit=count)  # type: ignore[arg-type]


def test_exact_trace_of_large_events_is_refused_with_its_cost() -> None:
    x = torch.zeros(1, 3, 64, 64)
    for call in (
        lambda: sm.Exact()(lambda y: y, x, None),
        lambda: find_divergence("exact", x.numel()),
        lambda: sm.log_prob(
            sm.ScoreModel(torch.nn.Identity(), sm.VPSDE(), prediction="eps"), x
        ),  # before anything is evaluated
    ):
        with pytest.raises(ValueError, match=r"takes 12288 vector-Jacobian.*xtrace.*limit=12288"):
            call()
    allowed = sm.Exact(limit=LARGEST_EXACT + 1)
    allowed.check_size(LARGEST_EXACT + 1)


def test_auto_looks_at_the_dimension() -> None:
    assert find_divergence("auto", 8).exact
    assert not find_divergence("auto", 64).exact
    assert find_divergence("auto", 64).count_products(64) == 2
    assert find_divergence("auto", 64, along_a_path=False).count_products(64) == 16
    assert not find_divergence("auto", 64, along_a_path=False).exact


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        sm.Hutchinson(2, "gausian")
    with pytest.raises(ValueError, match="did you mean 'xtrace'"):
        find_divergence("xtrce", 4)
    for estimator in RANDOM:
        with pytest.raises(ValueError, match="needs the probes"):
            estimator(lambda y: y, torch.zeros(B, D), None)


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
    with torch.no_grad(), sm.count_evaluations() as counter:
        _, trace = sm.Exact()(Cube.apply, x, None)
    torch.testing.assert_close(trace.value, 3 * x.square().sum(1))
    assert counter.vjps == B * D
