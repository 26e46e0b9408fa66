"""Digits, the way between grey levels and numbers, and densities over the cells."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sde_models.data import (
    Dequantization,
    LogitTransform,
    TruncatedNormalDequantization,
    UniformDequantization,
    check_levels,
    dequantize,
    digits,
    quantize,
)
from sde_models.data.truncated_normal import log_mass, quantile

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


WHOLE = [
    torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64,
    torch.float16, torch.float32,
]  # fmt: skip


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_of_any_dtype_are_levels(dtype: torch.dtype) -> None:
    """They are dequantised to the same numbers, and what is no level is refused alike."""
    images = every_level(17)
    wanted, found = (
        dequantize(levels, 17, generator=torch.Generator().manual_seed(0))
        for levels in (images, images.to(dtype))
    )
    assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match=r"from 0 to 16; .*from 0 to 15"):
        check_levels(images.to(dtype), 16)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.int32])
def test_neighbouring_levels_of_16_bits_stay_apart(dtype: torch.dtype) -> None:
    images = every_level(65536).to(dtype)
    x = dequantize(images, 65536).flatten()
    assert bool((x.diff() > 0).all())
    assert float(x[0]) < -1 + 2**-15
    assert float(x[-1]) >= 1 - 2**-15


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[1, 2]], TypeError, "list"),
        (torch.tensor([[True]]), TypeError, "torch.bool"),
        (torch.tensor([[1j]]), TypeError, "complex"),
        (torch.tensor([[0.5]]), ValueError, r"0\.5.*integer.*\(images \* 16\)\.round\(\)"),
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


@pytest.mark.parametrize(
    ("levels", "error"), [(1, ValueError), (-3, ValueError), (2.0, ValueError)]
)
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


def exact_log_mass(a: float, b: float) -> mpmath.mpf:
    """Log-probability of [a, b] to 60 digits."""
    with mpmath.workdps(60):
        low, high = (a, b) if a + b <= 0 else (-b, -a)
        root = mpmath.sqrt(2)
        return mpmath.log(mpmath.erfc(-high / root) / 2 - mpmath.erfc(-low / root) / 2)


@pytest.mark.parametrize("length", [1e-13, 1e-8, 0.99e-5, 1.01e-5, 1e-3, 0.3, 3.0, 1e3, 1e5])
@pytest.mark.parametrize("a", [-1e4, -200.0, -30.0, -6.0, -1.0, -1e-3, 0.0, 0.4, 5.0, 40.0, 1e4])
def test_normals_on_an_interval(a: float, length: float) -> None:
    """Masses to 11 digits and quantiles to 7, in the tails and for the shortest intervals."""
    b = a + length
    if b == a:
        return
    ends = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    mass = exact_log_mass(a, b)
    assert abs(float(log_mass(*ends)) - mass) < 1e-11 * max(1, abs(mass))
    for u in (0.0, 1e-9, 0.1, 0.5, 0.99, 1 - 2**-53):
        place = float(quantile(*ends, torch.tensor([u], dtype=torch.float64)))
        assert 0 <= place <= 1
        with mpmath.workdps(60):
            point = mpmath.mpf(a) + (mpmath.mpf(b) - mpmath.mpf(a)) * mpmath.mpf(place)
            below = mpmath.exp(exact_log_mass(a, point) - mass) if place else 0
        assert abs(below - u) < 1e-7


DENSITIES = [
    UniformDequantization(),
    TruncatedNormalDequantization(1.0, 1e-9),
    TruncatedNormalDequantization(0.999, 1e-3),
    TruncatedNormalDequantization(0.5, 0.1),  # most means out of their cells
    TruncatedNormalDequantization(1.0, 1e6),
]


@pytest.mark.parametrize("data_range", RANGES)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_draws_stay_in_their_cells(
    density: Dequantization, levels: int, data_range: tuple[float, float], dtype: torch.dtype
) -> None:
    images = every_level(levels, copies=max(1, 1000 // levels))
    y, log_q = density.draw(images, levels, data_range, None, dtype)
    assert y.dtype == log_q.dtype == dtype
    assert log_q.shape == (levels,)
    assert bool(log_q.isfinite().all())
    assert torch.equal(quantize(y, levels, data_range=data_range), images)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_densities_of_draws_are_theirs(density: Dequantization) -> None:
    """E[1 / q], within a reach of the peak, is the volume there: 5 standard errors."""
    count, generator = 100_000, torch.Generator().manual_seed(0)
    images = torch.ones(count, 1, dtype=torch.uint8)
    y, log_q = density.draw(images, 4, (-1.0, 1.0), generator, torch.float64)
    peak, reach = -0.25 * getattr(density, "alpha", 1), min(0.1, getattr(density, "sigma", 0.1))
    inside = ((y - peak).abs() < reach).flatten()
    inverse = torch.where(inside, (-log_q).exp() / (2 * reach), 0)
    assert (inverse.mean() - 1).abs() < 5 * inverse.std() / math.sqrt(count)


def test_draws_follow_the_normal() -> None:
    """Kolmogorov-Smirnov distance of 200,000 numbers; false alarm below 1e-6."""
    count = 200_000
    density = TruncatedNormalDequantization(0.8, 0.3)
    images = torch.full((count, 1), 3)
    y, _ = density.draw(images, 4, (-1.0, 1.0), torch.Generator().manual_seed(0), torch.float64)
    law = torch.distributions.Normal(torch.tensor(0.6).double(), 0.3)
    low, high = law.cdf(torch.tensor([0.5, 1.0]).double())
    u = ((law.cdf(y) - low) / (high - low)).flatten().sort().values
    distance = (u - (torch.arange(count) + 0.5) / count).abs().max()
    assert float(distance) < math.sqrt(math.log(2e6) / (2 * count))


@pytest.mark.parametrize(("alpha", "sigma"), [(math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)])
def test_normals_without_a_width_are_refused(alpha: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma positive and finite"):
        TruncatedNormalDequantization(alpha, sigma)


@pytest.mark.parametrize("margin", [0.0, 1e-6, 0.05])
def test_logit_against_autograd(margin: float) -> None:
    logit = LogitTransform(margin)
    y = torch.linspace(1e-9, 1 - 1e-9, 101, dtype=torch.float64).requires_grad_()
    z = logit(y)
    (slope,) = torch.autograd.grad(z.sum(), y)
    torch.testing.assert_close(
        logit.log_abs_det_jacobian(y, z), slope.log(), rtol=1e-6 if margin == 0 else 1e-9, atol=0
    )
    torch.testing.assert_close(logit.inv(z), y, rtol=0, atol=1e-14)
    assert bool(logit.codomain.check(z).all())
    ends = logit(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends[1], -ends[0])


def test_logit_is_a_transform_of_torch() -> None:
    logit = LogitTransform(0.05)
    assert logit == LogitTransform(0.05) != LogitTransform(0.1)
    assert len({logit, LogitTransform(0.05)}) == 1
    assert logit.with_cache().with_cache(0) == logit
    assert logit.inv.inv is logit
    normal = torch.distributions.Normal(0.0, 1.0)
    law = torch.distributions.TransformedDistribution(normal, [logit.inv])
    y = torch.linspace(0, 1, 10_001)[:, None].double()
    mass = torch.trapezoid(law.log_prob(y.clamp(0, 1)).exp().flatten(), y.flatten())
    edge = torch.tensor(math.log(19.0))
    wanted = float(normal.cdf(edge) - normal.cdf(-edge))  # what the margin leaves
    assert abs(float(mass) - wanted) < 1e-5
    for margin in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match="margin"):
            LogitTransform(margin)
