"""What is saved by giving every sample its own steps.

``rk-batch`` and ``ode:dopri5``: network passes of single samples at equal error of the worst
sample, on 64-D mixtures in which a quarter of the samples start between two modes. ``adaptive-sde``
and ``euler-maruyama``: evaluations at equal energy distance to exact samples, on mixtures in 2
and 64 dimensions under VP and VE; Euler-Maruyama is given several grids. Results go to
``benchmarks/results/step_control.{json,md}``.

    python benchmarks/step_control.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from common.results import common_options, read_options, save
from common.sampler_problems import energy_distance
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

WORST_ERRORS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SAMPLES = {2: 8_000, 64: 6_000}
"""By dimension: as many as the energy distance can be had for in a minute."""
SDE_TOLERANCES = (1.0, 0.5, 0.3, 0.2)
EULER_STEPS = (12, 16, 24, 32, 48, 64, 96)
EULER_GRIDS = ("uniform", "log-snr", "quadratic", "karras")
Row = dict[str, Any]


def mixture(dim: int, seed: int) -> sm.GaussianMixture:
    """Ten components of unequal weight and width."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(10, dim, generator=generator, dtype=torch.float64)
    stds = 0.1 + 0.3 * torch.rand(10, generator=generator, dtype=torch.float64)
    weights = 0.3 + torch.rand(10, generator=generator, dtype=torch.float64)
    return sm.GaussianMixture(means, stds, weights)


def mixed_starts(target: sm.GaussianMixture, sde: sm.GaussianSDE, batch: int, seed: int) -> Tensor:
    """Where samples start: a quarter of them where the flow must choose between two modes."""
    generator = torch.Generator().manual_seed(seed)
    model = target.score_model(sde)
    easy = sde.prior((target.dim,)).sample(
        (batch - batch // 4,), generator=generator, dtype=torch.float64
    )
    first, second = (torch.randint(10, (batch // 4,), generator=generator) for _ in range(2))
    between = 0.5 * (target.means[first] + target.means[second])
    noise = torch.randn(between.shape, generator=generator, dtype=torch.float64)
    middle = sde.perturb(0.3, between, noise)
    hard = sm.solve(sm.ProbabilityFlow(model), middle, (0.3, sde.t_max), rtol=1e-8, atol=1e-8).x
    return torch.cat([easy, hard])


def curve(solver: str, model: sm.Model, x: Tensor, truth: Tensor) -> list[tuple[float, float]]:
    """Rows and the worst sample's error at falling tolerances."""
    points = []
    span = (model.sde.t_max, model.sde.t_min)
    for tolerance in np.geomspace(1e-1, 1e-8, 15):
        got = sm.solve(
            sm.ProbabilityFlow(model), x, span, solver, rtol=tolerance, atol=tolerance
        )  # fmt: skip
        worst = (got.x - truth).square().mean(1).sqrt().max()
        points.append((float(worst), got.nfe * len(x)))
    return points


def cost_at(points: list[tuple[float, float]], error: float) -> float:
    """Cost at an error, interpolated between neighbours in the logarithms."""
    ordered = sorted(points)
    errors, costs = np.log([max(p[0], 1e-16) for p in ordered]), np.log([p[1] for p in ordered])
    costs = np.minimum.accumulate(costs)
    return float(np.exp(np.interp(np.log(error), errors, costs)))


def first_below(points: list[tuple[float, float]], error: float) -> float:
    """Cost at which a falling curve first reaches an error, interpolated in the logarithms.

    Args:
        points: Cost and error, costs rising. At the last, no more than that much is known.
        error: Where to.
    """
    for (cost, high), (more, low) in pairwise(points):
        if high <= error:
            return cost
        if low <= error:
            share = math.log(high / error) / math.log(high / max(low, 1e-3 * error))
            return cost * (more / cost) ** share
    return points[-1][0]


def compare_flows() -> list[Row]:
    """Compare rk-batch with dopri5."""
    sde, rows = sm.VPSDE(), []
    for seed in tqdm((1, 2, 3), desc="rk-batch"):
        target = mixture(64, seed)
        model = target.score_model(sde)
        x = mixed_starts(target, sde, 64, seed)
        span = (sde.t_max, sde.t_min)
        truth = sm.solve(sm.ProbabilityFlow(model), x, span, "ode:dopri8", rtol=1e-11, atol=1e-11).x
        ours, theirs = (curve(name, model, x, truth) for name in ("rk-batch", "ode:dopri5"))
        for error in WORST_ERRORS:
            a, b = cost_at(ours, error), cost_at(theirs, error)
            rows.append(
                {"seed": seed, "worst_error": error, "rows": a, "dopri5": b, "ratio": a / b}
            )
    return rows


def distance(
    system: sm.ReverseSDE, x: Tensor, exact: Tensor, solver: str, **effort: Any
) -> tuple[float, int, float]:
    """Energy distance, evaluations, and passes of a single sample."""
    generator = torch.Generator().manual_seed(4)
    span = (system.t_max, system.t_min)
    got = sm.solve(system, x, span, solver, generator=generator, **effort)
    return energy_distance(got.x, exact), got.cost.calls, got.nfe


def compare_sdes() -> list[Row]:
    """Compare adaptive-sde with Euler-Maruyama, on each grid and on the best one for that error.

    The energy distance of independent exact samples is noise. Twice that is the least difference
    that can be resolved: smaller distances count as that much.
    """
    rows = []
    make: dict[str, Callable[[], sm.GaussianSDE]] = {"VP": sm.VPSDE, "VE": sm.VESDE}
    cases = [(kind, dim) for kind in make for dim in (2, 64)]
    for kind, dim in tqdm(cases, desc="adaptive-sde"):
        sde, target = make[kind](), mixture(dim, 5)
        generator = torch.Generator().manual_seed(6)
        count = SAMPLES[dim]
        x = target.diffuse(sde, sde.t_max).sample(count, generator=generator)
        exact, others = (
            target.diffuse(sde, sde.t_min).sample(count, generator=generator) for _ in range(2)
        )
        noise = 2 * abs(energy_distance(others, exact))
        system = sm.ReverseSDE(target.score_model(sde), (dim,))
        ours = [
            distance(system, x, exact, "adaptive-sde", rtol=tol, atol=tol) for tol in SDE_TOLERANCES
        ]
        theirs = {
            grid: [
                distance(system, x, exact, "euler-maruyama", steps=n, grid=grid)
                for n in EULER_STEPS
            ]
            for grid in EULER_GRIDS
        }
        for (error, nfe, own), tol in zip(ours, SDE_TOLERANCES, strict=True):
            level = max(error, noise)
            needed = {
                grid: first_below([(float(n), e) for e, n, _ in points], level)
                for grid, points in theirs.items()
            }
            rows.append(
                {
                    "sde": kind, "dim": dim, "tolerance": tol, "energy_distance": error,
                    "noise": noise, "evaluations": nfe, "rows_per_sample": own,
                    "euler_maruyama": needed, "ratio": nfe / min(needed.values()),
                    "ratio_log_snr": nfe / needed["log-snr"],
                }
            )  # fmt: skip
    return rows


def as_markdown(flows: list[Row], sdes: list[Row]) -> str:
    """Both tables."""
    lines = [
        "## rk-batch and ode:dopri5, 64-D, samples of mixed difficulty", "",
        "| mixture | worst error | rows | rows of dopri5 | ratio |", "|---|---:|---:|---:|---:|",
        *(
            f"| {r['seed']} | {r['worst_error']:.0e} | {r['rows']:.0f} | {r['dopri5']:.0f} "
            f"| {r['ratio']:.2f} |"
            for r in flows
        ),
        "", "## adaptive-sde and euler-maruyama at equal energy distance", "",
        "Evaluations of Euler-Maruyama to the same distance, on each grid; what is below the noise "
        "of the distance counts as that much, and 96 steps are the most tried. The ratio is to the "
        "best of the grids for that distance, and to log-SNR, the default.", "",
        "| SDE | dimensions | tolerance | energy distance | noise | evaluations "
        f"| {' | '.join(EULER_GRIDS)} | ratio to the best | to log-SNR |",
        "|---|---:" + "|---:" * (6 + len(EULER_GRIDS)) + "|",
        *(
            f"| {r['sde']} | {r['dim']} | {r['tolerance']:g} | {r['energy_distance']:.1e} "
            f"| {r['noise']:.0e} | {r['evaluations']} "
            f"| {' | '.join(f'{n:.0f}' for n in r['euler_maruyama'].values())} "
            f"| {r['ratio']:.2f} | {r['ratio_log_snr']:.2f} |"
            for r in sdes
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    options = read_options(parser)
    flows, sdes = compare_flows(), compare_sdes()
    rows = {"rk-batch": flows, "adaptive-sde": sdes}
    save(options.out, "step_control", rows, as_markdown(flows, sdes))


if __name__ == "__main__":
    main()
