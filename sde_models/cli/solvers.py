"""``sde-models solvers``: the table of solvers."""

from __future__ import annotations

import typer

from sde_models.cli.application import Command, app, examples


@app.command("solvers", cls=Command, epilog=examples("sde-models solvers | grep adaptive"))
def list_solvers() -> None:
    """Print the table of solvers, with their properties."""
    from sde_models.solvers import list_solvers

    typer.echo(str(list_solvers()))
