"""What a solver costs beside the bare network.

For each solver: seconds of a solve, divided by seconds of the same number of bare network calls on
the same batch. 1.00 means that the solver costs nothing. Stochastic solvers have a second ratio, to
a hand-written Euler-Maruyama loop with the same number of network calls. Solve and baseline are
timed in turn, and the median of the ratios of the rounds is quoted, so that a machine whose speed
drifts does not matter much. Results go to ``benchmarks/results/overhead.{json,md,png}``.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --width 64 --rounds 9
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]

IMPLICIT = ("scipy:Radau", "scipy:BDF", "scipy:LSODA")
"""Left out: what they spend beside the network is linear algebra on the whole batch."""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_calls(network: torch.nn.Module, x: Tensor, count: int) -> None:
    """Call the network and nothing else."""
    t = torch.full((len(x),), 0.5)
    with torch.no_grad():
        for _ in range(count):
            network(t, x)


def hand_written_loop(model: sm.Model, x: Tensor, count: int) -> None:
    """Euler-Maruyama as one writes it in a notebook, with every coefficient computed before."""
    sde = model.sde
    times = torch.linspace(sde.t_max, sde.t_min, count + 1)
    dt = 1 / count
    a, g = sde.drift_coefficient(times).tolist(), sde.diffusion(times).tolist()
    sigma = sde.sigma(times).tolist()
    batch_times = times[:, None].expand(-1, len(x))
    with torch.no_grad():
        for k in range(count):
            eps = model.network(batch_times[k], x)
            drift = a[k] * x + g[k] ** 2 / sigma[k] * eps
            x = x - drift * dt + g[k] * dt**0.5 * torch.randn_like(x)


def measure(name: str, model: sm.ScoreModel, x: Tensor, rounds: int, steps: int) -> Row:
    """Time one solver against its baselines."""
    solver = sm.solvers()[name]
    event_shape = tuple(x.shape[1:])
    system = sm.ReverseSDE(model, event_shape) if solver.stochastic else sm.ProbabilityFlow(model)
    arguments = {"rtol": 1e-2, "atol": 1e-2} if solver.adaptive else {"steps": steps}

    def solve() -> sm.Solution:
        return sm.solve(system, x, (1.0, 1e-3), name, **arguments)  # type: ignore[arg-type]

    nfe = solve().nfe  # also the warm-up
    bare, loop, total = [], [], []
    for _ in range(rounds):
        bare.append(seconds(lambda: bare_calls(model.network, x, nfe)))
        total.append(seconds(solve))
        if solver.stochastic:
            loop.append(seconds(lambda: hand_written_loop(model, x, nfe)))
    over = [a / b for a, b in zip(total, bare, strict=True)]
    row: Row = {
        "solver": name,
        "evaluations": nfe,
        "seconds": statistics.median(total),
        "milliseconds_per_bare_call": 1000 * statistics.median(bare) / nfe,
        "over_bare_network": statistics.median(over),
        "spread": [min(over), max(over)],
    }
    if loop:
        ratios = [a / b for a, b in zip(total, loop, strict=True)]
        row["over_hand_written_loop"] = statistics.median(ratios)
    return row


def as_markdown(rows: list[Row]) -> str:
    """The table that is printed and saved."""
    lines = [
        "| solver | evaluations | seconds | over bare network (min to max) | over loop |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        low, high = row["spread"]
        loop = row.get("over_hand_written_loop")
        lines.append(
            f"| `{row['solver']}` | {row['evaluations']} | {row['seconds']:.3f} "
            f"| {row['over_bare_network']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {'' if loop is None else f'{loop:.2f}'} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], title: str) -> Figure:
    """Bars of the ratio to the bare network."""
    figure = Figure(figsize=(8, 0.28 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh([row["solver"] for row in rows], [row["over_bare_network"] for row in rows])
    axes.axvline(1.0, color="black", linewidth=1, label="bare network")
    axes.invert_yaxis()
    axes.set(xlabel="time of a solve / time of its network calls alone", title=title)
    axes.legend()
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384, help="width of the network")
    parser.add_argument("--batch", type=int, default=128, help="samples in the batch")
    parser.add_argument("--steps", type=int, default=30, help="steps of fixed-step solvers")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds a solver")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((64,), width=options.width, depth=4).eval()
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3))
    x = torch.randn(options.batch, 64)
    names = [name for name in sm.solvers() if name not in IMPLICIT]
    rows = [
        measure(name, model, x, options.rounds, options.steps)
        for name in tqdm(names, desc="solvers")
    ]
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    settings |= {"torch": torch.__version__, "machine": platform.machine()}
    table = as_markdown(rows)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overhead.json").write_text(
        json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n"
    )
    (options.out / "overhead.md").write_text(table + "\n")
    call = statistics.median(row["milliseconds_per_bare_call"] for row in rows)
    title = f"Cost of a solver beside its network ({call:.1f} ms a call)"
    plot(rows, title).savefig(options.out / "overhead.png", dpi=110)


if __name__ == "__main__":
    main()
