"""Work on many samples: shard by shard, shared among processes, in parts that fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_models._utils.arguments import check_positive, check_switch
from sde_models._utils.conditions import Conditions
from sde_models._utils.counting import EvaluationCounter, count_evaluations
from sde_models._utils.integers import check_integer
from sde_models._utils.progress_bars import open_bar
from sde_models.models.base import Model, check_model
from sde_models.shards.fingerprints import describe, describe_module
from sde_models.shards.folder import Folder, Shard, in_units
from sde_models.shards.parts import FittingParts
from sde_models.shards.processes import Processes
from sde_models.shards.reader import Shards
from sde_models.shards.source import Part
from sde_models.solvers import make_solver

if TYPE_CHECKING:
    from accelerate import Accelerator


FORMAT = 2
"""Format of the settings; 1 did not hold all that results depend on."""

LARGE = 10**9
"""Bytes of results from which on the progress bar shows their size."""


@dataclass(frozen=True)
class Task:
    """Words for what is done to the samples, for messages.

    Attributes:
        doing: For the progress bar, such as "sampling".
        done: For errors, such as "drawn".
        relief: How to use less memory.
    """

    doing: str
    done: str
    relief: str = "a network of lower precision"


class Engine:
    """The common part of all functions that work on many samples.

    Args:
        task: Words for what is done.
        model: What gives the score; it is taken out of its wrappers and moved to its device.
        chunk: Samples in a shard, and at most in a batch.
        seed: Fixes all random numbers.
        accelerator: As for :func:`~sde_models.evaluate`.
        arguments: Those of the function, for all samples.

    Attributes:
        model: The model without wrappers, on its device.
        arguments: Those that are not None, on which the results depend.

    Raises:
        TypeError: For ``generator=``, ``path=`` or what is no model.
        ValueError: For a chunk below 1 or a seed below 0.
    """

    def __init__(
        self,
        task: Task,
        model: Model,
        *,
        chunk: int,
        seed: int,
        accelerator: Accelerator | None,
        arguments: dict[str, Any],
    ) -> None:
        if "generator" in arguments:
            raise TypeError(
                f"{task.doing} many samples takes no generator=, which could not be resumed: use "
                "seed=, an integer"
            )
        if "path" in arguments:
            raise TypeError(
                "shards hold no paths: leave path= out, or use the function for a single batch"
            )
        self.task = task
        self.chunk = check_integer("chunk", chunk)
        self.seed = check_integer("seed", seed, least=0)
        self.arguments = {name: value for name, value in arguments.items() if value is not None}
        self.processes = Processes(accelerator)
        self.model: Model = self.processes.place(model)
        check_model(self.model)
        if arguments.get("solver") is not None:
            make_solver(arguments["solver"])
        if arguments.get("tol") is not None:
            check_positive("tol", arguments["tol"], "be a positive number of nats")

    def run(
        self,
        out: str | os.PathLike[str],
        samples: int,
        settings: Mapping[str, str | int | None],
        prepare: Callable[[int, int], Part],
        *,
        size: int,
        progress: bool,
        overwrite: bool,
    ) -> Shards:
        """Make the shards that are missing, and wait for the other processes.

        Nothing is deleted or written before the results of the first shard are computed, so that a
        wrong argument does no harm.

        Args:
            out: The folder.
            samples: Number of samples.
            settings: Everything that the results depend on, besides the arguments.
            prepare: Called with the first sample of a shard and the one after its last; returns
                a function that works on any part of these.
            size: Bytes of the results of a sample.
            progress: Show a progress bar, in the main process.
            overwrite: Whether to replace the shards that are there.

        Raises:
            ValueError: If there are results of other settings.
            FileExistsError: If the folder holds something else.
            BlockingIOError: If another process is at work in it.
            OSError: If it cannot be written to, or the results do not fit on the disk.
        """
        for name, value in {"progress": progress, "overwrite": overwrite}.items():
            check_switch(name, value)
        given = {f"argument {k}": describe(v) for k, v in self.arguments.items() if k != "callback"}
        everything = {
            "format": FORMAT,
            **describe_module("model", self.model),
            "samples": samples,
            "chunk": self.chunk,
            "seed": self.seed,
            **settings,
            **given,
        }
        folder, processes = Folder(out, everything), self.processes
        with ExitStack() as held:
            processes.first(lambda: held.enter_context(folder.owned))
            if not folder.owned.check():
                raise FileNotFoundError(
                    f"process {processes.rank} does not find {folder.path}, which the first has "
                    "made: give a folder that all processes can read"
                )
            if not overwrite:
                folder.check()
            needed = folder.check_room(size)
            try:
                with self._bar(folder, needed, progress) as bar:
                    resumed = self._make(folder, prepare, bar, overwrite)
            except BaseException:
                if processes.rank == 0:
                    folder.give_up()
                raise
            processes.wait()
        return Shards(folder.path, resumed=processes.add_up(resumed))

    def place(self, x: Tensor, cond: Conditions) -> tuple[Tensor, Conditions]:
        """Data and conditions on the device of the model."""
        device = self.model.device
        return x.to(device), cond.mapped(lambda value: value.to(device))

    def _make(
        self, folder: Folder, prepare: Callable[[int, int], Part], bar: Any, overwrite: bool
    ) -> int:
        resumed, begun = 0, False
        parts = FittingParts(self.chunk, self.task.relief)

        def begin() -> None:
            self.processes.first(lambda: folder.begin(overwrite=overwrite))

        for index in self._own(folder):
            first, last = folder.bounds(index)
            if not overwrite and folder.read(index) is not None:
                resumed += last - first
                bar.initial = resumed  # so that its rate is that of this run
                bar.update(last - first)
                continue
            bar.refresh()
            try:
                shard = _work(prepare, parts, first, last)
                if not begun:
                    begin()
                begun = True
                folder.write(index, shard)
            except Exception as error:
                error.add_note(f"while samples {first} to {last - 1} were {self.task.done}")
                raise
            bar.update(last - first)
            if parts.size < self.chunk:
                bar.set_postfix(at_once=parts.size)
        if not begun:
            begin()
        return resumed

    def _own(self, folder: Folder) -> range:
        """The shards of this process."""
        return range(self.processes.rank, len(folder), self.processes.count)

    def _bar(self, folder: Folder, needed: int, progress: bool) -> Any:
        rank, count, own = self.processes.rank, self.processes.count, self._own(folder)
        missing = folder.chunk * len(folder) - folder.samples if len(folder) - 1 in own else 0
        shares = f" (1 of {count} shares)" if count > 1 else ""
        size = f", {in_units(needed)}" if needed >= LARGE else ""
        return open_bar(
            total=len(own) * folder.chunk - missing, desc=f"{self.task.doing}{shares}{size}",
            unit=" samples", disable=not (progress and rank == 0),
        )  # fmt: skip


def _work(prepare: Callable[[int, int], Part], parts: FittingParts, first: int, last: int) -> Shard:
    work = prepare(first, last)

    def counted(start: int, end: int) -> tuple[dict[str, Tensor], EvaluationCounter]:
        with count_evaluations() as counter:
            results = work(start, end)
        return {name: value.detach().cpu().contiguous() for name, value in results.items()}, counter

    # Attempts that ran out of memory are not part of the cost.
    results, counters = zip(*parts.run(counted, first, last), strict=True)
    joined = {name: torch.cat([result[name] for result in results]) for name in results[0]}
    return Shard(joined, sum(counters, EvaluationCounter()))
