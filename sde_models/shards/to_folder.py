"""Many samples and latents, computed chunk by chunk into a folder of shards."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sde_models._utils.conditions import Conditions, as_conditions
from sde_models._utils.integers import check_integer
from sde_models._utils.seeds import generator_at
from sde_models.data.dequantization import DATA_RANGE, dequantize
from sde_models.models.base import Model, find_event_shape
from sde_models.sampling.latents import decode, encode
from sde_models.sampling.samples import SampleOptions, sample
from sde_models.shards.engine import Engine, Task
from sde_models.shards.fingerprints import describe, describe_levels
from sde_models.shards.reader import Shards
from sde_models.shards.source import Given, Source
from sde_models.solvers import Solver, make_solver
from sde_models.solvers.options import StepOptions, check_options

if TYPE_CHECKING:
    from accelerate import Accelerator

SAMPLING = Task("sampling", "drawn")
ENCODING = Task("encoding", "encoded")
DECODING = Task("decoding", "decoded")


def sample_to_folder(
    model: Model,
    n: int,
    out: str | os.PathLike[str],
    *,
    solver: str | Solver = "rk-batch",
    event_shape: Sequence[int] | None = None,
    chunk: int = 4096,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    progress: bool = True,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
    **options: Unpack[SampleOptions],
) -> Shards:
    """Draw any number of samples, a shard at a time.

    Each shard is written when it is done. Called again with the same folder, sampling that was
    interrupted goes on where it stopped. Where memory runs out a shard is drawn in smaller parts.

    Args:
        model: What gives the score.
        n: Number of samples.
        out: Folder for the shards, which all processes can read.
        solver: As for :func:`~sde_models.sample`.
        event_shape: Shape of one sample; the model's own if None.
        chunk: Samples in one shard, and at most in one batch.
        seed: Fixes all random numbers, together with the index of the first sample of a batch:
            neither interruptions nor the number of processes change them.
        cond: Conditions by name, as for :func:`~sde_models.solve`, with ``n`` rows or shared.
        progress: Show a progress bar, in the main process.
        overwrite: Replace the shards that are there, once the first new one is made.
        accelerator: Of the ``accelerate`` package, to share the shards among its processes. If
            None one is made where environment variables show several processes.
        **options: Those of :func:`~sde_models.sample`, except ``generator`` and ``path``.

    Returns:
        The shards. Each holds ``x``; with ``return_log_prob=True`` also ``log_prob`` and
        ``log_prob_error``, shape ``(B,)``.

    Raises:
        ValueError: If the folder holds results of other settings, with the differences, if the
            shape of a sample is not known, and whatever :func:`~sde_models.sample` raises.
        TypeError: For a ``generator=`` or ``path=``.
        FileExistsError: If the folder is not empty, and was not made by one of these functions.
        BlockingIOError: If another process is at work in it.
        OSError: If a file cannot be written, where those written before are complete; or if the
            samples need more room than is free on the disk.
        torch.OutOfMemoryError: If a single sample does not fit into memory.

    Example:
        >>> import tempfile
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> with tempfile.TemporaryDirectory() as out:
        ...     drawn = sample_to_folder(
        ...         model, 10, out, solver="dpmpp-2m", steps=5, chunk=4, progress=False
        ...     )
        ...     [tuple(shard["x"].shape) for shard in drawn.batches()]
        [(4, 2), (4, 2), (2, 2)]
    """
    arguments: dict[str, Any] = {"solver": solver, **options}
    engine = Engine(
        SAMPLING, model, chunk=chunk, seed=seed, accelerator=accelerator, arguments=arguments
    )
    check_options(sample_to_folder, options, SampleOptions)
    make_solver(solver)
    samples = check_integer("n", n)
    shape = find_event_shape(engine.model, event_shape)
    given = as_conditions(cond, samples)
    dtype = arguments.get("dtype")
    if not isinstance(dtype, torch.dtype):  # others are refused by sample()
        dtype = torch.promote_types(engine.model.dtype, torch.float32)
    settings = {"function": "sample", "name": "x", "sample": str(shape)}

    def draw(first: int, last: int) -> dict[str, Tensor]:
        own = given.take(slice(first, last)).mapped(lambda value: value.to(engine.model.device))
        generator = generator_at(engine.seed, first)
        drawn = sample(
            engine.model, (last - first, *shape), cond=own, generator=generator, **engine.arguments
        )
        found = {} if (density := drawn.log_prob) is None else {
            "log_prob": density.value, "log_prob_error": density.error
        }  # fmt: skip
        return {"x": drawn.x, **found}

    return engine.run(
        out, samples, settings | {"cond": describe(given or None)}, lambda *_: draw,
        size=math.prod(shape) * dtype.itemsize, progress=progress, overwrite=overwrite,
    )  # fmt: skip


def encode_to_folder(
    model: Model,
    dataset: Tensor | Dataset[Any],
    out: str | os.PathLike[str],
    *,
    solver: str | Solver = "rk-batch",
    levels: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    cond: Given | None = None,
    progress: bool = True,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
    **options: Unpack[StepOptions],
) -> Shards:
    """Carry every sample of a dataset to its latent, a shard at a time, as :func:`encode` does.

    Args:
        model: What gives the score.
        dataset: Data, shape ``(B, *event)``, or a map-style dataset, as for
            :func:`~sde_models.evaluate`; :class:`Shards` are one.
        out: Folder for the shards, which all processes can read.
        solver: An ODE solver in :func:`~sde_models.list_solvers`.
        levels: Number of levels of integer images, which are dequantised to ``model.data_range``
            first, or -1 and 1 if that is None; None for floating data.
        chunk: Samples in one shard, and at most in one batch.
        seed: Fixes the noise of the dequantisation.
        cond: Conditions of the samples, as for :func:`~sde_models.evaluate`.
        progress: Show a progress bar, in the main process.
        overwrite: As for :func:`sample_to_folder`.
        accelerator: As for :func:`sample_to_folder`.
        **options: Those of :func:`~sde_models.encode`, except ``path``.

    Returns:
        The shards. Each holds ``z``.

    Raises:
        ValueError, TypeError, OSError, torch.OutOfMemoryError: As for :func:`sample_to_folder`.

    Example:
        >>> import tempfile
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> with tempfile.TemporaryDirectory() as out:
        ...     z = encode_to_folder(model, torch.zeros(5, 2), f"{out}/z", progress=False)
        ...     x = decode_to_folder(model, z, f"{out}/x", progress=False)
        ...     bool(x[4].abs().max() < 1e-3)
        True
    """
    arguments: dict[str, Any] = {"solver": solver, **options}
    engine = Engine(
        ENCODING, model, chunk=chunk, seed=seed, accelerator=accelerator, arguments=arguments
    )
    check_options(encode_to_folder, options, StepOptions)
    make_solver(solver)
    source = Source(dataset, cond, out)
    settings = {"function": "encode", "name": "z", **describe_levels(levels, engine.model)}
    dtype = torch.promote_types(engine.model.dtype, torch.float32)
    data_range = engine.model.data_range or DATA_RANGE

    def work(first: int, x: Tensor, cond: Conditions) -> dict[str, Tensor]:
        if levels is not None:
            generator = generator_at(engine.seed, first)
            x = dequantize(x, levels, data_range=data_range, generator=generator, dtype=dtype)
        x, cond = engine.place(x, cond)
        return {"z": encode(engine.model, x, cond=cond, **engine.arguments).z}

    return engine.run(
        out, len(source), settings | source.settings, source.each(work),
        size=source.numbers * (source.dtype if levels is None else dtype).itemsize,
        progress=progress, overwrite=overwrite,
    )  # fmt: skip


def decode_to_folder(
    model: Model,
    latents: Tensor | Dataset[Any],
    out: str | os.PathLike[str],
    *,
    solver: str | Solver = "rk-batch",
    chunk: int = 1024,
    cond: Given | None = None,
    progress: bool = True,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
    **options: Unpack[StepOptions],
) -> Shards:
    """Carry every latent back to data, a shard at a time, as :func:`decode` does.

    Args:
        model: What gives the score.
        latents: Latents, shape ``(B, *event)``, or a map-style dataset of them, such as the
            :class:`Shards` that :func:`encode_to_folder` returns.
        out: Folder for the shards, which all processes can read.
        solver: An ODE solver in :func:`~sde_models.list_solvers`.
        chunk: Samples in one shard, and at most in one batch.
        cond: Conditions of the samples, as for :func:`~sde_models.evaluate`.
        progress: Show a progress bar, in the main process.
        overwrite: As for :func:`sample_to_folder`.
        accelerator: As for :func:`sample_to_folder`.
        **options: Those of :func:`~sde_models.decode`, except ``path``.

    Returns:
        The shards. Each holds ``x``.

    Raises:
        ValueError, TypeError, OSError, torch.OutOfMemoryError: As for :func:`sample_to_folder`.
    """
    arguments: dict[str, Any] = {"solver": solver, **options}
    engine = Engine(
        DECODING, model, chunk=chunk, seed=0, accelerator=accelerator, arguments=arguments
    )
    check_options(decode_to_folder, options, StepOptions)
    make_solver(solver)
    source = Source(latents, cond, out)

    def work(first: int, z: Tensor, cond: Conditions) -> dict[str, Tensor]:
        z, cond = engine.place(z, cond)
        return {"x": decode(engine.model, z, cond=cond, **engine.arguments).x}

    settings = {"function": "decode", "name": "x", **source.settings}
    return engine.run(
        out, len(source), settings, source.each(work),
        size=source.numbers * source.dtype.itemsize, progress=progress, overwrite=overwrite,
    )  # fmt: skip
