"""Reference pages: one for each module that public names come from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module

ROOMS = {
    "sde_models": "Equations, models and functions",
    "sde_models.losses": "Score matching",
    "sde_models.training": "Training",
    "sde_models.nn": "Networks",
    "sde_models.data": "Data",
    "sde_models.shards": "Many samples",
    "sde_models.solvers.langevin": "Langevin dynamics",
    "sde_models.sdes.grids": "Time grids",
}
"""Modules that users import from, in the order of the navigation, and their titles."""


def public_names() -> dict[str, dict[str, list[str]]]:
    """For each room the modules that its names are defined in, and the names."""
    rooms: dict[str, dict[str, list[str]]] = {room: {} for room in ROOMS}
    seen: set[tuple[str, str]] = set()
    # The inner rooms come first, so that a name that the roof repeats is found where it is defined.
    for room in [*list(ROOMS)[1:], "sde_models"]:
        namespace = import_module(room)
        for name in namespace.__all__:
            found = getattr(namespace, name)
            module = getattr(found, "__module__", None)
            if inspect.ismodule(found) or module is None or not module.startswith("sde_models"):
                continue
            if (module, name) not in seen:
                seen.add((module, name))
                rooms[room].setdefault(module, []).append(name)
    return rooms


def reference_pages() -> Iterator[tuple[str, str, str]]:
    """Room, path and Markdown of each page.

    Each shows how its names are imported, which is not from where they are defined.
    """
    for room, modules in public_names().items():
        for module in sorted(modules):
            name = module.removeprefix("sde_models.").removeprefix("_utils.")
            lines = [f"# {name}", ""]
            lines += [(inspect.getdoc(import_module(module)) or "").split("\n", 1)[0], ""]
            names = ", ".join(sorted(modules[module]))
            lines += ["```python", f"from {room} import {names}", "```", ""]
            for member in sorted(modules[module]):
                lines += [f"::: {module}.{member}", ""]
            yield ROOMS[room], f"reference/{name.replace('.', '/')}.md", "\n".join(lines)
