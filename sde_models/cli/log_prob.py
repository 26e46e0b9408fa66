"""``sde-models log-prob``: likelihoods of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sde_models.cli import options as o
from sde_models.cli.application import command


@command(
    "sde-models log-prob model.safetensors points.npz --tol 0.05 --out result.json",
    "sde-models log-prob model.safetensors digits --tol 0.5 --out result.npz",
    "sde-models log-prob model.safetensors images.npz --levels 256 --divergence hutchinson "
    "--out result",
)
def log_prob(
    *,
    ctx: typer.Context,
    model: o.ModelFile,
    data: o.Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Result, by its ending: .npz for every sample, .json for the mean, none for a "
            "folder of shards.",
        ),
    ],
    tol: Annotated[
        float | None, typer.Option(help="Total error to reach for each sample, in nats.")
    ] = None,
    reading: o.Reading,
    n: o.First = None,
    label: o.Label = None,
    data_range: o.DataRange = None,
    solver: o.FlowSolverName = None,
    divergence: Annotated[
        str | None, typer.Option(help="exact, hutchinson, hutch++, xtrace or auto.")
    ] = None,
    intervals: Annotated[
        int | None, typer.Option(help="Intervals of the quadrature, a multiple of 4, 12 or more.")
    ] = None,
    control: o.Control,
    chunk: o.Chunk = 256,
    seed: o.Seed = 0,
    running: o.Running,
) -> None:
    """Compute log-densities of data in nats, or with levels bits per dimension, and their errors.

    The same command goes on where it was interrupted.
    """
    from sde_models.cli.inputs import choose_label, read_data, read_model
    from sde_models.cli.outputs import find_output
    from sde_models.shards import Shards
    from sde_models.shards.evaluation import evaluate

    output = find_output(out, (".npz", ".json", ""), overwrite=running.overwrite, data=data)
    network = read_model(model, running.device, running.torch_dtype, data_range)
    x, levels = read_data(
        data, reading, first=n, model=network, label=label, dtype=running.torch_dtype
    )
    with output.opened():
        found = evaluate(
            network, x, output.shards, levels=levels, chunk=chunk, seed=seed, solver=solver,
            progress=running.progress, overwrite=running.overwrite,
            **control.given(), cond=choose_label(network, label),
            **o.given(tol=tol, divergence=divergence, intervals=intervals),
        )  # fmt: skip
        if out.suffix == ".json":
            output.write(f"{json.dumps(found.summary(), indent=2)}\n".encode(), ctx)
        else:
            output.gather(Shards(output.shards), ctx)
    typer.echo(f"{out}: {found}")
