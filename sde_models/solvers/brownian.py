"""Brownian motion for torchsde that is drawn once and forgotten."""

from __future__ import annotations

import math

import torch
import torchsde
from torch import Tensor

from sde_models.randomness import entropy_from, standard_normal_like


class FreshBrownian(torchsde.BaseBrownian):  # type: ignore[misc]  # torchsde is untyped
    r"""Increments drawn anew at each call, with the law of a Brownian motion.

    A fixed-step forward solve asks for each interval once, so nothing need be remembered, and
    nothing is: memory does not grow with the number of steps. For an interval of length h,

    .. math:: W \sim N(0, h), \qquad U = h\,(W/2 + H), \quad H \sim N(0, h/12),

    where U is the integral of the path over the interval, which methods of order 1.5 want.
    The Levy area is reported as zero: methods that ask for it multiply it by the derivative of g,
    which is zero where the noise does not depend on the state.

    Args:
        like: A flat state ``(B, D)`` whose shape, dtype and device the noise has.
        generator: Source of randomness, torch's global one if None.
    """

    __slots__ = ("_generator", "_like")

    def __init__(self, like: Tensor, generator: torch.Generator | None) -> None:
        self._like = like
        self._generator = generator

    def __call__(
        self,
        ta: Tensor | float,
        tb: Tensor | float | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        if tb is None:
            raise ValueError("fresh increments exist for intervals (ta, tb) only")
        length = float(tb) - float(ta)
        increment = math.sqrt(length) * self._draw()
        if not (return_U or return_A):
            return increment
        results: list[Tensor] = [increment]
        if return_U:
            results.append(length * (0.5 * increment + math.sqrt(length / 12) * self._draw()))
        if return_A:
            results.append(increment.new_zeros(()))
        return tuple(results)

    def _draw(self) -> Tensor:
        return standard_normal_like(self._like, self._generator)

    def __repr__(self) -> str:
        return f"FreshBrownian(shape={tuple(self.shape)})"

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def levy_area_approximation(self) -> str:
        return "foster"


def remembering_brownian(
    like: Tensor, clock: Tensor, generator: torch.Generator | None, levy_area: str
) -> torchsde.BaseBrownian:
    """torchsde's BrownianInterval over the whole solve, seeded from the generator.

    ``torch.manual_seed`` does not reach its default seed, which comes from NumPy.
    """
    return torchsde.BrownianInterval(
        t0=float(clock[0]),
        t1=float(clock[-1]),
        size=tuple(like.shape),
        dtype=like.dtype,
        device=like.device,
        entropy=entropy_from(generator),
        levy_area_approximation=levy_area,
    )
