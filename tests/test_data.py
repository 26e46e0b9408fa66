"""Digits, and the way between grey levels and numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sde_models.data import check_levels, dequantize, digits, quantize

LEVELS = [2, 17, 256, 65536]
RANGES = [(-1.0, 1.0), (0.0, 1.0), (0.1, 0.7), (0.0, 255.0)]


def every_level(levels: int, copies: int = 1) -> Tensor:
    return torch.arange(levels)[:, None].expand(levels, copies)


@pytest.fixture
def highest_u(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every draw of u the largest number below one."""

    def largest(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.nextafter(torch.ones_like(x), torch.zeros_like(x))

    monkeypatch.setattr("sde_models.data.dequantization.uniform_like", largest)


def test_digits_are_all_of_scikit_learns_in_a_fixed_split() -> None:
    data = digits()
    assert data.train.shape == (1437, 1, 8, 8)
    assert data.test.shape == (360, 1, 8, 8)
    assert data.train.dtype == torch.uint8
    images = torch.cat([data.train, data.test])
    assert (int(images.min()), int(images.max()), data.levels) == (0, 16, 17)
    # Sums taken from scikit-learn's own file: nothing lost, nothing doubled.
    assert int(images.sum(dtype=torch.int64)) == 561718
    labels = torch.cat([data.train_labels, data.test_labels])
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels.bincount().tolist() == counts
    # The split itself, so that figures stay comparable.
    assert data.test_labels[:8].tolist() == [7, 9, 4, 7, 0, 2, 6, 1]
    assert int(data.test.sum(dtype=torch.int64)) == 112332


@pytest.mark.parametrize("data_range", RANGES)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantize_inverts_dequantize(
    levels: int, data_range: tuple[float, float], dtype: torch.dtype
) -> None:
    images = every_level(levels, copies=max(1, 100_000 // levels))
    x = dequantize(images, levels, data_range=data_range, dtype=dtype)
    assert x.dtype == dtype
    assert torch.equal(quantize(x, levels, data_range=data_range), images)


@pytest.mark.parametrize("data_range", RANGES)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.usefixtures("highest_u")
def test_rounding_never_reaches_the_next_level(
    levels: int, data_range: tuple[float, float]
) -> None:
    images = every_level(levels)
    x = dequantize(images, levels, data_range=data_range)
    assert torch.equal(quantize(x, levels, data_range=data_range), images)
    low, high = data_range
    edges = low + (high - low) * (every_level(levels).double() + 1) / levels
    slack = 2 * torch.finfo(torch.float32).eps * max(abs(low), abs(high))
    assert bool((x.double() < edges + slack).all())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    levels=st.integers(2, 65536),
    low=st.floats(-5, 5),
    width=st.floats(0.5, 10),
    share=st.floats(0, 1),
    u=st.sampled_from([0.0, 0.5, 1 - 2**-24]),
)
def test_levels_survive_for_any_range(
    levels: int, low: float, width: float, share: float, u: float
) -> None:
    data_range = (low, low + width)
    images = torch.tensor([[int(share * (levels - 1))]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sde_models.data.dequantization.uniform_like",
            lambda x, generator=None: torch.full_like(x, u),
        )
        try:
            x = dequantize(images, levels, data_range=data_range)
        except ValueError as error:
            assert "too coarse" in str(error)  # noqa: PT017 (refusing is as good)
            return
    assert torch.equal(quantize(x, levels, data_range=data_range), images)


def test_u_is_uniform_in_its_cell() -> None:
    """Kolmogorov-Smirnov distance of 200,000 numbers; false alarm below 1e-6."""
    generator = torch.Generator().manual_seed(0)
    count, levels = 200_000, 17
    images = torch.full((count, 1), 5)
    x = dequantize(images, levels, data_range=(0.0, 1.0), generator=generator)
    u = (x.double() * levels - 5).flatten().sort().values
    distance = (u - (torch.arange(count) + 0.5) / count).abs().max()
    assert float(distance) < math.sqrt(math.log(2e6) / (2 * count))


def test_generator_fixes_the_draw() -> None:
    images = every_level(17)
    first, second = (
        dequantize(images, 17, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_quantize_clamps_what_lies_outside() -> None:
    x = torch.tensor([[-7.0, -1.0, 0.999, 1.0, 7.0]])
    assert quantize(x, 17).tolist() == [[0, 0, 16, 16, 16]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_whole_numbers_of_any_dtype_are_levels(dtype: torch.dtype) -> None:
    check_levels(torch.tensor([[0, 16]], dtype=dtype), 17)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[1, 2]], TypeError, "list"),
        (torch.tensor([[True]]), TypeError, "torch.bool"),
        (torch.tensor([[1j]]), TypeError, "complex"),
        (torch.tensor([[0.5]]), ValueError, r"0\.5.*whole number.*\(images \* 16\)\.round\(\)"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "NaN"),
        (torch.tensor([[math.inf]]), ValueError, "infinite"),
        (torch.tensor([[-1, 3]]), ValueError, "from -1 to 3.*from 0 to 16"),
        (torch.tensor([[0, 17]]), ValueError, "from 0 to 17.*from 0 to 16"),
        (torch.tensor([1, 2]), ValueError, r"\(2,\).*\(B, \*event\)"),
        (torch.zeros(0, 2, dtype=torch.uint8), ValueError, r"\(0, 2\)"),
    ],
)
def test_what_is_no_level_is_refused(images: Tensor, error: type[Exception], message: str) -> None:
    for call in (check_levels, dequantize):
        with pytest.raises(error, match=message):
            call(images, 17)


@pytest.mark.parametrize(("levels", "error"), [(1, ValueError), (-3, ValueError), (2.0, TypeError)])
def test_level_counts_out_of_range_are_refused(levels: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="levels"):
        check_levels(torch.zeros(1, 1, dtype=torch.uint8), levels)
    with pytest.raises(error, match="levels"):
        quantize(torch.zeros(1, 1), levels)


@pytest.mark.parametrize("data_range", [(1.0, -1.0), (0.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_empty_ranges_are_refused(data_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low < high"):
        dequantize(torch.zeros(1, 1, dtype=torch.uint8), 17, data_range=data_range)
    with pytest.raises(ValueError, match="low < high"):
        quantize(torch.zeros(1, 1), 17, data_range=data_range)


def test_dtypes_too_coarse_for_the_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="too coarse"):
        dequantize(torch.zeros(1, 1, dtype=torch.uint8), 256, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        dequantize(torch.zeros(1, 1, dtype=torch.uint8), 256, dtype=torch.int64)


@pytest.mark.parametrize("x", [torch.tensor([[math.nan]]), torch.tensor([[math.inf]])])
def test_quantize_refuses_what_is_not_finite(x: Tensor) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(x, 17)
