"""How often the reported errors of log-densities cover the true ones, and how wide they are.

On trained and random networks, which are scores of nothing, and on closed forms: how often the
reported error at 95% covers the true one, for ``tol=`` and for other solvers; and whether estimates
of the trace are unbiased. True values come from closed forms, or from SciPy's DOP853 with the exact
trace. Results go to ``benchmarks/results/calibration.{json,md,png}``.

    python benchmarks/calibration.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from common.calibration_models import KINDS, Case
from common.results import common_options, empty_figure, read_options, save
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import sde_models as sm

TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01)
FEW = 90
"""Cells of fewer known values have no coverage of their own."""
Row = dict[str, Any]

SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ("adams-batch, 1e-2", {"solver": "adams-batch", "rtol": 1e-2, "atol": 1e-2}),
    ("rk-batch, 1e-3", {"solver": "rk-batch", "rtol": 1e-3, "atol": 1e-3, "trace": "quadrature"}),
    ("ode:dopri5, 1e-3, augmented", {"solver": "ode:dopri5", "rtol": 1e-3, "atol": 1e-3}),
    (
        "ode:dopri5, 1e-4, quadrature",
        {"solver": "ode:dopri5", "rtol": 1e-4, "atol": 1e-4, "trace": "quadrature"},
    ),
    ("scipy:RK45, 1e-4, augmented", {"solver": "scipy:RK45", "rtol": 1e-4, "atol": 1e-4}),
    ("ddim, 50 steps", {"solver": "ddim", "steps": 50}),
    ("heun-edm, 30 steps", {"solver": "heun-edm", "steps": 30}),
    ("dpmpp-2m, 40 steps", {"solver": "dpmpp-2m", "steps": 40}),
]
ESTIMATORS: list[sm.Divergence] = [
    sm.Hutchinson(1), sm.Hutchinson(2, "gaussian"), sm.Hutchinson(2, "sphere"), sm.XTrace(4),
    sm.HutchPlusPlus(4),
]  # fmt: skip


def settings(case: Case) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Source, name and arguments of what is tried on a model."""
    for tol in TOLERANCES:
        if case.small or tol >= 0.1:
            yield "tol", f"tol = {tol:g}", {"tol": tol}
    if case.small:
        for name, arguments in SOLVERS:
            yield "solvers", name, {"divergence": "exact", **arguments}


def measure(case: Case, arguments: dict[str, Any], seed: int = 0) -> Row:
    """Coverage and size of the reported error on one model."""
    generator = torch.Generator().manual_seed(seed)
    try:
        lp = sm.log_prob(case.model, case.x, prior=case.prior, generator=generator, **arguments)
    except sm.SolveError as error:
        return {"points": 0, "unknown": len(case.x), "failure": type(error).__name__}
    off, reported = (lp.value - case.truth).double(), lp.error.double()
    known = reported.isfinite()
    off, reported = off[known], reported[known]
    return {
        "points": len(off),
        "unknown": int((~known).sum()),
        "covered": int((off.abs() <= reported).sum()),
        "error": float(off.square().mean().sqrt()),
        "reported": float(reported.square().mean().sqrt()),
        "mean": float(off.mean()),
        "mean_stderr": float(off.std() / math.sqrt(max(1, len(off)))),
        "cost": lp.nfe + 2 * lp.vjps,
    }


def bias_rows(points: int) -> Iterator[Row]:
    """The mean signed error of every estimator, at nodes and for a tolerance."""
    from common.calibration_models import _line, _mixture

    for case in (_line(48, points), _mixture("mixture, 16-D", sm.VPSDE(), 16, points)):
        path = {"rtol": 1e-4, "atol": 1e-4, "intervals": 64, "estimate_solver_error": False}
        runs: list[tuple[str, dict[str, Any]]] = [
            (repr(one), {"divergence": one, **path}) for one in ESTIMATORS
        ]
        automatic = sm.Hutchinson(2)  # what "auto" is for large events
        runs += [
            (f"tol = 1, {name}", {"divergence": one, "tol": 1.0})
            for name, one in (("auto", automatic), *((repr(o), o) for o in ESTIMATORS[1:4]))
        ]
        for name, arguments in runs:
            lp = sm.log_prob(
                case.model, case.x, prior=case.prior, generator=torch.Generator().manual_seed(1),
                **arguments,
            )  # fmt: skip
            off = (lp.value - case.truth).double()
            stderr = float(off.std() / math.sqrt(points))
            yield {
                "source": "bias", "model": case.name, "setting": name, "points": points,
                "mean": float(off.mean()), "mean_stderr": stderr,
                "error": float(off.square().mean().sqrt()),
            }  # fmt: skip


def run(points: int, bias_points: int) -> list[Row]:
    """Everything."""
    rows = []
    for kind, cases in KINDS.items():
        for case in tqdm(cases(points), desc=kind):
            for source, name, arguments in settings(case):
                row = {"kind": kind, "model": case.name, "source": source, "setting": name}
                rows.append(row | measure(case, arguments))
    return [*rows, *bias_rows(bias_points)]


def pooled(rows: list[Row]) -> Row:
    """Coverage and unknown errors of several rows."""
    points, unknown = sum(r["points"] for r in rows), sum(r["unknown"] for r in rows)
    return {
        "points": points,
        "covered": sum(r.get("covered", 0) for r in rows) / max(1, points),
        "unknown": unknown / max(1, points + unknown),
        "ratio": _median([r["reported"] / max(r["error"], 1e-12) for r in rows if r["points"]]),
    }


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan


def as_markdown(rows: list[Row]) -> str:
    """Pooled, then by setting, then every cell, then the bias."""
    covering = [r for r in rows if r["source"] != "bias"]
    lines = [
        "| what | values | covered | error not known | reported / true error, median |",
        "|---|---:|---:|---:|---:|",
    ]
    groups = [("all", covering)] + [
        (f"{source}, {kind}", [r for r in covering if (r["source"], r["kind"]) == (source, kind)])
        for source in ("tol", "solvers")
        for kind in KINDS
    ]
    groups += [
        (name, [r for r in covering if r["setting"] == name])
        for name in dict.fromkeys(r["setting"] for r in covering)
    ]
    for name, own in groups:
        found = pooled(own)
        lines.append(
            f"| {name} | {found['points']} | {found['covered']:.3f} | {found['unknown']:.3f} "
            f"| {found['ratio']:.1f} |"
        )
    low = [r for r in covering if r["points"] >= FEW and r["covered"] < 0.9 * r["points"]]
    lines += [
        "",
        f"Cells of {FEW} known values or more with a coverage below 0.90: {len(low)}.",
        "",
    ]
    lines += ["| model | setting | covered | not known | error | reported | cost |",
              "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for r in covering:
        if r["points"]:
            lines.append(
                f"| {r['model']} | {r['setting']} | {r['covered'] / r['points']:.2f} "
                f"| {r['unknown']} | {r['error']:.1e} | {r['reported']:.1e} | {r['cost']:.0f} |"
            )
        else:
            failure = r.get("failure", "not known")
            lines.append(f"| {r['model']} | {r['setting']} | {failure} | {r['unknown']} | | | |")
    lines += ["", "Mean signed errors with estimators of the trace: 0 where these are unbiased, "
              "except for those of path and nodes, which count where an estimator has almost no "
              "noise (XTrace on a line).",
              "", "| model | estimator | values | mean | standard errors |",
              "|---|---|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {r['model']} | {r['setting']} | {r['points']} | {r['mean']:+.4f} "
        f"| {r['mean'] / r['mean_stderr']:+.1f} |"
        for r in rows
        if r["source"] == "bias"
    ]
    return "\n".join(lines)


def plot(rows: list[Row]) -> Figure:
    """Reported error against true error, a point for each cell."""
    figure = empty_figure(5.5, 4.5)
    panel = figure.subplots()
    cells = [r for r in rows if r["source"] != "bias" and r["points"]]
    for source in ("tol", "solvers"):
        own = [r for r in cells if r["source"] == source]
        panel.loglog([r["error"] for r in own], [r["reported"] for r in own], ".", label=source)
    low, high = min(r["error"] for r in cells), max(r["reported"] for r in cells)
    panel.plot([low, high], [low, high], "k:", lw=1)
    panel.set(xlabel="true error (nats)", ylabel="reported error (nats)")
    panel.legend()
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--points", type=int, default=120, help="points for each model")
    parser.add_argument("--bias-points", type=int, default=10_000, help="points for the bias")
    options = read_options(parser)
    rows = run(options.points, options.bias_points)
    save(options.out, "calibration", rows, as_markdown(rows), plot(rows))


if __name__ == "__main__":
    main()
