"""Brownian motion for torchsde: drawn once and forgotten, or remembered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torchsde
from torch import Tensor

from sde_models._utils.randomness import (
    Source,
    entropy_from,
    independent_parts,
    of_some_rows,
    standard_normal_like,
)
from sde_models._utils.shapes import per_sample, time_precision
from sde_models._utils.split_batches import draw_rows


class _OfState(torchsde.BaseBrownian):  # type: ignore[misc]  # torchsde is untyped
    """Shape, dtype and device of a flat state, which torchsde looks at."""

    __slots__ = ("_like",)

    def __init__(self, like: Tensor) -> None:
        self._like = like

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)})"

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def shape(self) -> torch.Size:
        return self._like.shape


class FreshBrownian(_OfState):
    r"""Increments drawn anew at each call, with the law of a Brownian motion.

    A fixed-step forward solve asks for each interval once, so nothing is stored and memory does not
    grow with the number of steps. For an interval of length h,

    .. math:: W \sim N(0, h), \qquad U = h\,(W/2 + H), \quad H \sim N(0, h/12),

    where U is the integral of the path over the interval, which methods of order 1.5 need.
    The Levy area is reported as zero: methods that ask for it multiply it by the derivative of g,
    which is zero where the noise does not depend on the state.

    Args:
        like: A flat state ``(B, D)`` whose shape, dtype and device the noise has.
        generator: Source of randomness, torch's global one if None.
    """

    __slots__ = ("_generator",)

    def __init__(self, like: Tensor, generator: Source) -> None:
        super().__init__(like)
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
        return draw_rows(standard_normal_like, self._like, self._generator)

    @property
    def levy_area_approximation(self) -> str:
        return "foster"


class StackedBrownian(_OfState):
    """A Brownian motion of a batch, put together from one for each sample.

    Args:
        like: The flat state ``(B, D)``.
        parts: Those of the samples, with flat shapes ``(1, D)``.
    """

    __slots__ = ("_parts",)

    def __init__(self, like: Tensor, parts: Sequence[torchsde.BaseBrownian]) -> None:
        super().__init__(like)
        self._parts = parts

    def __call__(self, *interval: Any, **asked: Any) -> Tensor | tuple[Tensor, ...]:
        found = [part(*interval, **asked) for part in self._parts]
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def __repr__(self) -> str:
        return f"StackedBrownian({len(self._parts)} of {self._parts[0]!r})"

    @property
    def levy_area_approximation(self) -> str:
        levy_area: str = self._parts[0].levy_area_approximation
        return levy_area


def remembering_brownian(
    like: Tensor, clock: Tensor, generator: Source, levy_area: str
) -> torchsde.BaseBrownian:
    """torchsde's BrownianInterval over the span of the solve, seeded from the generator.

    ``torch.manual_seed`` does not reach its default seed, which comes from NumPy. One for each
    sample where each has its generator.
    """
    parts = [
        torchsde.BrownianInterval(
            t0=float(clock[0]),
            t1=float(clock[-1]),
            size=tuple(like[rows].shape),
            dtype=like.dtype,
            device=like.device,
            entropy=entropy_from(own),
            levy_area_approximation=levy_area,
        )
        for rows, own in independent_parts(generator, len(like))
    ]
    return parts[0] if len(parts) == 1 else StackedBrownian(like, parts)


class RememberedIncrements:
    """Brownian increments of each sample, remembered ahead of where it stands.

    A step that is rejected has shown its increment. A shorter one is then drawn from the Brownian
    bridge between the nearest known points, and the longer one is met again later. What lies behind
    is forgotten.

    Args:
        like: State whose shape, dtype and device the noise has.
        generator: Source of randomness, torch's global one if None.
    """

    def __init__(self, like: Tensor, generator: Source) -> None:
        self._like, self._generator = like.detach(), generator
        # A known point is how far ahead it lies (infinite: none) and the path's value there.
        self._ahead = torch.empty(0, len(like), device=like.device, dtype=time_precision(like))
        self._values = like.new_empty(0, *like.shape)

    def draw(self, rows: Tensor, h: Tensor) -> Tensor:
        """The increments of samples ``rows`` over steps of lengths ``h``."""
        own = of_some_rows(self._generator, rows)
        noise = draw_rows(standard_normal_like, self._like[rows], own)
        if not len(self._ahead):
            return per_sample(h.sqrt().to(noise), noise) * noise
        ahead = self._ahead[:, rows]
        before, left = torch.where(ahead < h, ahead, 0.0).max(0)
        after, right = torch.where(ahead >= h, ahead, torch.inf).min(0)
        share = (h - before) / (after - before)
        spread = ((h - before) * (1 - share)).sqrt()
        known = per_sample((before > 0).to(noise), noise)
        start = self._values[left, rows] * known
        towards = self._values[right, rows] - start
        return (
            start
            + per_sample(share.to(noise), noise) * towards
            + per_sample(spread.to(noise), noise) * noise
        )

    def settle(self, rows: Tensor, h: Tensor, w: Tensor, accepted: Tensor) -> None:
        """Move on where a step was accepted, and remember its end where it was not."""
        if len(self._ahead):
            done = rows[accepted]
            self._ahead[:, done] -= h[accepted]
            self._values[:, done] -= w[accepted]
            self._ahead[self._ahead <= 0] = torch.inf
        again = rows[~accepted]
        if not len(again):
            return
        free = self._ahead[:, again].isinf()
        if not bool(free.any(0).all()) or not len(self._ahead):
            room = torch.full_like(self._like.flatten(1)[:, 0], torch.inf, dtype=self._ahead.dtype)
            self._ahead = torch.cat([self._ahead, room[None]])
            self._values = torch.cat([self._values, torch.zeros_like(self._like)[None]])
            free = self._ahead[:, again].isinf()
        slot = free.to(torch.uint8).argmax(0)
        self._ahead[slot, again] = h[~accepted]
        self._values[slot, again] = w[~accepted].detach()
