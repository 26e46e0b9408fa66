"""What a solver costs compared with the bare network.

For each solver and two sizes of network (about 1 ms and 5 ms a call): seconds of a solve, divided
by seconds of the same number of bare network calls on the same batch; 1.00 means that the solver
costs nothing. A solve that draws noise has a second ratio, to a hand-written Euler-Maruyama loop
with the same number of network calls. All are timed in turn, round after round and every other
round in reverse order, and the median of the ratios of the rounds is quoted, so that a machine
whose speed drifts does not matter much. Results: ``benchmarks/results/overhead.{json,md,png}``.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --only ddim sde:euler --rounds 41
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common.results import common_options, empty_figure, read_options, save
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

Row = dict[str, Any]

IMPLICIT = ("scipy:Radau", "scipy:BDF", "scipy:LSODA")
"""Left out: their time outside the network is linear algebra on the entire batch."""

WIDTHS = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
"""Widths that the network may have; the one whose call is nearest to the given time is used."""

DIMENSION, DEPTH, T_MIN = 64, 4, 1e-3


def target(solver: sm.Solver, noisy: bool) -> tuple[str, float] | None:
    """The most that a solver should cost: the baseline, and the ratio to it."""
    if solver.name == "sde:euler":
        return "over_hand_written_loop", 1.15
    if solver.library != "sde_models" or solver.adaptive:
        return None
    return "over_hand_written_loop" if noisy else "over_bare_network", 1.05


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_calls(network: torch.nn.Module, x: Tensor, count: int) -> None:
    """Call only the network."""
    t = torch.full((len(x),), 0.5)
    with torch.no_grad():
        for _ in range(count):
            network(t, x)


def hand_written_loop(model: sm.ScoreModel, x: Tensor, count: int) -> None:
    """Euler-Maruyama as written in a notebook, with every coefficient computed in advance."""
    sde: Any = model.sde
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


def make_model(width: int) -> sm.ScoreModel:
    """A noise-predicting network of this width on the VP SDE."""
    network = sm.nn.ResidualNetwork((DIMENSION,), width=width, depth=DEPTH).eval()
    return sm.ScoreModel(network, sm.VPSDE(t_min=T_MIN))


def model_of(milliseconds: float, x: Tensor) -> sm.ScoreModel:
    """The model whose network takes about this time per call on this machine."""

    def gap(width: int) -> float:
        network = make_model(width).network
        bare_calls(network, x, 3)
        call = min(seconds(lambda: bare_calls(network, x, 3)) / 3 for _ in range(5))
        return max(1000 * call / milliseconds, milliseconds / (1000 * call))

    return make_model(min(WIDTHS, key=gap))


def measure(name: str, model: sm.ScoreModel, x: Tensor, rounds: int, evaluations: int) -> Row:
    """Time one solver against its baselines."""
    solver = sm.list_solvers()[name]
    event_shape = tuple(x.shape[1:])
    system = (
        sm.ProbabilityFlow(model) if solver.deterministic else sm.ReverseSDE(model, event_shape)
    )
    steps = max(evaluations // (solver.evaluations or 1), 1)
    arguments = {"rtol": 1e-2, "atol": 1e-2} if solver.adaptive else {"steps": steps}
    noisy = solver.draws_noise(system)

    def solve() -> sm.Solution:
        return sm.solve(system, x, (1.0, T_MIN), name, **arguments)  # type: ignore[arg-type]

    calls = solve().cost.calls  # also the warm-up
    works: dict[str, Callable[[], object]] = {
        "over_bare_network": lambda: bare_calls(model.network, x, calls),
        "solve": solve,
    }
    if noisy:
        works["over_hand_written_loop"] = lambda: hand_written_loop(model, x, calls)
    times: dict[str, list[float]] = {work: [] for work in works}
    for i in range(rounds):
        for work in reversed(works) if i % 2 else works:
            times[work].append(seconds(works[work]))
    row: Row = {
        "solver": name,
        "evaluations": calls,
        "seconds": statistics.median(times["solve"]),
        "milliseconds_per_bare_call": 1000 * statistics.median(times["over_bare_network"]) / calls,
    }
    for baseline in works.keys() - {"solve"}:
        ratios = [a / b for a, b in zip(times["solve"], times[baseline], strict=True)]
        row[baseline] = dict(zip(("low", "median", "high"), quartiles(ratios), strict=True))
    limit = target(solver, noisy)
    if limit is not None:
        baseline, most = limit
        row["target"] = {"baseline": baseline, "at_most": most}
        row["met"] = row[baseline]["median"] <= most
    return row


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return (
        torch.tensor(values, dtype=torch.float64)
        .quantile(torch.tensor([0.25, 0.5, 0.75]).double())
        .tolist()
    )


def as_markdown(sizes: dict[str, list[Row]]) -> str:
    """The table that is printed and saved: a row for each solver, two columns for each size."""
    heading = ["solver", "evaluations"]
    for size in sizes:
        heading += [f"over bare network, {size}", f"over hand-written loop, {size}"]
    lines = [" | ".join(["", *heading, "target", ""]).strip()]
    lines.append("|".join(["", "---", *["---:"] * (len(heading) - 1), "---", ""]))
    for rows in zip(*sizes.values(), strict=True):
        cells = [f"`{rows[0]['solver']}`", str(rows[0]["evaluations"])]
        for row in rows:
            cells += [as_cell(row.get(key)) for key in BASELINES]
        cells.append(verdict(rows))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("\nMedian ratio, with the quartiles of the rounds in brackets.")
    return "\n".join(lines)


BASELINES = {"over_bare_network": "bare", "over_hand_written_loop": "loop"}


def as_cell(ratio: dict[str, float] | None) -> str:
    """A median with its quartiles."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


def verdict(rows: tuple[Row, ...]) -> str:
    """The target of a solver and whether it is met at every size."""
    if "target" not in rows[0]:
        return ""
    limit = rows[0]["target"]
    met = "met" if all(row["met"] for row in rows) else "MISSED"
    return f"{BASELINES[limit['baseline']]} {limit['at_most']:.2f}: {met}"


def plot(sizes: dict[str, list[Row]]) -> Figure:
    """Bars of the ratio to the bare network."""
    count = max(len(rows) for rows in sizes.values())
    figure = empty_figure(8, 0.3 * count + 1.4)
    axes = figure.subplots()
    height = 0.8 / len(sizes)
    for i, (size, rows) in enumerate(sizes.items()):
        where = [k + (i + 0.5) * height - 0.4 for k in range(len(rows))]
        ratios = [row["over_bare_network"]["median"] for row in rows]
        axes.barh(
            where, [ratio - 1 for ratio in ratios], height, left=1, label=f"network of {size}"
        )
    axes.set_yticks(range(count), [row["solver"] for row in next(iter(sizes.values()))])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.axvline(1.05, color="black", linewidth=1, linestyle=":", label="1.05")
    axes.invert_yaxis()
    axes.set(
        xlabel="time of a solve / time of its network calls alone",
        title="Cost of a solver relative to its network",
    )
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--calls", type=float, nargs="+", default=[1.0, 5.0], help="ms per call")
    parser.add_argument("--batch", type=int, default=64, help="samples in the batch")
    parser.add_argument("--evaluations", type=int, default=50, help="calls of fixed-step solvers")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per solver")
    parser.add_argument("--only", nargs="+", default=None, help="names of solvers; default: all")
    options = read_options(parser)
    torch.manual_seed(0)
    x = torch.randn(options.batch, DIMENSION)
    names = options.only or [name for name in sm.list_solvers() if name not in IMPLICIT]
    sizes: dict[str, list[Row]] = {}
    for milliseconds in options.calls:
        model = model_of(milliseconds, x)
        rows = [
            measure(name, model, x, options.rounds, options.evaluations)
            for name in tqdm(names, desc=f"solvers at {milliseconds:g} ms a call")
        ]
        call = statistics.median(row["milliseconds_per_bare_call"] for row in rows)
        sizes[f"{call:.1f} ms a call"] = rows
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    settings |= {"torch": torch.__version__, "machine": platform.machine()}
    content = {"settings": settings, "sizes": sizes}
    save(options.out, "overhead", content, as_markdown(sizes), plot(sizes))


if __name__ == "__main__":
    main()
