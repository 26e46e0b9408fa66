"""Evaluate the likelihood of every sample of a dataset, and write the results as they come."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from sde_models.counting import count_evaluations
from sde_models.divergence import standard_error
from sde_models.evaluation.batches import RESULTS, Batches
from sde_models.evaluation.chunks import Chunks, Conditioning
from sde_models.evaluation.fingerprints import describe
from sde_models.evaluation.folder import ChunkResult, Folder
from sde_models.evaluation.parts import FittingParts
from sde_models.evaluation.processes import Processes
from sde_models.models import Model, check_model
from sde_models.solvers.arguments import whole_number

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Evaluation:
    """Likelihoods of a dataset, on the CPU, in the order of its samples.

    Attributes:
        value: Log-density in nats, or bits per dimension, of each sample, shape ``(B,)``.
        stderr: Standard error of each value from the probes, shape ``(B,)``, in the same unit.
        solver_error: As in :class:`~sde_models.LogProb`, in the unit of the values.
        quadrature_error: Likewise.
        unit: "nats" or "bits per dimension".
        rows: Network forward passes of single samples, those of earlier runs included.
        vjp_rows: Vector-Jacobian products of single samples, likewise.
        resumed: Samples that were found done.
    """

    value: Tensor
    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor
    unit: str
    rows: int
    vjp_rows: int
    resumed: int

    @property
    def mean(self) -> Tensor:
        """Mean of the values, scalar, float64."""
        return self.value.double().mean()

    @property
    def mean_stderr(self) -> Tensor:
        """Standard error of the mean, over samples and probes together; NaN for one sample."""
        return standard_error(self.value.double()[None])[0]


def evaluate(
    model: Model,
    dataset: Tensor | Dataset[Any],
    out: str | os.PathLike[str],
    *,
    levels: int | None = None,
    chunk: int = 256,
    seed: int = 0,
    cond: Conditioning | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
    **arguments: Any,
) -> Evaluation:
    """Compute the likelihood of every sample of a dataset, chunk by chunk.

    Each chunk is written to a file when it is done. Called again with the same folder, an
    evaluation that was interrupted goes on where it stopped. Where memory runs out a chunk is
    worked on in smaller parts.

    Args:
        model: What gives the score.
        dataset: Data, shape ``(B, *event)``, or a map-style dataset of any size, whose items are
            samples, or tuples or lists that begin with one. It is read chunk by chunk.
        out: Folder for the results, seen by all processes.
        levels: If None :func:`~sde_models.log_prob` of floating data; a number of levels asks for
            :func:`~sde_models.bits_per_dim` of integer images.
        chunk: Samples in one file, and at most in one batch.
        seed: What all random numbers follow from, together with the index of the first sample of
            a batch: neither interruptions nor the number of processes change them.
        cond: Conditioning for the network that differs between samples: tensors by name, each of
            length B, or a function from the list of the items of a chunk to such tensors.
        progress: Show a progress bar, in the main process.
        accelerator: Of the ``accelerate`` package, to share the chunks among its processes. If
            None one is made where the environment tells of several processes.
        **arguments: Those of :func:`~sde_models.log_prob` or :func:`~sde_models.bits_per_dim`,
            and conditioning that is the same for all samples.

    Raises:
        ValueError: If the folder holds results of other settings, with what differs, and whatever
            the verb raises.
        TypeError: For a dataset without length, or a ``generator=``.
        OSError: If a file cannot be written; what was written before is whole.
        torch.OutOfMemoryError: If a single sample does not fit into memory.

    Example:
        >>> import tempfile
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> x = torch.zeros(10, 2)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     first = evaluate(model, x, out, chunk=4, progress=False)
        ...     again = evaluate(model, x, out, chunk=4, progress=False)
        >>> first.value.shape, again.resumed, torch.equal(first.value, again.value)
        (torch.Size([10]), 10, True)
    """
    if "generator" in arguments:
        raise TypeError(
            "evaluate takes no generator=, which could not be resumed: use seed=, a whole number"
        )
    if not isinstance(seed, int):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    size = whole_number("chunk", chunk) or 256
    processes = Processes(accelerator)
    model = processes.place(model)
    check_model(model)
    chunks = Chunks(dataset, size, cond)
    unit = "nats" if levels is None else "bits per dimension"
    given = {name: describe(value) for name, value in arguments.items() if name != "callback"}
    folder = Folder(
        out,
        {
            "format": 1,
            "model": describe(model),
            "samples": chunks.samples,
            "sample": chunks.describe_sample(),
            "levels": levels,
            "chunk": size,
            "seed": seed,
            "cond": describe(cond),
            **{f"argument {name}": value for name, value in given.items()},
        },
    )
    verb = Batches(model, levels, seed, arguments)
    parts = FittingParts(size)
    own = {
        index: chunks.bounds(index) for index in range(processes.rank, len(chunks), processes.count)
    }
    missing = [index for index, bounds in own.items() if folder.read(index, *bounds) is None]
    total = sum(last - first for first, last in own.values())
    resumed = total - sum(own[index][1] - own[index][0] for index in missing)
    with tqdm(
        total=total, initial=resumed, desc=_name_bar(processes), unit=" samples",
        disable=not (progress and processes.rank == 0),
    ) as bar:  # fmt: skip
        for index in missing:
            first, last = own[index]
            try:
                folder.write(index, first, _evaluate_chunk(chunks, index, verb, parts))
            except Exception as error:
                error.add_note(f"while samples {first} to {last - 1} of the dataset were evaluated")
                raise
            bar.update(last - first)
            if parts.size < size:
                bar.set_postfix(at_once=parts.size)
    processes.wait()
    return _gather(folder, chunks, unit, processes.add_up(resumed))


def _evaluate_chunk(chunks: Chunks, index: int, verb: Batches, parts: FittingParts) -> ChunkResult:
    x, cond = chunks.read(index)
    start = chunks.bounds(index)[0]

    def work(first: int, last: int) -> dict[str, Tensor]:
        part = slice(first - start, last - start)
        return verb.run(first, x[part], {name: value[part] for name, value in cond.items()})

    with count_evaluations() as cost:
        results = parts.run(work, start, start + len(x))
    tensors = {name: torch.cat([result[name] for result in results]) for name in RESULTS}
    return ChunkResult(tensors, vars(cost).copy())


def _gather(folder: Folder, chunks: Chunks, unit: str, resumed: int) -> Evaluation:
    results = [folder.read_whole(index, *chunks.bounds(index)) for index in range(len(chunks))]
    return Evaluation(
        **{name: torch.cat([result.tensors[name] for result in results]) for name in RESULTS},
        unit=unit,
        rows=sum(result.costs["rows"] for result in results),
        vjp_rows=sum(result.costs["vjp_rows"] for result in results),
        resumed=resumed,
    )


def _name_bar(processes: Processes) -> str:
    return "evaluating" + (f" (1 of {processes.count} shares)" if processes.count > 1 else "")
