"""The same noise through several solvers: distance of each from the exact flow, and cost.

    python examples/compare_solvers.py --solvers ddim dpmpp-2m flow-abm-4 --plot solvers.png

The default model is a mixture of Gaussians with its exact score; ``--model`` takes a file of
``sm.save_model``, such as those that the other examples write.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import sde_models as sm

SOLVERS = ["ddim", "heun-edm", "dpmpp-2m", "unipc-2", "exp-abm-4", "flow-abm-4", "ode:rk4"]
GRIDS = [*sm.grids.GRIDS, "adapted"]


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Root of the mean square over samples and coordinates."""
    return float((x - y).square().mean().sqrt())


def reference(model: sm.Model, noise: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """End points of the flow, their accuracy, and the evaluations used."""
    rough, fine = (
        sm.decode(model, noise, solver="rk-batch", rtol=tolerance, atol=tolerance)
        for tolerance in (1e-6, 1e-8)
    )
    return fine.x, distance(rough.x, fine.x), fine.nfe


def spend(
    model: sm.Model, noise: torch.Tensor, solver: sm.Solver, budget: int, grid: Any
) -> sm.Decoding:
    """Decode in as many steps as the budget allows; some solvers need an additional evaluation."""
    steps = max(budget // (solver.evaluations or 1), 1)
    while True:
        out = sm.decode(model, noise, solver=solver, steps=steps, grid=grid)
        if out.nfe <= budget or steps == 1:
            return out
        steps -= 1


def plot(path: Path, budgets: list[int], found: dict[str, list[tuple[int, float]]]) -> None:
    figure, axis = plt.subplots(figsize=(6, 4.5))
    for name, points in found.items():
        axis.loglog(*zip(*points, strict=True), "o-", label=name)
    axis.set(
        title="Error against cost",
        xlabel="evaluations of the network",
        ylabel="RMS distance to the exact end points",
    )
    axis.set_xticks(budgets, budgets)
    axis.minorticks_off()
    axis.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="file of sm.save_model; default: a mixture")
    parser.add_argument(
        "--solvers", nargs="+", default=SOLVERS, help="ODE solvers with fixed steps"
    )
    parser.add_argument("--nfe", type=int, nargs="+", default=[8, 12, 20, 32, 50])
    parser.add_argument("--grid", choices=GRIDS, help="time grid of all; default: each one's own")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--plot", type=Path, help="file for a picture")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    if arguments.model:
        model = sm.load_model(arguments.model).double()
    else:
        mixture = sm.GaussianMixture(*sm.data.toy_mixture("eight-gaussians")).double()
        model = mixture.score_model(sm.VPSDE())
    if model.event_shape is None:
        parser.error("the model has no event_shape: give it to ScoreModel, and save again")

    generator = torch.Generator().manual_seed(arguments.seed)
    noise = model.sde.prior(model.event_shape).sample(
        (arguments.samples,), generator=generator, dtype=torch.float64
    )
    exact, known, nfe = reference(model, noise)
    print(f"reference: {nfe:g} evaluations, accurate to {known:.0e}; RMS distances from it:")
    grid = arguments.grid
    if grid == "adapted":
        grid = sm.adapt_grid(model, generator=generator)

    found = {}
    print(f"{'evaluations':<16}" + "".join(f"{budget:>16}" for budget in arguments.nfe))
    for name in arguments.solvers:
        found[name] = runs = []
        for budget in arguments.nfe:
            out = spend(model, noise, sm.make_solver(name), budget, grid)
            runs.append((out.nfe, distance(out.x, exact)))
        print(f"{name:<16}" + "".join(f"{f'{error:.1e} ({cost:g})':>16}" for cost, error in runs))
    for budget, column in zip(arguments.nfe, zip(*found.values(), strict=True), strict=True):
        best = min(zip(column, found, strict=True), key=lambda pair: pair[0][1])
        print(f"best for {budget} evaluations: {best[1]}")
    if arguments.plot:
        plot(arguments.plot, arguments.nfe, found)


if __name__ == "__main__":
    main()
