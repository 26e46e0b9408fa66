r"""Nodes of the quadrature, along half log-SNR, of varying spacing, shifted at random.

On the unit interval :math:`w_i = (i + u) / M` with u uniform on [0, 1), and the nodes are at

.. math:: s(w) = w - \frac{b}{2 \pi} \sin 2 \pi w

between the data and the noise: closer at the ends, and since their spacing varies, no oscillation
of the integrand is in step with all of them. The rule is the trapezoidal one in w, which for smooth
integrands that level off is as good as a Gauss rule. Near an end at a distance of a steps from the
next node the Euler-Maclaurin formula is met for quadratic polynomials by corrections
:math:`\delta_j` of the P = 3 next weights,

.. math:: \sum_{j<P} \delta_j\, (j + a)^k = \frac{B_{k+1}(a)}{k+1}, \qquad k < P,

with the Bernoulli polynomials B.

References:
    Trefethen and Weideman 2014, The exponentially convergent trapezoidal rule, SIAM Review 56;
    Alpert 1999, Hybrid Gauss-trapezoidal quadrature rules, SIAM J. Sci. Comput. 20 (corrections at
    ends); Cranley and Patterson 1976, Randomization of number theoretic methods for multiple
    integration, SIAM J. Numer. Anal. 13 (random shifts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.randomness import Source, uniform_like
from sde_models._utils.split_batches import draw_rows

CORRECTED = 3
"""Weights that are corrected at each end, P."""
VARIATION = 0.5
"""Relative variation of the spacing, b: enough for an oscillation whose period is the mean spacing
to meet all phases."""
WINDOW = 0.1
"""Part of the interval at each end over which the window of the spectrum rises."""


@dataclass(frozen=True)
class Nodes:
    """The nodes along the paths of a batch, from the data on.

    Attributes:
        sde: Forward SDE.
        shift: Distance of the first node from the data in steps u, from 0 to 1, shape ``(B,)``.
        count: Number of nodes M of each sample.
    """

    sde: Any
    shift: Tensor
    count: int

    @classmethod
    def draw(cls, sde: Any, count: int, like: Tensor, source: Source) -> Nodes:
        """Draw the shifts for a batch ``(B, *event)``."""
        precise = torch.zeros(len(like), dtype=torch.float64)
        return cls(sde, draw_rows(uniform_like, precise, source), count)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Half log-SNR at the data and at the noise."""
        times = self.sde.times([self.sde.t_min, self.sde.t_max])
        first, last = (0.5 * self.sde.log_snr(times)).tolist()
        return first, last

    @cached_property
    def places(self) -> Tensor:
        """Their equally spaced places w, shape ``(M, B)``, float64."""
        return (torch.arange(self.count, dtype=torch.float64)[:, None] + self.shift) / self.count

    @property
    def positions(self) -> Tensor:
        """Where they are, from 0 at the data to 1 at the noise, shape ``(M, B)``."""
        return self.places - VARIATION / (2 * math.pi) * (2 * math.pi * self.places).sin()

    @cached_property
    def rates(self) -> Tensor:
        """The derivative of the positions by the places, shape ``(M, B)``."""
        return 1 - VARIATION * (2 * math.pi * self.places).cos()

    @property
    def half_log_snr(self) -> Tensor:
        """Half log-SNR at the nodes, shape ``(M, B)``."""
        first, last = self.ends
        return first + (last - first) * self.positions

    @cached_property
    def times(self) -> Tensor:
        """Times of the nodes within the span, shape ``(M, B)``, float64 on the CPU."""
        times = self.sde.t_from_log_snr(self.sde.times(2 * self.half_log_snr)).detach().cpu()
        near = torch.nextafter(torch.tensor(self.sde.t_min, dtype=torch.float64), times.max())
        return times.to(torch.float64).clamp(float(near), self.sde.t_max)

    @cached_property
    def weights(self) -> Tensor:
        """Weights of an integral over half log-SNR, shape ``(M, B)``."""
        weights = torch.ones_like(self.places)
        for end in self._corrections(CORRECTED):
            weights += end
        return weights * self._scale

    @cached_property
    def end_weights(self) -> tuple[Tensor, Tensor]:
        """Weights less those of corrections of one order less, at each end, shape ``(M, B)``."""
        more, less = self._corrections(CORRECTED), self._corrections(CORRECTED - 1)
        return (more[0] - less[0]) * self._scale, (more[1] - less[1]) * self._scale

    @property
    def _scale(self) -> Tensor:
        first, last = self.ends
        return self.rates * (first - last) / self.count

    def _corrections(self, order: int) -> tuple[Tensor, Tensor]:
        """Corrections of weights for the ends at the data and at the noise, shape ``(M, B)``."""
        near, far = torch.zeros_like(self.places), torch.zeros_like(self.places)
        near[:order] = _corrections(self.shift, order)
        far[-order:] = _corrections(1 - self.shift, order).flip(0)
        return near, far

    @cached_property
    def window(self) -> Tensor:
        """A window that is 1 in the middle and falls smoothly to 0 at both ends, ``(M, B)``."""
        rise = (torch.minimum(self.places, 1 - self.places) / WINDOW).clamp(0, 1)
        return rise**3 * (10 - 15 * rise + 6 * rise**2)

    def finer(self, factor: int) -> Nodes:
        """As many times more nodes, among which these are."""
        return replace(self, shift=(factor * self.shift) % 1, count=factor * self.count)

    def spread(self, values: Tensor, factor: int) -> Tensor:
        """Values ``(M, B)`` of these nodes in their places among finer ones; 0 at the others."""
        place = (factor * self.shift).floor().long().to(values.device).expand(self.count, 1, -1)
        fine = values.new_zeros(self.count, factor, values.shape[1])
        return fine.scatter(1, place, values[:, None]).flatten(0, 1)

    def among(self, values: Tensor) -> Tensor:
        """The values of these nodes among those ``(M', B, ...)`` of finer ones."""
        factor = len(values) // self.count
        place = (factor * self.shift).floor().long().to(values.device)
        rows = factor * torch.arange(self.count, device=values.device)[:, None] + place
        return values[rows, torch.arange(values.shape[1], device=values.device)]

    def of_rows(self, rows: Tensor) -> Nodes:
        """The nodes of some samples."""
        return replace(self, shift=self.shift[rows.cpu()])


def _corrections(a: Tensor, order: int) -> Tensor:
    """Corrections of the weights next to an end, shape ``(P, B)``, for distances ``(B,)``."""
    powers = torch.arange(order, dtype=a.dtype)
    distances = powers[:, None] + a
    bernoulli = torch.stack([a - 1 / 2, a**2 - a + 1 / 6, a**3 - 1.5 * a**2 + 0.5 * a])
    moments = bernoulli[:order] / (powers + 1)[:, None]
    matrix = (distances ** powers[:, None, None]).permute(2, 0, 1)
    return torch.linalg.solve(matrix, moments.T[..., None])[..., 0].T
