# %% [markdown]
# # Swapping solvers
#
# A name chooses which of four libraries solves the equation. This page runs
# them on the same model, from the same start and along the same noise, compares
# error and evaluations, shows what a solve reports and which arguments raise errors,
# and then reproduces the results outside the library.
# For recommendations see [choosing a solver](choosing-a-solver.md).
#
# ## In short
#
# ```python
# sm.sample(model, (64, 2), "flow-abm-4", steps=20)  # this library
# sm.sample(model, (64, 2), "ode:dopri5", rtol=1e-5)  # torchdiffeq
# sm.sample(model, (64, 2), "sde:srk", steps=100)  # torchsde
# sm.sample(model, (64, 2), "scipy:DOP853", rtol=1e-5)  # SciPy
# ```
#
# The same names work in `encode`, `decode`, `log_prob` and `solve`. A solver of
# ODEs gets the [probability flow](probability-flow.md), one of SDEs the [reverse
# SDE](reversing-time.md). If diffusers is installed, `diffusers:` with the class of
# a scheduler is a fifth family.
#
# ## The table, and how to filter it
#
# [`sm.list_solvers()`][sde_models.solvers.registry.list_solvers] is a mapping from names to
# solvers, each of which declares its properties:
# [`Solver`][sde_models.solvers.base.Solver] lists the attributes. Printed in full
# it is the [table of the guide](../solvers.md#all-of-them); it can also be filtered.

# %%
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchdiffeq
import torchsde

import sde_models as sm

table = sm.list_solvers()
print(Counter(solver.library for solver in table.values()))


def those(condition):
    return ", ".join(name for name in table if condition(table[name]))


print("\nadaptive, one evaluation a step, with gradients:")
print(those(lambda s: s.adaptive and s.evaluations == 1 and s.differentiable))
print("\norder above 1 for any SDE:")
print(those(lambda s: s.stochastic and s.order > 1 and not s.diffusion_only))
print("\nfixed steps, order 4 or more, made for diffusion:")
print(those(lambda s: not s.adaptive and s.order >= 4 and s.diffusion_only))

# %% [markdown]
# ## The ODE: the same start
#
# The model is a mixture with an exact score, so that all errors are the solver's. All
# start from the same 100 points of noise, and the reference is `ode:dopri8` at a tight
# tolerance. We vary the number of fixed steps, on the grid `"quadratic"`, and tolerances
# from 0.01 down. The legend has the slope of the last three points of each
# fixed-step solver, to be compared with the order in the table.

# %% alt="Two panels of error against evaluations: fixed-step solvers with slopes of one, two, three and four, and adaptive solvers of four libraries close together"
sde = sm.VPSDE()
mixture = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5]).double()
model = mixture.score_model(sde)
flow = sm.ProbabilityFlow(model)
span = (sde.t_max, sde.t_min)
source = torch.Generator().manual_seed(0)
z = sde.prior((2,)).sample((100,), generator=source, dtype=torch.float64)
exact = sm.solve(flow, z, span, "ode:dopri8", rtol=1e-11, atol=1e-11).x


def off(got):
    return float((got.x - exact).square().mean().sqrt())


def slope(cost, error):
    return float(-np.polyfit(np.log(cost), np.log(error), 1)[0])


fixed = ["ode:euler", "ode:midpoint", "ode:rk4", "dpmpp-2m", "flow-abm-4"]
adaptive = [
    "ode:dopri5",
    "scipy:DOP853",
    "scipy:LSODA",
    "rk-batch",
    "adams-batch",
]
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True)
for name in fixed:
    found = [
        sm.solve(flow, z, span, name, steps=n, grid="quadratic")
        for n in [e // table[name].evaluations for e in (16, 32, 64, 128, 256)]
    ]
    cost, error = [got.nfe for got in found], [off(got) for got in found]
    measured = slope(cost[-3:], error[-3:])
    panels[0].loglog(cost, error, "o-", ms=3, label=f"{name}: -{measured:.1f}")
    assert abs(measured - table[name].order) < 0.3  # steps are not yet tiny

reached = {}
for name in adaptive:
    found = [
        sm.solve(flow, z, span, name, rtol=tol, atol=tol)
        for tol in (1e-2, 1e-4, 1e-6, 1e-8)
    ]
    panels[1].loglog(
        [got.nfe for got in found],
        [off(got) for got in found],
        "o-",
        ms=3,
        label=name,
    )
    reached[name] = off(found[-1])
    assert reached[name] < 100 * 1e-8  # steps add up, and errors spread

panels[0].set(
    title="Fixed steps", xlabel="evaluations", ylabel="error per coordinate"
)
panels[1].set(title="Tolerances 1e-2 to 1e-8", xlabel="evaluations")
for panel, ticks in zip(panels, ([16, 64, 256], [30, 100, 300]), strict=True):
    panel.minorticks_off()
    panel.set_xticks(ticks, ticks)
    panel.legend(fontsize=8)
plt.show()

# %% [markdown]
# All agree in the limit, since they solve the same equation. They
# differ in cost, and none is best at all accuracies. Evaluations are counted
# per sample. With `rk-batch` and `adams-batch` samples leave the batch early,
# so that `nfe`, a mean over them, is below the `calls` of the network, which are
# also in the [`cost`][sde_models._utils.counting.Cost].
#
# ## The SDE: the same noise
#
# Two solutions of an SDE can be compared path by path only if they are driven by
# the same Brownian motion. torchsde's `BrownianInterval` is one that can be evaluated
# repeatedly, and `sm.make_solver` takes it as an option. *Strong* order is that of the mean
# distance to the solution along the same path; here the reference is a solve with
# many more steps.
#
# Usually only the law of the samples matters: *weak* convergence. Then every
# solver, including those of this library, may draw its own noise, and marginals are
# compared: on the right by the energy distance to exact samples.

# %% alt="Left: strong error of three torchsde solvers against steps, srk with the steepest slope; right: energy distances fall to the noise of sampling"
reverse = sm.ReverseSDE(model, (2,))
x = mixture.diffuse(sde, sde.t_max).sample(300, generator=source)
brownian = torchsde.BrownianInterval(
    -sde.t_max,
    -sde.t_min,
    size=x.shape,
    dtype=x.dtype,
    entropy=1,
    levy_area_approximation="space-time",
    dt=1 / 512,
    cache_size=None,
)


def along(name, steps):
    solver = sm.make_solver(name, brownian=brownian)
    return sm.solve(reverse, x, span, solver, steps=steps, grid="quadratic")


figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8))
path = along("sde:srk", 512).x
doublings = [16, 32, 64, 128]
strong = {}
for name in ("sde:euler", "sde:heun", "sde:srk"):
    error = [
        float((along(name, n).x - path).norm(dim=1).mean()) for n in doublings
    ]
    strong[name] = slope(doublings, error)
    label = f"{name}: -{strong[name]:.1f}, declared {table[name].order:g}"
    panels[0].loglog(doublings, error, "o-", ms=3, label=label)
panels[0].set(
    title="Same noise, path by path",
    xlabel="steps",
    ylabel="mean distance to the fine path",
)

panels[0].minorticks_off()
panels[0].set_xticks(doublings, doublings)

count, budgets = 2000, [8, 16, 32, 64, 128]
start = mixture.diffuse(sde, sde.t_max).sample(count, generator=source)
target = mixture.diffuse(sde, sde.t_min)
one, *others = (target.sample(count, generator=source) for _ in range(6))


def distance(samples):
    """Energy distance to exact samples; without bias, so it may be negative."""
    within = sum(torch.nn.functional.pdist(v).mean() for v in (samples, one))
    return float(2 * torch.cdist(samples, one).mean() - within)


chance = float(np.sqrt(np.mean([distance(v) ** 2 for v in others])))
weak = {}
for name in ("euler-maruyama", "sde:heun", "sde:srk", "dpmpp-2m-sde"):
    for budget in budgets:
        got = sm.solve(
            reverse,
            start,
            span,
            name,
            steps=budget // table[name].evaluations,
            grid="quadratic",
            generator=torch.Generator().manual_seed(1),
        )
        weak[name, budget] = abs(distance(got.x))
    curve = [weak[name, budget] for budget in budgets]
    panels[1].loglog(budgets, curve, "o-", ms=3, label=name)
panels[1].axhline(chance, color="C7", ls=":", label="other exact samples")
panels[1].set(
    title="Independent noise, marginals",
    xlabel="evaluations",
    ylabel="size of the energy distance",
)
panels[1].minorticks_off()
panels[1].set_xticks(budgets, budgets)
for panel in panels:
    panel.legend(fontsize=8)
plt.show()

for name, measured in strong.items():  # steps are long: it may be more
    assert -0.25 < measured - table[name].order < 0.5
assert max(weak[name, 128] for name, _ in weak) < 6 * chance
assert max(weak[name, 8] for name, _ in weak) > 20 * chance

# %% [markdown]
# `g` does not depend on the state, so Euler's method has strong order 1 here
# instead of the general one half, Milstein's method is the same,
# and Ito and Stratonovich agree. `sde:srk` gains half an order for twice the
# evaluations. At steps as long as these its error falls even faster; an order
# describes short ones. In the right panel, once the curves reach the dotted line, the
# effect of more steps is below the sampling noise.
#
# ## Options
#
# A solver with options is an object, made by
# [`sm.make_solver`][sde_models.solvers.registry.make_solver], and accepted wherever a name
# is.

# %%
for name in ("ode:dopri5", "sde:srk", "scipy:Radau", "pc", "heun-edm"):
    print(f"{name:12}", ", ".join(table[name].option_names) or "none")

careful = sm.make_solver("ode:dopri5", first_step=1e-3)
print(careful, "takes", sm.decode(model, z, careful).cost)
print("by default it takes", sm.decode(model, z, "ode:dopri5").cost)

# %% [markdown]
# ## Arguments that raise errors
#
# A tolerance given to a fixed-step solver would have no effect, contrary to the user's
# intention. So an argument that a solver cannot use raises an error that names it,
# before anything is evaluated.

# %%
import textwrap

wrong = {
    "a misspelt name": lambda: sm.make_solver("dpmpp2m"),
    "no prefix": lambda: sm.make_solver("dopri5"),
    "rtol= for fixed steps": lambda: sm.decode(model, z, "ode:rk4", rtol=1e-3),
    "steps= for a tolerance": lambda: sm.decode(model, z, "rk-batch", steps=9),
    "a grid for equal steps": lambda: sm.decode(
        model, z, "ode:explicit_adams", grid="karras"
    ),
    "an ODE solver for an SDE": lambda: sm.solve(reverse, x, span, "ode:rk4"),
    "a misspelt option": lambda: sm.make_solver("ode:dopri5", first_stp=0.1),
    "a gradient through SciPy": lambda: sm.decode(
        model, z, "scipy:RK45", gradient="direct"
    ),
}
for what, attempt in wrong.items():
    with sm.count_evaluations() as counter:
        try:
            attempt()
        except ValueError as error:
            print(f"{what}:")
            print(textwrap.indent(textwrap.fill(str(error), 76), "    "))
        else:
            raise AssertionError(f"{what} was accepted")
    assert counter.calls == 0

# %% [markdown]
# ## What a solve reports
#
# The `cost` is counted where the network runs: `nfe` per sample, `calls` in
# sequence. A hook on the network counts too, and must agree, for all
# libraries. `accepted` and `rejected` are steps; where a
# library does not report rejected steps, `rejected` is `None`.

# %%
network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
untrained = sm.ScoreModel(network, sde)
sizes = []
network.register_forward_hook(lambda *call: sizes.append(len(call[2])))
print("solver             nfe  calls  accepted  rejected")
for name in ("ode:dopri5", "scipy:RK45", "scipy:LSODA", "sde:srk", "rk-batch"):
    sizes.clear()
    fixed = {"steps": 20}
    control = {"rtol": 1e-3, "atol": 1e-3} if table[name].adaptive else fixed
    got = sm.sample(untrained, (8, 2), name, **control)
    print(
        f"{name:16}{got.nfe:6g}{len(sizes):7}{got.accepted:10}{got.rejected!s:>10}"
    )
    assert (got.nfe, got.cost.calls) == (sum(sizes) / 8, len(sizes))

# %% [markdown]
# `path=True` keeps the state at every step, `path=[...]` at times of your choice,
# and `callback=` is called after each step with an
# [`sm.Step`][sde_models.solvers.recording.Step]. Below, callbacks record the steps of three
# adaptive solvers at the same tolerance: after a short first step they
# reduce their steps as time falls and the paths curve, and the method of order 3
# needs many more of them.

# %% alt="Left: paths of the flow at chosen times; right: sizes of steps against falling time for three solvers, shorter towards the data"
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4))
times = torch.linspace(sde.t_max, sde.t_min, 40)
kept = sm.solve(flow, z[:12], span, "ode:dopri5", path=times)
panels[0].plot(kept.times, kept.path[:, :, 0], lw=1)
panels[0].set(
    title="States saved by path=", xlabel="time $t$, falling", ylabel="$x_1$"
)
panels[0].invert_xaxis()
for name in ("ode:dopri5", "scipy:RK45", "ode:bosh3"):
    nodes = [sde.t_max]
    got = sm.solve(
        flow,
        z,
        span,
        name,
        rtol=1e-4,
        atol=1e-4,
        callback=lambda step, nodes=nodes: nodes.append(float(step.t)),
    )
    sizes = -np.diff(nodes)
    panels[1].semilogy(nodes[:-1], sizes, "o-", ms=3, label=name)
    assert len(sizes) == got.accepted
panels[1].set(
    title="Steps recorded by callback=",
    xlabel="time $t$, falling",
    ylabel="size of the step",
)
panels[1].invert_xaxis()
panels[1].legend()
plt.show()
assert kept.path.shape == (40, 12, 2)

# %% [markdown]
# ## Calling the other libraries directly
#
# The systems are plain modules, so each of the other libraries can be called
# directly, with all its options. With the same nodes and the same noise the
# results are the same up to rounding. torchdiffeq controls adaptive steps by
# another norm (over the entire batch, where `sm.solve` uses the worst sample), so
# those results agree up to the tolerance.

# %%
ts = torch.linspace(sde.t_max, sde.t_min, 65, dtype=torch.float64)
by_hand = torchdiffeq.odeint(flow, z, ts, method="rk4")[-1]
ours = sm.solve(flow, z, span, "ode:rk4", grid=ts).x
print(f"torchdiffeq rk4:    {float((by_hand - ours).abs().max()):.0e}")
assert torch.allclose(by_hand, ours, atol=1e-12)  # rounding

ends = ts[[0, -1]]
by_hand = torchdiffeq.odeint(flow, z, ends, rtol=1e-8, atol=1e-8)[-1]
ours = sm.solve(flow, z, span, "ode:dopri5", rtol=1e-8, atol=1e-8).x
print(f"torchdiffeq dopri5: {float((by_hand - ours).abs().max()):.0e}")
assert torch.allclose(by_hand, ours, atol=100 * 1e-8)  # dozens of steps

steps = 64
s = reverse.span(torch.float64)
dt = float(s[1] - s[0]) / steps
again = torchsde.BrownianInterval(
    s[0], s[1], size=x.shape, dtype=x.dtype, entropy=2, dt=dt
)
by_hand = torchsde.sdeint(reverse, x, s, bm=again, dt=dt, method="euler")[-1]
solver = sm.make_solver("sde:euler", brownian=again)
ours = sm.solve(reverse, x, span, solver, steps=steps, grid="uniform").x
print(f"torchsde euler:     {float((by_hand - ours).abs().max()):.0e}")
assert torch.allclose(by_hand, ours, atol=1e-5)

# %% [markdown]
# Why is the last difference larger than rounding? torchsde adds up its steps, so
# that its nodes are off by some $10^{-16}$. The Brownian motion changes by the
# root of that, $10^{-8}$, times $g$, and the drift amplifies it.
#
# Three remarks on direct calls: torchsde needs flat states and increasing times, so
# `reverse` has the clock $s = -t$ and takes `x.flatten(1)`. With a fixed `dt` it
# ignores the spacing of `ts`, so a non-uniform grid takes one call for each of
# its steps, as in `sm.solve`. And give `BrownianInterval` its `dt=`. Without
# it, a tiny last step left by rounding makes it split the entire interval as
# finely, which does not finish.
#
# ## Further reading
#
# - Chen et al. 2018, *Neural ordinary differential equations*,
#   [arXiv:1806.07366](https://arxiv.org/abs/1806.07366): the paper behind
#   torchdiffeq.
# - Li et al. 2020, *Scalable gradients for stochastic differential equations*,
#   [arXiv:2001.01328](https://arxiv.org/abs/2001.01328), and Kidger et al. 2021,
#   *Efficient and accurate gradients for neural SDEs*,
#   [arXiv:2105.13493](https://arxiv.org/abs/2105.13493): those behind torchsde
#   and its `BrownianInterval`.
# - Kloeden and Platen 1992, *Numerical Solution of Stochastic Differential
#   Equations*: strong and weak orders, and the methods that have them.
#
# Next: [Your own SDE](your-own-sde.md)
