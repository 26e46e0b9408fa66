r"""Differential equations with a score in them: what the solvers integrate.

With :math:`f` and :math:`g` of the forward SDE and the score of the model,

.. math:: dx = \Big[f - \frac{1 + \eta^2}{2} g^2 \nabla \log p_t(x)\Big] dt + \eta\, g\, d\bar B

run from ``t_max`` down to ``t_min`` has the marginals of the forward SDE for every eta: 0 is the
probability-flow ODE, which runs both ways; 1 the reverse SDE.

References:
    Anderson 1982, Reverse-time diffusion equation models; Song et al. 2021, arXiv:2011.13456;
    Zhang and Chen 2021, Diffusion normalizing flow, arXiv:2110.07579 (eta).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from sde_models._utils.conditioning import check_conditioning, usable
from sde_models._utils.shapes import Time, as_time
from sde_models.models.base import Model, check_model
from sde_models.sdes.base import SDE
from sde_models.sdes.system import AtNode, AtNodes, System, as_coefficients


class _ModelSystem(System):
    """What the two systems share: a model, its conditioning, and times held in range."""

    def __init__(self, model: Model, cond: dict[str, Any]) -> None:
        super().__init__()
        check_model(model)
        model.sde.check_reversible()
        check_conditioning(model, cond)
        self.model = model
        self.cond = {key: usable(value) for key, value in cond.items()}
        self.event_shape = model.event_shape
        self.t_min = model.sde.t_min
        self.t_max = model.sde.t_max
        self.denoises = model.sde.gaussian

    @property
    def sde(self) -> SDE:
        return self.model.sde

    def at_nodes(self, times: Tensor, like: Tensor) -> AtNodes:
        return (_ModelAtNodes if self.denoises else AtNodes)(self, times, like)

    def conditioned(self, **cond: Any) -> Self:
        """The same system with these conditioning arguments added."""
        if not cond:
            return self
        check_conditioning(self.model, cond)
        system = copy(self)
        system.cond = {**self.cond, **{key: usable(value) for key, value in cond.items()}}
        return system

    def _clamped(self, t: Time, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim < 2:
            raise TypeError(
                "a system is called as (t, x) with x of shape (B, *event); got "
                f"{f'x of shape {tuple(x.shape)}' if isinstance(x, Tensor) else type(x).__name__}"
            )
        # Adaptive solvers probe beyond the end of their span, where sigma may be NaN.
        return as_time(t, x).clamp(self.t_min, self.t_max)


class _ModelAtNodes(AtNodes):
    """The flow or the reverse SDE of a model on a GaussianSDE, its coefficients computed once."""

    system: _ModelSystem

    def __init__(self, system: _ModelSystem, times: Tensor, like: Tensor) -> None:
        sde: Any = system.sde
        super().__init__(system, sde.times(times), like)
        self._sde = sde
        self._model = system.model.at_nodes(self._times, like, system.cond)

    def denoise(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._model.denoise(k, x)

    def x0(self, k: int, x: Tensor) -> Tensor:
        return self._model.x0(k, x)

    def weighted(self, of_x0: Tensor, of_eps: Tensor) -> AtNode:
        return self._model.weighted(of_x0, of_eps)

    @cached_property
    def _drift(self) -> AtNode:
        return self._model.weighted(*self._sde.reverse_coefficients(self._times, self.system.eta))

    @cached_property
    def _noise(self) -> Any:
        return as_coefficients(self.system.eta * self._sde.diffusion(self._times))

    def drift(self, k: int, x: Tensor) -> Tensor:
        return self._drift(k, x)

    def noise_scale(self, k: int, x: Tensor) -> Any:
        return self._noise[k]


class ProbabilityFlow(_ModelSystem):
    r"""The ODE with the marginals of the diffusion.

    .. math:: \frac{dx}{dt} = f(t, x) - \frac12 g(t)^2 \nabla \log p_t(x)

    A ``torch.nn.Module`` called as ``flow(t, x)``: it goes into ``torchdiffeq.odeint`` and
    ``odeint_adjoint`` as it stands, in either direction, for any event shape. Times outside
    ``[t_min, t_max]`` are clamped, since adaptive solvers probe there.

    Args:
        model: What gives the score.
        **cond: Conditioning, handed to the network at every evaluation.

    Raises:
        ValueError: If the model's SDE cannot be reversed.

    Reference:
        Song et al. 2021, equation 13 and appendix D, arXiv:2011.13456.

    Example:
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> flow = ProbabilityFlow(model)
        >>> bool(flow(0.5, torch.ones(3, 2)).abs().max() < 1e-5)  # N(0, I) stays where it is
        True
    """

    stochastic = False

    def __init__(self, model: Model, **cond: Any) -> None:
        super().__init__(model, cond)

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """Velocity dx/dt at model time ``t``, shape of ``x``."""
        return self.model.sde.reverse_drift(self.model, self._clamped(t, x), x, **self.cond)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Velocity as the solvers ask for it."""
        return self(t, x)

    def isotropic(self, t: Time, x: Tensor) -> Tensor | float:
        r"""A multiple of the identity near the velocity's Jacobian, for trace estimators.

        .. math:: a(t) + \frac{g(t)^2}{2\,(\alpha_t^2 s^2 + \sigma_t^2)}

        that of Gaussian data of the standard deviation s that the SDE names; 0 for an SDE without a
        Gaussian kernel.
        """
        sde: Any = self.sde
        if not sde.gaussian:
            return 0.0
        t = self._clamped(t, x)
        variance = (sde.alpha(t) * sde.data_std).square() + sde.sigma(t).square()
        found: Tensor = sde.drift_coefficient(t) + 0.5 * sde.diffusion(t).square() / variance
        return found


class ReverseSDE(_ModelSystem):
    r"""The reverse-time SDE, as a torchsde system with the clock :math:`s = -t`.

    torchsde wants a flat state and increasing times, so :meth:`f` and :meth:`g` take
    ``y`` of shape ``(B, D)`` and s in ``[-t_max, -t_min]``; s = -t is exact in floating point.
    :meth:`drift` and :meth:`noise_scale` are the same equation for ``(B, *event)`` in model time.

    Args:
        model: What gives the score.
        event_shape: Shape of one sample, D numbers in all.
        eta: Stochasticity, from 0 (probability flow) over 1 (reverse SDE) to as much as wanted.
        sde_type: "ito" or "stratonovich", whichever the torchsde method wants: g does not depend
            on the state, so both mean the same here.
        **cond: Conditioning, handed to the network at every evaluation.

    Attributes:
        event_shape: Shape of one sample.
        size: Numbers in one sample, D.
        eta: Stochasticity.

    Raises:
        ValueError: If eta is negative, the event shape is not the model's, or the model's SDE
            cannot be reversed.

    Example:
        >>> import torchsde
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> rev = ReverseSDE(model, (2,))
        >>> torchsde.sdeint(rev, torch.randn(5, 2), rev.span(), dt=0.05, method="euler").shape
        torch.Size([2, 5, 2])
    """

    noise_type = "diagonal"
    stochastic = True
    directions = (-1,)
    event_shape: tuple[int, ...]

    def __init__(
        self,
        model: Model,
        event_shape: Sequence[int],
        eta: float = 1.0,
        *,
        sde_type: str = "ito",
        **cond: Any,
    ) -> None:
        super().__init__(model, cond)
        if not 0 <= eta < math.inf:
            raise ValueError(f"eta must be 0 or more, got {eta}")
        if sde_type not in ("ito", "stratonovich"):
            raise ValueError(f"sde_type must be 'ito' or 'stratonovich', got {sde_type!r}")
        shape = tuple(event_shape)
        if model.event_shape is not None and shape != model.event_shape:
            raise ValueError(f"event_shape {shape} is not that of the model, {model.event_shape}")
        self.event_shape = shape
        self.size = math.prod(shape)
        self.eta = float(eta)
        self.sde_type = sde_type

    def span(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole span in the clock s: ``[-t_max, -t_min]``."""
        return torch.tensor([-self.t_max, -self.t_min], dtype=dtype)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Drift dx/dt in model time, shape of ``x``; the solver steps with dt < 0."""
        sde = self.model.sde
        return sde.reverse_drift(self.model, self._clamped(t, x), x, self.eta, **self.cond)

    def noise_scale(self, t: Time, x: Tensor) -> Tensor:
        """Amplitude eta g, broadcastable against ``x``."""
        return self.eta * self.model.sde.noise_scale(self._clamped(t, x), x)

    def f(self, s: Time, y: Tensor) -> Tensor:
        """Drift dy/ds for torchsde, shape ``(B, D)``."""
        return -self.drift(-s, self._shaped(y)).reshape(y.shape)

    def g(self, s: Time, y: Tensor) -> Tensor:
        """Diffusion for torchsde, shape ``(B, D)``."""
        x = self._shaped(y)
        return self.noise_scale(-s, x).expand_as(x).reshape(y.shape)

    def _shaped(self, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != self.size:
            raise ValueError(
                f"torchsde hands a flat state: wanted (B, {self.size}) for events of shape "
                f"{self.event_shape}, got {tuple(y.shape)}; use x.flatten(1)"
            )
        return y.reshape(-1, *self.event_shape)
