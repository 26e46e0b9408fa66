"""Work through many samples: shard by shard, shared among processes, in parts that fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sde_models.counting import count_evaluations
from sde_models.models import Model, check_model
from sde_models.progress_bars import open_bar
from sde_models.shards.fingerprints import describe
from sde_models.shards.folder import Folder, Shard
from sde_models.shards.parts import FittingParts
from sde_models.shards.processes import Processes
from sde_models.shards.source import Part
from sde_models.solvers.arguments import whole_number

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Verb:
    """What is done to the samples, in words.

    Attributes:
        doing: For the progress bar, such as "sampling".
        done: For errors, such as "drawn".
        relief: What needs less memory.
    """

    doing: str
    done: str
    relief: str = "a network of lower precision"


class Engine:
    """What every piece of work on many samples has in common.

    Args:
        verb: What is done, in words.
        model: What gives the score; it is taken out of its wrappers and moved to its device.
        chunk: Samples in a shard, and at most in a batch.
        seed: What all random numbers follow from.
        accelerator: As for :func:`~sde_models.evaluate`.
        arguments: Those of the verb, for all samples.

    Attributes:
        model: The model as it is to be used.

    Raises:
        TypeError: For ``generator=``, ``path=`` or what is no seed or model.
        ValueError: For a chunk below 1.
    """

    def __init__(
        self,
        verb: Verb,
        model: Model,
        *,
        chunk: int,
        seed: int,
        accelerator: Accelerator | None,
        arguments: dict[str, Any],
    ) -> None:
        if "generator" in arguments:
            raise TypeError(
                f"{verb.doing} many samples takes no generator=, which could not be resumed: use "
                "seed=, a whole number"
            )
        if "path" in arguments:
            raise TypeError("shards hold no paths: leave path= out, or use the verb itself")
        if not isinstance(seed, int):
            raise TypeError(f"seed must be a whole number, got {seed!r}")
        self.verb = verb
        self.chunk = whole_number("chunk", chunk) or 1
        self.seed = seed
        self.arguments = arguments
        self.processes = Processes(accelerator)
        self.model: Model = self.processes.place(model)
        check_model(self.model)

    def open(
        self, out: str | os.PathLike[str], samples: int, settings: Mapping[str, str | int | None]
    ) -> Folder:
        """The folder of this work, with everything that its numbers depend on written down.

        Raises:
            ValueError: If there are results of other settings.
            OSError: If the folder cannot be written to.
        """
        given = {k: describe(value) for k, value in self.arguments.items() if k != "callback"}
        return Folder(
            out,
            {
                "format": 1,
                "model": describe(self.model),
                "samples": samples,
                "chunk": self.chunk,
                "seed": self.seed,
                **settings,
                **{f"argument {name}": value for name, value in given.items()},
            },
        )

    def run(self, folder: Folder, prepare: Callable[[int, int], Part], *, progress: bool) -> int:
        """Make the shards that are missing, and wait for the other processes.

        Args:
            folder: Where they go.
            prepare: Called with the first sample of a shard and the one after its last; returns
                what works on any part of these.
            progress: Show a progress bar, in the main process.

        Returns:
            Number of samples that were found done, by all processes.
        """
        processes = self.processes
        own = {i: folder.bounds(i) for i in range(processes.rank, len(folder), processes.count)}
        missing = [index for index in own if folder.read(index) is None]
        total = sum(last - first for first, last in own.values())
        resumed = total - sum(own[index][1] - own[index][0] for index in missing)
        parts = FittingParts(self.chunk, self.verb.relief)
        shares = f" (1 of {processes.count} shares)" if processes.count > 1 else ""
        with open_bar(
            total=total, initial=resumed, desc=self.verb.doing + shares, unit=" samples",
            disable=not (progress and processes.rank == 0),
        ) as bar:  # fmt: skip
            for index in missing:
                first, last = own[index]
                try:
                    folder.write(index, _work(prepare, parts, first, last))
                except Exception as error:
                    error.add_note(f"while samples {first} to {last - 1} were {self.verb.done}")
                    raise
                bar.update(last - first)
                if parts.size < self.chunk:
                    bar.set_postfix(at_once=parts.size)
        processes.wait()
        return processes.add_up(resumed)


def _work(prepare: Callable[[int, int], Part], parts: FittingParts, first: int, last: int) -> Shard:
    with count_evaluations() as cost:
        results = parts.run(prepare(first, last), first, last)
    joined = {name: torch.cat([result[name] for result in results]) for name in results[0]}
    return Shard(joined, vars(cost).copy())
