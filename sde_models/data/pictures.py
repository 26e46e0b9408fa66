"""One picture of many samples: a grid of images, points in the plane, or a histogram."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from sde_models.data.dequantization import DATA_RANGE

IMAGES, POINTS = 64, 20_000
"""Largest number of images or points in a picture."""


def check_drawable(event_shape: Sequence[int]) -> int:
    """Return the largest number of samples of a shape in a picture.

    Raises:
        ValueError: If samples of this shape cannot be drawn.

    Example:
        >>> check_drawable((1, 8, 8))
        64
    """
    shape = tuple(event_shape)
    if shape in ((1,), (2,)):
        return POINTS
    if len(shape) == 3 and shape[0] in (1, 3):
        return IMAGES
    raise ValueError(
        f"a picture shows images (1, H, W) or (3, H, W) or points (2,) or (1,), got samples of "
        f"shape {shape}: write an .npz instead"
    )


def is_drawable(event_shape: Sequence[int]) -> bool:
    """Whether a picture can show samples of a shape."""
    try:
        check_drawable(event_shape)
    except ValueError:
        return False
    return True


def draw(x: Tensor, *, data_range: tuple[float, float] | None = None) -> bytes:
    """Draw samples.

    Args:
        x: Images of shape ``(B, 1, H, W)`` or ``(B, 3, H, W)``, or points of shape ``(B, 2)`` or
            ``(B, 1)``; samples beyond the largest number are left out.
        data_range: Values of images that are drawn black and white, such as ``model.data_range``;
            -1 and 1 if None. Values outside are clipped.

    Returns:
        A PNG file, the same bytes for the same samples.

    Raises:
        ValueError: For samples of another shape.

    Example:
        >>> draw(torch.zeros(5, 1, 8, 8))[1:4]
        b'PNG'
    """
    x = x[: check_drawable(x.shape[1:])]
    if x.ndim == 2:
        return _draw_points(x.detach().float().cpu())
    scale = max(1, 32 // min(x.shape[2:]))  # so that a pixel of a small image can be seen
    shown = as_brightness(x, data_range)
    return draw_grid(shown.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3))


def as_brightness(x: Tensor, data_range: tuple[float, float] | None = None) -> Tensor:
    """Images with 0 for black and 1 for white, on the CPU; arguments as for :func:`draw`."""
    low, high = data_range or DATA_RANGE
    return ((x.detach().float().cpu() - low) / (high - low)).clamp(0, 1)


def draw_grid(images: Tensor, columns: int = 8) -> bytes:
    """A PNG file of images with values in [0, 1], row by row."""
    from torchvision.utils import make_grid  # slow to import, and needed only here

    grid = make_grid(images.mul(255).round().to(torch.uint8), nrow=columns)
    buffer = io.BytesIO()
    imsave(buffer, grid.permute(1, 2, 0).numpy().copy(), format="png")
    return buffer.getvalue()


def _draw_points(x: Tensor) -> bytes:
    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if x.shape[1] == 2:
        axes.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=2 + 2000 / (len(x) + 100), linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")
    else:
        axes.hist(x[:, 0].numpy(), bins="auto", density=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
