"""Options that several commands take, each defined once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sde_models.cli.configuration import load_config

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Names of floating dtypes."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of that name."""
        import torch

        return {"float32": torch.float32, "float64": torch.float64}[self.value]


ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Model file, as sm.save_model writes it, or the folder of 'train'."
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="An .npz or .npy file, a folder of shards, a folder with a subfolder of images for "
        "each class, or a data set of 'train', such as digits, for its test samples.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o",
        help="Result, by its ending: .npz for the numbers, .png for a picture, none for a folder "
        "of shards.",
    ),
]  # fmt: skip
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")]
ArrayName = Annotated[
    str | None, typer.Option("--array", help="Name of the array in DATA, if it is not x or z.")
]
First = Annotated[
    int | None, typer.Option("--n", "-n", min=1, help="Take the first N samples only.")
]
Levels = Annotated[
    int | None,
    typer.Option(min=2, help="DATA are integers below this, 256 for bytes; known for images."),
]
DataRange = Annotated[
    str | None,
    typer.Option(
        help="Lowest and highest number of the data, such as 0,1, drawn black and white, and "
        "over which levels are spread; those of MODEL if not given."
    ),
]
Root = Annotated[
    Path | None, typer.Option(help="Folder of the files of mnist, fashion-mnist and cifar10.")
]
Label = Annotated[
    int | None, typer.Option(min=0, help="Class, for a model that was trained with labels.")
]
_SOLVER = typer.Option("--solver", "-s", help="A name in the table of 'sde-models solvers'.")
SolverName = Annotated[str, _SOLVER]
FlowSolverName = Annotated[str | None, _SOLVER]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of a fixed-step solver.")]
GridName = Annotated[
    str | None,
    typer.Option("--grid", help="Nodes of a fixed-step solver: log-snr, uniform, ..."),
]
Rtol = Annotated[float | None, typer.Option(help="Relative tolerance of an adaptive solver.")]
Atol = Annotated[float | None, typer.Option(help="Absolute tolerance of an adaptive solver.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Cap on its steps.")]
Chunk = Annotated[
    int, typer.Option("--chunk", "--batch", min=1, help="Samples at once, and in one shard.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="Device such as cpu, cuda or cuda:1.")]
Dtype = Annotated[
    Precision | None,
    typer.Option("--dtype", help="Floating dtype of model and data; their own if not given."),
]
Progress = Annotated[bool, typer.Option(help="Show a progress bar.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", callback=load_config, is_eager=True,
        help="A .toml or .json file of options; those on the command line take precedence.",
    ),
]  # fmt: skip
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given a value; for the others the library has defaults."""
    return {name: value for name, value in options.items() if value is not None}
