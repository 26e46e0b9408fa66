"""Tables and the plot of the sampler benchmark."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from common.results import empty_figure
from matplotlib.figure import Figure

Row = dict[str, Any]

FAMILIES = {"mixture-2d": "mixtures, 2-D", "mixture-64d": "mixtures, 64-D", "digits": "digits"}
"""Problems that are averaged, by the beginning of their names."""


def as_markdown(rows: list[Row], budgets: Iterable[int], noisy_budgets: Iterable[int]) -> str:
    """Every table that is printed and saved."""
    sharp = [row for row in rows if not row.get("stochastic") and not row.get("adaptive")]
    noisy = [row for row in rows if row.get("stochastic")]
    sections = [
        "## Our best and the best peer",
        duel(sharp, budgets),
        "## Deterministic samplers",
        "Root-mean-square distance of end points per coordinate; geometric mean over the models "
        "of a kind; each with its best grid and settings for each number of evaluations. A number "
        "of evaluations that a method cannot make is rounded down.",
        standings(sharp, budgets),
        "## Solvers that choose their steps",
        "Evaluations are those of a single sample on average.",
        adaptive([row for row in rows if row.get("adaptive")]),
    ]
    if noisy:
        sections += [
            "## Stochastic samplers",
            "Energy distance to exact samples, and the covariance's relative error; each with its "
            "best grid and settings by energy distance.",
            noisy_standings(noisy, noisy_budgets),
        ]
    return "\n\n".join(sections)


def valid(rows: Iterable[Row]) -> list[Row]:
    """Those that did not diverge."""
    return [row for row in rows if math.isfinite(row["error"])]


def duel(rows: list[Row], budgets: Iterable[int]) -> str:
    """For each model and number of evaluations: our best, the best peer, and their ratio."""
    lines = [
        "| model | evaluations | ours | error | peer | error | ours / peer | target |",
        "|---|---:|---|---:|---|---:|---:|---|",
    ]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        for budget in budgets:
            field = [r for r in valid(rows) if (r["problem"], r["budget"]) == (problem, budget)]
            ours = min((r for r in field if r["library"] == "sde_models"), key=_error)
            peers = [r for r in field if r["library"] != "sde_models"]
            if not peers:
                continue
            peer = min(peers, key=_error)
            ratio, target = ours["error"] / peer["error"], 0.5 if budget == 50 else 1.0
            verdict = "reached" if ratio <= target else "missed"
            lines.append(
                f"| {problem} | {budget} | `{ours['solver']}` ({ours['variant']}) "
                f"| {ours['error']:.1e} | {peer['library']} {peer['solver']} ({peer['variant']}) "
                f"| {peer['error']:.1e} | {ratio:.2f} | at most {target:g}: {verdict} |"
            )
    return "\n".join(lines)


def standings(rows: list[Row], budgets: Iterable[int]) -> str:
    """Every sampler's best on every kind of model."""
    budgets = list(budgets)
    kinds = [kind for kind in FAMILIES if any(r["problem"].startswith(kind) for r in rows)]
    heading = " | ".join(f"{FAMILIES[kind]}, {n}" for kind in kinds for n in budgets)
    lines = [f"| sampler | {heading} |", "|---|" + "---:|" * (len(kinds) * len(budgets))]
    table = {
        name: [_average(rows, name, kind, n) for kind in kinds for n in budgets]
        for name in dict.fromkeys((row["library"], row["solver"]) for row in rows)
    }
    for (library, solver), cells in sorted(
        table.items(), key=lambda item: sum(map(math.log, item[1]))
    ):
        label = f"`{solver}`" if library == "sde_models" else f"{library} {solver}"
        numbers = " | ".join(f"{cell:.1e}" if math.isfinite(cell) else "diverges" for cell in cells)
        lines.append(f"| {label} | {numbers} |")
    return "\n".join(lines)


def adaptive(rows: list[Row]) -> str:
    """Cost and error of adaptive solvers at each tolerance."""
    lines = ["| model | solver | tolerance | evaluations | error |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {row['problem']} | `{row['solver']}` | {row['variant'].split()[-1]} "
        f"| {row['evaluations']:.1f} | {row['error']:.1e} |"
        for row in rows
        if row["problem"] in ("mixture-2d-0", "mixture-64d-0", "digits")
    ]
    return "\n".join(lines)


def noisy_standings(rows: list[Row], budgets: Iterable[int]) -> str:
    """Energy distance and covariance error of stochastic samplers."""
    budgets = list(budgets)
    heading = " | ".join(f"{n}" for n in budgets)
    lines = [f"| model | sampler | {heading} |", "|---|---|" + "---:|" * len(budgets)]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        table = {}
        for key in dict.fromkeys((r["library"], r["solver"]) for r in rows):
            own = [r for r in valid(rows) if (r["library"], r["solver"]) == key]
            own = [r for r in own if r["problem"] == problem]
            at = [[r for r in own if r["budget"] == n] for n in budgets]
            if all(at):
                table[key] = [min(field, key=_error) for field in at]
        for (library, solver), best in sorted(table.items(), key=lambda item: item[1][1]["error"]):
            label = f"`{solver}`" if library == "sde_models" else f"{library} {solver}"
            cells = " | ".join(f"{r['error']:.1e}, {r['covariance_error']:.1%}" for r in best)
            lines.append(f"| {problem} | {label} | {cells} |")
    return "\n".join(lines)


def plot(rows: list[Row]) -> Figure:
    """Error against evaluations, one panel for each kind of model."""
    kinds = [kind for kind in FAMILIES if any(r["problem"].startswith(kind) for r in rows)]
    figure = empty_figure(5.2 * len(kinds), 4.6)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        _panel(panel, [r for r in rows if r["problem"].startswith(kind)], kind)
    panels[0].set_ylabel("RMS distance to the exact end points")
    panels[-1].legend(fontsize=7)
    return figure


def _panel(panel: Any, rows: list[Row], kind: str) -> None:
    drawn = {
        "flow-abm-5": ("C4", "-", 1.5), "flow-abm-4": ("C3", "-", 2.2),
        "flow-abm-3": ("C1", "-", 1.5), "unipc-3": ("C0", "-", 1.2),
        "dpmpp-2m": ("C2", "-", 1.2), "vAB 4": ("0.35", "--", 1.2), "UniPC 4": ("0.6", "--", 1.2),
    }  # fmt: skip
    sharp = [r for r in rows if not r.get("stochastic") and not r.get("adaptive")]
    for name, (color, style, width) in drawn.items():
        own = [r for r in sharp if r["solver"] == name]
        budgets = sorted({r["budget"] for r in own})
        if budgets:
            library = own[0]["library"]
            label = name if library == "sde_models" else f"{library} {name}"
            errors = [_average(own, (library, name), kind, n) for n in budgets]
            panel.loglog(budgets, errors, style, color=color, linewidth=width, label=label)
    curves = defaultdict(list)
    for row in rows:
        if row.get("adaptive"):
            curves[row["solver"], row["variant"]].append(row)
    for name, marker in (("rk-batch", "o"), ("ode:dopri5", "s")):
        points = [
            (_mean([r["evaluations"] for r in own]), _mean([r["error"] for r in own]))
            for (solver, _), own in curves.items()
            if solver == name
        ]
        if points:
            panel.loglog(*zip(*points, strict=True), marker, markersize=4, alpha=0.7, label=name)
    panel.set(title=FAMILIES[kind], xlabel="network evaluations", xlim=(7, 400))
    panel.grid(alpha=0.3)


def _average(rows: list[Row], key: tuple[str, str], kind: str, budget: int) -> float:
    """Geometric mean over models of the best variant's error."""
    best: dict[str, float] = {}
    for row in rows:
        if (row["library"], row["solver"]) != key or row.get("budget") != budget:
            continue
        if row["problem"].startswith(kind):
            error = row["error"] if math.isfinite(row["error"]) else math.inf
            best[row["problem"]] = min(best.get(row["problem"], math.inf), error)
    return _mean(list(best.values()))


def _mean(values: list[float]) -> float:
    if not values or math.inf in values:
        return math.inf
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _error(row: Row) -> float:
    error: float = row["error"]
    return error
