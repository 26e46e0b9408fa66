# %% [markdown]
# # Choosing a solver
#
# A solver is one word, and there are more than fifty. First the answer in a table, then the
# measurements behind it: those of the [benchmarks](../reference/benchmarks.md), read from their files
# when this page was built, and a few that are made here. A cell fails, and with it the page, when the
# advice is no longer the best.
#
# ## In short
#
# | you want | say | because |
# |---|---|---|
# | samples, at most about 12 evaluations | `solver="flow-abm-3"` on an adapted grid | [least error](#samples) |
# | samples, 15 to 40 evaluations | `solver="flow-abm-4"`, the same grid | [least error](#samples) |
# | the same without preparing a grid | `grid="quadratic"` | [grids](#the-grid-matters-as-much) |
# | samples by the SDE, few evaluations | `solver="dpmpp-2m-sde"` | [with noise](#samples-with-noise) |
# | the sampler of Song et al. 2021 | `solver="pc"` | it is that one |
# | an accuracy instead of a number of steps | `solver="rk-batch"`, `rtol=`, `atol=` | [adaptive solvers](#steps-or-tolerances) |
# | latents | `encode` and `decode` with `solver="adams-batch"` | [densities](#densities-and-latents) |
# | likelihoods | `log_prob(..., tol=)`, which takes `"adams-batch"` | [densities](#densities-and-latents) |
# | gradients with little memory | `solver="ode:dopri5"`, `gradient="adjoint"` | [gradients](gradients.md) |
# | an equation of your own | `"rk-batch"`, any `ode:`, or `sde:heun` | the table's column *of* |
# | to use an idle accelerator | `solver="picard"` | many steps in one batch |
# | to compare with a paper | its own: `"ddim"`, `"heun-edm"`, `"dpmpp-2m"`, `"unipc-2"`, `"ald"`, ... | |
#
# ## Samples
#
# The benchmark solves the probability flow of three mixtures in the plane, three in 64 dimensions, and
# a trained model of digits, from the same noise by every solver, and compares the end points with
# those of a solve to many digits. Each solver may use its best grid, those of diffusers and azula
# too. The error is the root mean square for a coordinate, and the geometric mean over the models of a
# kind.

# %%
import json
from math import exp, log
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import sde_models as sm

results = Path(
    "../../benchmarks/results"
)  # of the repository, seen from docs/tutorials
runs = [
    row
    for row in json.loads((results / "samplers.json").read_text())
    if "budget" in row and row["error"] == row["error"]
]
flows = [row for row in runs if "stochastic" not in row]
kinds = {"mixture-2d": "2-D", "mixture-64d": "64-D", "digits": "digits"}


index = {}
for row in flows:
    key = row["library"], row["solver"], row["budget"]
    index.setdefault(key, []).append(row)


def mean_error(kind, budget, solver, library="sde_models", grid=None):
    """Geometric mean over the models of a kind, of the error on the best grid or on one."""
    best = {}
    for row in index.get((library, solver, budget), []):
        if row["problem"].startswith(kind) and grid in (None, row["variant"]):
            known = best.get(row["problem"], float("inf"))
            best[row["problem"]] = min(known, row["error"])
    logs = [log(value) for value in best.values()]
    return exp(sum(logs) / len(logs)) if logs else float("inf")


names = sorted({(row["library"], row["solver"]) for row in flows})
shown = ["ddim", "heun-edm", "dpmpp-2m", "unipc-3", "exp-abm-4"]
shown += ["flow-abm-3", "flow-abm-4", "flow-abm-5"]
columns = [(kind, budget) for budget in (10, 20, 50) for kind in kinds]
print(f"{'evaluations':22}" + "".join(f"{budget:9}" for _, budget in columns))
print(f"{'model':22}" + "".join(f"{kinds[kind]:>9}" for kind, _ in columns))
for solver in shown:
    cells = [mean_error(kind, budget, solver) for kind, budget in columns]
    print(f"{solver:22}" + "".join(f"{cell:9.1e}" for cell in cells))
cells, errors = [], {}
for kind, budget in columns:
    errors[kind, budget] = {
        name: mean_error(kind, budget, name[1], name[0]) for name in names
    }
    others = [v for k, v in errors[kind, budget].items() if k[0] != "sde_models"]
    cells.append(min(others))
print(f"{'best of the others':22}" + "".join(f"{cell:9.1e}" for cell in cells))

advice = {10: "flow-abm-3", 20: "flow-abm-4", 50: "flow-abm-5"}
for (kind, budget), of_others in zip(columns, cells, strict=True):
    ours = errors[kind, budget]["sde_models", advice[budget]]
    assert ours < 1.5 * min(errors[kind, budget].values())
    assert ours < 1.1 * of_others

# %% [markdown]
# The whole curves, from the same file. A straight line is an order of convergence; the dotted one is the
# best that diffusers and azula have for each number.

# %% alt="Error against evaluations in three panels: flow-abm-4 lowest from 15 evaluations on"
figure, panels = plt.subplots(1, 3, figsize=(8.6, 3.6), sharey=True)
budgets = sorted({row["budget"] for row in flows})
for panel, (kind, title) in zip(panels, kinds.items(), strict=True):
    for solver in ("ddim", "heun-edm", "dpmpp-2m", "unipc-3", "flow-abm-4"):
        curve = {n: mean_error(kind, n, solver) for n in budgets}
        measured = [n for n in budgets if curve[n] < float("inf")]
        heights = [curve[n] for n in measured]
        panel.loglog(measured, heights, "o-", ms=3, label=solver)
    others = [name for name in names if name[0] != "sde_models"]
    best = []
    for n in budgets:
        found = [
            mean_error(kind, n, solver, library) for library, solver in others
        ]
        best.append(min((v for v in found if v == v), default=float("nan")))
    panel.loglog(budgets, best, ":", color="C7", label="best of the others")
    panel.set(title=title, xlabel="evaluations")
    panel.set_xticks([10, 20, 50, 100], [10, 20, 50, 100])
    panel.minorticks_off()
panels[0].set_ylabel("error (root mean square)")
figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
)
plt.show()

# %% [markdown]
# The methods that win treat the flow as what it is for every Gaussian kernel after scaling, a nearly
# straight path from noise to data, and spend one evaluation a step on a high order. At 50
# evaluations the digits network is no longer smooth between nodes, and all good solvers are close.
#
# ## The grid matters as much
#
# Two solvers with 20 evaluations on each grid. On the one that suits it the second is more than ten times
# as accurate as on another.

# %%
grids = ("uniform", "log-snr", "karras", "quadratic", "adapted")
print(f"{'20 evaluations':22}" + "".join(f"{grid:>11}" for grid in grids))
for kind, title in kinds.items():
    for solver in ("dpmpp-2m", "flow-abm-4"):
        cells = [mean_error(kind, 20, solver, grid=grid) for grid in grids]
        print(
            f"{solver + ', ' + title:22}" + "".join(f"{c:11.1e}" for c in cells)
        )
    assert cells[-1] == min(cells) < 0.1 * max(cells)  # those of flow-abm-4

# %% [markdown]
# An adapted grid is made once for a model, by watching where an adaptive solver has to work, and is kept
# beside the weights. On a model that no benchmark has seen:

# %%
source = torch.Generator().manual_seed(3)
mixture = sm.GaussianMixture(
    torch.randn(6, 8, generator=source), torch.rand(6, generator=source) / 2 + 0.1
).double()
model = mixture.score_model(sm.VPSDE())
noise = torch.randn(200, 8, generator=source, dtype=torch.float64)
exact = sm.decode(model, noise, solver="rk-batch", rtol=1e-8, atol=1e-8).x

adapted = sm.adapt_grid(model, generator=source)
own = {}
for solver in ("ddim", "dpmpp-2m", "flow-abm-4"):
    for name, grid in (
        ("log-snr", None),
        ("quadratic", "quadratic"),
        ("adapted", adapted),
    ):
        out = sm.decode(model, noise, solver=solver, steps=18, grid=grid)
        own[solver, name] = float((out.x - exact).square().mean().sqrt())
    row = "".join(
        f"   {name} {own[solver, name]:.1e}"
        for name in ("log-snr", "quadratic", "adapted")
    )
    print(f"{solver:11}{row}")

assert own["flow-abm-4", "adapted"] < own["flow-abm-4", "log-snr"]
assert own["flow-abm-4", "adapted"] == min(own.values())

# %% [markdown]
# ## Samples with noise
#
# The reverse SDE forgives errors of the score that the flow would carry along
# ([reversing time](reversing-time.md)), and needs more evaluations for it. Here the *law* of the samples
# is compared, by the energy distance to exact ones, each solver on its default grid. What is below about
# 0.002 is lost in the noise of the measurement.

# %%
columns = [
    ("mixture-2d-0", "2-D"),
    ("mixture-64d-0", "64-D"),
    ("digits", "digits"),
]
columns = [(*column, budget) for column in columns for budget in (20, 50)]
distance = {
    (row["solver"], row["problem"], row["budget"]): row["error"]
    for row in runs
    if "stochastic" in row
    and row["library"] == "sde_models"
    and row["variant"] == "log-snr"
}
print(
    f"{'energy distance':20}"
    + "".join(f"{t + ', ' + str(n):>12}" for _, t, n in columns)
)
for solver in sorted({key[0] for key in distance}):
    cells = [distance[solver, problem, n] for problem, _, n in columns]
    print(f"{solver:20}" + "".join(f"{cell:12.4f}" for cell in cells))

for problem in ("mixture-2d-0", "mixture-64d-0", "digits"):
    few = distance["dpmpp-2m-sde", problem, 20]
    assert few < 0.5 * distance["euler-maruyama", problem, 20]

# %% [markdown]
# `dpmpp-3m-sde` is as good here, and the first to fail on other grids
# ([all grids](../reference/benchmarks.md#samplers)). `ald` spends its evaluations at a list of noise
# levels and wants hundreds: it is there to compare with.
#
# ## Steps or tolerances
#
# Fixed steps are for a budget, tolerances for an accuracy. torchdiffeq's adaptive solvers step with the
# whole batch, as fast as its most difficult sample allows; `rk-batch` gives each sample steps of its own.
# The benchmark takes batches of mixed difficulty and counts network rows to the same worst error:

# %%
control = json.loads((results / "step_control.json").read_text())
ratios = [row["ratio"] for row in control["rk-batch"]]
geometric = exp(sum(map(log, ratios)) / len(ratios))
print(f"rows of rk-batch over those of ode:dopri5: {geometric:.2f}, ", end="")
print(f"from {min(ratios):.2f} to {max(ratios):.2f}")
ratios = [row["ratio"] for row in control["adaptive-sde"]]
geometric = exp(sum(map(log, ratios)) / len(ratios))
print(
    f"adaptive-sde over euler-maruyama on its best grid: {geometric:.2f}, ",
    end="",
)
print(f"from {min(ratios):.2f} to {max(ratios):.2f}")

assert max(row["ratio"] for row in control["rk-batch"]) < 1

# %% [markdown]
# So `adaptive-sde` saves the choice of a grid, and usually no evaluations
# ([benchmark](../reference/benchmarks.md#step-control)).
#
# ## Densities and latents
#
# Near the data everything happens on the scale of the noise that is left, and a density is sensitive there:
# its trace is evaluated along the path. `adams-batch` measures its errors in units of $\sigma(t)$, gives
# each sample its own steps, and spends one evaluation on a step. Both solvers at the same tolerances, on
# the mixture above, whose densities are known:

# %%
sde = model.sde
x = mixture.sample(100, generator=source)
truth = mixture.diffuse(sde, sde.t_min).log_prob(x)
prior = mixture.diffuse(sde, sde.t_max)
print(f"{'tolerance':>9}  {'solver':12} evaluations   error of log p (nats)")
off, cost = {}, {}
for tolerance in (1e-2, 1e-3, 1e-4):
    for solver in ("ode:dopri5", "adams-batch"):
        found = sm.log_prob(
            model,
            x,
            solver,
            rtol=tolerance,
            atol=tolerance,
            divergence="exact",
            prior=prior,
        )
        off[solver, tolerance] = float(
            (found.value - truth).square().mean().sqrt()
        )
        cost[solver, tolerance] = found.nfe
        print(
            f"{tolerance:9.0e}  {solver:12} {found.nfe:7}        {off[solver, tolerance]:.1e}"
        )

for tolerance in (1e-3, 1e-4):
    ours, theirs = ("adams-batch", tolerance), ("ode:dopri5", tolerance)
    assert off[ours] < off[theirs]
    assert cost[ours] < 0.7 * cost[theirs]

# %% [markdown]
# With `tol=` there is no tolerance to choose: you name the nats, and every sample gets the steps it takes.
# The same holds for latents, which are the other end of that path.
#
# ## What a solver costs besides the network
#
# On a network of about a millisecond, the [benchmark](../reference/benchmarks.md#overhead) times 50 evaluations
# of each solver against the bare network, called as often:

# %%
overhead = json.loads((results / "overhead.json").read_text())
rows = next(iter(overhead["sizes"].values()))
median = {row["solver"]: row["over_bare_network"]["median"] for row in rows}
for solver in (
    "euler-maruyama",
    "dpmpp-2m",
    "flow-abm-4",
    "ode:rk4",
    "ode:dopri5",
    "sde:euler",
    "scipy:RK45",
):
    if solver in median:
        print(f"{solver:16}{median[solver]:.2f} times the bare network")

# %% [markdown]
# ## Further reading
#
# - Hairer, Nørsett and Wanner 1993, *Solving Ordinary Differential Equations I*: multistep methods,
#   orders, and step control.
# - Karras, Aittala, Aila and Laine 2022, *Elucidating the design space of diffusion-based generative
#   models*, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364): solvers, grids and noise, one by one.
# - Lu et al. 2022, *DPM-Solver++*, [arXiv:2211.01095](https://arxiv.org/abs/2211.01095): why the linear part
#   should be integrated exactly.
# - The guide on [solvers](../solvers.md): all of them, with order, options and library.
#
# Next: [Choosing a trace estimator](choosing-a-trace.md)
