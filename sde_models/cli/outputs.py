"""What a command writes: shards while it works, and in the end what ``--out`` asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from sde_models._utils.atomic_files import write_whole
from sde_models._utils.owned_folders import OwnedFolder
from sde_models.cli.configuration import config_content, is_config_of
from sde_models.data.pictures import check_drawable, draw
from sde_models.shards import Shards
from sde_models.shards.folder import own_shards

CONFIG = "config.json"


@dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        out: The result: a file, or a folder of shards.
        shards: The folder of shards; for a file it stands next to it until the file is complete.
        overwrite: Whether to replace what an earlier command has left there.
    """

    out: Path
    shards: OwnedFolder
    overwrite: bool

    @property
    def is_folder(self) -> bool:
        """Whether the shards are the result."""
        return self.shards.path == self.out

    @property
    def config(self) -> Path:
        """The file of the options that the result was made with."""
        if self.is_folder:
            return self.out / CONFIG
        return self.out.with_name(f"{self.out.name}.{CONFIG}")

    def check_shape(self, event_shape: tuple[int, ...]) -> None:
        """Refuse a picture of what cannot be drawn.

        Raises:
            ValueError: Saying what can.
        """
        if self.out.suffix == ".png":
            check_drawable(event_shape)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the shards of a file from the first until the file is complete.

        A folder of shards is held by what fills it, which may be several processes.

        Raises:
            FileExistsError: As in :meth:`check`; another command may have come in between.
            BlockingIOError: If another command is at work there.
        """
        with nullcontext() if self.is_folder else self.shards:
            self.check()
            yield

    def check(self) -> None:
        """Refuse what is not to be replaced.

        Raises:
            FileExistsError: Naming what is there.
        """
        self.shards.check()
        if self.is_folder:
            ours = self.shards.has(CONFIG)
        else:
            ours = is_config_of(self.config, self.out)
            if os.path.lexists(self.out) and not (ours and self.overwrite):
                unmarked = f"since no {self.config.name} says that sde-models made it"
                hint = "or --overwrite" if ours else unmarked
                raise FileExistsError(f"{self.out} exists: give another --out, {hint}")
        if os.path.lexists(self.config) and not ours:
            raise FileExistsError(
                f"{self.config} exists, and was not written here: give another --out"
            )

    def write(self, content: bytes, ctx: typer.Context) -> None:
        """Write a file, and its configuration next to it; the shards are no longer needed."""
        self._describe(ctx)
        write_whole(self.out, content)
        self.shards.remove()

    def gather(
        self, shards: Shards, ctx: typer.Context, data_range: tuple[float, float] | None = None
    ) -> None:
        """Turn the shards into what was asked for, with the configuration next to it or in it.

        Args:
            shards: The results.
            ctx: Context of the command.
            data_range: What a picture shows black and white.
        """
        self._describe(ctx)
        if self.is_folder:
            return
        if self.out.suffix == ".png":
            write_whole(self.out, draw(_first_of(shards), data_range=data_range))
        else:
            shards.save_npz(self.out)
        self.shards.remove()

    def _describe(self, ctx: typer.Context) -> None:
        if self.is_folder:
            self.shards.write(CONFIG, config_content(ctx))
        else:
            write_whole(self.config, config_content(ctx))


def find_output(
    out: Path, endings: tuple[str, ...], *, overwrite: bool, data: str | None = None
) -> Output:
    """Say where a result goes, if it may go there; nothing is written yet.

    Args:
        out: Where it goes.
        endings: Which endings there are; an empty one stands for a folder.
        overwrite: Whether to replace what an earlier command has left there.
        data: What is read.

    Raises:
        ValueError: For another ending, a file where several processes share the work, or what is
            read itself.
        FileExistsError: If there is something that is not to be replaced.
    """
    if out.suffix not in endings:
        wanted = ", ".join(ending or "none for a folder of shards" for ending in endings)
        raise ValueError(f"--out {out} must have an ending of these: {wanted}")
    if out.suffix and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"several processes write shards: give --out a folder in place of {out}")
    if data is not None and Path(data).resolve() == out.resolve():
        raise ValueError(f"--out {out} is what is read, and would be replaced: give another --out")
    shards = out if not out.suffix else out.with_name(f"{out.name}.parts")
    output = Output(out, own_shards(shards), overwrite)
    output.check()
    return output


def _first_of(shards: Shards) -> torch.Tensor:
    """As many samples as a picture shows."""
    wanted = min(check_drawable(shards[0].shape), len(shards))
    return torch.stack([shards[index] for index in range(wanted)])
