"""``sde-models solvers``: the table of solvers."""

from __future__ import annotations

import typer

from sde_models.cli.application import command


@command("sde-models solvers | grep adaptive")
def solvers() -> None:
    """Print the table of solvers, with their properties."""
    from sde_models.solvers import list_solvers

    typer.echo(str(list_solvers()))
