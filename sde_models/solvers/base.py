"""Base class of solvers: what a solver declares, and which systems it refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number
from sde_models._utils.errors import nearest_names
from sde_models._utils.integers import check_integer
from sde_models.sdes.system import System
from sde_models.solvers.options import SolveOptions, StepOptions
from sde_models.solvers.problem import Problem

DEFAULT_TOLERANCE = 1e-5
"""Relative and absolute tolerance of adaptive solvers if none is given."""
COARSEST = 0.5
"""Tolerances in units of x above this make no difference."""


def check_option_names(name: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Refuse options that a solver does not have."""
    for key in options:
        if key not in known:
            raise ValueError(
                f"solver {name!r} has no option {key!r}; "
                + (nearest_names(key, known) if known else "it takes none")
            )


class Solver(ABC):
    """A method that integrates a system. Subclasses declare its properties as attributes.

    Attributes:
        name: What users write in ``solver=``.
        library: Which library runs it.
        integrates: "ODE", "SDE", or both.
        diffusion_only: Whether it is made for the probability flow and the reverse SDE of a model
            on a :class:`~sde_models.GaussianSDE`, and takes no other system.
        directions: Signs of dt in which it runs.
        order: Order of convergence in the step size; strong order for SDE solvers. For variable
            orders the highest.
        adaptive: Whether it chooses its steps from ``rtol`` and ``atol``; else it takes ``steps``
            and ``grid``.
        evaluations: Network evaluations for each step tried, beyond a constant; None if they
            vary.
        equal_steps: Whether its formula holds for equal steps in t only.
        state_dependent_noise: Whether it converges to the Ito solution when the noise depends on
            the state.
        in_noise_units: Whether its errors are kept small in units of the noise, which densities
            need.
        own_steps: Whether each sample has its own steps, and can have its own times of ``path=``.
        differentiable: Whether gradients flow through it.
        adjoint: Whether it has gradients by the adjoint equation.
        default_steps: Number of steps if none is given.
        default_grid: Grid if none is given; None for that of the SDE.
        default_rtol: Relative tolerance of an adaptive solver if none is given.
        default_atol: Absolute tolerance likewise.
        option_names: Options that :func:`~sde_models.make_solver` takes.
        integer_options: Those that are integers of 1 or more.
        number_options: Those that are positive numbers.
        may_be_zero: Numbers for which 0 has a meaning.
    """

    name: str
    library: ClassVar[str] = "sde_models"
    integrates: tuple[str, ...]
    diffusion_only = False
    directions: tuple[int, ...] = (1, -1)
    order: float
    adaptive: bool
    evaluations: int | None
    equal_steps = False
    state_dependent_noise = False
    in_noise_units = False
    own_steps = False
    differentiable = True
    adjoint = False
    default_steps: ClassVar[int] = 200
    default_grid: ClassVar[str | None] = None
    default_rtol: ClassVar[float] = DEFAULT_TOLERANCE
    default_atol: ClassVar[float] = DEFAULT_TOLERANCE
    option_names: ClassVar[tuple[str, ...]] = ()
    integer_options: ClassVar[tuple[str, ...]] = ()
    number_options: ClassVar[tuple[str, ...]] = ()
    may_be_zero: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        check_option_names(self.name, options, self.option_names)
        self.options = {key: value for key, value in options.items() if value is not None}
        for key, value in self.options.items():
            if key in self.integer_options:
                self.options[key] = check_integer(key, value)
            if key in self.number_options:
                least = "0 or more" if key in self.may_be_zero else "positive"
                number = as_number(f"option {key!r}", value)
                if not (number > 0 or (number == 0 and key in self.may_be_zero)):
                    raise ValueError(f"option {key!r} must be {least}, got {value!r}")
                self.options[key] = value if isinstance(value, float | int) else number

    @property
    def stochastic(self) -> bool:
        """Whether it integrates SDEs."""
        return "SDE" in self.integrates

    @property
    def deterministic(self) -> bool:
        """Whether it integrates ODEs."""
        return "ODE" in self.integrates

    def draws_noise(self, system: System) -> bool:
        """Whether a solve of this system draws random numbers."""
        return system.stochastic

    @abstractmethod
    def integrate(self, problem: Problem) -> Tensor:
        """Carry ``problem.x`` to the last of ``problem.times``, and report to the recorder."""

    def check_system(self, system: System) -> None:
        """Refuse a system that this solver cannot integrate.

        Raises:
            ValueError: With the reason and what to use instead.
        """
        kind = type(system).__name__
        if not self.deterministic and not system.stochastic:
            raise ValueError(
                f"solver {self.name!r} is for SDEs and {kind} is an ODE: use an ODE solver such as "
                "'ode:dopri5' or 'dpmpp-2m', or integrate ReverseSDE"
            )
        if system.stochastic and not self.stochastic:
            raise ValueError(
                f"solver {self.name!r} is for ODEs and {kind} is an SDE: use an SDE solver such as "
                "'euler-maruyama' or 'sde:heun', or integrate ProbabilityFlow"
            )
        if self.diffusion_only and not system.denoises:
            general = "'euler-maruyama'" if system.stochastic else "'ode:dopri5'"
            raise ValueError(
                f"solver {self.name!r} needs alpha and sigma, and takes the ProbabilityFlow or "
                f"ReverseSDE of a model on a GaussianSDE; got {kind}: use one that takes any "
                f"equation, such as {general}"
            )
        if system.state_dependent_noise and not self.state_dependent_noise:
            raise ValueError(
                f"solver {self.name!r} converges to the Ito solution only when the noise does not "
                f"depend on the state, and that of {kind} does: use 'euler-maruyama', "
                "'sde:euler', 'sde:milstein' or 'sde:srk'"
            )

    def coarser(self, options: StepOptions) -> SolveOptions | None:
        """Options of the same solve at ten times the tolerance, or on every other node.

        None where there is no coarser solve that says anything: for a single step, and for
        tolerances in units of x above ``COARSEST``.
        """
        if self.adaptive:
            rtol = 10 * (options.get("rtol") or self.default_rtol)
            atol = 10 * (options.get("atol") or self.default_atol)
            if max(rtol, atol) > COARSEST and not self.in_noise_units:
                return None
            return {"rtol": rtol, "atol": atol, "max_steps": options.get("max_steps")}
        grid, steps = options.get("grid"), options.get("steps")
        if grid is None or isinstance(grid, str) or callable(grid):
            steps = self.default_steps if steps is None else steps
            return {"steps": steps // 2, "grid": grid} if steps > 1 else None
        nodes = torch.as_tensor(grid, dtype=torch.float64)
        return {"grid": torch.cat([nodes[:-1:2], nodes[-1:]])} if len(nodes) > 2 else None

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{type(self).__name__}({self.name!r}{options})"
