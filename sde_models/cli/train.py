"""``sde-models train``: data to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sde_models.cli import options as o
from sde_models.cli.application import command
from sde_models.cli.training_options import Architecture, Fitting, Minimised


@command(
    "sde-models train digits --out runs/digits",
    "sde-models train two-moons --steps 3000 --out runs/moons",
    "sde-models train images.npz --levels 256 --network ddpm++ --device cuda --out runs/images",
    "sde-models train cifar10 --root data --labels --num-workers 8 --steps 400000 "
    "--device cuda --out runs/cifar",
)
def train(
    *,
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="One of digits, patches, two-moons, swiss-roll, checkerboard, pinwheel, "
            "eight-gaussians, twenty-five-gaussians, rings, spiral, mnist, fashion-mnist, cifar10; "
            "or an .npz or .npy file, a folder of shards, or a folder with a subfolder of images "
            "for each class.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the run; made if not there."),
    ],
    reading: o.Reading,
    labels: Annotated[
        bool, typer.Option("--labels", help="Train with the labels of the data as a condition.")
    ] = False,
    architecture: Architecture,
    minimised: Minimised,
    fitting: Fitting,
    samples_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between pictures of samples.")
    ] = None,
    bits_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between bits per dimension on test images.")
    ] = None,
    seed: o.Seed = 0,
    running: o.Running,
) -> None:
    """Train a score model.

    Writes into a folder model.safetensors for the other commands, metrics.json, config.json,
    checkpoints, and samples.png if samples can be drawn. The same command goes on where it was
    interrupted.
    """
    import torch

    from sde_models.cli.inputs import place, read_training_data
    from sde_models.cli.runs import open_run
    from sde_models.cli.watching import draw_samples, watch_bits, watch_samples
    from sde_models.data.pictures import is_drawable
    from sde_models.models.model_files import save_model
    from sde_models.training import fit
    from sde_models.training.group import Group

    group = Group(None)
    found = read_training_data(data, reading, labels=labels, dtype=running.torch_dtype)
    torch.manual_seed(seed)
    model = place(architecture.make(found, labels), running.device, running.torch_dtype)
    batches = found.batches(labels, model.dtype)
    loss, arguments = minimised.make(), fitting.settled()
    bits = watch_bits(found, bits_every, labels, seed)
    settled = architecture.settled(found) | arguments
    with open_run(
        out, group, ctx,
        overwrite=running.overwrite, pictures=samples_every is not None, **settled,
    ) as run:  # fmt: skip
        drawing = watch_samples(model, samples_every, run.pictures.path, seed)
        trained = fit(
            model, batches, loss=loss, seed=seed, accelerator=group.accelerator,
            out=run.checkpoints.path, overwrite=running.overwrite, progress=running.progress,
            callback=[run.begin, *bits, *drawing], **arguments,
        )  # fmt: skip
        if not group.main:
            return
        run.folder.note(run.model.name)
        save_model(run.model, trained.model)
        metrics = trained.summary()
        measured = metrics | ({"bits_per_dim": bits[0].curve} if bits else {})
        run.folder.write("metrics.json", f"{json.dumps(measured, indent=2)}\n".encode())
        if is_drawable(found.event_shape):
            run.folder.write("samples.png", draw_samples(trained.model, seed))
    typer.echo(
        f"{run.model}: {trained.steps} steps in {trained.seconds:.0f} s, "
        f"last loss {metrics['last_loss']:.4g}"
    )
