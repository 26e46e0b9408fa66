"""The options of ``sde-models train``: model, loss and training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sde_models.cli.options import given

if TYPE_CHECKING:
    from sde_models.data import TrainingData
    from sde_models.models.score_model import ScoreModel
    from sde_models.training import Loss

STEPS = 2000
"""Steps where neither steps nor seconds are given: a minute or two for 8 x 8 pixels on a CPU."""


@dataclass(frozen=True)
class Architecture:
    """Options of the model."""

    sde: Annotated[
        str,
        typer.Option(help="Forward SDE: vp, subvp, ve, cosine, flow-matching."),
    ] = "vp"
    t_min: Annotated[
        float | None, typer.Option(help="Truncation time; that of the SDE if not given.")
    ] = None
    data_std: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the data; 0.5 for levels, else measured."),
    ] = None
    data_range: Annotated[
        str | None,
        typer.Option(
            help="Lowest and highest number of the data, such as 0,1, drawn black and white; -1,1 "
            "for levels, else measured."
        ),
    ] = None
    network: Annotated[
        str | None,
        typer.Option(
            help="Network: residual, mixing, ddpm++, ncsn++; chosen for the data if not given."
        ),
    ] = None
    width: Annotated[
        int | None, typer.Option(min=1, help="Size of its hidden state, or its channels.")
    ] = None
    depth: Annotated[
        int | None, typer.Option(min=1, help="Its blocks, in a U-Net those of each level.")
    ] = None
    prediction: Annotated[
        str | None,
        typer.Option(
            help="What it predicts, without preconditioning: eps, x0, v, score, velocity."
        ),
    ] = None
    preconditioning: Annotated[
        str | None, typer.Option(help="edm; the default unless --prediction is given.")
    ] = None

    def settled(self, data: TrainingData) -> dict[str, Any]:
        """The options, with defaults that depend on the data or on other options."""
        from sde_models.nn import usual_network

        chosen: dict[str, Any] = {"network": usual_network(data.event_shape)}
        if self.data_std is None:
            chosen["data_std"] = data.data_std
        measured = data.data_range if data.levels is None and self.data_range is None else None
        if measured is not None:
            chosen["data_range"] = "{!r},{!r}".format(*measured)
        if self.prediction is None:
            chosen["preconditioning"] = "edm"
        return chosen | given(**asdict(self))

    def make(self, data: TrainingData, labels: bool) -> ScoreModel:
        """The model, with fresh weights.

        Raises:
            ValueError: If an option cannot be used, or a range is given to levels.
        """
        from sde_models.cli.inputs import read_range
        from sde_models.models.score_model import ScoreModel
        from sde_models.nn import find_network
        from sde_models.sdes import find_sde

        options = self.settled(data)
        if data.levels is not None and self.data_range is not None:
            raise ValueError("--data-range: levels are spread over -1 to 1: leave it out")
        text = options.get("data_range")
        data_range = data.data_range if text is None else read_range(text)
        sde = find_sde(self.sde, **given(t_min=self.t_min, data_std=options["data_std"]))
        network = find_network(
            options["network"], data.event_shape, width=self.width, depth=self.depth,
            classes=data.classes if labels else None,
        )  # fmt: skip
        return ScoreModel(
            network, sde, self.prediction, preconditioning=options.get("preconditioning"),
            event_shape=data.event_shape, data_range=data_range,
        )  # fmt: skip


@dataclass(frozen=True)
class Minimised:
    """Options of the loss."""

    objective: Annotated[
        str, typer.Option(help="Loss: denoising, sliced, finite-difference, implicit.")
    ] = "denoising"
    weighting: Annotated[
        str | None,
        typer.Option(
            help="Weight of each time: output, edm, simple, min-snr, likelihood; that of the loss "
            "if none."
        ),
    ] = None
    times: Annotated[
        str | None,
        typer.Option(
            help="Times: uniform, log-snr, importance, log-normal; those of the weighting if none."
        ),
    ] = None

    def make(self) -> Loss:
        """The loss."""
        from sde_models.losses import find_objective

        return find_objective(self.objective, weighting=self.weighting, times=self.times)


@dataclass(frozen=True)
class Fitting:
    """Options of ``sm.fit``, under its own names."""

    steps: Annotated[
        int | None, typer.Option(min=1, help=f"Steps of training; {STEPS} if no --seconds.")
    ] = None
    seconds: Annotated[
        float | None, typer.Option(help="Time to train for, in place of --steps.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in each step.")] = 256
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.0
    ema_decay: Annotated[float, typer.Option(help="Decay of the average of the weights.")] = 0.995
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the highest learning rate.")] = 100
    clip_norm: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0
    mixed_precision: Annotated[str | None, typer.Option(help="bf16 or fp16 for the network.")] = (
        None
    )
    gradient_accumulation_steps: Annotated[
        int, typer.Option(min=1, help="Parts that a batch is cut into, to save memory.")
    ] = 1
    num_workers: Annotated[
        int, typer.Option(min=0, help="Processes that read images of a folder or a data set.")
    ] = 0
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000
    keep: Annotated[int, typer.Option(min=1, help="Number of checkpoints that are kept.")] = 3
    log_dir: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None

    def settled(self) -> dict[str, Any]:
        """Keyword arguments of ``sm.fit``, with the default number of steps if none is given."""
        steps = STEPS if self.steps is None and self.seconds is None else self.steps
        return asdict(self) | {"steps": steps}
