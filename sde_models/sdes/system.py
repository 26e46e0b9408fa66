"""The face that every differential equation shows to the solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn

from sde_models._utils.shapes import Time


class System(nn.Module):
    r"""Base class of what :func:`~sde_models.solve` integrates: :math:`dx = b(t,x)dt + c(t)dB`.

    A subclass defines :meth:`drift`, and :meth:`noise_scale` if it is stochastic, both in model
    time and for batches ``(B, *event)``. Run backwards, the same drift is stepped with dt < 0.
    Solvers hand both of them copies, which they may change in place.

    Attributes:
        stochastic: Whether there is noise. An SDE solver is then wanted, else an ODE solver.
        directions: Signs of dt in which the equation may be run.
        state_dependent_noise: Whether the noise scale depends on x.
        denoises: Whether it is the flow or the reverse SDE of a model that tells x0 and eps.
        eta: Stochasticity, where the system is that of a model.
        event_shape: Shape of one sample, or None for any.
        t_min: Time of the data.
        t_max: Time of the noise.
        cond: Conditioning by name. Its tensors do not move with the system to another device.
    """

    stochastic: bool
    directions: tuple[int, ...] = (1, -1)
    state_dependent_noise = False
    denoises = False
    eta: float = 0.0
    event_shape: Any = None  # tuple[int, ...] or None
    t_min: float
    t_max: float
    cond: dict[str, Any] = {}  # noqa: RUF012 (never written to)

    @property
    def sde(self) -> Any:
        """The forward SDE whose clock this is, for time grids; None if there is none."""
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
        return AtNodes(self, times, like)

    def conditioned(self, **cond: Any) -> Self:
        """The same system with these conditioning arguments added."""
        if cond:
            raise TypeError(f"{type(self).__name__} takes no conditioning, got {', '.join(cond)}")
        return self

    def error_norm(self, error: Tensor) -> Tensor:
        """Size of each sample's error in units of tolerance: root mean square, shape ``(B,)``.

        Step control takes the worst of these, so that no sample hides behind its batch-mates.
        """
        return error.reshape(error.shape[0], -1).square().mean(dim=1).sqrt()


AtNode = Callable[[int, Tensor], Tensor]
"""A function of a node and a state."""


class AtNodes:
    """An equation at the nodes of a grid; everything that depends on t alone is computed once.

    Args:
        system: The equation.
        times: Model times, float64 on the CPU.
        like: State whose dtype and device the solve has.
    """

    def __init__(self, system: System, times: Tensor, like: Tensor) -> None:
        self.system = system
        self._times, self._like = times, like

    @cached_property
    def t(self) -> tuple[Tensor, ...]:
        """Each node as a scalar tensor like the state."""
        return scalars_like(self._times, self._like)

    def drift(self, k: int, x: Tensor) -> Tensor:
        """The drift at node ``k``."""
        return self.system.drift(self.t[k].clone(), x.clone())

    def noise_scale(self, k: int, x: Tensor) -> Any:
        """The noise scale at node ``k``: a number, or broadcastable against ``x``."""
        return self.system.noise_scale(self.t[k].clone(), x.clone())

    def denoise(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0, eps) at node ``k``, where the system is that of a model."""
        raise NotImplementedError(f"{type(self.system).__name__} has no model that denoises")

    def x0(self, k: int, x: Tensor) -> Tensor:
        """The estimate of x0 alone."""
        return self.denoise(k, x)[0]

    def weighted(self, of_x0: Tensor, of_eps: Tensor) -> AtNode:
        """The function that gives of_x0 x0 + of_eps eps, with a weight for each node."""
        raise NotImplementedError(f"{type(self.system).__name__} has no model that denoises")


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


def scalars_like(values: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """One scalar tensor for each node, with the dtype and device of the state."""
    return values.to(like).unbind()
