"""How far a trained network is from the score of a diffusion, without and with the regulariser.

Networks learn a mixture in two dimensions, whose score is known, in equally many steps of denoising
score matching and of the same with the Fokker-Planck penalty. At several times: the residual of
the score Fokker-Planck equation, the asymmetry of the score's Jacobian, and the error of the score.
Results go to ``benchmarks/results/fokker_planck.{json,md}``.

    python benchmarks/fokker_planck.py
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common.results import common_options, read_options, save
from score_matching import BATCH, SDE, mixture, new_model
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

TIMES = (0.02, 0.05, 0.1, 0.3, 0.6, 1.0)
POINTS = 1024
COLUMNS = ("residual", "asymmetry", "error")
Row = dict[str, Any]


def train(weight: float, steps: int, seed: int) -> tuple[sm.Model, float]:
    """A network, and the processor time of its training.

    Args:
        weight: Of the penalty.
        steps: Steps of training.
        seed: Of its start, its data and its noise.
    """

    def loss(model: Any, x0: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        found = sm.losses.denoising_score_matching(
            model, x0, weighting="simple", times="log-snr", generator=generator
        )
        if weight == 0:
            return found
        return found + weight * sm.losses.fokker_planck_penalty(model, x0, generator=generator)

    data = mixture(2).sample(50_000, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(seed)
    begun = new_model(2)
    start = time.process_time()
    fit = sm.fit(
        begun, data, steps=steps, batch_size=BATCH, loss=loss, seed=seed, ema_decay=0.98, warmup=20,
        progress=False,
    )  # fmt: skip
    return fit.model, time.process_time() - start


def look(model: sm.Model, t: float) -> Row:
    """Root mean squares at points of the diffused mixture, all in units of the noise.

    The residual is also in units of the log-SNR, as in the penalty.
    """
    law, at = mixture(2).diffuse(SDE, t), torch.tensor(t)
    x = law.sample(POINTS, generator=torch.Generator().manual_seed(1))
    sigma = SDE.sigma(at)
    fall = (SDE.diffusion(at) / sigma).square()  # of the log-SNR
    with torch.no_grad():
        residual = sigma / fall * sm.losses.fokker_planck_residual(model, t, x)
        error = sigma * (model.score(t, x) - mixture(2).score_model(SDE).score(t, x))
    asymmetry = sm.losses.asymmetry(model, t, x)
    return {
        "t": t,
        "residual": float((residual.square().mean() / 2).sqrt()),
        "asymmetry": float(asymmetry.square().mean().sqrt()),
        "error": float(error.square().mean().sqrt()),
    }


def measure(weights: list[float], steps: int, seeds: int) -> list[Row]:
    """Means over seeds, for each weight of the penalty and each time."""
    rows: list[Row] = []
    for weight in weights:
        runs = [train(weight, steps, seed) for seed in tqdm(range(seeds), desc=f"weight {weight}")]
        for t in TIMES:
            found = [look(model, t) for model, _ in runs]
            means = {name: sum(row[name] for row in found) / seeds for name in COLUMNS}
            seconds = sum(spent for _, spent in runs) / seeds
            rows.append({"weight": weight, "t": t, "seconds": seconds} | means)
    exact = mixture(2).score_model(SDE)
    return rows + [look(exact, t) | {"weight": None, "seconds": None} for t in TIMES]


def as_markdown(rows: list[Row], steps: int, seeds: int) -> str:
    """One line for each weight and time."""
    plain = rows[0]["seconds"]
    cost = {row["weight"]: row["seconds"] / plain for row in rows if row["weight"]}
    costs = ", ".join(f"{ratio:.1f} times with weight {weight:g}" for weight, ratio in cost.items())
    lines = [
        f"{steps} steps of batches of {BATCH}, VP, a mixture in 2 dimensions; means over {seeds} "
        "seeds. Root mean squares for a coordinate: of the residual of the score Fokker-Planck "
        "equation in units of the noise and of the log-SNR, and of sigma times the error of the "
        "score; and of the asymmetry. The last lines are the exact score, in float32. Time of "
        f"training relative to no penalty: {costs}.",
        "",
        "| weight of the penalty | t | residual | asymmetry | error of the score |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        weight = "exact score" if row["weight"] is None else f"{row['weight']:g}"
        numbers = " | ".join(f"{row[name]:.2g}" for name in COLUMNS)
        lines.append(f"| {weight} | {row['t']:g} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--steps", type=int, default=600, help="steps of training")
    parser.add_argument("--seeds", type=int, default=3, help="networks for each weight")
    options = read_options(parser)
    rows = measure(options.weights, options.steps, options.seeds)
    table = as_markdown(rows, options.steps, options.seeds)
    save(options.out, "fokker_planck", rows, table)


if __name__ == "__main__":
    main()
