"""Base class of solvers: what a solver says of itself, and what it refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from sde_models.base_systems import System
from sde_models.errors import nearest_names
from sde_models.solvers.problem import Problem


class Solver(ABC):
    """A way to integrate a system. Subclasses declare what they are as attributes.

    Attributes:
        name: What users write in ``solver=``.
        library: Which library runs it.
        order: Order of convergence in the step size; strong order for SDE solvers. For variable
            orders the highest.
        stochastic: Whether it integrates SDEs; else ODEs.
        adaptive: Whether it chooses its steps from ``rtol`` and ``atol``; else it takes ``steps``
            and ``grid``.
        evaluations: Network evaluations for each step tried, beyond a constant; None if they
            vary.
        equal_steps: Whether its formula holds for equal steps in t only.
        state_dependent_noise: Whether it converges to the Ito solution when the noise depends on
            the state.
        differentiable: Whether gradients flow through it.
        adjoint: Whether gradients can be had by the adjoint equation.
    """

    name: str
    library: ClassVar[str] = "sde_models"
    order: float
    stochastic: bool
    adaptive: bool
    evaluations: int | None
    equal_steps = False
    state_dependent_noise = False
    differentiable = True
    adjoint = False
    default_steps: ClassVar[int] = 200
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        for key in options:
            if key not in self.option_names:
                known = self.option_names
                raise ValueError(
                    f"solver {self.name!r} has no option {key!r}; "
                    + (nearest_names(key, known) if known else "it takes none")
                )
        self.options = options

    @abstractmethod
    def integrate(self, problem: Problem) -> Tensor:
        """Carry ``problem.x`` to the last of ``problem.times``, telling the recorder."""

    def check_system(self, system: System) -> None:
        """Refuse a system that this solver cannot integrate.

        Raises:
            ValueError: Saying why and what to use instead.
        """
        kind = type(system).__name__
        if self.stochastic and not system.stochastic:
            raise ValueError(
                f"solver {self.name!r} is for SDEs and {kind} is an ODE: use an ODE solver such as "
                "'ode:dopri5' or 'scipy:DOP853', or integrate ReverseSDE"
            )
        if system.stochastic and not self.stochastic:
            raise ValueError(
                f"solver {self.name!r} is for ODEs and {kind} is an SDE: use an SDE solver such as "
                "'euler-maruyama' or 'sde:heun', or integrate ProbabilityFlow"
            )
        if system.state_dependent_noise and not self.state_dependent_noise:
            raise ValueError(
                f"solver {self.name!r} converges to the Ito solution only when the noise does not "
                f"depend on the state, and that of {kind} does: use 'euler-maruyama', "
                "'sde:euler', 'sde:milstein' or 'sde:srk'"
            )

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{type(self).__name__}({self.name!r}{options})"
