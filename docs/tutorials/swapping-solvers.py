# %% [markdown]
# # Swapping solvers
#
# The flow and the reverse SDE of a model are plain differential equations, and every solver of
# torchdiffeq, torchsde, SciPy, diffusers and this library can have a go at them by changing one word. This
# page changes the word, and measures what comes of it: evaluations, errors, orders. Which word to
# *choose* is said in [choosing a solver](choosing-a-solver.md).
#
# ## One word
#
# A mixture with a known score stands for your model. The noise is the same for all, and so is where the
# exact flow takes it, so that each solver's error can be told.

# %%
import matplotlib.pyplot as plt
import torch
import torchdiffeq
import torchsde

import sde_models as sm

sde = sm.VPSDE(t_min=1e-3)
mixture = sm.GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], [0.3, 0.5, 0.2]
).double()
model = mixture.score_model(sde)  # a trained sm.ScoreModel goes here too
source = torch.Generator().manual_seed(0)
noise = torch.randn(200, 2, generator=source, dtype=torch.float64)
exact = sm.decode(model, noise, solver="ode:dopri8", rtol=1e-10, atol=1e-10).x


def error(x):
    """Root mean square distance of end points, for a coordinate."""
    return float((x - exact).square().mean().sqrt())


for name, how in {
    "ode:rk4": {"steps": 10},
    "ode:dopri5": {"rtol": 1e-4, "atol": 1e-4},
    "scipy:DOP853": {"rtol": 1e-4, "atol": 1e-4},
    "diffusers:DPMSolverMultistepScheduler": {"steps": 20},
    "dpmpp-2m": {"steps": 20},
    "flow-abm-4": {"steps": 20},
}.items():
    out = sm.decode(model, noise, solver=name, **how)
    print(f"{name:38}{out.nfe:4} evaluations, off by {error(out.x):.1e}")

# %% [markdown]
# A prefix says which library runs it, none that it is this one. Arguments are those of the kind: `steps=`
# and `grid=` for fixed steps, `rtol=` and `atol=` for adaptive ones, and what a solver cannot use is
# refused by name ([troubleshooting](troubleshooting.md#solvers-and-their-arguments)).
#
# ## Work and precision
#
# Errors against counted evaluations. On these axes a method of order $p$ falls with slope $-p$; below, the
# slopes are measured and asserted, for methods from three libraries, on a grid of equal steps in the
# log-SNR.

# %% alt="Error against evaluations for eight solvers: the higher the order, the steeper the line"
fixed = {
    "ode:euler": (1, 1),
    "ode:heun2": (2, 2),
    "ode:rk4": (4, 4),
    "ddim": (1, 1),
    "dpmpp-2m": (2, 1),
    "flow-abm-4": (4, 1),
}
adaptive = ["ode:dopri5", "scipy:DOP853"]

plt.figure(figsize=(6.4, 4.2))
slopes = {}
for name, (_, evaluations) in fixed.items():
    points = []
    for budget in (40, 80, 160, 320):
        out = sm.decode(
            model, noise, solver=name, steps=budget // evaluations, grid="log-snr"
        )
        points.append((out.nfe, error(out.x)))
    plt.loglog(*zip(*points, strict=True), "o-", ms=3, label=name)
    (n, e), (m, f) = points[-2:]
    logs = torch.tensor([n, e, m, f], dtype=torch.float64).log()
    slopes[name] = float((logs[1] - logs[3]) / (logs[2] - logs[0]))
for name in adaptive:
    points = []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        out = sm.decode(model, noise, solver=name, rtol=tolerance, atol=tolerance)
        points.append((out.nfe, error(out.x)))
    plt.loglog(*zip(*points, strict=True), "s--", ms=3, label=name)
plt.gca().set(
    title="Work and precision",
    xlabel="evaluations of the network",
    ylabel="error (root mean square)",
)
plt.legend(ncols=2)
plt.show()

for name, (order, _) in fixed.items():
    print(f"{name:11} order {order}, measured {slopes[name]:.2f}")
    # The last doubling is not yet the limit of small steps.
    assert abs(slopes[name] - order) < 0.35

# %% [markdown]
# ## Solvers with noise
#
# For an SDE the word changes the path, since the noise is drawn in other places; what should agree is the
# *law* of the samples. Below, the standard deviations of 4,000 samples against those of the mixture. Two
# hundred steps bring each solver to within a few standard errors of the measurement.

# %%
target = mixture.diffuse(sde, sde.t_min).sample(200_000, generator=source).std(0)
stderr = float(target.max()) / (2 * 4000) ** 0.5
print(f"standard error of a standard deviation: {stderr:.3f}")
for name in (
    "euler-maruyama",
    "sde:heun",
    "sde:srk",
    "dpmpp-2m-sde",
    "ancestral",
):
    row = ""
    for steps in (25, 200):
        out = sm.sample(
            model, (4000, 2), solver=name, steps=steps, generator=source
        )
        off = float((out.x.std(0) - target).abs().max())
        row += f"   {out.nfe:4} evaluations, off by {off:.3f}"
    print(f"{name:15}{row}")
    assert off < 5 * stderr

# %% [markdown]
# ## Out of the library, at any line
#
# `ProbabilityFlow` is a module that torchdiffeq takes as it stands, and `ReverseSDE` one that torchsde takes.
# Nothing is lost by leaving: the two numbers below agree to the tolerance of the solve.

# %%
flow = sm.ProbabilityFlow(model)
ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
theirs = torchdiffeq.odeint(flow, noise, ends, rtol=1e-7, atol=1e-7)[-1]
ours = sm.solve(
    flow, noise, tuple(ends.tolist()), solver="ode:dopri5", rtol=1e-7, atol=1e-7
)
apart = float((theirs - ours.x).abs().max())
print(f"torchdiffeq.odeint and sm.solve differ by {apart:.0e}")
assert apart < 1e-4  # a thousand times the tolerance of a step

# %% [markdown]
# torchsde wants times that rise, and a flat state, so the reverse SDE runs on the clock $s = -t$, and `span()`
# gives its ends. From the same Brownian path the two codes take the same steps:

# %%
reverse = sm.ReverseSDE(model, (2,))
first, last = (-sde.t_max, -sde.t_min)  # those of reverse.span()
assert torch.allclose(reverse.span(), torch.tensor([first, last]))


def path():
    """The same Brownian path, made anew: it remembers where it was asked."""
    return torchsde.BrownianInterval(
        first, last, size=(200, 2), dtype=torch.float64, entropy=1
    )


theirs = torchsde.sdeint(
    reverse,
    noise,
    torch.tensor([first, last], dtype=torch.float64),
    bm=path(),
    method="euler",
    dt=(last - first) / 100,
)[-1]
ours = sm.solve(
    reverse,
    noise,
    (sde.t_max, sde.t_min),
    solver=sm.solver("sde:euler", brownian=path()),
    steps=100,
    grid="uniform",
)
apart = float((theirs - ours.x).abs().max())
print(f"torchsde.sdeint and sm.solve differ by {apart:.0e}")
assert apart < 1e-6

# %% [markdown]
# ## The table
#
# `print(sm.solvers())` shows every name and what it can do. It is a mapping, so that a question about solvers
# is a line of code:

# %%
table = sm.solvers()
print(len(table), "solvers")
questions = {
    "adaptive, for any ODE": lambda s: (
        s.adaptive and "ODE" in s.integrates and not s.diffusion_only
    ),
    "with an adjoint, order 4 and more": lambda s: s.adjoint and s.order >= 4,
    "of SDEs, one evaluation a step": lambda s: (
        "SDE" in s.integrates and s.evaluations == 1
    ),
}
for question, answer in questions.items():
    found = [name for name, solver in table.items() if answer(solver)]
    print(f"\n{question}:")
    for i in range(0, len(found), 4):
        print("   ", ", ".join(found[i : i + 4]))
    assert found

# %% [markdown]
# ## Options
#
# Where a solver has options, `sm.solver(name, ...)` sets them, and what it gives goes wherever a name does:

# %%
for solver in (
    sm.solver("ode:dopri5", first_step=0.05),
    sm.solver("pc", predictor="reverse-diffusion", snr=0.1),
    sm.solver("sde:heun", brownian="interval"),
):
    print(solver)

try:
    sm.solver("ode:dopri5", frist_step=0.05)
except ValueError as problem:
    print(problem)
else:
    raise AssertionError("a misspelt option was let through")

# %% [markdown]
# ## What comes back
#
# The answer, its cost, and on request the way. `nfe` counts evaluations where they happen; an adaptive
# solver says how many steps it accepted and rejected; `path=` keeps states, all or those at given times;
# `callback=` is called after each step.

# %% alt="Twelve paths from noise at the right to three modes at the left"
steps = []
out = sm.solve(
    flow,
    noise[:12],
    (sde.t_max, sde.t_min),
    solver="ode:dopri5",
    path=torch.linspace(sde.t_max, sde.t_min, 60),
    callback=lambda step: steps.append(float(step.t)),
)
print(
    f"{out.nfe} evaluations, {out.accepted} steps accepted, {out.rejected} rejected"
)
print("times of the first steps", [round(t, 3) for t in steps[:5]])

plt.plot(out.times, out.path[:, :, 0])
plt.gca().set(title="Paths of the flow", xlabel="time $t$", ylabel="$x_1$")
plt.show()
assert len(steps) == out.accepted

# %% [markdown]
# ## On the command line
#
# ```sh
# sde-models solvers
# sde-models sample runs/digits --solver flow-abm-4 --steps 20 --out samples.png
# sde-models sample runs/digits --solver ode:dopri5 --rtol 1e-4 --atol 1e-4 --out samples.png
# ```
#
# ## Further reading
#
# - Chen 2018, [torchdiffeq](https://github.com/rtqichen/torchdiffeq), and Li, Wong, Chen and Duvenaud 2020,
#   *Scalable gradients for stochastic differential equations*,
#   [arXiv:2001.01328](https://arxiv.org/abs/2001.01328), for torchsde.
# - Kloeden and Platen 1992, *Numerical Solution of Stochastic Differential Equations*: strong and weak
#   orders.
# - The guide on [solvers](../solvers.md): what is done so that each method is right here, and what is
#   left out.
#
# Next: [Your own SDE](your-own-sde.md)
