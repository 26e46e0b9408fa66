"""``sde-models decode``: latents to data."""

from __future__ import annotations

import typer

from sde_models.cli import options as o
from sde_models.cli.application import command


@command(
    "sde-models decode model.safetensors latents.npz --out back.npz",
    "sde-models decode model.safetensors latents.npz --solver dpmpp-3m --out back.png",
)
def decode(
    *,
    ctx: typer.Context,
    model: o.ModelFile,
    latents: o.Data,
    out: o.Out,
    array: o.ArrayName = None,
    n: o.First = None,
    label: o.Label = None,
    data_range: o.DataRange = None,
    solver: o.SolverName = "rk-batch",
    control: o.Control,
    chunk: o.Chunk = 1024,
    running: o.Running,
) -> None:
    """Carry latents back to data, along the probability flow.

    The same command goes on where it was interrupted.
    """
    from sde_models.cli.inputs import choose_label, read_data, read_model, shape_of
    from sde_models.cli.outputs import find_output
    from sde_models.shards.to_folder import decode_to_folder

    output = find_output(out, overwrite=running.overwrite, data=latents)
    network = read_model(model, running.device, running.torch_dtype, data_range)
    reading = o.Reading(array=array)
    z, _ = read_data(
        latents, reading, first=n, name="z", model=network, label=label, dtype=running.torch_dtype
    )
    output.check_shape(shape_of(z))
    with output.opened():
        shards = decode_to_folder(
            network, z, output.shards, solver=solver, chunk=chunk, progress=running.progress,
            overwrite=running.overwrite,
            **control.given(), cond=choose_label(network, label),
        )  # fmt: skip
        count, cost = len(shards), shards.cost
        output.gather(shards, ctx, network.data_range)
    typer.echo(f"{out}: {count} samples, {cost} for each")
