r"""Conversion between images with integer grey levels and the real numbers of a density.

Level k of K fills the cell :math:`[e_k, e_{k+1})` with :math:`e_k = low + (high - low) k / K`.
Uniform dequantisation draws a point of that cell, so that for any density p

.. math:: \log P(k) \ge E_u \log p(x) + D \log \frac{high - low}{K} .

Reference:
    Theis et al. 2016, A note on the evaluation of generative models, arXiv:1511.01844.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import Source, as_source, uniform_like
from sde_models._utils.shapes import check_batch
from sde_models._utils.split_batches import draw_rows

DATA_RANGE = (-1.0, 1.0)
"""Lowest and highest number of data whose range is not given."""


def check_data_range(data_range: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest number of data, as floats.

    Raises:
        ValueError: If they are not two finite numbers, the lower one first.
    """
    try:
        low, high = (as_number("data_range", value) for value in data_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"data_range must be two finite numbers (low, high) with low < high, got {data_range!r}"
        )
    return low, high


def dequantize(
    images: Tensor,
    levels: int = 256,
    *,
    data_range: tuple[float, float] = DATA_RANGE,
    generator: Source = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Turn grey levels into numbers: :math:`x = low + (high - low) (k + u) / K`, u uniform.

    :func:`quantize` gives back the levels exactly, in every dtype.

    Args:
        images: Levels k, integers from 0 to ``levels - 1``, shape ``(B, *event)``.
        levels: Number of levels K.
        data_range: Lowest and highest number that the levels are spread over.
        generator: Source of u; torch's global one if None. A sequence has one for each image.
        dtype: Floating dtype of the result.

    Raises:
        TypeError: If the images are no tensor of numbers, or ``dtype`` is not floating.
        ValueError: If a value is not a level, the range is empty, or ``dtype`` is too coarse to
            distinguish the levels.

    Example:
        >>> x = dequantize(torch.tensor([[0, 16]]), 17)
        >>> quantize(x, 17)
        tensor([[ 0, 16]])
    """
    lower, upper = cells(images, levels, data_range=data_range, dtype=dtype)
    width = (data_range[1] - data_range[0]) / levels
    u = draw_rows(uniform_like, lower, as_source(generator, len(lower)))
    return within(lower + width * u, lower, upper)


def cells(
    images: Tensor, levels: int, *, data_range: tuple[float, float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    r"""Edges :math:`e_k` and :math:`e_{k+1}` of the cells, in a dtype, of the shape of images."""
    check_levels(images, levels)
    _check_range(levels, data_range, dtype)
    k = images.to(dtype)
    return _edge(k, levels, data_range), _edge(k + 1, levels, data_range)


def within(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Numbers of half-open cells that rounding carried past an edge, put back into them."""
    return torch.maximum(lower, torch.minimum(x, torch.nextafter(upper, lower)))


def quantize(
    x: Tensor, levels: int = 256, *, data_range: tuple[float, float] = DATA_RANGE
) -> Tensor:
    r"""Turn numbers into grey levels, the inverse of :func:`dequantize`.

    .. math:: k = \lfloor K (x - low) / (high - low) \rfloor,

    clamped to 0 and K - 1.

    Args:
        x: Numbers, shape ``(B, *event)``.
        levels: Number of levels K.
        data_range: Lowest and highest number that the levels are spread over.

    Returns:
        Levels, dtype int64, shape of ``x``.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If ``x`` is not finite, the range is empty, or its dtype is too coarse to
            distinguish the levels.
    """
    check_batch(x)
    _check_range(levels, data_range, x.dtype)
    low, high = data_range
    k = torch.floor((x - low) * (levels / (high - low))).clamp(0, levels - 1)
    # The division rounds too: the edges decide, as they do in dequantize.
    k = k - (x < _edge(k, levels, data_range)).to(k) + (x >= _edge(k + 1, levels, data_range)).to(k)
    return k.clamp(0, levels - 1).to(torch.int64)


def check_levels(images: Tensor, levels: int) -> None:
    """Refuse images whose values are not integers from 0 to ``levels - 1``.

    An integer dtype, or a floating one that holds integers, is accepted.

    Raises:
        TypeError: If ``images`` is no tensor of numbers.
        ValueError: If ``levels`` is no integer of 2 or more, there are no images, or a value is
            NaN, no integer or out of range.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dtype == torch.bool or images.is_complex():
        raise TypeError(
            f"images have dtype {images.dtype}; expected an integer dtype, or a floating one that "
            "holds integers: images.to(torch.uint8)"
        )
    levels = check_integer("levels", levels, least=2)
    expected = f"expected integers from 0 to {levels - 1} for levels={levels}"
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected (B, *event) with sizes of 1 or more"
        )
    if images.is_floating_point():
        if not bool(torch.isfinite(images).all()):
            raise ValueError(f"images hold NaN or infinite values; {expected}")
        broken = images != images.floor()
        if bool(broken.any()):
            example = float(images[broken][0])
            raise ValueError(
                f"images hold {example:g}, which is no integer; {expected}. For images scaled "
                f"to [0, 1] give (images * {levels - 1}).round()"
            )
    low, high = _ends(images)
    if low < 0 or high > levels - 1:
        raise ValueError(f"images hold values from {low} to {high}; {expected}")


def _ends(images: Tensor) -> tuple[int, int]:
    """Lowest and highest level; by NumPy, which compares unsigned numbers of any size."""
    if images.dtype.is_signed or images.dtype == torch.uint8:
        low, high = torch.aminmax(images)
        return int(low), int(high)
    array = images.numpy(force=True)
    return int(array.min()), int(array.max())


def _check_range(levels: int, data_range: tuple[float, float], dtype: torch.dtype) -> None:
    check_integer("levels", levels, least=2)
    low, high = check_data_range(data_range)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    if (high - low) / levels < 4 * torch.finfo(dtype).eps * max(abs(low), abs(high)):
        raise ValueError(
            f"{dtype} is too coarse for {levels} levels on [{low:g}, {high:g}]: use "
            "torch.float32, torch.float64 or a range around 0"
        )


def _edge(k: Tensor, levels: int, data_range: tuple[float, float]) -> Tensor:
    """Lower edge of level k, rising with k after rounding too."""
    low, high = data_range
    return low + (high - low) * (k / levels)
