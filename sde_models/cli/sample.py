"""``sde-models sample``: noise to data."""

from __future__ import annotations

from typing import Annotated

import typer

from sde_models.cli import options as o
from sde_models.cli.application import command


@command(
    "sde-models sample model.safetensors --n 64 --solver dpmpp-2m --steps 20 --out samples.npz",
    "sde-models sample model.safetensors --solver euler-maruyama --out samples.png",
    "sde-models sample model.safetensors --n 1000000 --chunk 4096 --device cuda --out shards",
    "sde-models sample --config samples.npz.config.json --seed 1 --out more.npz",
)
def sample(
    *,
    ctx: typer.Context,
    model: o.ModelFile,
    out: o.Out,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of samples.")] = 64,
    label: o.Label = None,
    data_range: o.DataRange = None,
    solver: o.SolverName = "rk-batch",
    control: o.Control,
    eta: Annotated[
        float | None, typer.Option(help="Stochasticity of an SDE solver, 0 for none.")
    ] = None,
    denoise: Annotated[
        bool, typer.Option("--denoise", help="Give the model's estimate of x0 at the end.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(help="Shape of a sample, such as 1,8,8, if not in MODEL.")
    ] = None,
    chunk: o.Chunk = 4096,
    seed: o.Seed = 0,
    running: o.Running,
) -> None:
    """Draw samples from a model.

    The same command goes on where it was interrupted.
    """
    from sde_models.cli.inputs import choose_label, read_model, read_shape
    from sde_models.cli.outputs import find_output
    from sde_models.shards.to_folder import sample_to_folder

    output = find_output(out, overwrite=running.overwrite)
    network = read_model(model, running.device, running.torch_dtype, data_range)
    event_shape = read_shape(shape, network)
    output.check_shape(event_shape)
    with output.opened():
        shards = sample_to_folder(
            network, n, output.shards, solver=solver, event_shape=event_shape, chunk=chunk,
            seed=seed, progress=running.progress, overwrite=running.overwrite, denoise=denoise,
            **control.given(), cond=choose_label(network, label), **o.given(eta=eta),
        )  # fmt: skip
        cost = shards.cost
        output.gather(shards, ctx, network.data_range)
    typer.echo(f"{out}: {n} samples of shape {event_shape}, {cost} for each")
