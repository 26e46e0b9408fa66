"""Evaluate the likelihood of every sample of a dataset, with results on disk after each chunk."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.distributions import Transform
from torch.utils.data import Dataset

from sde_models._utils.conditions import Conditions
from sde_models._utils.counting import Cost, HasCost
from sde_models._utils.seeds import generator_at
from sde_models._utils.standard_errors import standard_error
from sde_models.data.cell_densities import Dequantization
from sde_models.likelihood.bits_per_dimension import bits_per_dim
from sde_models.likelihood.errors import HasError
from sde_models.likelihood.log_densities import log_prob
from sde_models.likelihood.settings import TraceOptions
from sde_models.models.base import Model
from sde_models.shards.engine import Engine, Task
from sde_models.shards.fingerprints import describe_levels
from sde_models.shards.source import Given, Source
from sde_models.solvers import Solver
from sde_models.solvers.options import StepOptions, check_options

if TYPE_CHECKING:
    from accelerate import Accelerator

EVALUATING = Task(
    "evaluating",
    "evaluated",
    "a divergence with fewer probes at once, such as sm.Hutchinson(1) or sm.Exact(chunk=1), fewer "
    "intervals=, or a network of lower precision",
)

RESULTS = ("value", "stderr", "solver_error", "quadrature_error")
"""Names of the results of each sample."""

NUMBERS = 4
"""Smallest number of bytes of each number that is written."""


class BitsOptions(TypedDict, total=False):
    """Options of :func:`~sde_models.bits_per_dim`, which documents them."""

    dequantization: str | Dequantization
    importance_samples: int
    repeats: int
    transform: Transform | None
    data_range: tuple[float, float] | None


class EvaluateOptions(BitsOptions, TraceOptions, StepOptions, total=False):
    """Options of the functions that compute likelihoods, which document them."""

    solver: str | Solver | None


@dataclass(frozen=True)
class Evaluation(HasCost, HasError):
    """Likelihoods of a dataset, on the CPU, in the order of its samples.

    Attributes:
        value: Log-density in nats, or bits per dimension, of each sample, shape ``(B,)``.
        stderr: Standard error of each value from the probes, shape ``(B,)``, in the same unit.
        solver_error: As in :class:`~sde_models.LogProb`, in the unit of the values.
        quadrature_error: Likewise.
        unit: "nats" or "bits per dimension".
        cost: What it cost for each sample, earlier runs included, and the calls of all processes;
            ``nfe`` and ``vjps`` are shorthands.
        resumed: Samples that were found done.
    """

    value: Tensor
    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor
    unit: str
    cost: Cost
    resumed: int

    @property
    def mean(self) -> Tensor:
        """Mean of the values, scalar, float64."""
        return self.value.double().mean()

    @property
    def mean_stderr(self) -> Tensor:
        """Standard error of the mean, over samples and probes together; NaN for one sample."""
        return standard_error(self.value.double()[None])[0]

    def summary(self) -> dict[str, str | int | float | None]:
        """The mean with its errors and cost as plain numbers; None for those that are not known.

        ``sample_error`` is the mean of ``error`` over the samples for which it is known.
        """
        figures = {
            "mean": self.mean,
            "mean_stderr": self.mean_stderr,
            "sample_error": self.error.double().nanmean(),
        }
        numbers = {name: float(value) for name, value in figures.items()}
        return {
            "samples": len(self.value),
            "unknown_errors": int(self.error.isnan().sum()),
            "unit": self.unit,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            **asdict(self.cost),
        }

    def __str__(self) -> str:
        known = self.summary()
        within = "" if known["mean_stderr"] is None else f" ± {known['mean_stderr']:.2g}"
        error = known["sample_error"]
        each = "" if error is None else f", each known to within {error:.2g}"
        if known["unknown_errors"]:
            each += f", the error of {known['unknown_errors']} not known"
        return (
            f"{known['mean']:.6g}{within} {self.unit} over {len(self.value)} samples{each} "
            f"({self.cost} for each)"
        )


def evaluate(
    model: Model,
    dataset: Tensor | Dataset[Any],
    out: str | os.PathLike[str],
    *,
    levels: int | None = None,
    chunk: int = 256,
    seed: int = 0,
    cond: Given | None = None,
    progress: bool = True,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Compute the likelihood of every sample of a dataset, chunk by chunk.

    Each chunk is written to a file when it is done. Called again with the same folder, an
    evaluation that was interrupted goes on where it stopped. Where memory runs out a chunk is
    worked on in smaller parts.

    Args:
        model: What gives the score.
        dataset: Data, shape ``(B, *event)``, or a map-style dataset of any size, whose items are
            samples, or tuples or lists that begin with one. It is read chunk by chunk. To notice
            other data when an evaluation is resumed, tensors and :class:`Shards` are compared in
            full, and of a dataset the length and at most 64 items evenly between first and last.
        out: Folder for the results, which all processes can read.
        levels: If None :func:`~sde_models.log_prob` of floating data is computed; with a number of
            levels :func:`~sde_models.bits_per_dim` of integer images.
        chunk: Samples in one file, and at most in one batch.
        seed: Fixes all random numbers, together with the index of the first sample of a batch:
            neither interruptions nor the number of processes change them.
        cond: Conditions by name, as for :func:`~sde_models.solve`, with as many rows as samples
            or shared; or a function from the list of the items of a chunk to their conditions.
        progress: Show a progress bar, in the main process.
        overwrite: Replace the results that are there, once the first new ones are known.
        accelerator: Of the ``accelerate`` package, to share the chunks among its processes. If
            None one is made where environment variables show several processes.
        **options: Those of :func:`~sde_models.log_prob` or :func:`~sde_models.bits_per_dim`.

    Raises:
        ValueError: If the folder holds results of other settings, with the differences, and
            whatever these functions raise.
        TypeError: For a dataset without length, or a ``generator=`` or ``path=``.
        FileExistsError: If the folder is not empty, and was not made by an evaluation.
        BlockingIOError: If another process is at work in it.
        OSError: If a file cannot be written; files written before are complete.
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
    engine = Engine(
        EVALUATING, model, chunk=chunk, seed=seed, accelerator=accelerator, arguments={**options}
    )
    check_options(evaluate, options, EvaluateOptions)
    of_images = set(engine.arguments) & set(BitsOptions.__annotations__)
    if levels is None and of_images:
        raise ValueError(
            f"{min(of_images)}= is for bits per dimension of integer images: give levels= with it"
        )
    source = Source(dataset, cond, out)
    settings = describe_levels(levels, engine.model) | source.settings

    def work(first: int, x: Tensor, cond: Conditions) -> dict[str, Tensor]:
        x, cond = engine.place(x, cond)
        generator = generator_at(engine.seed, first)
        given: dict[str, Any] = {"cond": cond, "generator": generator, **engine.arguments}
        if levels is None:
            density = log_prob(engine.model, x, **given)
            errors: HasError = density
            value = density.value
        else:
            images = bits_per_dim(engine.model, x, levels, **given)
            value, errors = images.per_image, images.errors
        return {"value": value} | {name: getattr(errors, name) for name in RESULTS[1:]}

    shards = engine.run(
        out, len(source), settings, source.each(work), size=NUMBERS * len(RESULTS),
        progress=progress, overwrite=overwrite,
    )  # fmt: skip
    results = list(shards.batches())
    return Evaluation(
        **{name: torch.cat([result[name] for result in results]) for name in RESULTS},
        unit="nats" if levels is None else "bits per dimension",
        cost=shards.cost,
        resumed=shards.resumed,
    )
