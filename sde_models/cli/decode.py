"""``sde-models decode``: latents to data."""

from __future__ import annotations

import typer

from sde_models.cli import options as o
from sde_models.cli.application import Command, app, examples
from sde_models.cli.inputs import read_data, read_model, shape_of
from sde_models.cli.outputs import open_output
from sde_models.to_folder import decode_to_folder


@app.command(
    cls=Command,
    epilog=examples(
        "sde-models decode model.safetensors latents.npz --out back.npz",
        "sde-models decode model.safetensors latents.npz --solver dpmpp-3m --out back.png",
    ),
)
def decode(
    ctx: typer.Context,
    model: o.ModelFile,
    latents: o.Data,
    out: o.Out,
    array: o.ArrayName = None,
    n: o.First = None,
    solver: o.SolverName = "ode:dopri5",
    steps: o.Steps = None,
    grid: o.GridName = None,
    rtol: o.Rtol = None,
    atol: o.Atol = None,
    max_steps: o.MaxSteps = None,
    chunk: o.Chunk = 1024,
    device: o.Device = "cpu",
    dtype: o.Dtype = None,
    progress: o.Progress = True,
    overwrite: o.Overwrite = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Carry latents back to data, along the probability flow.

    The same command goes on where it was interrupted.
    """
    with open_output(out, (".npz", ".png", ""), overwrite=overwrite) as output:
        network = read_model(model, device, dtype)
        z, _ = read_data(latents, first=n, array=array, names=("z", "x"), precision=dtype)
        output.check_shape(shape_of(z))
        shards = decode_to_folder(
            network, z, output.shards, solver=solver, chunk=chunk, progress=progress,
            **o.given(steps=steps, grid=grid, rtol=rtol, atol=atol, max_steps=max_steps),
        )  # fmt: skip
        count, rows = len(shards), shards.costs()["rows"]
        output.gather(shards, ctx)
    typer.echo(f"{out}: {count} samples, {rows / count:g} evaluations for each")
