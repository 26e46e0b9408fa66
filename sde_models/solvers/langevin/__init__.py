"""Langevin dynamics at fixed noise levels, alone and as correctors, and how to choose levels."""

from sde_models.solvers.langevin.levels import (
    geometric_sigmas,
    langevin_epsilon,
    largest_sigma,
    level_ratio,
)

__all__ = ["geometric_sigmas", "langevin_epsilon", "largest_sigma", "level_ratio"]
