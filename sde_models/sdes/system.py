"""The interface of every differential equation to the solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

from torch import Tensor, nn

from sde_models._utils.conditions import by_name, find_tensors
from sde_models._utils.shapes import Time


class System(nn.Module):
    r"""Base class of what :func:`~sde_models.solve` integrates: :math:`dx = b(t,x)dt + c(t)dB`.

    A subclass defines :meth:`drift`, and :meth:`noise_scale` if it is stochastic, both in model
    time and for batches ``(B, *event)``. Run backwards, the same drift is stepped with dt < 0.
    Solvers pass copies to both, which may be changed in place.

    Attributes:
        stochastic: Whether there is noise: it needs an SDE solver, otherwise an ODE solver.
        directions: Signs of dt in which the equation may be run.
        state_dependent_noise: Whether the noise scale depends on x.
        denoises: Whether it is the flow or the reverse SDE of a model that gives x0 and eps.
        eta: Stochasticity, where the system is that of a model.
        event_shape: Shape of one sample, or None for any.
        t_min: Time of the data.
        t_max: Time of the noise.
        cond: Conditions by name. Its tensors do not move with the system to another device.
    """

    stochastic: bool
    directions: tuple[int, ...] = (1, -1)
    state_dependent_noise = False
    denoises = False
    eta: float = 0.0
    event_shape: Any = None  # tuple[int, ...] or None
    t_min: float
    t_max: float
    cond: Mapping[str, Any] = MappingProxyType({})

    @property
    def sde(self) -> Any:
        """The forward SDE whose model time this system uses, for time grids; None without one."""
        return None

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """The drift b(t, x), shape of ``x``."""
        raise NotImplementedError(f"{type(self).__name__} must define drift(t, x)")

    def noise_scale(self, t: Time, x: Tensor) -> Tensor:
        """The noise scale c(t), broadcastable against ``x``."""
        raise NotImplementedError(f"{type(self).__name__} must define noise_scale(t, x)")

    def at_nodes(self, times: Tensor, like: Tensor) -> AtNodes:
        """This equation at the nodes of a grid, for a solver that knows them beforehand.

        Args:
            times: Model times, float64 on the CPU.
            like: State whose dtype and device the solve has.
        """
        t = times.to(like).unbind()
        return AtNodes(
            self,
            drift=lambda: lambda k, x: self.drift(t[k].clone(), x.clone()),
            noise_scale=lambda: lambda k, x: self.noise_scale(t[k].clone(), x.clone()),
        )

    def conditioned(self, cond: Mapping[str, Any] | None, x: Tensor) -> Self:
        """The same system with these conditions added, for a batch.

        Args:
            cond: Conditions by name.
            x: The batch.

        Raises:
            TypeError: If there are any, and no network to take them.
        """
        if names := ", ".join(by_name(cond)):
            raise TypeError(f"{type(self).__name__} takes no conditions, got {names}")
        return self

    def given_tensors(self) -> list[tuple[str, Tensor]]:
        """Tensors that a network is given besides t and x, with their names."""
        return find_tensors(self.cond)

    def of_rows(self, rows: Tensor) -> Self:
        """The same system for some samples of its batch, by their indices ``(n,)``."""
        return self

    def error_norm(self, error: Tensor) -> Tensor:
        """Size of each sample's error in units of tolerance: root mean square, shape ``(B,)``.

        Step control takes the worst of these, so that no sample hides behind its batch-mates.
        """
        return error.reshape(error.shape[0], -1).square().mean(dim=1).sqrt()


AtNode = Callable[[int, Tensor], Tensor]
"""A function of a node and a state."""


class AtNodes:
    """An equation at the nodes of a grid; what depends on t alone is computed once, when needed.

    Args:
        system: The equation.
        drift: Makes :attr:`drift`.
        noise_scale: Makes :attr:`noise_scale`.
        model: The model at the nodes, where the system is that of a model that denoises.
    """

    def __init__(
        self,
        system: System,
        drift: Callable[[], AtNode],
        noise_scale: Callable[[], Callable[[int, Tensor], Any]],
        model: Any = None,
    ) -> None:
        self.system, self.model = system, model
        self._make_drift, self._make_noise_scale = drift, noise_scale

    @cached_property
    def drift(self) -> AtNode:
        """The drift, as a function of a node and a state."""
        return self._make_drift()

    @cached_property
    def noise_scale(self) -> Callable[[int, Tensor], Any]:
        """The noise scale at a node and a state: a number, or broadcastable against the state."""
        return self._make_noise_scale()


def as_coefficients(values: Tensor) -> Any:
    """Coefficients of a solver, one for each node: numbers, or scalar tensors where they learn."""
    return values.unbind() if values.requires_grad else values.tolist()


def add_scaled(x: Tensor, factor: Any, y: Tensor) -> Tensor:
    """The sum x + factor y, in one pass where the factor is a number."""
    if isinstance(factor, float):
        return x.add(y, alpha=factor)
    return x + factor * y


def linear_sum(
    state_factor: Any, x: Tensor, factors: Sequence[Any], terms: Iterable[Tensor]
) -> Tensor:
    """The sum of a multiple of x and of the terms, in a tensor of its own."""
    total = x * state_factor
    for factor, term in zip(factors, terms, strict=False):
        if isinstance(factor, float):
            total.add_(term, alpha=factor)
        else:
            total = total + factor * term
    return total
