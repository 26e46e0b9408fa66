"""Options that several commands take, each defined once, alone or in a group."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sde_models.cli.configuration import load_config

if TYPE_CHECKING:
    import torch


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
ArrayName = Annotated[
    str | None,
    typer.Option("--array", help="Name of the array in DATA, if it is not x (latents: z)."),
]
First = Annotated[
    int | None, typer.Option("--n", "-n", min=1, help="Take the first N samples only.")
]
DataRange = Annotated[
    str | None,
    typer.Option(
        help="Lowest and highest number of the data, such as 0,1, drawn black and white, and "
        "over which levels are spread; those of MODEL if not given."
    ),
]
Label = Annotated[
    int | None, typer.Option(min=0, help="Class, for a model that was trained with labels.")
]
_SOLVER = typer.Option("--solver", "-s", help="A name in the table of 'sde-models solvers'.")
SolverName = Annotated[str, _SOLVER]
FlowSolverName = Annotated[str | None, _SOLVER]
Chunk = Annotated[
    int, typer.Option("--chunk", "--batch", min=1, help="Samples at once, and in one shard.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
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


@dataclass(frozen=True)
class Reading:
    """Options for how data are read."""

    levels: Annotated[
        int | None,
        typer.Option(min=2, help="DATA are integers below this, 256 for bytes; known for images."),
    ] = None
    array: ArrayName = None
    root: Annotated[
        Path | None, typer.Option(help="Folder of the files of mnist, fashion-mnist and cifar10.")
    ] = None


@dataclass(frozen=True)
class Control:
    """Options for the steps of a solver."""

    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a fixed-step solver.")] = None
    grid: Annotated[
        str | None, typer.Option(help="Nodes of a fixed-step solver: log-snr, uniform, ...")
    ] = None
    rtol: Annotated[
        float | None, typer.Option(help="Relative tolerance of an adaptive solver.")
    ] = None
    atol: Annotated[
        float | None, typer.Option(help="Absolute tolerance of an adaptive solver.")
    ] = None
    max_steps: Annotated[int | None, typer.Option(min=1, help="Cap on its steps.")] = None

    def given(self) -> dict[str, Any]:
        """Keyword arguments of a function: the options that were given."""
        return given(**asdict(self))


@dataclass(frozen=True)
class Running:
    """Options for where and how a command runs; the application reads config and debug."""

    device: Annotated[str, typer.Option(help="Device such as cpu, cuda or cuda:1.")] = "cpu"
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        typer.Option(help="Floating dtype of model and data; their own if not given."),
    ] = None
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = (
        False
    )
    config: Config = None
    debug: Debug = False

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype of that name."""
        import torch

        return None if self.dtype is None else getattr(torch, self.dtype)
