"""Outputs of a command: shards while it works, and in the end the result at ``--out``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from sde_models._utils.atomic_files import atomic_write
from sde_models._utils.owned_folders import OwnedFolder
from sde_models.cli.configuration import CONFIG, config_content, is_config_of
from sde_models.data.pictures import check_drawable, draw
from sde_models.shards import Shards
from sde_models.shards.folder import own_shards


@dataclass(frozen=True)
class Output:
    """The result of a command on disk.

    Attributes:
        out: The result: a file, or a folder of shards.
        shards: The folder of shards; for a file it is next to the file until that is complete.
        overwrite: Whether to replace the result of an earlier command.
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
        """Refuse a picture of samples that cannot be drawn."""
        if self.out.suffix == ".png":
            check_drawable(event_shape)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the shards of a file from the first until the file is complete.

        A folder of shards is locked by the function that fills it, in one or several processes.
        Another command may have come in between, hence the second check.
        """
        with nullcontext() if self.is_folder else self.shards:
            self.check()
            yield

    def check(self) -> None:
        """Refuse to replace files that must be kept."""
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
        """Write a file, and its configuration next to it; remove the shards."""
        atomic_write(self.config, config_content(ctx))
        atomic_write(self.out, content)
        self.shards.remove()

    def gather(
        self, shards: Shards, ctx: typer.Context, data_range: tuple[float, float] | None = None
    ) -> None:
        """Turn the shards into the result, with the configuration next to it or in it.

        Args:
            shards: The results.
            ctx: Context of the command.
            data_range: Values that a picture shows black and white.
        """
        if self.is_folder:
            self.shards.write(CONFIG, config_content(ctx))
        elif self.out.suffix == ".png":
            shown = min(check_drawable(shards[0].shape), len(shards))
            x = torch.stack([shards[index] for index in range(shown)])
            self.write(draw(x, data_range=data_range), ctx)
        else:
            atomic_write(self.config, config_content(ctx))
            shards.save_npz(self.out)
            self.shards.remove()


def find_output(
    out: Path,
    endings: tuple[str, ...] = (".npz", ".png", ""),
    *,
    overwrite: bool,
    data: str | None = None,
) -> Output:
    """Check the place of a result; nothing is written yet.

    Args:
        out: File or folder of the result.
        endings: Possible endings; an empty one stands for a folder.
        overwrite: Whether to replace the result of an earlier command.
        data: The data that are read, which must not be replaced.

    Raises:
        ValueError: For another ending, a file where several processes share the work, or the data
            themselves.
        FileExistsError: If there is something that must be kept.
    """
    if out.suffix not in endings:
        known = ", ".join(ending or "none for a folder of shards" for ending in endings)
        raise ValueError(f"--out {out} must have an ending of these: {known}")
    if out.suffix and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"several processes write shards: give --out a folder in place of {out}")
    if data is not None and Path(data).resolve() == out.resolve():
        raise ValueError(
            f"--out {out} is the data that are read, and would be replaced: give another --out"
        )
    shards = out if not out.suffix else out.with_name(f"{out.name}.parts")
    output = Output(out, own_shards(shards), overwrite)
    output.check()
    return output
