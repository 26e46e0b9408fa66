# %% [markdown]
# # Choosing a solver
#
# There are dozens of solvers. First the recommendations in a table,
# then the measurements behind it. Its figures come from the
# [benchmarks](../reference/benchmarks.md) in the repository, read when this page
# was built, or from the cells below, and a row whose solver is no longer the
# best one stops the build. The equations are those of [the probability
# flow](probability-flow.md) and of [reversing time](reversing-time.md).
#
# ## In short
#
# *Error* is the root-mean-square distance, per coordinate, to the end point of the
# exact flow. It is the geometric mean over seven models: six mixtures in 2 and 64
# dimensions, and a network trained on digits. Every solver was tried on every grid.
# The first cell reads the files, the second makes the table.

# %%
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

import sde_models as sm


def read(name):
    """One of the benchmarks' results, as stored in the repository."""
    return json.loads(Path(f"../../benchmarks/results/{name}.json").read_text())


samplers, control = read("samplers"), read("step_control")
timed, densities = read("overhead"), read("likelihood")["rows"]
flows = [r for r in samplers if "budget" in r and "stochastic" not in r]
noisy = [r for r in samplers if "stochastic" in r]


def errors(solver, grid, evaluations):
    """Error of a solver of the flow on each model."""
    chosen = (solver, grid, evaluations)
    return {
        r["problem"]: r["error"]
        for r in flows
        if (r["solver"], r["variant"], r["budget"]) == chosen
    }


def typical(solver, grid, evaluations):
    """Geometric mean of these errors."""
    return math.exp(np.log([*errors(solver, grid, evaluations).values()]).mean())


def worst_distance(solver, grid, evaluations):
    """Largest energy distance of a solver of the SDE, over the models."""
    chosen = (solver, grid, evaluations)
    return max(
        abs(r["error"])
        for r in noisy
        if (r["solver"], r["variant"], r["budget"]) == chosen
    )


few = {10: "flow-abm-3", 20: "flow-abm-4", 50: "flow-abm-5"}
for evaluations, solver in few.items():
    for model, error in errors(solver, "adapted", evaluations).items():
        others = [
            r["error"]
            for r in flows
            if (r["problem"], r["budget"]) == (model, evaluations)
        ]
        assert error <= 1.5 * np.nanmin(others)  # of all libraries

ours = {
    (r["solver"], r["variant"]) for r in noisy if r["library"] == "sde_models"
}
assert min(ours, key=lambda s: worst_distance(*s, 20)) == (
    "dpmpp-3m-sde",
    "log-snr",
)

# %%
each, adaptive = control["rk-batch"], control["adaptive-sde"]
shares = [r["ratio"] for r in each]
prices = [r["ratio"] for r in adaptive]
assert max(shares) < 1


def density(model, name):
    """Error in nats and cost of a method for log-densities."""
    return next(
        (r["error"], r["cost"])
        for r in densities
        if (r["model"], r["method"]) == (model, name)
    )


ours_at_tol, recipe = (
    density("digits", name) for name in ("tol = 10 nats", "SciPy RK45, 1 probe")
)
assert ours_at_tol[0] < recipe[0]  # error
assert ours_at_tol[1] < recipe[1]  # cost
call, small = min(timed["sizes"].items())
times = {r["solver"]: r["over_bare_network"]["median"] for r in small}


def measured(name):
    return f"[benchmark](../reference/benchmarks.md#{name})"


rows = [
    (
        f"samples, {n} evaluations",
        f"`{solver}`",
        "adapted",
        f"error {typical(solver, 'adapted', n):.1g}; `dpmpp-2m`, default grid: "
        f"{typical('dpmpp-2m', 'log-snr', n):.1g}",
        measured("samplers"),
    )
    for n, solver in few.items()
] + [
    (
        "the same, without an adapted grid",
        "`flow-abm-4`",
        '`"quadratic"`',
        f"error {typical('flow-abm-4', 'quadratic', 20):.1g} at 20",
        measured("samplers"),
    ),
    (
        "samples by the SDE",
        "`dpmpp-3m-sde`",
        '`"log-snr"`',
        f"energy distance {worst_distance('dpmpp-3m-sde', 'log-snr', 20):.1g} or "
        "less at 20",
        measured("samplers"),
    ),
    (
        "the SDE, without a choice of grid",
        "`adaptive-sde`",
        "`rtol=`, `atol=`",
        f"{min(prices):.1f} to {max(prices):.1f} times Euler-Maruyama's "
        "evaluations on its best grid",
        measured("step-control"),
    ),
    (
        "an accuracy for each sample",
        "`rk-batch`",
        "`rtol=`, `atol=`",
        f"{np.mean(shares):.2f} of the passes of `ode:dopri5`",
        measured("step-control"),
    ),
    (
        "latents",
        "the default, `rk-batch`; `adams-batch` for sharp data",
        "`rtol=`, `atol=`",
        "errors small in units of x; in noise units",
        "[below](#densities-and-latents-noise-units)",
    ),
    (
        "likelihoods",
        "the default, `adams-batch`",
        "`tol=` in nats",
        f"{ours_at_tol[0]:.2f} nats for {ours_at_tol[1]:.0f} passes; the usual recipe "
        f"{recipe[0]:.1f} for {recipe[1]:.0f}",
        measured("likelihood"),
    ),
    (
        "gradients",
        "any of ours; `ode:dopri5` with `gradient='adjoint'` to save memory",
        "",
        "see the column *gradients* of the [table](../solvers.md#all-of-them)",
        "[gradients](gradients.md)",
    ),
    (
        "your own ODE",
        "`rk-batch`, `ode:dopri5`",
        "`rtol=`, `atol=`",
        "any equation",
        "[your own SDE](your-own-sde.md)",
    ),
    (
        "your own SDE",
        "`euler-maruyama`, `sde:srk`",
        '`"uniform"`',
        "any equation; order 1.5 for additive noise",
        "[swapping](swapping-solvers.md#the-sde-the-same-noise)",
    ),
    (
        f"little overhead: a network of {call}",
        "`flow-abm-4`, fixed steps",
        "",
        f"{times['flow-abm-4']:.2f} times the network's time; `rk-batch` "
        f"{times['rk-batch']:.2f}, `adams-batch` {times['adams-batch']:.2f}",
        measured("overhead"),
    ),
    (
        "fewer rounds, on an idle GPU",
        "`picard`",
        "that of the method",
        "fewer passes, of larger batches",
        "[below](#an-idle-gpu)",
    ),
    (
        "a comparison with a paper",
        "its own: `ddim`, `heun-edm`, `pc`, or `diffusers:` and a scheduler",
        "the paper's",
        f"{len({r['solver'] for r in samplers if r['library'] == 'diffusers'})} of "
        "diffusers' methods were measured",
        measured("samplers"),
    ),
]
heading = [("for", "use", "grid or tolerance", "result", "measured")]
table = [*heading, ("---",) * 5, *rows]
Markdown("\n".join("| " + " | ".join(row) + " |" for row in table))

# %% [markdown]
# The second row in code; an adapted grid takes one line:
#
# ```python
# grid = sm.adapt_grid(model)
# sm.sample(model, (64, 2), "flow-abm-4", steps=19, grid=grid)  # 20 evaluations
# ```
#
# ## Error against evaluations
#
# A smaller version, computed here: a mixture in the plane with its exact score, so
# that all errors are the solver's. The reference is [`decode`][sde_models.sampling.latents.decode] at
# a tolerance far below all others. On logarithmic axes a solver of order $k$ becomes
# a line of slope $-k$. Look at the slopes on the right, and at the ranking of the
# curves on the left, where samplers are used.

# %% alt="Error falls with evaluations at slopes one, two, three and four; flow-abm-3 is lowest at ten, flow-abm-4 from twenty to forty, rk-batch beyond"
sde = sm.VPSDE()
source = torch.Generator().manual_seed(0)
modes = torch.randn(8, 2, generator=source, dtype=torch.float64)
stds = 0.05 + 0.35 * torch.rand(8, generator=source, dtype=torch.float64)
mixture = sm.GaussianMixture(modes, stds)
model = mixture.score_model(sde)
z = sde.prior((2,)).sample((200,), generator=source, dtype=torch.float64)
exact = sm.decode(model, z, "ode:dopri8", rtol=1e-10, atol=1e-10).x


def off(got):
    return float((got.x - exact).square().mean().sqrt())


budgets = np.array([10, 20, 40, 80, 160, 320])
curves = {}
plt.figure(figsize=(6.4, 4))
for name in ("ddim", "dpmpp-2m", "flow-abm-3", "flow-abm-4"):
    solver = sm.make_solver(name)
    found = [
        sm.decode(model, z, solver, steps=n, grid="quadratic")
        for n in (budgets // solver.evaluations).tolist()
    ]
    cost, error = [got.nfe for got in found], [off(got) for got in found]
    slope = -np.polyfit(np.log(cost[-3:]), np.log(error[-3:]), 1)[0]
    plt.loglog(cost, error, "o-", ms=4, label=f"{name}, slope -{slope:.1f}")
    curves[name] = error
    assert abs(slope - solver.order) < 0.5  # not yet the limit of short steps

found = [
    sm.decode(model, z, "rk-batch", rtol=tol, atol=tol)
    for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
]
passes = [got.nfe for got in found]
plt.loglog(passes, [off(got) for got in found], "x--", label="rk-batch")
plt.gca().set(
    title='Mixture in the plane, grid "quadratic"',
    xlabel="evaluations of the network per sample",
    ylabel="error per coordinate",
)
plt.legend(fontsize=9)
plt.show()

assert curves["flow-abm-4"][1] < curves["dpmpp-2m"][1] / 3
assert curves["dpmpp-2m"][1] < curves["ddim"][1] / 3

# %% [markdown]
# At ten evaluations the steps are so long that order three is as good as four;
# a higher order helps from twenty on, which is why the recommendation changes between
# 10 and 50. The dashed line is `rk-batch` at tolerances from 0.1 to one in a million. It
# is a poor choice for twenty evaluations, and beyond some forty it is the best in
# the picture, since it chooses the steps of each sample separately.
#
# ## The grid matters as much
#
# A grid is the list of times between which a solver steps. This figure is from the
# benchmark's file: two solvers, twenty evaluations, and a dot for each of the seven
# models. Compare the differences between columns with those between colours.

# %% alt="Errors at 20 evaluations on five grids: uniform is worst, quadratic best for dpmpp-2m, adapted best for flow-abm-4"
grids = ["uniform", "karras", "log-snr", "quadratic", "adapted"]
plt.figure(figsize=(6.4, 3.6))
for shift, solver in ((-0.1, "dpmpp-2m"), (0.1, "flow-abm-4")):
    dots = np.array([[*errors(solver, grid, 20).values()] for grid in grids])
    plt.semilogy(np.arange(5) + shift, dots, "o", ms=4, color=f"C{shift > 0:d}")
    plt.semilogy(
        np.arange(5) + shift,
        [typical(solver, grid, 20) for grid in grids],
        "_-",
        ms=16,
        lw=1,
        color=f"C{shift > 0:d}",
        label=solver,
    )
plt.xticks(range(5), grids)
plt.gca().set(
    title="20 evaluations: seven models (dots), their mean (line)",
    xlabel="grid",
    ylabel="error per coordinate",
)
plt.legend()
plt.show()

with sm.count_evaluations() as counter:
    sm.adapt_grid(model, (2,), generator=source)
print(f"adapt_grid: passes of {counter.rows / 20:.0f} samples at 20 evaluations")
for solver in ("dpmpp-2m", "flow-abm-4"):
    means = {grid: typical(solver, grid, 20) for grid in grids}
    best = min(means, key=means.get)
    print(f"{solver:10} best on {best!r}: {means[best]:.1e}, ", end="")
    print(f"on 'uniform' {means['uniform'] / means[best]:.0f} times as much")
assert typical("flow-abm-4", "adapted", 20) == min(
    typical("flow-abm-4", grid, 20) for grid in grids
)
assert typical("dpmpp-2m", "quadratic", 20) < typical("dpmpp-2m", "adapted", 20)

# %% [markdown]
# [`adapt_grid`][sde_models.sampling.adapted_grids.adapt_grid] runs an accurate solver
# once and puts nodes where that needed many; its cost, paid once per
# model, is in the first line above. It suits methods of high order. For
# `dpmpp-2m`, which works in another variable, `"quadratic"` or `"karras"` is the
# better choice; the default is `"log-snr"`.
#
# ## Steps or a tolerance
#
# Fixed steps have a known cost and an unknown error, a tolerance the reverse.
# How well does a tolerance predict the error? From the benchmark's file,
# error divided by tolerance:

# %%
for solver in ("rk-batch", "ode:dopri5", "scipy:DOP853"):
    own = [r for r in samplers if r.get("adaptive") and r["solver"] == solver]
    ratios = [
        r["error"] / float(r["variant"].removeprefix("tolerance ")) for r in own
    ]
    cost = [r["evaluations"] for r in own if r["variant"].endswith(" 0.001")]
    print(
        f"{solver:13} error / tolerance {min(ratios):5.2f} to {max(ratios):5.1f}, "
        f"at 0.001 for {np.mean(cost):3.0f} evaluations"
    )

# %% [markdown]
# A tolerance bounds the error of a step, not that of the result, and the output
# shows how much the two may differ. To check, divide it by ten and compare.
# `rk-batch` gives each sample its own time and its own steps: easy samples finish
# early, and a result does not depend on the rest of the batch.

# %%
for name in ("ode:dopri5", "rk-batch"):
    together = sm.decode(model, z, name, rtol=1e-3, atol=1e-3)
    alone = sm.decode(model, z[:1], name, rtol=1e-3, atol=1e-3)
    moved = float((together.x[:1] - alone.x).abs().max())
    print(f"{name:10} first sample: {moved:.0e} between the batch and alone")
assert moved < 1e-9  # rounding, for rk-batch

# %% [markdown]
# For sampling fixed steps are simpler: their cost is known in advance, and
# the error in the table's second row is small compared with the spread of the data,
# about one.
#
# ## SDE or ODE
#
# Both have the same marginals when the score is exact and steps are short. With
# long steps they differ: the cell prints the energy distance to exact samples of the
# mixture, and that between two sets of exact samples, the noise level.

# %%
count = 2000
target = mixture.diffuse(sde, sde.t_min)
draw = torch.Generator().manual_seed(1)
one, other = (target.sample(count, generator=draw) for _ in range(2))


def spread(x):
    return torch.nn.functional.pdist(x).mean()  # over pairs of different points


def distance(x):
    """Energy distance to exact samples; without bias, so it may be negative."""
    return float(2 * torch.cdist(x, one).mean() - (spread(x) + spread(one)))


choices = {
    "flow-abm-3": "quadratic",
    "euler-maruyama": "quadratic",
    "ancestral": "log-snr",
    "dpmpp-3m-sde": "log-snr",
}
print(f"other exact samples {distance(other):+.4f}")
print(f"{'evaluations':15}" + "".join(f"{n:9}" for n in (10, 20, 50, 100)))
law = {}
for name, grid in choices.items():
    for n in (10, 20, 50, 100):
        again = torch.Generator().manual_seed(3)
        got = sm.sample(
            model, (count, 2), name, steps=n, grid=grid, generator=again
        )
        law[name, n] = distance(got.x)
    print(
        f"{name:15}" + "".join(f"{law[name, n]:9.4f}" for n in (10, 20, 50, 100))
    )

assert abs(law["flow-abm-3", 10]) < 5e-3 < law["dpmpp-3m-sde", 10]
assert max(abs(law[name, 100]) for name in choices) < 5e-3
for grid in ("uniform", "log-snr", "quadratic", "adapted"):  # see below
    euler = worst_distance("euler-maruyama", grid, 20)
    assert worst_distance("dpmpp-3m-sde", "log-snr", 20) < euler / 2

# %% [markdown]
# The flow reaches the noise level with ten evaluations, the SDE solvers later.
# Which of these is best depends on the model. On this one
# Euler-Maruyama on a good grid suffices. Over the three models of the
# benchmark its worst distance is more than twice that of `dpmpp-3m-sde` at twenty
# evaluations, on any grid, and the table names the solver whose worst is best.
#
# The advantage of an SDE is noise that [reduces
# errors](reversing-time.md#what-the-corrector-is-for) made earlier, such as those
# of a learned score. Only a comparison on your data shows whether yours has such
# errors: compare the flow with an SDE at 50 or more evaluations.
#
# ## Densities and latents: noise units
#
# At $t_\text{min}$ the density varies over lengths of $\sigma(t_\text{min})$. A
# step that is off by a thousandth of the data may be off by several such lengths. The
# cell encodes with three solvers, decodes the latents accurately, and prints the distance
# from the data in units of $\sigma(t_\text{min})$, and the error of
# log-densities by the same solver and tolerance. The data lie within thin clumps
# in 8 dimensions.

# %%
source = torch.Generator().manual_seed(6)
clumps = sm.GaussianMixture(
    torch.randn(3, 8, generator=source, dtype=torch.float64), 0.003
)
sharp = clumps.score_model(sde)
x = clumps.diffuse(sde, sde.t_min).sample(16, generator=source)
truth = clumps.diffuse(sde, sde.t_min).log_prob(x)
prior = clumps.diffuse(sde, sde.t_max)
sigma = float(sde.sigma(torch.tensor(sde.t_min)))
print(f"sigma at t_min: {sigma:.4f}")
print("tolerance  solver       nfe  noise units   nats  reported")
units, nats, code = {}, {}, {}
for tol in (1e-2, 1e-3):
    for key in ((n, tol) for n in ("ode:dopri5", "rk-batch", "adams-batch")):
        same = {"rtol": tol, "atol": tol}
        code[key] = sm.encode(sharp, x, key[0], **same)
        back = sm.decode(
            sharp, code[key].z, "ode:dopri8", rtol=1e-10, atol=1e-10
        ).x
        units[key] = float((back - x).square().mean(1).sqrt().max()) / sigma
        lp = sm.log_prob(
            sharp, x, key[0], divergence="exact", prior=prior, **same
        )
        nats[key] = float((lp.value - truth).abs().max())
        print(
            f"{tol:9}  {key[0]:11}{code[key].nfe:5.0f}{units[key]:13.3f}"
            f"{nats[key]:7.3f}{float(lp.error.max()):10.2f}"
        )

for tol in (1e-2, 1e-3):
    assert units["adams-batch", tol] < units["rk-batch", tol] / 3
assert units["adams-batch", 1e-2] < units["rk-batch", 1e-3] / 3
assert nats["adams-batch", 1e-2] < nats["ode:dopri5", 1e-2] / 2

# %% [markdown]
# Hundreds or thousands in a line mean that a point ended in another clump.
# `adams-batch` measures its errors in units of $\sigma(t)$ along the path: at 0.01
# its latents are several times better than those of the others at 0.001. In the
# log-density such errors partly cancel, and the difference is smaller.
# `log_prob` also gains by `adams-batch`: the reported error in the last column
# needs no second, coarser solve, and `tol=` is available. With any
# other solver choose `atol` well below $\sigma(t_\text{min})$.
#
# [Choosing a trace estimator](choosing-a-trace.md) covers the other half of a
# likelihood.
#
# ## An idle GPU
#
# `picard` runs a multistep method on many steps at once, and repeats until they
# agree: fewer rounds, each with a batch larger by the factor of the window. It is for a
# batch too small to fill the device, such as one image at a time.

# %%
print("steps  window  rounds  nfe / round      error  one after another")
for steps in (50, 200):
    method = {"steps": steps, "grid": "quadratic"}
    plain = sm.decode(model, z, "flow-abm-3", **method)
    for window in (16, steps):
        at_once = sm.make_solver("picard", method="flow-abm-3", window=window)
        got = sm.decode(model, z, at_once, **method)
        print(
            f"{steps:5}{window:8}{got.cost.calls:8}"
            f"{got.nfe / got.cost.calls:13.1f}  "
            f"{off(got):9.1e}{off(plain):19.1e}"
        )
        assert got.cost.calls < plain.cost.calls / 2
        assert off(got) < 1.5 * off(plain)

# %% [markdown]
# Rounds are the `calls` of the cost, and in each the network evaluates a sample at
# several nodes. There are fewer rounds than steps, but more evaluations in total, so
# on a device that is already busy `picard` is slower.
#
# ## Further reading
#
# - The guide on [solvers](../solvers.md): all names, options and papers.
# - Karras et al. 2022, *Elucidating the design space of diffusion-based
#   generative models*, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364):
#   grids and solvers as separate choices.
# - Lu et al. 2022, *DPM-Solver++*,
#   [arXiv:2211.01095](https://arxiv.org/abs/2211.01095), and Zhao et al. 2023,
#   *UniPC*, [arXiv:2302.04867](https://arxiv.org/abs/2302.04867): few
#   evaluations.
# - Hairer, Nørsett and Wanner, *Solving Ordinary Differential Equations I*:
#   orders, tolerances and multistep methods.
# - Shih et al. 2023, *Parallel sampling of diffusion models*,
#   [arXiv:2305.16317](https://arxiv.org/abs/2305.16317): the method of `picard`.
#
# Next: [Choosing a trace estimator](choosing-a-trace.md)
