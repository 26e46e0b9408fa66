"""``sde-models demo``: the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sde_models.cli import options as o
from sde_models.cli.application import command
from sde_models.cli.configuration import CONFIG, config_content


@command("sde-models demo", "sde-models demo --quick --out /tmp/look --seed 3")
def demo(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; made if not there.")
    ] = Path("runs/demo"),
    seed: o.Seed = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Little work, poor figures: done in half a minute.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Train on handwritten digits, then sample, encode, decode and score them.

    Takes about three minutes on one core and writes a page to open, report.html, with
    metrics.json and model.safetensors next to it.
    """
    from sde_models.demo import DemoSettings, own_demo, run_demo, summary

    settings = DemoSettings.quick() if quick else DemoSettings()
    with own_demo(out) as folder:
        folder.check_names(CONFIG)
        metrics = run_demo(folder, seed=seed, settings=settings, progress=progress)
        folder.write(CONFIG, config_content(ctx))
    typer.echo(summary(metrics))
    typer.echo(f"\nOpen {out / 'report.html'} in a browser.")
