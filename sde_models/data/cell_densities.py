r"""Densities q over the cells of grey levels, to draw a point of each cell from.

Whatever q is, a density p gives the levels the probability

.. math:: P(k) = \int_{cell(k)} p(y)\,dy, \qquad \log P(k) \ge E_q[\log p(y) - \log q(y)] .

The bound is tight where q has the shape of p within the cell.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number
from sde_models._utils.errors import nearest_names
from sde_models._utils.randomness import Source, as_source, uniform_like
from sde_models._utils.split_batches import draw_rows
from sde_models.data.dequantization import cells, dequantize, within
from sde_models.data.truncated_normal import LOG_ROOT_TWO_PI, log_mass, quantile


class Dequantization(ABC):
    """Base class of densities q that fill the cells of grey levels.

    Attributes:
        in_model_space: Whether q has the shape of the model's noise, so that the cells must be in
            the space of the model, with no transform between.
    """

    in_model_space: bool = False

    @classmethod
    @abstractmethod
    def for_sde(cls, sde: Any) -> Dequantization:
        """The density that fits a model with this forward SDE."""

    @abstractmethod
    def draw(
        self,
        images: Tensor,
        levels: int,
        data_range: tuple[float, float],
        generator: Source = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Draw a point of the cell of each image.

        Args:
            images: Levels, integers from 0 to ``levels - 1``, shape ``(B, *event)``.
            levels: Number of levels.
            data_range: Lowest and highest number that the levels are spread over.
            generator: Source of the draw; torch's global one if None. A sequence has one for
                each image.
            dtype: Floating dtype of the result.

        Returns:
            The points y, shape of ``images``, for which :func:`~sde_models.data.quantize` gives
            the levels back, and log q(y) in nats, shape ``(B,)``.

        Raises:
            TypeError: As :func:`~sde_models.data.dequantize` does.
            ValueError: Likewise.
        """


class UniformDequantization(Dequantization):
    r"""A density that is the same everywhere in a cell, :math:`\log q = -D \log w`.

    It fits models that were trained on uniformly dequantised data.

    Reference:
        Theis et al. 2016, A note on the evaluation of generative models, arXiv:1511.01844.

    Example:
        >>> images = torch.zeros(2, 3, dtype=torch.uint8)
        >>> UniformDequantization().draw(images, 2, (-1.0, 1.0))[1]
        tensor([-0., -0.])
    """

    @classmethod
    def for_sde(cls, sde: Any) -> UniformDequantization:
        """The density, which does not depend on the SDE."""
        return cls()

    def draw(
        self,
        images: Tensor,
        levels: int,
        data_range: tuple[float, float],
        generator: Source = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        y = dequantize(images, levels, data_range=data_range, generator=generator, dtype=dtype)
        width = (data_range[1] - data_range[0]) / levels
        return y, y.new_full(y.shape[:1], -y[0].numel() * math.log(width))

    def __repr__(self) -> str:
        return "UniformDequantization()"


class TruncatedNormalDequantization(Dequantization):
    r"""A normal around the diffused centre of the cell, cut off at its edges.

    .. math:: q(y) \propto N(y; \alpha c, \sigma^2 I) \quad \text{in the cell with centre } c,

    with alpha and sigma of the forward SDE at ``t_min``. It fits models that were trained on data
    at the centres of the cells, which at ``t_min`` are just such normals.

    Args:
        alpha: Scale of the signal at ``t_min``.
        sigma: Standard deviation of the noise at ``t_min``.

    Raises:
        ValueError: If they are not finite, or sigma not positive.

    Reference:
        Zheng et al. 2023, Improved techniques for maximum likelihood estimation for diffusion
        ODEs, arXiv:2305.03935.

    Example:
        >>> dequantization = TruncatedNormalDequantization.for_sde(sm.VPSDE())
        >>> y, log_q = dequantization.draw(torch.zeros(2, 3), 2, (-1.0, 1.0))
        >>> bool(((y + 0.5).abs() < 0.01).all()), log_q.shape
        (True, torch.Size([2]))
    """

    in_model_space = True

    def __init__(self, alpha: float, sigma: float) -> None:
        alpha, sigma = as_number("alpha", alpha), as_number("sigma", sigma)
        if not (math.isfinite(alpha) and 0 < sigma < math.inf):
            raise ValueError(
                f"alpha must be finite, and sigma positive and finite, got {alpha:g} and {sigma:g}"
            )
        self.alpha, self.sigma = alpha, sigma

    @classmethod
    def for_sde(cls, sde: Any) -> TruncatedNormalDequantization:
        """The density with alpha and sigma of an SDE at its ``t_min``.

        Raises:
            TypeError: If it has none.
        """
        if not sde.gaussian:
            raise TypeError(
                f"{type(sde).__name__} has no alpha and sigma for dequantization="
                "'truncated-normal': use 'uniform', or subclass GaussianSDE"
            )
        t = sde.times(sde.t_min)
        return cls(float(sde.alpha(t)), float(sde.sigma(t)))

    def draw(
        self,
        images: Tensor,
        levels: int,
        data_range: tuple[float, float],
        generator: Source = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        # In double precision, on the CPU: other devices may lack it.
        lower, upper = cells(images.cpu(), levels, data_range=data_range, dtype=torch.float64)
        mean = self.alpha * (lower + upper) / 2
        a, b = (lower - mean) / self.sigma, (upper - mean) / self.sigma
        u = draw_rows(uniform_like, lower, as_source(generator, len(lower)))
        y = lower + (upper - lower) * quantile(a, b, u)
        rounded = cells(images.cpu(), levels, data_range=data_range, dtype=dtype)
        y = within(y.to(dtype), *rounded)
        square = ((y.double() - mean) / self.sigma).square()
        log_q = -(square / 2 + LOG_ROOT_TWO_PI + math.log(self.sigma) + log_mass(a, b))
        total = log_q.flatten(1).sum(1).to(dtype)
        return y.to(images.device), total.to(images.device)

    def __repr__(self) -> str:
        return f"TruncatedNormalDequantization(alpha={self.alpha:g}, sigma={self.sigma:g})"


DEQUANTIZATIONS: dict[str, type[Dequantization]] = {
    "uniform": UniformDequantization,
    "truncated-normal": TruncatedNormalDequantization,
}


def find_dequantization(dequantization: str | Dequantization, sde: Any) -> Dequantization:
    """Look up a density by name, made for an SDE; an object is returned as it is.

    Raises:
        TypeError: If it is neither a name nor a density, or the SDE has no kernel for it.
        ValueError: For an unknown name, with the nearest ones.
    """
    if isinstance(dequantization, Dequantization):
        return dequantization
    if not isinstance(dequantization, str):
        raise TypeError(
            "dequantization must be a name or an object such as "
            f"sm.data.UniformDequantization(), got {dequantization!r}"
        )
    if dequantization not in DEQUANTIZATIONS:
        raise ValueError(
            f"unknown dequantization {dequantization!r}; "
            f"{nearest_names(dequantization, DEQUANTIZATIONS)}"
        )
    return DEQUANTIZATIONS[dequantization].for_sde(sde)
