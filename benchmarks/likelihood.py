"""Cost of a log-density against its error, compared with the usual recipes.

On the 64-D mixture and the trained digits model: root-mean-square error against cost, which counts
1 for a forward pass of a sample and 2 for a vector-Jacobian product. The recipes put the
log-determinant into the state: SciPy's RK45 at rtol = atol = 1e-5 with a fixed Rademacher probe,
as in score_sde_pytorch and its descendants, and torchdiffeq's dopri5 likewise and with the exact
trace. The reference is this library's quadrature at a tolerance of 1e-8 with 768 intervals. Results
go to ``benchmarks/results/likelihood.{json,md,png}``.

    python benchmarks/likelihood.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from common.results import common_options, empty_figure, read_options, save
from common.sampler_problems import CACHE, digits_problem, mixture_problem
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm
from sde_models.data import digits
from sde_models.data.dequantization import dequantize

IMAGES = 32
T_MIN = 1e-5
REPEATS = 8
"""Runs of everything random, with other probes."""
RECIPE_TOLERANCE = 1e-5
Row = dict[str, Any]


def problems() -> dict[str, tuple[sm.Model, Tensor]]:
    """Models and points, in double precision."""
    mixture = mixture_problem(64, 0)
    if not (CACHE / "digits.safetensors").exists():
        digits_problem()
    trained = sm.load_model(CACHE / "digits.safetensors").double()
    sde = sm.VPSDE(t_min=T_MIN, data_std=trained.sde.data_std)  # finer than it was trained with
    model = sm.ScoreModel(
        trained.network, sde, preconditioning="edm", event_shape=trained.event_shape
    ).eval()
    data = digits()
    images = dequantize(
        data.test[:IMAGES], data.levels,
        generator=torch.Generator().manual_seed(0), dtype=torch.float64,
    )  # fmt: skip
    return {"mixture, 64-D": (mixture.model, mixture.exact[:IMAGES]), "digits": (model, images)}


def runs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of everything that is compared."""
    recipe = {
        "trace": "augmented", "rtol": RECIPE_TOLERANCE, "atol": RECIPE_TOLERANCE,
        "estimate_solver_error": False,
    }  # fmt: skip
    for solver, label in (("scipy:RK45", "RK45 recipe"), ("ode:dopri5", "dopri5 recipe")):
        for probes in (1, 4, 16):
            yield f"{label}, {probes} fixed", {
                "solver": solver, "divergence": sm.Hutchinson(probes), **recipe
            }  # fmt: skip
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        yield f"dopri5, exact trace, {tolerance:g}", {
            "solver": "ode:dopri5", "divergence": "exact", "trace": "augmented",
            "rtol": tolerance, "atol": tolerance, "estimate_solver_error": False,
        }  # fmt: skip
    for tolerance, nodes in ((0.1, 12), (3e-2, 12), (3e-2, 16), (3e-2, 24), (1e-2, 32)):
        for probes in (1, 4, 16):
            yield f"quadrature, {tolerance:g}, {nodes}, {probes} fresh", {
                "divergence": sm.Hutchinson(probes), **_path(tolerance, nodes)
            }  # fmt: skip
    for tolerance, nodes in ((3e-2, 24), (1e-2, 32), (1e-3, 40), (3e-4, 48), (1e-4, 64)):
        for divergence in ("xtrace", "exact"):
            yield f"quadrature, {tolerance:g}, {nodes}, {divergence}", {
                "divergence": divergence, **_path(tolerance, nodes)
            }  # fmt: skip
    for tolerance, nodes in (
        (3e-2, 24), (1e-2, 32), (3e-3, 40), (1e-3, 40), (6e-4, 40), (4e-4, 40), (2e-4, 48),
        (1e-4, 64),
    ):  # fmt: skip
        yield f"quadrature, {tolerance:g}, {nodes}, auto", {
            "divergence": "auto", **_path(tolerance, nodes)
        }  # fmt: skip
    for tol in (3.0, 1.0, 0.3, 0.1, 0.03):
        yield f"tol = {tol:g} nats", {"tol": tol, "divergence": "auto"}


def _path(tolerance: float, nodes: int) -> dict[str, Any]:
    """A tolerance in units of the noise, and intervals of the quadrature."""
    return {"rtol": 0.5 * tolerance, "atol": 0.5 * tolerance, "intervals": nodes}


def measure(model: sm.Model, x: Tensor, truth: Tensor, arguments: dict[str, Any]) -> Row:
    """Error and cost of one method."""
    divergence = arguments["divergence"]
    repeats = 1 if divergence == "exact" else REPEATS
    squares, cost, seconds, covered = [], 0.0, 0.0, []
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        lp = sm.log_prob(model, x, generator=generator, **arguments)
        seconds += time.perf_counter() - start
        error = lp.value.detach() - truth
        squares.append(error.square().mean())
        cost += lp.nfe + 2 * lp.vjps
        covered.append((error.abs() <= lp.error).double().mean())
    return {
        "error": float(torch.stack(squares).mean().sqrt()),
        "cost": cost / repeats,
        "seconds": seconds / repeats,
        "covered": float(torch.stack(covered).mean()),
    }


def targets(rows: list[Row]) -> list[Row]:
    """The targets: cost and time at an error, compared with a recipe."""
    found = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        own = [r for r in rows if r["problem"] == problem]
        ours = [r for r in own if r["name"].startswith(("quadrature", "tol"))]
        for recipe in ("RK45 recipe", "dopri5 recipe"):
            one = next(r for r in own if r["name"] == f"{recipe}, 1 fixed")
            found.append(_target(problem, f"{recipe}'s own error", one["error"], one, ours, 1 / 5))
            if problem == "digits":
                # Averaging n runs divides the squared error by n, until the solver's is left.
                times = max(1.0, one["error"] ** 2)
                averaged = one | {"cost": times * one["cost"], "seconds": times * one["seconds"]}
                found.append(
                    _target(problem, f"1 nat, {recipe} averaged", 1.0, averaged, ours, 1 / 20)
                )
        exact = [r for r in own if r["name"].startswith("dopri5, exact") and r["error"] <= 0.01]
        if exact:
            best = min(exact, key=lambda r: r["cost"])
            part = 1 / 3 if problem == "digits" else 1 / 10
            found.append(_target(problem, "0.01 nats, dopri5 exact", 0.01, best, ours, part))
    return found


def _target(
    problem: str, name: str, error: float, recipe: Row, ours: list[Row], part: float
) -> Row:
    able = [r for r in ours if r["error"] <= error]
    best = min(able, key=lambda r: r["cost"])
    quick = min(able, key=lambda r: r["seconds"])
    return {
        "problem": problem, "at": name, "error": error, "recipe_cost": recipe["cost"],
        "ours": best["name"], "cost": best["cost"], "ratio": best["cost"] / recipe["cost"],
        "time_ratio": quick["seconds"] / recipe["seconds"], "wanted": part,
    }  # fmt: skip


def as_markdown(rows: list[Row]) -> str:
    """The targets, then everything."""
    lines = [
        "## Compared with the recipes", "",
        "| model | at an error of | nats | cost of the recipe | ours | cost | ratio | in time "
        "| target |", "|---|---|---:|---:|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for r in targets(rows):
        met = "reached" if max(r["ratio"], r["time_ratio"]) <= r["wanted"] else "missed"
        lines.append(
            f"| {r['problem']} | {r['at']} | {r['error']:.2g} | {r['recipe_cost']:.0f} "
            f"| {r['ours']} | {r['cost']:.0f} | {r['ratio']:.3f} | {r['time_ratio']:.3f} "
            f"| at most {r['wanted']:.3f}: {met} |"
        )
    lines += [
        "", "## Everything", "",
        "Cost for a sample: 1 for a forward pass, 2 for a vector-Jacobian product.", "",
        "| model | method | error, nats | cost | seconds | covered by the reported error |",
        "|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {r['problem']} | {r['name']} | {r['error']:.1e} | {r['cost']:.0f} "
        f"| {r['seconds']:.2f} | {r['covered']:.3f} |"
        for r in rows
    ]
    return "\n".join(lines)


def plot(rows: list[Row]) -> Figure:
    """Error against cost, a panel for each model."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure = empty_figure(5 * len(names), 4)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    kinds = {
        "RK45 recipe": ("0.35", "s"), "dopri5 recipe": ("0.6", "D"),
        "dopri5, exact": ("C0", "o"), "quadrature": ("C3", "."), "tol": ("C1", "*"),
    }  # fmt: skip
    for panel, name in zip(panels, names, strict=True):
        for kind, (color, marker) in kinds.items():
            own = [r for r in rows if r["problem"] == name and r["name"].startswith(kind)]
            panel.loglog(
                [r["cost"] for r in own], [r["error"] for r in own], marker, color=color, label=kind
            )
        panel.set(title=name, xlabel="cost of a sample")
    panels[0].set_ylabel("root-mean-square error, nats")
    panels[-1].legend()
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    options = read_options(parser)
    rows: list[Row] = []
    for problem, (model, x) in problems().items():
        truth = sm.log_prob(model, x, rtol=5e-9, atol=5e-9, intervals=768).value.detach()
        for name, arguments in tqdm(list(runs()), desc=problem):
            rows.append({"problem": problem, "name": name} | measure(model, x, truth, arguments))
    save(options.out, "likelihood", rows, as_markdown(rows), plot(rows))


if __name__ == "__main__":
    main()
