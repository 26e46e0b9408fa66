"""Broadcasting acts sample by sample for every event shape, and bad batches are refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sde_models._utils.shapes import (
    as_time,
    check_batch,
    check_event_shape,
    describe_rows,
    per_sample,
)


@settings(deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_a_coefficient_multiplies_its_own_sample(shape: list[int], batch: int, seed: int) -> None:
    """Also where B equals an event dimension, which right-aligned broadcasting would confuse."""
    generator = torch.Generator().manual_seed(seed)
    coefficient = torch.randn(batch, generator=generator)
    x = torch.randn(batch, *shape, generator=generator)
    one_by_one = torch.stack([c * row for c, row in zip(coefficient, x, strict=True)])
    assert torch.equal(per_sample(coefficient, x) * x, one_by_one)


def test_a_scalar_coefficient_is_left_alone() -> None:
    coefficient = torch.tensor(3.0)
    assert per_sample(coefficient, torch.zeros(2, 3)) is coefficient


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1,), (0,), (1, 1)])
def test_a_coefficient_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scalar or has shape \(B,\) = \(2,\)"):
        per_sample(torch.zeros(shape), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "t", [1, 1.0, torch.tensor(1), torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)]
)
def test_a_time_takes_the_dtype_of_the_batch(t: float | Tensor, dtype: torch.dtype) -> None:
    time = as_time(t, torch.zeros(2, 3, dtype=dtype))
    assert time.dtype == dtype
    assert time.shape == ()
    assert time == 1


def test_a_time_by_itself_keeps_its_precision() -> None:
    exact = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert as_time(exact) is exact
    assert as_time(0.5).dtype == torch.get_default_dtype()
    assert as_time(torch.tensor([1, 2])).dtype == torch.get_default_dtype()


def test_a_number_is_rounded_once() -> None:
    """0.1 becomes the double nearest to 0.1 and not that nearest to its float32."""
    assert float(as_time(0.1, torch.zeros(1, 1, dtype=torch.float64))) == 0.1


def test_a_time_stays_in_the_graph() -> None:
    t = torch.tensor([0.1, 0.2], requires_grad=True)
    as_time(t, torch.zeros(2, 1, dtype=torch.float64)).sum().backward()
    assert torch.equal(t.grad, torch.ones(2))


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 4, 4)])
def test_a_good_batch_passes(shape: tuple[int, ...]) -> None:
    check_batch(torch.zeros(shape))
    check_batch(torch.zeros(shape), shape[1:])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "z must be a torch.Tensor, got list"),
        (torch.zeros(2, 2, dtype=torch.uint8), TypeError, r"z has dtype torch.uint8.*z\.float\(\)"),
        (torch.zeros(2, 2, dtype=torch.bool), TypeError, "expected a floating dtype"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "expected a floating dtype"),
        (torch.zeros(0, 2), ValueError, "at least one sample"),
        (torch.zeros(2), ValueError, r"expected \(B, \*event\).*z\.reshape\(-1, 1\)"),
        (torch.tensor(1.0), ValueError, r"expected \(B, \*event\)"),
        (torch.zeros(2, 3), ValueError, r"event shape \(3,\).*expects \(2,\).*\(B, 2\)"),
        (torch.zeros(2, 2, 1), ValueError, r"event shape \(2, 1\)"),
    ],
)
def test_a_bad_batch_is_refused_by_name(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_batch(x, (2,), name="z")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    x = torch.zeros(5, 1, 2, 2, requires_grad=True).clone()
    x[1, 0, 1, 0] = bad
    x[4, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite values in rows 1, 4 of the batch"):
        check_batch(x)


def test_rows_are_named_up_to_a_point() -> None:
    assert describe_rows([3]) == "row 3 of the batch"
    assert describe_rows(list(range(8))) == "rows 0, 1, 2, 3, 4, 5, 6, 7 of the batch"
    shown = "rows 0, 1, 2, 3, 4, 5, 6, 7, ... (100 in all) of the batch"
    assert describe_rows(list(range(100))) == shown


def test_any_event_shape_passes_where_none_is_asked_for() -> None:
    check_event_shape(torch.zeros(2, 5, 1), None)
    check_event_shape(torch.zeros(2, 5, 1), (5, 1))
