"""What a command writes: shards while it works, and in the end what ``--out`` asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from sde_models.cli.configuration import write_config
from sde_models.pictures import check_drawable, draw
from sde_models.shards import Shards, remove_shards
from sde_models.whole_files import write_whole


@dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        out: The result: a file, or a folder of shards.
        shards: The folder of shards; for a file it stands beside it until the file is whole.
    """

    out: Path
    shards: Path

    @property
    def is_folder(self) -> bool:
        """Whether the shards are the result."""
        return self.shards == self.out

    def check_shape(self, event_shape: tuple[int, ...]) -> None:
        """Refuse a picture of what cannot be drawn.

        Raises:
            ValueError: Saying what can.
        """
        if self.out.suffix == ".png":
            check_drawable(event_shape)

    def write(self, content: bytes, ctx: typer.Context) -> None:
        """Write a file, and its configuration beside it; the shards are no longer needed."""
        write_whole(self.out, content)
        self._finish(ctx)

    def gather(
        self, shards: Shards, ctx: typer.Context, data_range: tuple[float, float] | None = None
    ) -> None:
        """Turn the shards into what was asked for, with the configuration beside it or in it.

        Args:
            shards: The results.
            ctx: Context of the command.
            data_range: What a picture shows black and white.
        """
        if self.out.suffix == ".png":
            write_whole(self.out, draw(_first_of(shards), data_range=data_range))
        elif not self.is_folder:
            shards.save_npz(self.out)
        self._finish(ctx)

    def _finish(self, ctx: typer.Context) -> None:
        if self.is_folder:
            write_config(self.out / "config.json", ctx)
            return
        write_config(self.out.with_name(f"{self.out.name}.config.json"), ctx)
        remove_shards(self.shards)


@contextmanager
def open_output(out: Path, endings: tuple[str, ...], *, overwrite: bool) -> Iterator[Output]:
    """Make way for a result, and leave nothing behind where there was none to be had.

    Args:
        out: Where it goes.
        endings: Which endings there are; an empty one stands for a folder.
        overwrite: Whether to replace what is there.

    Raises:
        ValueError: For another ending, or a file where several processes share the work.
        FileExistsError: If there is something that is not to be replaced.
    """
    if out.suffix not in endings:
        wanted = ", ".join(ending or "none for a folder of shards" for ending in endings)
        raise ValueError(f"--out {out} must have an ending of these: {wanted}")
    shards = out if not out.suffix else out.with_name(f"{out.name}.parts")
    if out.suffix and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"several processes write shards: give --out a folder in place of {out}")
    _make_way(out, shards, overwrite)
    try:
        yield Output(out, shards)
    except BaseException:
        if (shards / "settings.json").is_file() and not any(shards.glob("chunk-*")):
            remove_shards(shards)
        raise


def _make_way(out: Path, shards: Path, overwrite: bool) -> None:
    ours = (shards / "settings.json").is_file()
    if shards == out:
        if out.exists() and not ours and not (out.is_dir() and not any(out.iterdir())):
            raise FileExistsError(f"{out} exists and is no folder of shards: give another --out")
    elif out.is_dir() or (out.exists() and not overwrite):
        hint = "another --out" if out.is_dir() else "another --out, or --overwrite"
        raise FileExistsError(f"{out} exists: give {hint}")
    if ours and overwrite:
        remove_shards(shards)
    out.parent.mkdir(parents=True, exist_ok=True)


def _first_of(shards: Shards) -> torch.Tensor:
    """As many samples as a picture shows."""
    wanted = min(check_drawable(shards[0].shape), len(shards))
    return torch.stack([shards[index] for index in range(wanted)])
