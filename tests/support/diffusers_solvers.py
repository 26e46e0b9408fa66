"""The schedulers of the installed diffusers that are solvers here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import sde_models as sm
from sde_models.solvers.external.diffusers_schedulers import SCHEDULERS


def diffusers_solvers() -> dict[str, Callable[..., sm.Solver]]:
    """A maker for each, by name."""
    known = dir(importlib.import_module("diffusers.schedulers"))
    names = [f"diffusers:{name}" for name in SCHEDULERS if name in known]
    return {name: partial(sm.make_solver, name) for name in names}
