"""How often the reported errors of log-densities cover the true ones.

On mixtures in 2 and 64 dimensions, whose densities are known, under every SDE: how often the
reported error covers the true one, for the steps, the quadrature and the probes separately, and for
all together at tolerances from 0.1 to 0.001 nats. The intended coverage is 95%. Results go to
``benchmarks/results/calibration.{json,md,png}``.

    python benchmarks/calibration.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common.results import common_options, empty_figure, read_options, save
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

SDES: list[Callable[[], sm.GaussianSDE]] = [
    sm.VPSDE, sm.SubVPSDE, sm.VESDE, sm.CosineSDE, sm.FlowMatchingSDE,
]  # fmt: skip
DIMENSIONS = (2, 64)
FINE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, points, and exact values.

    Attributes:
        name: Dimension and SDE.
        model: Exact score of a mixture.
        x: Points drawn from it at ``t_min``.
        truth: Their log-densities.
        prior: The law at ``t_max`` for which the flow has these densities.
    """

    name: str
    model: sm.Model
    x: Tensor
    truth: Tensor
    prior: Any


def cases(points: int) -> Iterator[Case]:
    """All dimensions and SDEs."""
    for dim in DIMENSIONS:
        for number, make in enumerate(SDES):
            sde = make()
            generator = torch.Generator().manual_seed(10 * dim + number)
            means = torch.randn(6, dim, generator=generator, dtype=torch.float64)
            stds = 0.1 + 0.3 * torch.rand(6, generator=generator, dtype=torch.float64)
            mixture = sm.GaussianMixture(means, stds)
            data = mixture.diffuse(sde, sde.t_min)
            x = data.sample(points, generator=generator)
            yield Case(
                f"{dim}-D {make.__name__}", mixture.score_model(sde), x, data.log_prob(x),
                mixture.diffuse(sde, sde.t_max),
            )  # fmt: skip


def checks(case: Case) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Source, setting, true error, and reported error."""

    def log_prob(**arguments: Any) -> sm.LogProb:
        generator = torch.Generator().manual_seed(0)
        return sm.log_prob(
            case.model, case.x, prior=case.prior, generator=generator, **arguments
        )  # fmt: skip

    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        lp = log_prob(rtol=0.5 * tolerance, atol=0.5 * tolerance, intervals=384)
        yield "steps", f"{tolerance:g} of the noise", lp.value - case.truth, lp.solver_error
    for nodes in (24, 48, 96):
        lp = log_prob(intervals=nodes, **FINE)
        yield "quadrature", f"{nodes} intervals", lp.value - case.truth, lp.quadrature_error
    exact = log_prob(intervals=48, **FINE).value
    for divergence in (
        sm.Hutchinson(1), sm.Hutchinson(2), sm.Hutchinson(4), sm.Hutchinson(4, "gaussian"),
        sm.Hutchinson(4, "sphere"), sm.XTrace(2), sm.XTrace(4), sm.HutchPlusPlus(4),
    ):  # fmt: skip
        lp = log_prob(intervals=48, divergence=divergence, **FINE)
        yield "probes", repr(divergence), lp.value - exact, 2 * lp.stderr
    for tol in (1e-1, 1e-2, 1e-3):
        for divergence in ("exact", "auto", sm.Hutchinson(4, "gaussian")):
            lp = log_prob(tol=tol, divergence=divergence)
            name = divergence if isinstance(divergence, str) else "Gaussian probes"
            yield "all", f"{tol:g} nats, {name}", lp.value - case.truth, lp.error


def measure(points: int) -> list[Row]:
    """Coverage of each reported error, over all cases."""
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for case in tqdm(list(cases(points)), desc="cases"):
        for source, setting, off, error in checks(case):
            found.setdefault((source, setting), []).append((off.detach().abs(), error.detach()))
    rows = []
    for (source, setting), pairs in found.items():
        off, reported = (torch.cat(of) for of in zip(*pairs, strict=True))
        within = (off <= reported + 1e-7).double()  # the rounding of the finest solve
        rows.append(
            {
                "source": source,
                "setting": setting,
                "points": len(off),
                "within": float(within.mean()),
                "error": float(off.square().mean().sqrt()),
                "told": float(reported.square().mean().sqrt()),
                "largest_told": float(reported.max()),
            }
        )
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Coverage for each source."""
    return [
        {
            "source": source,
            "points": sum(r["points"] for r in own),
            "within": sum(r["within"] * r["points"] for r in own) / sum(r["points"] for r in own),
        }
        for source in dict.fromkeys(r["source"] for r in rows)
        if (own := [r for r in rows if r["source"] == source])
    ]


def as_markdown(rows: list[Row]) -> str:
    """Each source, then everything."""
    lines = ["| source | points | covered by the reported error | target |", "|---|---:|---:|---|"]
    for r in summary(rows):
        met = "reached" if r["within"] >= 0.93 else "missed"
        lines.append(
            f"| {r['source']} | {r['points']} | {r['within']:.3f} | 0.93 to 1: {met} |"
        )  # fmt: skip
    lines += [
        "", "Root mean squares in nats.", "",
        "| source | setting | points | covered | error | reported | largest reported |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {r['source']} | {r['setting']} | {r['points']} | {r['within']:.3f} | {r['error']:.1e} "
        f"| {r['told']:.1e} | {r['largest_told']:.1e} |"
        for r in rows
    ]
    return "\n".join(lines)


def plot(rows: list[Row]) -> Figure:
    """Reported error against true error, for each setting."""
    figure = empty_figure(5.5, 4.5)
    panel = figure.subplots()
    for source in dict.fromkeys(r["source"] for r in rows):
        own = [r for r in rows if r["source"] == source]
        panel.loglog([r["error"] for r in own], [r["told"] for r in own], "o", label=source)
    low, high = min(r["error"] for r in rows), max(r["told"] for r in rows)
    panel.plot([low, high], [low, high], "k:", lw=1)
    panel.set(xlabel="true error (nats)", ylabel="reported error (nats)")
    panel.legend()
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--points", type=int, default=24, help="points for each SDE and dimension")
    options = read_options(parser)
    rows = measure(options.points)
    save(options.out, "calibration", rows, as_markdown(rows), plot(rows))


if __name__ == "__main__":
    main()
