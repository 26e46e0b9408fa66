"""Training a score model: from one call on a laptop to a week on many GPUs.

The optimiser changes the weights of the given model. Their exponential moving average is kept in a
separate model from the first step to the last.

Reference:
    Song et al. 2021, arXiv:2011.13456, and Karras et al. 2022, arXiv:2206.00364, on
    sampling with averaged weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sde_models._utils.arguments import check_switch
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import check_generator, entropy_from
from sde_models._utils.tensor_files import DamagedError
from sde_models.losses import denoising_score_matching
from sde_models.models.base import check_model
from sde_models.solvers.options import NoOptions, check_options
from sde_models.training.checkpoints import Checkpoint, CheckpointFolder
from sde_models.training.group import Group
from sde_models.training.history import History
from sde_models.training.identity import check_same_run, describe_run
from sde_models.training.learner import Learner
from sde_models.training.logs import Log
from sde_models.training.loop import Loop
from sde_models.training.module_state import check_trainable
from sde_models.training.objective import Loss, check_loss
from sde_models.training.progress import AnyModel, Callback, Fit
from sde_models.training.settings import Settings
from sde_models.training.sources import BatchSource, Order, make_source

if TYPE_CHECKING:
    from accelerate import Accelerator


FOREIGN = (
    "the newest checkpoint in {folder} was not written by fit, or not for this model ({why}): "
    "remove it to go on from the one before"
)


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: AnyModel,
    data: Tensor | Dataset[Any] | BatchSource,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    ema_decay: float = 0.995,
    warmup: int = 100,
    clip_norm: float = 1.0,
    loss: Loss = denoising_score_matching,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    mixed_precision: str | None = None,
    gradient_accumulation_steps: int = 1,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    keep: int = 3,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    log_dir: str | os.PathLike[str] | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    **unknown: Unpack[NoOptions],
) -> Fit[AnyModel]:
    r"""Train a model with AdamW, and keep a moving average of its weights.

    The learning rate rises linearly over ``warmup`` steps and falls to zero along a cosine. The
    averaged weights follow :math:`\bar\theta \leftarrow d \bar\theta + (1 - d) \theta`.

    The batch of a step, its times and its noise follow from the seed and the step. So do the
    numbers that the network draws from global generators, for dropout for example; they differ
    between processes. With ``out``, calling ``fit`` again resumes a killed run from its last
    checkpoint and gives the same weights, bit for bit. Under ``accelerate launch`` each process
    takes its part of every batch.

    Args:
        model: What is trained, in place: it ends with the raw weights.
        data: All data, shape ``(N, *event)``, or a map-style dataset with items ``x0``,
            ``(x0,)`` or ``(x0, cond)``, sampled with replacement; or a function
            ``(batch_size, generator)`` that draws a batch ``x0``, or ``x0`` and a dictionary of
            conditions, and is called with the same arguments in every process. Conditions have a
            row for each sample, or are shared, as for :func:`~sde_models.solve`.
        steps: Number of steps. Then the result depends on the seed alone.
        seconds: Time to train for, in place of ``steps``.
        batch_size: Samples in each step, over all processes.
        learning_rate: Highest learning rate.
        weight_decay: Decoupled weight decay.
        ema_decay: Decay d of the moving average, for each step.
        warmup: Steps until the highest learning rate.
        clip_norm: Largest norm of the gradient; a longer one is scaled down to it.
        loss: What is minimised, called as ``loss(model, x0, generator=generator)``, and with
            ``cond=`` if the data have conditions; see :class:`~sde_models.training.Loss`.
        seed: Fixes data order, times and noise; drawn from ``generator`` if None, or that of the
            run that is resumed.
        generator: Source of the seed; torch's global one if None.
        mixed_precision: "bf16" or "fp16" for the network, whose weights stay as they are; that of
            the accelerator if None.
        gradient_accumulation_steps: Parts that each process cuts its batch into, to save memory.
        num_workers: Processes that read a dataset.
        accelerator: Set up by the caller; made here under ``accelerate launch`` if None.
        out: Folder of the checkpoints; nothing is written if None. Another model, loss or setting,
            or other data, are noticed by content: tensors in full, and of a dataset the length and
            at most 64 items evenly between first and last.
        checkpoint_every: Steps between checkpoints.
        keep: Number of checkpoints that are kept.
        resume: Go on where the run in ``out`` stopped; False refuses a folder that holds one.
        overwrite: Remove the run in ``out``, once model, data and settings have been checked, and
            begin anew.
        progress: Show a progress bar with loss and steps per second.
        log_dir: Folder for TensorBoard.
        callback: Called after each step with a :class:`~sde_models.training.Progress`; or several.
        **unknown: None; a misspelt argument is refused with the nearest name.

    Raises:
        ValueError: If not exactly one of ``steps`` and ``seconds`` is given, a setting is out of
            range, the data are NaN or far out of range, the folder holds another run, or the model
            has nothing to train, a lazy module that was never called, a module with an extra state,
            or a network that replaces its parameters.
        TypeError: If the data are not floating, or ``loss`` is no function.
        FileExistsError: If ``out`` is not empty, and was not made by ``fit``.
        BlockingIOError: If another process trains in ``out``.
        FloatingPointError: If the loss is no longer finite, naming the step.
        KeyboardInterrupt: After Ctrl-C; with ``out``, once a checkpoint is written.
        SystemExit: The same after SIGTERM.
        ImportError: If ``log_dir`` is given without TensorBoard.

    Example:
        >>> model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=16, depth=1), sm.VPSDE())
        >>> result = fit(model, torch.randn(100, 2), steps=5, progress=False)
        >>> result.losses.shape
        torch.Size([5])
    """
    check_options(fit, unknown, NoOptions)
    check_model(model)
    check_loss(loss)
    for name, value in {"resume": resume, "overwrite": overwrite, "progress": progress}.items():
        check_switch(name, value)
    check_generator(generator)
    check_trainable(model)
    group = Group(accelerator)
    settings = Settings(
        steps=steps, seconds=seconds, batch_size=batch_size, learning_rate=learning_rate,
        weight_decay=weight_decay, ema_decay=ema_decay, warmup=warmup, clip_norm=clip_norm,
        mixed_precision=mixed_precision or group.mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        checkpoint_every=checkpoint_every, keep=keep,
    )  # fmt: skip
    _check_split(settings, group)
    folder = None if out is None else CheckpointFolder(out, settings.keep)
    with ExitStack() as held:
        if folder is not None:
            group.first(partial(held.enter_context, folder.owned))
        found = None if folder is None or overwrite else _find_run(folder, group, resume)
        chosen = _choose_seed(seed, generator, found, group)
        order = Order(chosen, settings.batch_size, group.rank, group.count)
        source = make_source(data, order, model, check_integer("num_workers", num_workers, least=0))
        description = (
            {} if folder is None else describe_run(settings, order.seed, model, data, loss)
        )
        if found is not None:
            check_same_run(found.settings, description, out)
        done = 0 if found is None else len(found.state["losses"])
        learner = Learner(model, loss, settings, order, group)
        loop = Loop(
            settings, description, learner, source, group, folder,
            callbacks=_as_sequence(callback),
            log=Log(log_dir if group.main else None, done),
            show=progress,
            history=History([], settings.learning_rate, scaled=learner.scaler.is_enabled()),
        )  # fmt: skip
        if folder is not None and group.main:
            folder.tidy(-1 if found is None else done)
        if found is not None:
            _restore(loop, found, out)
        try:
            loop.run()
        finally:
            loop.log.close()
    return Fit(
        model=learner.average.model,
        losses=torch.tensor(loop.history.losses, dtype=torch.float64),
        seconds=loop.elapsed,
    )


def _check_split(settings: Settings, group: Group) -> None:
    if settings.seconds is not None and group.count > 1:
        raise ValueError(
            f"seconds={settings.seconds:g} cannot be used with {group.count} processes, whose "
            "clocks differ: give steps="
        )
    parts = group.count * settings.gradient_accumulation_steps
    if settings.batch_size < parts:
        raise ValueError(
            f"batch_size={settings.batch_size} cannot be split into {parts} parts, for "
            f"{group.count} processes with gradient_accumulation_steps="
            f"{settings.gradient_accumulation_steps}: raise batch_size"
        )


def _find_run(folder: CheckpointFolder, group: Group, resume: bool) -> Checkpoint | None:
    """The newest readable checkpoint, the same one in every process."""
    if not resume and folder.steps():
        raise ValueError(
            f"{folder.path} holds a run and resume=False: choose another folder, or delete it"
        )
    newest = folder.newest() if group.main else None
    step = group.agree(-1 if newest is None else newest[0])
    if step < 0:
        return None
    found = folder.read(step) if newest is None else newest[1]
    losses, seed = found.state.get("losses"), found.settings.get("seed")
    if not isinstance(losses, Tensor) or not isinstance(seed, int):
        raise DamagedError(FOREIGN.format(folder=folder.path, why="it has no losses or no seed"))
    return found


def _restore(loop: Loop[Any], found: Checkpoint, out: Any) -> None:
    try:
        loop.restore(found)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = (str(error) or repr(error)).splitlines()[0]
        raise DamagedError(FOREIGN.format(folder=out, why=why)) from error


def _choose_seed(
    seed: int | None, generator: torch.Generator | None, found: Checkpoint | None, group: Group
) -> int:
    if seed is not None:
        return check_integer("seed", seed, least=0)
    if generator is None and found is not None:
        return int(found.settings["seed"])
    return group.agree(entropy_from(generator))


def _as_sequence(callback: Callback | Sequence[Callback] | None) -> Sequence[Callback]:
    if callback is None:
        return ()
    return callback if isinstance(callback, Sequence) else (callback,)
