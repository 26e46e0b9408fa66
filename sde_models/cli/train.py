"""``sde-models train``: data to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sde_models.checkpoints import save_model
from sde_models.cli import options as o
from sde_models.cli.application import Command, app, examples
from sde_models.cli.groups import Running, spell_out
from sde_models.cli.inputs import place, read_training_data
from sde_models.cli.runs import open_run
from sde_models.cli.training_options import Architecture, Fitting, Minimised
from sde_models.data import DATA, TrainingData
from sde_models.models import ScoreModel
from sde_models.pictures import IMAGES, check_drawable, draw, is_drawable
from sde_models.sampling import sample
from sde_models.training import BitsPerDimCurve, Callback, SampleImages, fit
from sde_models.training.group import Group

HELD_OUT = 64
"""Images for testing that bits per dimension are computed on."""

BITS_TOLERANCE = 1.0
"""Error of each image that is asked for there, in nats."""

POINTS = 2000
"""How many points the picture of the samples shows, where they are points."""

QUICK: dict[str, Any] = {"solver": "dpmpp-2m", "steps": 30, "progress": False}
"""How the samples of that picture are drawn."""


@app.command(
    cls=Command,
    epilog=examples(
        "sde-models train digits --out runs/digits",
        "sde-models train two-moons --steps 3000 --out runs/moons",
        "sde-models train images.npz --levels 256 --network ddpm++ --device cuda --out runs/images",
        "sde-models train cifar10 --root data --labels --workers 8 --steps 400000 --device cuda "
        "--out runs/cifar",
    ),
)
@spell_out
def train(
    *,
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=f"One of {', '.join(DATA)}; or an .npz or .npy file, a folder of shards, or a "
            "folder that holds one of images for each class.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the run; made if not there."),
    ],
    levels: o.Levels = None,
    array: o.ArrayName = None,
    root: o.Root = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Train with the labels of the data as conditioning.")
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
    running: Running,
) -> None:
    """Train a score model.

    Leaves in a folder model.safetensors for the other commands, metrics.json, config.json,
    checkpoints, and samples.png if samples can be drawn. The same command goes on where it was
    interrupted.
    """
    group = Group(None)
    found = read_training_data(
        data, levels=levels, array=array, root=root, labels=labels, precision=running.dtype
    )
    torch.manual_seed(seed)
    model = place(architecture.make(found, labels), running.device, running.dtype)
    batches = found.batches(labels, model.dtype)
    loss, arguments = minimised.make(), fitting.settled()
    bits = watch_bits(found, bits_every, labels, seed)
    settled = architecture.settled(found) | arguments
    with open_run(
        out, group, ctx,
        overwrite=running.overwrite, pictures=samples_every is not None, **settled,
    ) as run:  # fmt: skip
        drawing = watch_samples(model, samples_every, run.pictures.path, seed)
        watching: list[Callback] = [run.begin, *bits, *drawing]
        trained = fit(
            model, batches, loss=loss, seed=seed, accelerator=group.accelerator,
            out=run.checkpoints.path, overwrite=running.overwrite, callback=watching,
            progress=running.progress, **arguments,
        )  # fmt: skip
        if not group.main:
            return
        run.folder.note(run.model.name)
        save_model(run.model, trained.model)
        metrics = trained.summary()
        run.write_metrics(metrics | ({"bits_per_dim": bits[0].curve} if bits else {}))
        if is_drawable(found.event_shape):
            run.write("samples.png", draw_samples(trained.model, seed))
    typer.echo(
        f"{run.model}: {trained.steps} steps in {trained.seconds:.0f} s, "
        f"last loss {metrics['last_loss']:.4g}"
    )


def watch_bits(
    data: TrainingData, every: int | None, labels: bool, seed: int
) -> list[BitsPerDimCurve]:
    """What computes bits per dimension now and then, if that is asked for."""
    if every is None:
        return []
    if data.levels is None:
        raise ValueError("--bits-every: the data have no levels, so they have no bits")
    images, label = data.held_out(HELD_OUT)
    cond = {"label": label} if labels else {}
    return [BitsPerDimCurve(every, images, data.levels, seed=seed, tol=BITS_TOLERANCE, **cond)]


def watch_samples(
    model: ScoreModel, every: int | None, folder: Path, seed: int
) -> list[SampleImages]:
    """What draws samples now and then, if that is asked for."""
    if every is None:
        return []
    images: Any = model.event_shape
    return [
        SampleImages(every, images, folder, count=IMAGES, seed=seed, **each_class(model, IMAGES))
    ]


def each_class(model: ScoreModel, count: int) -> dict[str, Any]:
    """One class after the other as conditioning, for a model with classes."""
    classes = getattr(model.network, "classes", None)
    return {} if classes is None else {"label": torch.arange(count) % classes}


def draw_samples(model: ScoreModel, seed: int) -> bytes:
    """A picture of samples."""
    assert model.event_shape is not None
    count = min(POINTS, check_drawable(model.event_shape))
    generator = torch.Generator().manual_seed(seed)
    cond = each_class(model, count)
    return draw(sample(model, (count, *model.event_shape), generator=generator, **QUICK, **cond).x)
