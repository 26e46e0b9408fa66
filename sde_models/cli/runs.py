"""The folder of a training run: what is in it, who may write there, and how it is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sde_models.cli.configuration import write_config
from sde_models.cli.inputs import MODEL_FILE
from sde_models.training.checkpoints import CheckpointFolder
from sde_models.training.group import Group
from sde_models.whole_files import write_whole

CONFIG = "config.json"
FOLDERS = ("checkpoints", "samples")
FILES = (MODEL_FILE, "metrics.json", "samples.png", CONFIG)


@dataclass(frozen=True)
class Run:
    """Where a run goes.

    Attributes:
        out: Its folder.
        group: The processes that train together, of which the first writes.
    """

    out: Path
    group: Group

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.out / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of the samples that are drawn on the way."""
        return self.out / "samples"

    @property
    def model(self) -> Path:
        """File of the model."""
        return self.out / MODEL_FILE

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run."""
        write_whole(self.out / name, content)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the numbers of the run."""
        self.write("metrics.json", f"{json.dumps(metrics, indent=2)}\n".encode())

    def begin(self, ctx: typer.Context, overwrite: bool, settled: dict[str, Any]) -> bool:
        """Make way for the run; return whether it is a new one.

        Raises:
            FileExistsError: If there is something else.
        """
        if self.out.is_dir() and any(self.out.iterdir()) and not self._is_there():
            raise FileExistsError(
                f"{self.out} holds other things than a run of 'sde-models train': give another "
                "--out"
            )
        if self.out.exists() and not self.out.is_dir():
            raise FileExistsError(f"{self.out} is a file: give a folder as --out")
        self.group.wait()
        if not self.group.main:
            self.group.wait()
            return False
        if overwrite:
            self.remove()
        new = not self._is_there()
        if new:
            self.out.mkdir(parents=True, exist_ok=True)
            write_config(self.out / CONFIG, ctx, **settled)
        self.group.wait()
        return new

    def last_step(self) -> int:
        """Step of the newest checkpoint, 0 if there is none."""
        return max(CheckpointFolder(self.checkpoints).steps(), default=0)

    def remove(self) -> None:
        """Remove what a run leaves, and the folder if nothing else is in it."""
        for folder in FOLDERS:
            shutil.rmtree(self.out / folder, ignore_errors=True)
        for file in FILES:
            (self.out / file).unlink(missing_ok=True)
        if self.out.is_dir() and not any(self.out.iterdir()):
            self.out.rmdir()

    def _is_there(self) -> bool:
        try:
            return bool(json.loads((self.out / CONFIG).read_bytes())["command"] == "train")
        except (OSError, ValueError, KeyError, TypeError):
            return self.checkpoints.is_dir()


@contextmanager
def open_run(
    out: Path, group: Group, ctx: typer.Context, *, overwrite: bool, **settled: Any
) -> Iterator[Run]:
    """Open the folder of a run, to begin it or to go on with it.

    Args:
        out: The folder.
        group: The processes that train together.
        ctx: Context of the command, whose options are written into the folder.
        overwrite: Whether to remove a run that is there, and nothing else.
        **settled: Options that the command itself gave a value.

    Raises:
        FileExistsError: If the folder holds something else.
        typer.Exit: After Ctrl-C, with the status 130.
    """
    run = Run(out, group)
    new = run.begin(ctx, overwrite, settled)
    try:
        yield run
    except KeyboardInterrupt as error:
        if group.main:
            typer.echo(f"Stopped: the same command goes on from step {run.last_step()}.", err=True)
        raise typer.Exit(130) from error
    except Exception:
        if new and run.last_step() == 0:  # there is nothing to lose
            run.remove()
        raise
    if group.main:
        write_config(out / CONFIG, ctx, **settled)
