"""Solvers: one function, one table, a folder for each family."""

from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem
from sde_models.solvers.recording import Solution, Step
from sde_models.solvers.registry import SolverTable, list_solvers, make_solver
from sde_models.solvers.solving import solve

__all__ = [
    "Problem",
    "Solution",
    "Solver",
    "SolverTable",
    "Step",
    "list_solvers",
    "make_solver",
    "solve",
]
