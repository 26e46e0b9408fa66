r"""The divergence of a vector field, exact or estimated.

.. math:: \nabla \cdot f = \mathrm{tr}\,\frac{\partial f}{\partial x}
          = E\,[\,e^\top \frac{\partial f}{\partial x} e\,], \qquad E\,[e e^\top] = I .

All by vector-Jacobian products, which every network has; fused attention has no forward-mode
derivative.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sde_models._shapes import leaf_copy
from sde_models.counting import record
from sde_models.errors import nearest_names
from sde_models.randomness import rademacher_like, standard_normal_like

Field = Callable[[Tensor], Tensor]


class Divergence(ABC):
    """Base class of trace estimators.

    Probes are drawn once for a solve by :meth:`draw`: drawn anew at each evaluation they would
    make the right-hand side of the equation a random function, and an adaptive solver would never
    settle.

    Attributes:
        probes: Number of independent estimates; 1 for the exact trace.
        exact: Whether there is no error beyond rounding.
    """

    probes: int = 1
    exact: bool = False

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw the probes for a batch ``(B, *event)``: shape ``(probes, B, *event)``."""

    @abstractmethod
    def vectors(self, x: Tensor, drawn: Tensor | None) -> Iterator[Tensor]:
        """Yield chunks ``(k, B, *event)`` of vectors whose products are wanted."""

    @abstractmethod
    def combine(self, products: Tensor) -> Tensor:
        """Turn the quadratic forms ``(vectors, B)`` into estimates ``(B, probes)``."""

    def __call__(self, field: Field, x: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """Evaluate a field and its divergence.

        Args:
            field: Function from ``(B, *event)`` to the same shape, sample by sample.
            x: Where, shape ``(B, *event)``.
            drawn: What :meth:`draw` returned.

        Returns:
            The field, shape of ``x``, and the estimates, shape ``(B, probes)``. They carry a
            graph if gradients are enabled.
        """
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = x if differentiable and x.requires_grad else leaf_copy(x)
            value = field(point)
            forms = [
                self._quadratic_forms(value, point, vectors, differentiable)
                for vectors in self.vectors(point.detach(), drawn)
            ]
        value = value if differentiable else value.detach()
        return value, self.combine(torch.cat(forms))

    @staticmethod
    def _quadratic_forms(
        value: Tensor, point: Tensor, vectors: Tensor, differentiable: bool
    ) -> Tensor:
        record(vjps=len(vectors), vjp_rows=len(vectors) * len(value))
        if not value.requires_grad:  # a field that does not depend on x
            return value.new_zeros(vectors.shape[:2])
        graph = {"retain_graph": True, "create_graph": differentiable}
        try:
            (products,) = torch.autograd.grad(value, point, vectors, is_grads_batched=True, **graph)
        except RuntimeError as error:  # an operation that torch cannot batch: one at a time
            if "atching rule" not in str(error) and "vmap" not in str(error):
                raise
            products = torch.stack(
                [torch.autograd.grad(value, point, vector, **graph)[0] for vector in vectors]
            )
        return (products * vectors).flatten(2).sum(dim=2)


class Exact(Divergence):
    """The exact trace: one vector-Jacobian product for each coordinate.

    Args:
        chunk: Coordinates taken at once; fewer need less memory. If None as many as make a
            quarter of a million numbers on a CPU, where larger arrays are slower, and 16 million
            on an accelerator.

    Raises:
        ValueError: If ``chunk`` is below 1.

    Example:
        >>> value, trace = Exact()(lambda x: 3 * x, torch.ones(2, 4), None)
        >>> trace
        tensor([[12.],
                [12.]])
    """

    exact = True

    def __init__(self, *, chunk: int | None = None) -> None:
        if chunk is not None:
            _check_count("chunk", chunk)
        self.chunk = chunk

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        return None

    def vectors(self, x: Tensor, drawn: Tensor | None) -> Iterator[Tensor]:
        size = x[0].numel()
        most = 2**18 if x.device.type == "cpu" else 2**24
        chunk = self.chunk or max(1, most // x.numel())
        for first in range(0, size, chunk):
            count = min(chunk, size - first)
            basis = x.new_zeros(count, size)
            basis[:, first : first + count].fill_diagonal_(1)
            yield basis.reshape(count, 1, *x.shape[1:]).expand(-1, *x.shape)

    def combine(self, products: Tensor) -> Tensor:
        return products.sum(dim=0)[:, None]

    def __repr__(self) -> str:
        return "Exact()"


class Hutchinson(Divergence):
    r"""Hutchinson's unbiased estimator :math:`e^\top J e` with random probes.

    Args:
        probes: Number of independent probes; the standard error of their mean needs two.
        distribution: "rademacher" (entries -1 or +1, the smaller variance) or "gaussian".

    Raises:
        ValueError: If ``probes`` is below 1 or the distribution is unknown.

    Reference:
        Hutchinson 1989; Grathwohl et al. 2019, FFJORD, arXiv:1810.01367.

    Example:
        >>> trace = Hutchinson(probes=3)
        >>> x = torch.ones(2, 4)
        >>> trace(lambda x: 3 * x, x, trace.draw(x))[1].shape
        torch.Size([2, 3])
    """

    def __init__(self, probes: int = 1, distribution: str = "rademacher") -> None:
        _check_count("probes", probes)
        drawers = {"rademacher": rademacher_like, "gaussian": standard_normal_like}
        if distribution not in drawers:
            raise ValueError(
                f"unknown probe distribution {distribution!r}; "
                f"{nearest_names(distribution, drawers)}"
            )
        self.probes = probes
        self.distribution = distribution
        self._draw = drawers[distribution]

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._draw(x.detach().expand(self.probes, *x.shape), generator)

    def vectors(self, x: Tensor, drawn: Tensor | None) -> Iterator[Tensor]:
        if drawn is None:
            raise ValueError("Hutchinson needs the probes that draw() returns")
        yield drawn

    def combine(self, products: Tensor) -> Tensor:
        return products.T

    def __repr__(self) -> str:
        return f"Hutchinson(probes={self.probes}, distribution={self.distribution!r})"


DIVERGENCES: dict[str, Callable[[], Divergence]] = {"exact": Exact, "hutchinson": Hutchinson}


def find_divergence(divergence: str | Divergence) -> Divergence:
    """Look up a trace estimator by name; an object is returned as it is.

    Raises:
        TypeError: If it is neither a name nor an estimator.
        ValueError: For an unknown name, with the nearest ones.
    """
    if isinstance(divergence, Divergence):
        return divergence
    if not isinstance(divergence, str):
        raise TypeError(
            f"divergence must be a name or an object such as sm.Hutchinson(probes=4), got "
            f"{divergence!r}"
        )
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"unknown divergence {divergence!r}; {nearest_names(divergence, DIVERGENCES)}; or give "
            "an object such as sm.Hutchinson(probes=4)"
        )
    return DIVERGENCES[divergence]()


def standard_error(estimates: Tensor) -> Tensor:
    """Standard error of the mean of ``(B, n)`` estimates, shape ``(B,)``; NaN for n = 1."""
    if estimates.shape[1] == 1:
        return torch.full_like(estimates[:, 0], math.nan)
    return estimates.std(dim=1) / math.sqrt(estimates.shape[1])


def _check_count(name: str, count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {count!r}")
