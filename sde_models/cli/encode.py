"""``sde-models encode``: data to latents."""

from __future__ import annotations

import typer

from sde_models.cli import options as o
from sde_models.cli.application import command


@command(
    "sde-models encode model.safetensors digits --out latents.npz",
    "sde-models encode model.safetensors images.npz --levels 256 --rtol 1e-6 --out latents.npz",
    "sde-models encode model.safetensors shards --device cuda --out latents",
)
def encode(
    *,
    ctx: typer.Context,
    model: o.ModelFile,
    data: o.Data,
    out: o.Out,
    reading: o.Reading,
    n: o.First = None,
    label: o.Label = None,
    data_range: o.DataRange = None,
    solver: o.SolverName = "rk-batch",
    control: o.Control,
    chunk: o.Chunk = 1024,
    seed: o.Seed = 0,
    running: o.Running,
) -> None:
    """Carry data to their latents, along the probability flow.

    Integers are dequantised first, to the data range of MODEL. A picture shows three
    standard deviations of the noise around zero. The same command goes on where it was
    interrupted.
    """
    from sde_models.cli.inputs import choose_label, read_data, read_model, shape_of
    from sde_models.cli.outputs import find_output
    from sde_models.shards.to_folder import encode_to_folder

    output = find_output(out, overwrite=running.overwrite, data=data)
    network = read_model(model, running.device, running.torch_dtype, data_range)
    x, levels = read_data(
        data, reading, first=n, model=network, label=label, dtype=running.torch_dtype
    )
    output.check_shape(shape_of(x))
    with output.opened():
        shards = encode_to_folder(
            network, x, output.shards, solver=solver, levels=levels, chunk=chunk, seed=seed,
            progress=running.progress, overwrite=running.overwrite,
            **control.given(), cond=choose_label(network, label),
        )  # fmt: skip
        count, cost = len(shards), shards.cost
        far = 3 * float(getattr(network.sde.prior(shape_of(x)), "std", 1.0))
        output.gather(shards, ctx, (-far, far))
    typer.echo(f"{out}: {count} latents, {cost} for each")
