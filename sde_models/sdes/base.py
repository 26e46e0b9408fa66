"""The base of forward SDEs: how data become noise, with any drift and diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.arguments import NamesArguments, as_number
from sde_models._utils.conditions import copied
from sde_models._utils.shapes import Time, may_look_at
from sde_models.sdes.priors import IsotropicGaussian
from sde_models.sdes.system import System


class SDE(NamesArguments, System):
    r"""Base class of forward SDEs with any drift and diffusion, no kernel needed.

    A subclass defines :meth:`f` and :meth:`g`. The object is a torchsde system: with a flat state
    ``(B, D)`` it goes into ``torchsde.sdeint`` as it stands. Where g depends on x, say so by
    ``state_dependent_noise = True``: such an SDE can be simulated forward, in the Ito sense, but
    not reversed, since its reverse needs the divergence of g^2.

    Args:
        t_min: Time of the data.
        t_max: Time of the noise.

    Raises:
        ValueError: If not ``0 <= t_min < t_max < inf``.

    Example:
        >>> class OrnsteinUhlenbeck(SDE):
        ...     def f(self, t, x):
        ...         return -x
        ...     def g(self, t, x):
        ...         return torch.full_like(x, 2**0.5)
        >>> sm.solve(OrnsteinUhlenbeck(), torch.zeros(4, 2), (0, 1), solver="sde:heun").x.shape
        torch.Size([4, 2])
    """

    noise_type = "diagonal"
    sde_type = "ito"
    stochastic = True
    directions = (1,)
    default_grid = "uniform"
    """Where fixed-step solvers put their nodes, where no grid is given."""
    default_solver = "rk-batch"
    """Solver of the probability flow for likelihoods, where none is given."""
    gaussian = False
    """Whether there is a Gaussian kernel, with alpha and sigma."""

    def __init__(self, *, t_min: float = 0.0, t_max: float = 1.0) -> None:
        super().__init__()
        t_min, t_max = as_number("t_min", t_min), as_number("t_max", t_max)
        if not (0 <= t_min < t_max < math.inf):
            raise ValueError(f"expected 0 <= t_min < t_max < inf, got t_min={t_min}, t_max={t_max}")
        self.t_min = t_min
        self.t_max = t_max

    @property
    def sde(self) -> SDE:
        return self

    def f(self, t: Time, x: Tensor) -> Tensor:
        """Drift, shape of ``x``."""
        raise NotImplementedError(f"{type(self).__name__} must define f(t, x)")

    def g(self, t: Time, x: Tensor) -> Tensor:
        """Diffusion of each coordinate, shape of ``x``."""
        raise NotImplementedError(f"{type(self).__name__} must define g(t, x)")

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Drift as the solvers call it."""
        return self.f(t, x)

    def noise_scale(self, t: Time, x: Tensor) -> Tensor:
        """Diffusion as the solvers call it, broadcastable against ``x``."""
        return self.g(t, x)

    def reverse_drift(
        self,
        model: Any,
        t: Tensor,
        x: Tensor,
        eta: float = 0.0,
        cond: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tensor:
        r"""Drift of the reversed process, :math:`f - \frac{1 + \eta^2}{2} g^2 \nabla \log p_t`.

        With ``eta`` 0 it is the probability flow, with 1 the reverse SDE of Anderson (1982).
        ``cond`` are the conditions by name.
        """
        g = self.g(t.clone(), x.clone())
        score = model.score(t.clone(), x.clone(), **copied(cond))
        return self.f(t.clone(), x.clone()) - 0.5 * (1 + eta**2) * g.square() * score

    def prior(self, event_shape: Sequence[int]) -> IsotropicGaussian:
        """The distribution at ``t_max``; unknown without a Gaussian kernel.

        Raises:
            TypeError: Always; a subclass may know better.
        """
        raise TypeError(
            f"{type(self).__name__} does not know its distribution at t_max: give prior=, an "
            "object with sample and log_prob, or define prior(event_shape)"
        )

    def check_times(self, t: Tensor) -> None:
        """Refuse times outside ``[t_min, t_max]``.

        Raises:
            ValueError: Naming the smallest and largest time given.
        """
        if t.numel() == 0 or not may_look_at(t):
            return
        low, high = (float(v) for v in torch.aminmax(t.detach()))
        below, above = (rounding_of(end, self.t_max, t.dtype) for end in (self.t_min, self.t_max))
        if not (self.t_min - below <= low and high <= self.t_max + above):
            one = low == high or math.isnan(low)
            given = f"t={low:g}" if one else f"times from {low:g} to {high:g}"
            raise ValueError(
                f"{given} outside [t_min, t_max] = [{self.t_min:g}, {self.t_max:g}] "
                f"of {type(self).__name__}"
            )

    def check_keeps_times(self) -> None:
        """Refuse functions of time that change the times they are given in place."""

    def check_reversible(self) -> None:
        """Refuse an SDE whose reverse the formulas here do not cover.

        Raises:
            ValueError: If g depends on the state.
        """
        if self.state_dependent_noise:
            raise ValueError(
                f"{type(self).__name__} declares state_dependent_noise: its reverse needs the "
                "divergence of g^2, which is not known here; reverse an SDE whose g depends on "
                "t alone"
            )


def rounding_of(end: float, length: float, dtype: torch.dtype = torch.float32) -> float:
    """How far a time that is meant to be an end of a span may be from it.

    A few roundings of the end itself, not of the span: from 1e-8 to 1e-7 a log-SNR changes as much
    as from 0.01 to 0.1. For an end at 0 the scale is the length of the span. It may have been
    rounded to float32, whatever dtype it arrives in.
    """
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return 4 * eps * (abs(end) or length)
