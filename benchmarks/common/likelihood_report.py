"""Targets, tables and a plot of log-densities measured at equal error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from common.results import empty_figure
from matplotlib.figure import Figure

RECIPE = "SciPy RK45, 1 probe"
"""The usual recipe, by its name."""
SMALL_ERROR = 0.01
"""Nats at which the exact traces are compared."""
EARLIER = {
    "mixture, 64-D": (1 / 2, {2.0: 341, 1.0: 544, 0.3: 944, 0.1: 1682}),
    "digits": (1 / 3, {1.0: 2164, 0.3: 4092, 0.1: 7209}),
}
"""Part to be reached of the cost of each tol= in an earlier version, and that cost."""


@dataclass(frozen=True)
class Row:
    """One method on one model.

    Attributes:
        model: Name of the case.
        method: What was run.
        ours: Whether by this library.
        exact: Whether with the exact trace.
        error: Root mean square over points and repeats, in nats.
        cost: Forward passes and twice the vector-Jacobian products, for a sample.
        seconds: Median of the repeats, for all points.
        covered: Part of the errors within the reported one; None where none is reported.
        tol: Error that was asked for; None where none was.
    """

    model: str
    method: str
    ours: bool
    exact: bool
    error: float
    cost: float
    seconds: float
    covered: float | None = None
    tol: float | None = None


@dataclass(frozen=True)
class Target:
    """What this library needs for an error, compared with another method.

    Attributes:
        model: Name of the case.
        other: What it is compared with.
        error: The error in nats.
        method: The cheapest that reached it; empty if none did.
        ratio: Its cost, as a part of the other's.
        time_ratio: Time of the fastest that reached it, likewise; None where it is not compared.
        part: Part to be reached; None where there is no target.
    """

    model: str
    other: str
    error: float
    method: str
    ratio: float | None
    time_ratio: float | None
    part: float | None

    @property
    def verdict(self) -> str:
        """The target, and whether it was reached."""
        if self.part is None:
            return "none"
        ratios = [r for r in (self.ratio, self.time_ratio) if r is not None]
        met = self.method != "" and all(ratio <= self.part for ratio in ratios)
        return f"at most {self.part:.3f}: {'reached' if met else '**missed**'}"


def targets(rows: list[Row]) -> Iterator[Target]:
    """Every comparison: with the usual recipe, the exact trace, and earlier costs."""
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        for row in own:
            if row.method == RECIPE:
                yield replace(_at_equal_error(own, row, row.error), part=1 / 5)
        exact = [
            row for row in own
            if row.method.startswith("torchdiffeq") and row.exact and row.error <= SMALL_ERROR
        ]  # fmt: skip
        if exact:
            best = min(exact, key=lambda row: row.cost)
            yield replace(_at_equal_error(own, best, SMALL_ERROR), part=1 / 3)
        part, costs = EARLIER.get(model, (None, {}))
        for row in own:
            if row.tol in costs:
                ratio = row.cost / costs[row.tol]
                other = f"an earlier version at the same tol, cost {costs[row.tol]}"
                yield Target(model, other, row.error, row.method, ratio, None, part)


def other_libraries(rows: list[Row]) -> Iterator[Target]:
    """Comparisons with every other method at its own error, for which no target was set."""
    for row in rows:
        if not row.ours and row.method != RECIPE:
            own = [other for other in rows if other.model == row.model]
            yield _at_equal_error(own, row, row.error)


def _at_equal_error(own: list[Row], other: Row, error: float) -> Target:
    able = [row for row in own if row.ours and row.error <= error]
    if not able:
        return Target(other.model, other.method, error, "", None, None, None)
    best = min(able, key=lambda row: row.cost)
    seconds = min(row.seconds for row in able)
    return Target(
        other.model, other.method, error, best.method, best.cost / other.cost,
        seconds / other.seconds, None,
    )  # fmt: skip


def as_markdown(rows: list[Row], notes: list[str]) -> str:
    """The targets, comparisons with other methods, everything, and notes."""
    lines = ["## Compared with the usual recipe", ""]
    lines += _table(targets(rows), verdict=True)
    lines += ["", "## Compared with other libraries, each at its own error", ""]
    lines += _table(other_libraries(rows), verdict=False)
    lines += [
        "", "## Everything", "",
        "Cost for a sample: 1 for a forward pass, 2 for a vector-Jacobian product.", "",
        "| model | method | error, nats | cost | seconds | covered by the reported error |",
        "|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {row.model} | {row.method} | {row.error:.1e} | {row.cost:.0f} | {row.seconds:.2f} "
        f"| {'' if row.covered is None else f'{row.covered:.3f}'} |"
        for row in rows
    ]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {note}" for note in notes)])


def _table(compared: Iterator[Target], *, verdict: bool) -> list[str]:
    lines = [
        "| model | compared with | at nats | ours | cost | time |" + " target |" * verdict,
        "|---|---|---:|---|---:|---:|" + "---|" * verdict,
    ]
    for target in compared:
        cost, time = (_part(r) for r in (target.ratio, target.time_ratio))
        lines.append(
            f"| {target.model} | {target.other} | {target.error:.2g} "
            f"| {target.method or 'none so accurate'} | {cost} | {time} |"
            + f" {target.verdict} |"
            * verdict
        )
    return lines


def _part(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


def as_json(rows: list[Row], notes: list[str]) -> dict[str, object]:
    """All that was measured, of plain numbers and text."""
    compared = [*targets(rows), *other_libraries(rows)]
    return {
        "rows": [asdict(row) for row in rows],
        "targets": [asdict(target) | {"verdict": target.verdict} for target in compared],
        "notes": notes,
    }


def plot(rows: list[Row]) -> Figure:
    """Error against cost and against time, a panel for each model."""
    models = list(dict.fromkeys(row.model for row in rows))
    figure = empty_figure(4 * len(models), 7)
    panels = figure.subplots(2, len(models), squeeze=False)
    kinds = {
        "tol": ("C3", "*-"), "quadrature": ("C3", "."), "SciPy": ("0.2", "s"),
        "torchdiffeq": ("0.55", "D"), "flow_matching": ("C0", "^"), "zuko": ("C2", "v"),
        "k-diffusion": ("C4", "P"),
    }  # fmt: skip
    for column, model in enumerate(models):
        for panel, unit in zip(panels[:, column], ("cost", "seconds"), strict=True):
            for kind, (color, style) in kinds.items():
                own = [r for r in rows if r.model == model and r.method.startswith(kind)]
                values, errors = [getattr(r, unit) for r in own], [r.error for r in own]
                panel.loglog(values, errors, style, color=color, label=kind)
            panel.set_xlabel("cost of a sample" if unit == "cost" else "seconds for all points")
        panels[0, column].set_title(model)
    for panel in panels[:, 0]:
        panel.set_ylabel("root-mean-square error, nats")
    panels[0, 0].legend(fontsize="small")
    return figure
