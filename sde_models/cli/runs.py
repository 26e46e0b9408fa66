"""The folder of a training run: its files, its lock, and its state after the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer

from sde_models._utils.owned_folders import OwnedFolder
from sde_models.cli.configuration import CONFIG, config_content
from sde_models.cli.inputs import MODEL_FILE
from sde_models.training import Progress
from sde_models.training.checkpoints import CheckpointFolder
from sde_models.training.group import Group

FILES = (MODEL_FILE, "metrics.json", "samples.png", CONFIG)
PICTURES = r"step-\d{8,}\.png"
"""Names of the pictures in the folder of the samples."""


@dataclass
class Run:
    """A training run on disk.

    Attributes:
        folder: Its folder.
        config: The options that are written there.
        overwrite: Whether to replace a run that is there.
        begun: Whether a step was done.
    """

    folder: OwnedFolder
    config: bytes
    overwrite: bool
    begun: bool = field(default=False, init=False)

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints."""
        return CheckpointFolder(self.folder.path / "checkpoints")

    @property
    def pictures(self) -> OwnedFolder:
        """Folder of the samples that are drawn during the run."""
        return OwnedFolder(self.folder.path / "samples", "pictures of samples", PICTURES)

    @property
    def model(self) -> Path:
        """File of the model."""
        return self.folder.path / MODEL_FILE

    def check(self) -> None:
        """Refuse a folder with something else, or with other files of the same names."""
        self.folder.check()
        self.folder.check_names(*FILES)
        self.checkpoints.owned.check()
        self.pictures.check()

    def begin(self, progress: Progress) -> None:
        """Replace an earlier run after the first step, when all options have been used.

        To be given to ``fit`` as a callback.
        """
        if self.begun or not progress.main:
            return
        self.begun = True
        if self.overwrite:
            self.folder.clear()
            self.pictures.clear()
        self.folder.write(CONFIG, self.config)

    def last_step(self) -> int:
        """Step of the newest checkpoint, 0 if there is none."""
        return max(self.checkpoints.steps(), default=0)


@contextmanager
def open_run(
    out: Path, group: Group, ctx: typer.Context, *, overwrite: bool, pictures: bool, **settled: Any
) -> Iterator[Run]:
    """Open the folder of a run, to begin it or to go on with it.

    Args:
        out: The folder.
        group: The processes that train together.
        ctx: Context of the command, whose options are written into the folder.
        overwrite: Whether to replace a run that is there, and nothing else.
        pictures: Whether samples are drawn during the run.
        **settled: Options whose values the command chose.

    Raises:
        FileExistsError: If the folder holds something else.
        BlockingIOError: If another process trains there.
        typer.Exit: After Ctrl-C, with the status 130.
    """
    folder = OwnedFolder(out, "a training run")
    run = Run(folder, config_content(ctx, **settled), overwrite)
    run.check()
    with ExitStack() as held:
        for entered in (folder, *([run.pictures] if pictures else [])):
            group.first(partial(held.enter_context, entered))
        try:
            yield run
        except KeyboardInterrupt as error:
            if group.main:
                step = run.last_step()
                typer.echo(f"Stopped: the same command goes on from step {step}.", err=True)
            raise typer.Exit(130) from error
        except Exception:
            if group.main and folder.new and run.last_step() == 0:
                run.checkpoints.remove()
                run.pictures.clear()
                folder.clear()
            raise
        if group.main:
            folder.write(CONFIG, run.config)
