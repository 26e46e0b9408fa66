"""Solvers: one verb, one table, one file for each family."""

from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem
from sde_models.solvers.recording import Solution, Step
from sde_models.solvers.solve import solve
from sde_models.solvers.table import SolverTable, solver, solvers

__all__ = ["Problem", "Solution", "Solver", "SolverTable", "Step", "solve", "solver", "solvers"]
