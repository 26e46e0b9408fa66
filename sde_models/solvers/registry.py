"""The table of solvers: every name, with the properties of the solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sde_models._utils.errors import nearest_names
from sde_models.solvers.adaptive.adams_batch import AdamsBatch
from sde_models.solvers.adaptive.adaptive_sde import AdaptiveSDE
from sde_models.solvers.adaptive.rk_batch import BatchRungeKutta
from sde_models.solvers.base import Solver, check_option_names
from sde_models.solvers.external.diffusers_methods import PREFIX, DiffusersSolver
from sde_models.solvers.external.diffusers_schedulers import SCHEDULERS
from sde_models.solvers.external.scipy_methods import scipy_solvers
from sde_models.solvers.external.torchdiffeq_methods import torchdiffeq_solvers
from sde_models.solvers.external.torchsde_methods import torchsde_solvers
from sde_models.solvers.langevin.annealed import AnnealedLangevin
from sde_models.solvers.langevin.predictor_corrector import PredictorCorrector
from sde_models.solvers.multistep.dpm_solver import dpm_solvers
from sde_models.solvers.multistep.exponential_adams import exponential_adams_solvers
from sde_models.solvers.multistep.flow_adams import flow_adams_solvers
from sde_models.solvers.multistep.unipc import unipc_solvers
from sde_models.solvers.one_step.ancestral import Ancestral, ReverseDiffusion
from sde_models.solvers.one_step.ddim import DDIM
from sde_models.solvers.one_step.dpm_solver import DPMSolver2S
from sde_models.solvers.one_step.euler_maruyama import EulerMaruyama
from sde_models.solvers.one_step.heun_edm import HeunEDM
from sde_models.solvers.parallel.picard import Picard

MAKERS: dict[str, Callable[..., Solver]] = {
    EulerMaruyama.name: EulerMaruyama,
    AdaptiveSDE.name: AdaptiveSDE,
    ReverseDiffusion.name: ReverseDiffusion,
    Ancestral.name: Ancestral,
    PredictorCorrector.name: PredictorCorrector,
    AnnealedLangevin.name: AnnealedLangevin,
    DDIM.name: DDIM,
    HeunEDM.name: HeunEDM,
    DPMSolver2S.name: DPMSolver2S,
    **dpm_solvers(),
    **unipc_solvers(),
    **exponential_adams_solvers(),
    **flow_adams_solvers(),
    Picard.name: Picard,
    BatchRungeKutta.name: BatchRungeKutta,
    AdamsBatch.name: AdamsBatch,
    **torchdiffeq_solvers(),
    **torchsde_solvers(),
    **scipy_solvers(),
}


class SolverTable(dict[str, Solver]):
    """Every solver by name, with its properties. Prints as a table.

    Example:
        >>> table = sm.list_solvers()
        >>> table["ode:rk4"].order, table["ode:dopri5"].adaptive
        (4, True)
    """

    def __init__(self) -> None:
        super().__init__({name: make() for name, make in MAKERS.items()})

    def rows(self) -> list[tuple[str, ...]]:
        """Heading and rows, as text."""
        heading = (
            "solver", "integrates", "of", "order", "steps", "evaluations", "gradients", "library",
        )  # fmt: skip
        return [heading, *(self._row(solver) for solver in self.values())]

    @staticmethod
    def _row(solver: Solver) -> tuple[str, ...]:
        gradients = ("direct, adjoint" if solver.adjoint else "direct") * solver.differentiable
        return (
            solver.name,
            ", ".join(solver.integrates),
            "models" if solver.diffusion_only else "anything",
            f"{solver.order:g}",
            "adaptive" if solver.adaptive else "fixed, equal" if solver.equal_steps else "fixed",
            "varies" if solver.evaluations is None else str(solver.evaluations),
            gradients or "none",
            solver.library,
        )

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def __repr__(self) -> str:
        return str(self)


def list_solvers() -> SolverTable:
    """Return the table of every solver, with its properties."""
    return SolverTable()


def make_solver(name: str | Solver, **options: Any) -> Solver:
    """Make a solver by name, with options.

    Args:
        name: A name in :func:`list_solvers`, or "diffusers:" and the class of a scheduler of
            diffusers; a solver object is returned as it is.
        **options: What the solver's class documents, such as ``first_step`` for ``ode:dopri5``.

    Raises:
        ValueError: For an unknown name, with the nearest ones, or an unknown option.
        TypeError: If ``name`` is neither a name nor a solver.

    Example:
        >>> sm.make_solver("ode:dopri5", first_step=0.01)
        AdaptiveTorchdiffeq('ode:dopri5', first_step=0.01)
    """
    if isinstance(name, Solver):
        if options:
            raise ValueError(
                f"{name!r} has its options already, got {', '.join(options)}: give them with the "
                "name instead"
            )
        return name
    if not isinstance(name, str):
        raise TypeError(f"solver must be a name or a solver, got {name!r}")
    if name.startswith(PREFIX):  # not in the table, which would have to import diffusers
        return DiffusersSolver(name, **options)
    if name not in MAKERS:
        raise ValueError(f"unknown solver {name!r}; {_nearest(name)}")
    maker: Any = MAKERS[name]
    check_option_names(name, options, getattr(maker, "func", maker).option_names)
    solver: Solver = maker(**options)
    return solver


def _nearest(name: str) -> str:
    """Suggest a name, first of all the same method under another prefix."""
    method = name.rsplit(":", 1)[-1].lower()
    everything = [*MAKERS, *(PREFIX + scheduler for scheduler in SCHEDULERS)]
    same = [known for known in everything if known.rsplit(":", 1)[-1].lower() == method]
    if same:
        return f"did you mean {' or '.join(map(repr, same))}?"
    near = nearest_names(name, MAKERS)
    return near if near.startswith("did") else "print(sm.list_solvers()) lists them"
