"""The command line ``sde-models``: each command is a call into the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sde_models.demo import DemoSettings, run_demo, summary
from sde_models.solvers import solvers

app = typer.Typer(
    help="Score-based generative models as differential equations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog="Examples:  sde-models demo   |   sde-models demo --quick --out /tmp/look --seed 3"
)
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; made if not there.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Little work, poor figures: done in half a minute.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Train on handwritten digits, then sample, encode, decode and score them.

    Takes two to three minutes and leaves a page to open, report.html, beside metrics.json and
    model.safetensors.
    """
    settings = DemoSettings.quick() if quick else DemoSettings()
    try:
        metrics = run_demo(out, seed=seed, settings=settings, progress=progress)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    typer.echo(summary(metrics))
    typer.echo(f"\nOpen {out / 'report.html'} in a browser.")


@app.command("solvers", epilog="Example:  sde-models solvers | grep adaptive")
def list_solvers() -> None:
    """Print every solver name and what it can do."""
    typer.echo(str(solvers()))


if __name__ == "__main__":
    app()
