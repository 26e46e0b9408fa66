"""The loop of a training run, with checkpoints, callbacks and a clean stop after a signal."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import nn

from sde_models._utils.progress_bars import open_bar
from sde_models.models.model_files import find_tensors
from sde_models.training.checkpoints import Checkpoint, CheckpointFolder
from sde_models.training.group import Group
from sde_models.training.history import History
from sde_models.training.identity import metadata_of
from sde_models.training.learner import Learner
from sde_models.training.logs import Log
from sde_models.training.progress import AnyModel, Callback, Progress
from sde_models.training.settings import Settings
from sde_models.training.signals import PutOffSignals
from sde_models.training.sources import Rows, Source

READ_EVERY = 10
"""Steps between reads of the losses on an accelerator, each of which waits for it."""

READ_AT_ONCE = ("cpu",)

LOG_EVERY = 10
SHOW_EVERY = 20


@dataclass
class Loop(Generic[AnyModel]):
    """A run in progress.

    Attributes:
        settings: Those of the run.
        description: Everything that the result depends on, written into each checkpoint.
        learner: The weights, their average and the optimiser.
        source: Source of the batches.
        group: The processes that train together.
        folder: Folder of the checkpoints, or None.
        callbacks: Called after each step, in every process.
        log: Log of numbers and images.
        show: Whether to show a progress bar.
        history: The losses.
        seconds: Time that earlier parts of the run took.
        first: Steps that they took.
        written: Step of the last checkpoint that was written.
        tried: Step of the last checkpoint that the run tried to write.
    """

    settings: Settings
    description: dict[str, Any]
    learner: Learner[AnyModel]
    source: Source
    group: Group
    folder: CheckpointFolder | None
    callbacks: Sequence[Callback]
    log: Log
    show: bool
    history: History
    seconds: float = 0.0
    first: int = 0
    written: int = -1
    tried: int = -1
    start: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self.seconds + time.perf_counter() - self.start

    def run(self) -> None:
        """Train to the end, or until a signal comes.

        Raises:
            FloatingPointError: If a loss or gradient is not finite.
            KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
            SystemExit: The same after SIGTERM.
        """
        self.learner.model.train()
        if self.tried < 0:
            self.write_checkpoint()
        rows = self.source(self.history.step)
        bar = open_bar(
            total=self.settings.steps, initial=self.history.step, desc="training", unit=" steps",
            disable=not (self.show and self.group.main),
        )  # fmt: skip
        with bar, PutOffSignals(active=self.folder is not None) as signals:
            while (share := self.settings.share_done(self.history.step, self.elapsed)) < 1:
                self._step(next(rows), share, stop=signals.received is not None)
                self._report(bar)
                if self.history.step % self.settings.checkpoint_every == 0:
                    self.write_checkpoint()
                alone = self.group.count == 1
                if self.history.stop or (alone and signals.received is not None):
                    self.write_checkpoint()
                    signals.leave(
                        f"stopped after step {self.history.step}; call fit again with the same "
                        f"folder to go on"
                    )
            self.write_checkpoint()
        self.learner.average.finish()

    def write_checkpoint(self) -> None:
        """Write a checkpoint, if the run has a folder; a full disk gives a warning only."""
        self.history.read()
        step = self.history.step
        if self.folder is None or step == self.tried:
            return
        self.tried = step
        metadata = metadata_of(self.learner.model)
        # A model file holds all buffers; other networks are read by their state dictionary.
        held = find_tensors if metadata else nn.Module.state_dict
        checkpoint = Checkpoint(
            weights=held(self.learner.model),
            averaged=held(self.learner.average.model),
            settings=self.description,
            state={
                "losses": torch.tensor(self.history.losses, dtype=torch.float64),
                "seconds": self.elapsed,
                "learner": self.learner.state(),
                "generators": self._generators(),
            },
            metadata=metadata,
        )
        if not self.group.main:
            return
        try:
            self.folder.write(step, checkpoint)
        except OSError as error:
            if self.written < 0:  # there is no checkpoint yet
                raise
            warnings.warn(
                f"the checkpoint of step {step} could not be written ({error}): the run goes on; "
                f"the last good one is of step {self.written}, so make room on the disk",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self.written = step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state that a checkpoint holds."""
        state = checkpoint.state
        self.learner.load(checkpoint.weights, checkpoint.averaged, state["learner"])
        self.history.losses = state["losses"].tolist()
        self.seconds = state["seconds"]
        self.first = self.written = self.tried = self.history.step
        device = self.learner.device
        for kind, states in state["generators"].items():
            if self.group.rank < len(states):
                own = states[self.group.rank]
                if kind == "cpu":
                    torch.set_rng_state(own)
                elif kind == device.type:  # a run may go on where there is no such device
                    torch.cuda.set_rng_state(own, device)

    def _step(self, rows: Rows, share: float, stop: bool) -> None:
        step, learner = self.history.step, self.learner
        loss, norm = learner.compute_gradients(rows, step)
        flag = torch.full_like(loss, float(stop))
        watched = self.group.sum(torch.stack((loss, norm / self.group.count, flag)))
        self.history.add(watched)
        if learner.device.type in READ_AT_ONCE or (step + 1) % READ_EVERY == 0:
            self.history.read()
        learner.update(self.settings.rate(step, share), first=step == 0)
        if self.callbacks:
            progress = Progress(
                step + 1, watched[0], self.elapsed, learner.model, learner.average.model,
                self.log, self.group.main,
            )  # fmt: skip
            for callback in self.callbacks:
                callback(progress)

    def _report(self, bar: Any) -> None:
        bar.update()
        step, losses = self.history.step, self.history.losses
        if step % SHOW_EVERY == 0 and losses:
            bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}")
        if step % LOG_EVERY == 0 and losses:
            self.log.scalar("loss", losses[-1], step)
            self.log.scalar("gradient norm", self.history.norm, step)
            self.log.scalar("learning rate", self.learner.optimiser.param_groups[0]["lr"], step)
            rate = (step - self.first) / (time.perf_counter() - self.start)
            self.log.scalar("steps per second", rate, step)

    def _generators(self) -> dict[str, list[torch.Tensor]]:
        """States of torch's global generators in every process: dropout draws from them."""
        states = {"cpu": self.group.gather(torch.get_rng_state())}
        if self.learner.device.type == "cuda":
            states["cuda"] = self.group.gather(torch.cuda.get_rng_state(self.learner.device))
        return states
