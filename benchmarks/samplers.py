"""Errors of samplers at a given number of network evaluations, ours and those of other libraries.

Every sampler runs on the same models from the same starting points. Deterministic ones are judged
by the root-mean-square distance of their end points to those of the exact probability flow, per
coordinate; stochastic ones by energy distance and covariance error against exact samples. Every
sampler, ours or not, is tried on every grid, the one adapted to the model included, and with every
one of its settings; the best is quoted. Evaluations are counted in the model. Results go to
``benchmarks/results/samplers.{json,md,png}``, where those of problems that are not run stay as they
are. Needs ``pip install sde-models[bench]``.

    python benchmarks/samplers.py
    python benchmarks/samplers.py --problems mixture-2d-0 digits --skip-stochastic
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from common.peers import PEERS, Peer
from common.results import common_options, read_options, save
from common.sampler_problems import GRIDS, PROBLEMS, Problem, covariance_error, energy_distance
from common.sampler_report import as_markdown, plot
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

BUDGETS = (10, 15, 20, 50)
STOCHASTIC_BUDGETS = (20, 50)
STOCHASTIC_SAMPLES = 2048
STOCHASTIC_GRIDS = ("log-snr", "uniform", "quadratic", "adapted")
PLOTTED = (8, 10, 12, 15, 20, 30, 50, 80, 120)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
Row = dict[str, Any]
Run = Callable[[Problem, Tensor, int, str, torch.Generator], tuple[Tensor, int]]


def native_solvers(*, stochastic: bool) -> dict[str, sm.Solver]:
    """Our solvers made for diffusion that take a number of steps, each with its settings."""
    solvers = {
        name: solver
        for name, solver in sm.list_solvers().items()
        if solver.library == "sde_models" and not solver.adaptive and name != "picard"
        if (solver.integrates == ("SDE",) if stochastic else solver.deterministic)
    }
    if not stochastic:
        for order in (3, 4):
            name = f"exp-abm-{order}"
            solvers[f"{name} (eps)"] = sm.make_solver(name, estimate="eps")
    return solvers


def run_native(solver: sm.Solver) -> Run:
    """A function that uses so many evaluations, or the next lower number possible."""

    def run(
        problem: Problem, x: Tensor, evaluations: int, grid: str, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        system: sm.System = sm.ProbabilityFlow(problem.model)
        if not solver.deterministic:
            system = sm.ReverseSDE(problem.model, x.shape[1:])
        noise = {"generator": generator} if solver.draws_noise(system) else {}
        span = (problem.model.sde.t_max, problem.model.sde.t_min)
        steps = max(evaluations // (solver.evaluations or 1), 1)
        while True:
            with torch.no_grad():
                solution = sm.solve(system, x, span, solver, steps=steps, grid=GRIDS[grid], **noise)
            if solution.cost.calls <= evaluations or steps == 1:
                return solution.x, solution.cost.calls
            steps -= 1

    return run


def run_peer(peer: Peer) -> Run:
    """The same for a sampler of another library."""

    def run(
        problem: Problem, x: Tensor, evaluations: int, variant: str, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        source = {"generator": generator} if peer.stochastic else {}
        with sm.count_evaluations() as counter:
            end = peer.run(problem.model, x, evaluations, variant, **source)
        return end, counter.calls

    return run


def contestants(*, stochastic: bool) -> Iterator[tuple[str, str, tuple[str, ...], Run]]:
    """Name, library, variants and run of every sampler."""
    for name, solver in native_solvers(stochastic=stochastic).items():
        yield name, "sde_models", tuple(GRIDS), run_native(solver)
    for peer in PEERS.values():
        if peer.stochastic == stochastic:
            yield peer.name, peer.library.partition(".")[0], peer.variants, run_peer(peer)


def measure(
    problem: Problem, budgets: Iterable[int], *, stochastic: bool, only: set[str] | None = None
) -> Iterator[Row]:
    """Run every sampler in every variant with every number of evaluations."""
    everyone = [c for c in contestants(stochastic=stochastic) if only is None or c[0] in only]
    for name, library, variants, run in tqdm(everyone, desc=problem.name, leave=False):
        if stochastic:
            variants = tuple(v for v in variants if v.split(",")[0] in STOCHASTIC_GRIDS)
        for variant in variants:
            for budget in budgets:
                x = start(problem, stochastic)
                generator = torch.Generator().manual_seed(7)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # peers that diverge
                    try:
                        end, spent = run(problem, x, budget, variant, generator)
                    except sm.NonFiniteError as error:
                        end, spent = torch.full_like(x, math.nan), round(error.nfe)
                row: Row = {
                    "problem": problem.name, "solver": name, "library": library,
                    "variant": variant, "budget": budget, "evaluations": spent,
                }  # fmt: skip
                yield row | judge(problem, end.detach(), stochastic)


def start(problem: Problem, stochastic: bool) -> Tensor:
    """Starting points of a sampler: more for stochastic ones, whose law is compared."""
    if not stochastic:
        return problem.x
    prior = problem.model.sde.prior(problem.x.shape[1:])
    generator = torch.Generator().manual_seed(5)
    return prior.sample((STOCHASTIC_SAMPLES,), generator=generator, dtype=torch.float64)


def judge(problem: Problem, end: Tensor, stochastic: bool) -> Row:
    """Errors of the samples."""
    if not stochastic:
        return {"error": problem.error(end)}
    return {
        "error": energy_distance(end, problem.exact[:STOCHASTIC_SAMPLES]),
        "covariance_error": covariance_error(end, problem.exact),
    }


def measure_adaptive(problem: Problem) -> Iterator[Row]:
    """Solvers that choose their own steps, at falling tolerances."""
    span = (problem.model.sde.t_max, problem.model.sde.t_min)
    for name in ("rk-batch", "ode:dopri5", "scipy:DOP853"):
        for tolerance in TOLERANCES:
            got = sm.solve(
                sm.ProbabilityFlow(problem.model), problem.x, span, name,
                rtol=tolerance, atol=tolerance,
            )  # fmt: skip
            yield {
                "problem": problem.name, "solver": name, "library": "sde_models",
                "variant": f"tolerance {tolerance:g}", "evaluations": got.nfe,
                "error": problem.error(got.x.detach()), "adaptive": True,
            }  # fmt: skip


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument(
        "--only", nargs="*", help="samplers to run, ours and others'; all if left out"
    )
    parser.add_argument("--skip-stochastic", action="store_true", help="deterministic ones only")
    options = read_options(parser)

    rows = others(options.out, options.problems)
    for name in tqdm(options.problems, desc="problems"):
        problem = PROBLEMS[name]()
        adapted = sm.adapt_grid(
            problem.model, problem.x.shape[1:], generator=torch.Generator().manual_seed(11)
        )
        GRIDS["adapted"] = adapted  # for all samplers, ours or not
        only = None if options.only is None else set(options.only)
        rows += measure(problem, BUDGETS, stochastic=False, only=only)
        leaders = {
            "flow-abm-5",
            "flow-abm-4",
            "flow-abm-3",
            "unipc-3",
            "dpmpp-2m",
            "vAB 4",
            "UniPC 4",
        }
        extra = set(PLOTTED) - set(BUDGETS)
        rows += measure(problem, sorted(extra), stochastic=False, only=leaders)
        rows += measure_adaptive(problem)
        if not options.skip_stochastic and name in ("mixture-2d-0", "mixture-64d-0", "digits"):
            rows += [
                row | {"stochastic": True}
                for row in measure(problem, STOCHASTIC_BUDGETS, stochastic=True, only=only)
            ]
        rows.sort(key=lambda row: list(PROBLEMS).index(row["problem"]))
        table = as_markdown(rows, BUDGETS, STOCHASTIC_BUDGETS)
        save(
            options.out, "samplers", rows, table, plot(rows)
        )  # after each problem, since all take about an hour


def others(folder: Path, problems: list[str]) -> list[Row]:
    """Earlier measurements on problems that are not run now."""
    path = folder / "samplers.json"
    before: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return [row for row in before if row["problem"] in set(PROBLEMS) - set(problems)]


if __name__ == "__main__":
    main()
