r"""Differential equations with a score in them: what the solvers integrate.

With :math:`f` and :math:`g` of the forward SDE and the score of the model,

.. math:: dx = \Big[f - \frac{1 + \eta^2}{2} g^2 \nabla \log p_t(x)\Big] dt + \eta\, g\, d\bar B

run from ``t_max`` down to ``t_min`` has the marginals of the forward SDE for every eta: 0 is the
probability-flow ODE, which runs in both directions; 1 the reverse SDE.

References:
    Anderson 1982, Reverse-time diffusion equation models; Song et al. 2021, arXiv:2011.13456;
    Zhang and Chen 2021, Diffusion normalizing flow, arXiv:2110.07579 (eta).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Parameter

from sde_models._utils.arguments import check_not_negative
from sde_models._utils.conditions import Conditions, as_conditions, by_name, find_tensors
from sde_models._utils.integers import check_integers
from sde_models._utils.shapes import Time, as_time
from sde_models.models.base import BoundModel, Model, check_model
from sde_models.sdes.base import SDE, rounding_of
from sde_models.sdes.system import AtNode, AtNodes, System, as_coefficients


class _ModelSystem(System):
    """What the two systems share: a model, its conditions, and times held in range."""

    def __init__(self, model: Model, cond: Mapping[str, Any] | None) -> None:
        super().__init__()
        check_model(model)
        model.sde.check_reversible()
        self.model = model
        self.cond = by_name(cond)
        self.event_shape = model.event_shape
        self.t_min = model.sde.t_min
        self.t_max = model.sde.t_max
        self.denoises = model.sde.gaussian

    @property
    def sde(self) -> SDE:
        return self.model.sde

    def at_nodes(self, times: Tensor, like: Tensor) -> AtNodes:
        if not self.denoises:
            return super().at_nodes(times, like)
        sde: Any = self.sde
        times = sde.times(times)
        model = self.model.at_nodes(times, like, self._cond(like))

        def drift() -> AtNode:
            return model.weighted(*sde.reverse_coefficients(times, self.eta))

        def noise_scale() -> Callable[[int, Tensor], Any]:
            scales = as_coefficients(self.eta * sde.diffusion(times))
            return lambda k, x: scales[k]

        return AtNodes(self, drift, noise_scale, model)

    def conditioned(self, cond: Mapping[str, Any] | None, x: Tensor) -> Self:
        system = copy(self)
        added = by_name(cond)
        given = {**self.cond, **added} if added else self.cond
        system.cond = as_conditions(given, len(x), x.device)
        return system

    def given_tensors(self) -> list[tuple[str, Tensor]]:
        bound = (part.bound for part in self.modules() if isinstance(part, BoundModel))
        return super().given_tensors() + [
            # A bound parameter is one of the model.
            (name, value)
            for cond in bound
            for name, value in find_tensors(cond)
            if not (name in cond and isinstance(value, Parameter))
        ]

    def of_rows(self, rows: Tensor) -> Self:
        system = copy(self)
        system.cond = self.cond.take(rows) if isinstance(self.cond, Conditions) else self.cond
        return system

    def _reverse_drift(self, t: Time, x: Tensor) -> Tensor:
        t = self._clamped(t, x)
        return self.model.sde.reverse_drift(self.model, t, x, self.eta, self._cond(x))

    def _cond(self, x: Tensor) -> Conditions:
        """The conditions for a batch."""
        return as_conditions(self.cond, len(x), x.device)

    def _clamped(self, t: Time, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim < 2:
            raise TypeError(
                "a system is called as (t, x) with x of shape (B, *event); got "
                f"{f'x of shape {tuple(x.shape)}' if isinstance(x, Tensor) else type(x).__name__}"
            )
        # Adaptive solvers probe beyond the end of their span, where sigma may be NaN.
        return as_time(t, x).clamp(self.t_min, self.t_max)


class ProbabilityFlow(_ModelSystem):
    r"""The ODE with the marginals of the diffusion.

    .. math:: \frac{dx}{dt} = f(t, x) - \frac12 g(t)^2 \nabla \log p_t(x)

    A ``torch.nn.Module`` called as ``flow(t, x)``: it goes into ``torchdiffeq.odeint`` and
    ``odeint_adjoint`` as it stands, in either direction, for any event shape. Times outside
    ``[t_min, t_max]`` are clamped, since adaptive solvers probe there.

    Args:
        model: What gives the score.
        cond: Conditions by name, given to the network at every evaluation, as for
            :func:`~sde_models.solve`.

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

    def __init__(self, model: Model, *, cond: Mapping[str, Any] | None = None) -> None:
        super().__init__(model, cond)

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """Velocity dx/dt at model time ``t``, shape of ``x``."""
        return self._reverse_drift(t, x)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Velocity as the solvers call it."""
        return self(t, x)

    def isotropic(self, t: Time, x: Tensor) -> Tensor | float:
        r"""A multiple of the identity near the velocity's Jacobian, for trace estimators.

        .. math:: a(t) + \frac{g(t)^2}{2\,(\alpha_t^2 s^2 + \sigma_t^2)}

        It is exact for Gaussian data of standard deviation s, ``data_std`` of the SDE; 0 for an SDE
        without a Gaussian kernel.
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

    torchsde takes a flat state and increasing times, so :meth:`f` and :meth:`g` take
    ``y`` of shape ``(B, D)`` and s in ``[-t_max, -t_min]``, and raise ValueError for any other;
    s = -t is exact in floating point.
    :meth:`drift` and :meth:`noise_scale` are the same equation for ``(B, *event)`` in model time.

    Args:
        model: What gives the score.
        event_shape: Shape of one sample, D numbers in all.
        eta: Stochasticity, from 0 (probability flow) over 1 (reverse SDE) upwards.
        sde_type: "ito" or "stratonovich", whichever the torchsde method needs: g does not depend
            on the state, so both mean the same here.
        cond: Conditions by name, given to the network at every evaluation, as for
            :func:`~sde_models.solve`.

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
        cond: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, cond)
        eta = check_not_negative("eta", eta)
        if sde_type not in ("ito", "stratonovich"):
            raise ValueError(f"sde_type must be 'ito' or 'stratonovich', got {sde_type!r}")
        shape = check_integers("event_shape", event_shape)
        if model.event_shape is not None and shape != model.event_shape:
            raise ValueError(f"event_shape {shape} is not that of the model, {model.event_shape}")
        self.event_shape = shape
        self.size = math.prod(shape)
        self.eta = eta
        self.sde_type = sde_type

    def span(self, dtype: torch.dtype | None = None) -> Tensor:
        """The full span in the clock s: ``[-t_max, -t_min]``."""
        return torch.tensor([-self.t_max, -self.t_min], dtype=dtype)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Drift dx/dt in model time, shape of ``x``; the solver steps with dt < 0."""
        return self._reverse_drift(t, x)

    def noise_scale(self, t: Time, x: Tensor) -> Tensor:
        """Amplitude eta g, broadcastable against ``x``."""
        return self.eta * self.model.sde.noise_scale(self._clamped(t, x), x)

    def f(self, s: Time, y: Tensor) -> Tensor:
        """Drift dy/ds for torchsde, shape ``(B, D)``."""
        self._check_clock(s)
        return -self.drift(-s, self._shaped(y)).reshape(y.shape)

    def g(self, s: Time, y: Tensor) -> Tensor:
        """Diffusion for torchsde, shape ``(B, D)``."""
        self._check_clock(s)
        x = self._shaped(y)
        return self.noise_scale(-s, x).expand_as(x).reshape(y.shape)

    def _check_clock(self, s: Time) -> None:
        """Refuse a time on another clock; one that is past an end by rounding is clamped later."""
        if torch.compiler.is_compiling():
            return
        low, high = -self.t_max, -self.t_min
        rounding = rounding_of(self.t_max, high - low)
        given = torch.as_tensor(s)
        if not bool(((given >= low - rounding) & (given <= high + rounding)).all()):
            raise ValueError(
                f"s = {float(given.max()):g} is outside of [-t_max, -t_min] = [{low:g}, {high:g}], "
                "where the clock s = -t of ReverseSDE runs: integrate over its .span(), or over "
                "times within that"
            )

    def _shaped(self, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != self.size:
            raise ValueError(
                f"torchsde gives a flat state: expected (B, {self.size}) for events of shape "
                f"{self.event_shape}, got {tuple(y.shape)}; use x.flatten(1)"
            )
        return y.reshape(-1, *self.event_shape)
