"""Cost and accuracy of each score-matching objective.

On mixtures in 2 and 64 dimensions, whose scores are known, with one network and one batch size, all
weighted alike: network passes, vector-Jacobian products and time of a step; the variance of its
gradient; and the error of the score after equally many steps and after as many as fit into the time
of a number of denoising steps. Time is the processor's. Results go to
``benchmarks/results/score_matching.{json,md,png}``.

    python benchmarks/score_matching.py
"""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import torch
from common.results import common_options, empty_figure, read_options, save
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

DIMENSIONS = (2, 64)
BATCH = 256
SDE = sm.VPSDE(t_min=1e-2)
Row = dict[str, Any]


def penalised(model: Any, x0: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Denoising with the Fokker-Planck penalty, whose trace is estimated by one product."""
    penalty = sm.losses.fokker_planck_penalty(
        model, x0, divergence="hutchinson", generator=generator
    )
    return 0.1 * penalty + sm.losses.denoising_score_matching(
        model, x0, weighting="simple", generator=generator
    )


OBJECTIVES: dict[str, tuple[Any, float | None]] = {
    "denoising": (partial(sm.losses.denoising_score_matching, weighting="simple"), 1.0),
    "implicit, exact trace": (sm.losses.implicit_score_matching, 2.0),
    "sliced": (partial(sm.losses.sliced_score_matching, variance_reduced=False), 2.0),
    "sliced, variance-reduced": (sm.losses.sliced_score_matching, 2.0),
    "sliced, 4 probes": (partial(sm.losses.sliced_score_matching, probes=4), 2.0),
    "finite differences": (sm.losses.finite_difference_sliced, 2.0),
    "sliced, on simulated paths": (
        partial(
            sm.losses.simulated_score_matching, steps=32, weight=lambda t: SDE.sigma(t).square()
        ),
        2.0,
    ),
    "denoising, with penalty": (penalised, None),
    "penalty alone, exact trace": (sm.losses.fokker_planck_penalty, None),
    "maximum likelihood": (
        partial(
            sm.maximum_likelihood_loss, rtol=1e-2, atol=1e-2, intervals=16, divergence="hutchinson"
        ),
        None,
    ),
}
"""Each objective, and the factor that makes its mean gradient that of denoising, if one does."""
NOT_TRAINED = ("penalty alone, exact trace",)
"""Zero for the score of any data, so nothing can be learned from it alone."""


def mixture(dim: int) -> sm.GaussianMixture:
    """Six Gaussians of different widths."""
    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(6, dim, generator=generator)
    return sm.GaussianMixture(means, 0.2 + 0.3 * torch.rand(6, generator=generator))


def new_model(dim: int) -> sm.ScoreModel:
    """The same network for every objective."""
    torch.manual_seed(0)
    return sm.ScoreModel(sm.nn.ResidualNetwork((dim,), width=64, depth=2), SDE)


def score_error(model: sm.Model, data: sm.GaussianMixture) -> float:
    """Root mean square over times of sigma times the error of the score, for each coordinate."""
    generator = torch.Generator().manual_seed(1)
    x0 = data.sample(8192, generator=generator)
    t, _ = sm.losses.draw_times(SDE, x0, "uniform", generator=generator)
    xt = SDE.perturb(t, x0, torch.randn(x0.shape, generator=generator))
    with torch.no_grad():
        error = model.eps(t, xt) - data.score_model(SDE).eps(t, xt)
    return float(error.square().mean().sqrt())


def gradients(loss: Any, model: sm.Model, data: sm.GaussianMixture, count: int) -> Tensor:
    """Gradients of independent batches, shape ``(count, parameters)``."""
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        value = loss(model, data.sample(BATCH, generator=generator), generator=generator)
        parts = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def seconds_per_step(loss: Any, model: sm.Model, x0: Tensor, repeats: int = 15) -> float:
    """Least time of a loss and its gradient: other processes can only increase it."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        loss(model, x0).backward()
        spent.append(time.process_time() - start)
    return min(spent)


def measure(steps: int, time_steps: int, batches: int) -> list[Row]:
    """Every objective in every dimension."""
    rows: list[Row] = []
    for dim in DIMENSIONS:
        data = mixture(dim)
        x0 = data.sample(50_000, generator=torch.Generator().manual_seed(2))
        begun = new_model(dim)  # gradients are compared during training, not at its start
        sm.fit(begun, x0, steps=100, loss=OBJECTIVES["denoising"][0], progress=False,
               generator=torch.Generator().manual_seed(3))  # fmt: skip
        train: Any = partial(
            sm.fit, data=x0, batch_size=BATCH, ema_decay=0.98, warmup=20, progress=False
        )
        seconds = {
            name: seconds_per_step(loss, copy.deepcopy(begun), x0[:BATCH])
            for name, (loss, _) in OBJECTIVES.items()
        }
        for name, (loss, factor) in tqdm(OBJECTIVES.items(), desc=f"{dim}-D"):
            with sm.count_evaluations() as counter:
                loss(begun, x0[:BATCH])
            found = (factor or 1.0) * gradients(loss, begun, data, batches)
            variance = float(found.var(0).sum())
            in_time = max(1, round(time_steps * seconds["denoising"] / seconds[name]))
            errors = []
            for length in () if name in NOT_TRAINED else (steps, in_time):
                generator = torch.Generator().manual_seed(4)
                fit = train(new_model(dim), loss=loss, steps=length, generator=generator)
                errors.append(score_error(fit.model, data))
            rows.append(
                {
                    "dimension": dim,
                    "objective": name,
                    "batches": batches,
                    "nfe": counter.rows // BATCH,
                    "vjps": counter.vjps // BATCH,
                    "seconds": seconds[name],
                    "relative_time": seconds[name] / seconds["denoising"],
                    "variance": variance,
                    "comparable": factor is not None,
                    # The square of the mean over batches is too large by the variance of a mean.
                    "noise": variance / (float(found.mean(0).square().sum()) - variance / batches),
                    "steps": steps,
                    "error_at_steps": errors[0] if errors else None,
                    "time_steps": time_steps,
                    "steps_in_time": in_time,
                    "error_in_time": errors[1] if errors else None,
                }
            )
    for row in rows:
        first = next(r for r in rows if r["dimension"] == row["dimension"])
        row["relative_variance"] = row["variance"] / first["variance"]
    return rows


def as_markdown(rows: list[Row]) -> str:
    """A table for each dimension."""
    first = rows[0]
    lines = [
        f"Batches of {BATCH}, VP, weighted by sigma squared, times uniform. Passes and products "
        "are those of the loss; its gradient is in the time. Variance is that of the gradient, "
        "relative to denoising where the mean gradient is the same; noise is the variance over the "
        f"square of the mean, after 100 steps of denoising, from {first['batches']} batches. "
        "Errors are root mean squares of sigma times the error of the score, for a coordinate, "
        f"after {first['steps']} steps and in the time of {first['time_steps']} denoising steps.",
    ]
    for dim in DIMENSIONS:
        lines += [
            "", f"In {dim} dimensions:", "",
            "| objective | passes | products | time of a step | variance | noise "
            "| error, equal steps | steps in equal time | error, equal time |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        lines += [
            f"| {r['objective']} | {r['nfe']} | {r['vjps']} | {r['relative_time']:.1f} "
            f"| {_figure(r['relative_variance'] if r['comparable'] else None, 1)} "
            f"| {_figure(r['noise'], 1)} | {_figure(r['error_at_steps'])} | {r['steps_in_time']} "
            f"| {_figure(r['error_in_time'])} |"
            for r in rows
            if r["dimension"] == dim
        ]
    return "\n".join(lines)


def _figure(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def plot(rows: list[Row]) -> Figure:
    """Error in equal time against the time of a step."""
    figure = empty_figure(11, 4)
    for panel, dim in zip(figure.subplots(1, 2), DIMENSIONS, strict=True):
        for row in (r for r in rows if r["dimension"] == dim and r["error_in_time"] is not None):
            panel.loglog(row["relative_time"], row["error_in_time"], "o", label=row["objective"])
        panel.set(
            title=f"{dim}-D", xlabel="time of a step, relative to denoising",
            ylabel="error of the score after equal time",
        )  # fmt: skip
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="steps of equal-step training")
    parser.add_argument(
        "--time-steps", type=int, default=900, help="denoising steps that take the equal time"
    )
    parser.add_argument("--batches", type=int, default=50, help="batches for the variance")
    options = read_options(parser)
    rows = measure(options.steps, options.time_steps, options.batches)
    save(options.out, "score_matching", rows, as_markdown(rows), plot(rows))


if __name__ == "__main__":
    main()
