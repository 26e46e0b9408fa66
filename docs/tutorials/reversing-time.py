# %% [markdown]
# # Reversing time
#
# A forward SDE turns data into noise. Its reversal turns noise into data, and needs only one more
# quantity: the score. This page derives the reverse SDE, tests it on
# a case where every *marginal*, the law at a single time, is known, and solves it by a loop, with
# torchsde, and with the library. You will know what the predictor and the corrector of Song et al. do,
# how the parameter $\eta$ interpolates between them, and how they compare at equal cost.
#
# ## Anderson's theorem
#
# Let $dx = f(t, x)\,dt + g(t)\,dB$ have densities $p_t$. These obey the [Fokker-Planck
# equation](ornstein-uhlenbeck.md#the-fokker-planck-equation): the density is transported by the drift
# and spread by the noise:
#
# $$
# \frac{\partial p_t}{\partial t} = -\nabla \cdot (f p_t) + \tfrac12 g^2 \Delta p_t .
# $$
#
# Now reverse the clock: $s = -t$, and $q_s = p_{-s}$. Every sign changes:
#
# $$
# \frac{\partial q_s}{\partial s} = \nabla \cdot (f q_s) - \tfrac12 g^2 \Delta q_s .
# $$
#
# The last term would be noise that *concentrates*, which does not exist. But a drift can also
# concentrate a density. Since $\nabla q = q\, \nabla \log q$, we have
# $\Delta q = \nabla \cdot (q\, \nabla \log q)$, and therefore
#
# $$
# -\tfrac12 g^2 \Delta q = +\tfrac12 g^2 \Delta q - g^2 \Delta q
# = \tfrac12 g^2 \Delta q - \nabla \cdot \big( g^2 \,\nabla \log q \; q \big) .
# $$
#
# Inserted, this gives a proper Fokker-Planck equation, with positive noise, for the same $q_s$:
#
# $$
# \frac{\partial q_s}{\partial s} = -\nabla \cdot \big( [-f + g^2\, \nabla \log q_s]\, q_s \big)
# + \tfrac12 g^2 \Delta q_s .
# $$
#
# It belongs to the *reverse SDE*. In the old clock, with $dt < 0$ and $\bar B$ a Brownian motion that
# runs backwards,
#
# $$
# dx = \big[ f(t, x) - g(t)^2\, \nabla \log p_t(x) \big]\, dt + g(t)\, d\bar B .
# $$
#
# Started from $p_{t_\text{max}}$ it has the density $p_t$ at each $t$, provided that the equation has
# a unique solution, as it does for coefficients of moderate growth. Anderson (1982) proved more: not
# only the density at each time but the law of entire paths is that of the forward SDE. Haussmann and
# Pardoux (1986) give the precise conditions.
#
# ## Written out, and with a test that can fail
#
# The data are a mixture in one dimension. [`score_model`][sde_models.models.gaussian_mixture.GaussianMixture.score_model]
# gives its exact score at every time, so no error is due to a network. One step of
# Euler-Maruyama is two lines. We also run it with half of the score term, to see whether the
# test detects that.

# %%
import matplotlib.pyplot as plt
import torch
import torchsde
from scipy.stats import kstest

import sde_models as sm

sde = sm.VPSDE()
mixture = sm.GaussianMixture([[-1.0], [0.8]], [0.15, 0.4], weights=[0.4, 0.6])
model = mixture.score_model(sde)
count, steps = 4000, 400
clock = torch.linspace(sde.t_max, sde.t_min, steps + 1)


def reverse(score_weight):
    """The states at all times, shape (steps + 1, count, 1)."""
    generator = torch.Generator().manual_seed(0)
    x = sde.prior((1,)).sample((count,), generator=generator)
    states = [x]
    for t, dt in zip(clock[:-1], clock.diff(), strict=True):
        drift = sde.f(t, x) - score_weight * sde.g(t, x) ** 2 * model.score(t, x)
        noise = torch.randn(x.shape, generator=generator)
        x = x + drift * dt + sde.g(t, x) * dt.abs().sqrt() * noise
        states.append(x)
    return torch.stack(states)


right, wrong = reverse(1.0), reverse(0.5)

# %% [markdown]
# The marginals of the forward SDE are mixtures too
# ([`diffuse`][sde_models.models.gaussian_mixture.GaussianMixture.diffuse]), so we can test at each of five times
# whether the samples have the right distribution. The Kolmogorov-Smirnov
# test takes the largest distance between the distribution function of the samples and the exact
# one, and turns it into a p-value. With five tests we raise an alarm when one p-value is below
# 0.01/5: if the theorem is right, and the steps short enough, this is a false alarm in at most one
# run of 100.

# %%
looks = [120, 220, 280, 340, 400]


def distribution_function(density):
    weights, stds = density.log_weights.exp(), density.variances[:, 0].sqrt()

    def cdf(x):
        z = (torch.as_tensor(x).float()[..., None] - density.means[:, 0]) / stds
        return (torch.special.ndtr(z) @ weights).numpy()

    return cdf


def p_values(states, times):
    return [
        kstest(
            x[:, 0].numpy(), distribution_function(mixture.diffuse(sde, t))
        ).pvalue
        for x, t in zip(states, times, strict=True)
    ]


def show(label, values):
    print(f"{label:20}", *(f"{p:9.2g}" for p in values))


show("time", clock[looks])
show("p, reverse SDE", p_values(right[looks], clock[looks]))
show("p, half the score", p_values(wrong[looks], clock[looks]))
assert min(p_values(right[looks], clock[looks])) > 0.01 / 5
assert min(p_values(wrong[looks], clock[looks])) < 1e-9

# %% alt="Histograms of the reverse SDE at five times lie on the exact densities; with half the score they are too wide"
figure, panels = plt.subplots(1, 5, figsize=(11, 2.6), sharex=True)
line = torch.linspace(-3.5, 3.5, 400)[:, None]
for panel, k in zip(panels, looks, strict=True):
    options = {"bins": 60, "range": (-3.5, 3.5), "density": True}
    panel.hist(right[k, :, 0], alpha=0.4, label="reverse SDE", **options)
    panel.hist(wrong[k, :, 0], histtype="step", label="half the score", **options)
    exact = mixture.diffuse(sde, clock[k]).log_prob(line).exp()
    panel.plot(line, exact, "C2", label="exact")
    panel.set(title=f"t = {clock[k]:.2f}", xlabel="$x$")
panels[0].set_ylabel("density")
panels[-1].legend(fontsize=7, loc="upper right")
plt.show()

# %% [markdown]
# The reverse SDE passes at all times, and half the score does not: with half the drift, the noise
# spreads the samples more than the drift concentrates them.
#
# ## The same with torchsde and with `sample`
#
# [`ReverseSDE`][sde_models.models.systems.ReverseSDE] has that drift and that noise. torchsde requires
# increasing time, so it gets the clock $s = -t$, from $-t_\text{max}$ to $-t_\text{min}$, and any of
# its methods may be used. The function [`sample`][sde_models.sampling.samples.sample] draws from the
# prior, runs a solver from the [table](../solvers.md), and counts evaluations.

# %%
reverse_sde = sm.ReverseSDE(model, (1,))
start = sde.prior((1,)).sample(
    (count,), generator=torch.Generator().manual_seed(1)
)
span = reverse_sde.span()
noise = torchsde.BrownianInterval(
    span[0], span[1], size=(count, 1), dtype=start.dtype, entropy=1
)
by_torchsde = torchsde.sdeint(
    reverse_sde, start, span, bm=noise, dt=1 / steps, method="euler"
)[-1]

generator = torch.Generator().manual_seed(2)
drawn = sm.sample(
    model, (count, 1), "euler-maruyama", steps=100, generator=generator
)

both = p_values([by_torchsde, drawn.x], [sde.t_min, sde.t_min])
show("torchsde, sample: p", both)
print(f"sm.sample took {drawn.nfe:g} evaluations")
assert min(both) > 0.01 / 2

# %% [markdown]
# Both pass, `sample` with a hundred steps. The choice of these steps is the subject of
# the last exercise and of [choosing a solver](choosing-a-solver.md).
#
# ## Eta: the amount of noise
#
# In the derivation we turned $-\tfrac12 g^2 \Delta q$ into noise of full strength. Any other amount
# is possible. For $\eta \ge 0$,
#
# $$
# -\tfrac12 g^2 \Delta q
# = \tfrac12 \eta^2 g^2 \Delta q - \nabla \cdot \Big( \tfrac{1 + \eta^2}{2} g^2 \,\nabla \log q \; q \Big),
# $$
#
# which gives a family of SDEs with the same marginals:
#
# $$
# dx = \Big[ f - \tfrac{1 + \eta^2}{2}\, g^2\, \nabla \log p_t \Big]\, dt + \eta\, g\, d\bar B .
# $$
#
# With $\eta = 1$ this is Anderson's; with $\eta = 0$ there is no noise, and it is
# the [probability-flow ODE](probability-flow.md). The paths below start at the same three points.
# The end points of all samples are tested as before, by four tests with at most one false alarm in
# 100 runs.

# %% alt="Paths back in time for eta 0, 0.5, 1 and 2: smooth at first, then rougher and rougher, all ending in the two modes"
figure, panels = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True)
ends = {}
for panel, eta in zip(panels, (0.0, 0.5, 1.0, 2.0), strict=True):
    solution = sm.solve(
        sm.ReverseSDE(model, (1,), eta=eta),
        torch.cat([torch.tensor([[-1.2], [0.0], [1.2]]), start]),
        (sde.t_max, sde.t_min),
        "euler-maruyama",
        steps=300,
        path=True,
        generator=torch.Generator().manual_seed(3),
    )
    panel.plot(solution.times, solution.path[:, :3, 0], lw=1)
    panel.set(title=rf"$\eta$ = {eta:g}", xlabel="time $t$, falling")
    panel.invert_xaxis()
    ends[eta] = solution.x[3:]
panels[0].set_ylabel("$x_t$")
plt.show()

values = p_values(ends.values(), [sde.t_min] * len(ends))
show("eta", ends)
show("p at t_min", values)
assert min(values) > 0.01 / 4

# %% [markdown]
# Very different paths, the same distribution at the end.
#
# ## Where the SDE ends and the corrector begins
#
# Sort the terms of the family by $\eta$:
#
# $$
# dx = \underbrace{\big[ f - \tfrac12 g^2\, \nabla \log p_t \big]\, dt}_{\text{probability flow}}
# \;+\; \underbrace{- \tfrac12 \eta^2 g^2\, \nabla \log p_t\, dt + \eta\, g\, d\bar B}_{\text{Langevin dynamics at level } t} .
# $$
#
# The second part is [Langevin dynamics](scores-and-langevin.md), which leaves $p_t$ unchanged: a
# step $x \leftarrow x + \varepsilon\, \nabla \log p_t + \sqrt{2 \varepsilon}\, z$ with $\varepsilon
# = \tfrac12 \eta^2 g^2 |dt|$ (half of the $\epsilon$ of that page). So a step of the reverse SDE *is* a
# step of the flow, which moves samples from $p_t$ to $p_{t+dt}$, plus a step of Langevin dynamics,
# which brings samples with a slightly wrong law closer to $p_t$. This is not an approximation: the two
# steps are numerically the same.

# %%
t, dt, eta = torch.tensor(0.4), -0.01, 1.3
x, z = start, torch.randn(start.shape, generator=generator)
system = sm.ReverseSDE(model, (1,), eta=eta)
single = (
    x + system.drift(t, x) * dt + system.noise_scale(t, x) * abs(dt) ** 0.5 * z
)

flow_step = x + sm.ProbabilityFlow(model)(t, x) * dt
epsilon = 0.5 * (eta * sde.diffusion(t)) ** 2 * abs(dt)
both = flow_step + epsilon * model.score(t, x) + (2 * epsilon).sqrt() * z
print(f"largest difference {float((single - both).abs().max()):.0e}")
assert torch.allclose(single, both, atol=1e-5)  # float32, numbers of size 1

# %% [markdown]
# A *predictor-corrector* sampler (Song et al. 2021) separates the two. The **predictor** moves to
# the next time: one step of a solver of the reverse SDE or of the flow. The **corrector** then
# takes Langevin steps at that time, of any number and length; in the SDE
# their length is determined by $dt$. One extreme is a predictor alone, the other a corrector
# alone: annealed Langevin dynamics, the solver `ald`. In between is `pc`, with options
# `predictor`, `corrector`, `corrector_steps`, and `snr`, which sets the step to about $\varepsilon
# = 2\, (\mathrm{snr}\; \sigma_t)^2$.
#
# ## With and without, at equal evaluations
#
# A corrector step costs an evaluation, and so does one more step of the predictor. Which
# improves samples more? The predictor here is the default one, `reverse-diffusion`, on the default grid. We
# measure the energy distance to the exact distribution, which in one dimension is $2 \int (F_n - F)^2
# dx$ for the distribution functions of samples and target (Székely and Rizzo 2013). Even exact
# samples are not at zero: $n$ of them are at $\tfrac{2}{n} \int F (1 - F)\, dx$ on average.

# %%
grid = torch.linspace(-9, 9, 18_001, dtype=torch.float64)
exact = mixture.diffuse(sde, sde.t_min)
F = torch.as_tensor(distribution_function(exact)(grid)).double()
many = 10_000


def energy_distance(x):
    ordered = x.flatten().double().sort().values
    empirical = torch.searchsorted(ordered, grid, right=True) / len(ordered)
    return 2 * float(torch.trapezoid((empirical - F) ** 2, grid))


def run(solver, steps):
    source = torch.Generator().manual_seed(4)
    out = sm.sample(model, (many, 1), solver, steps=steps, generator=source)
    return energy_distance(out.x), out.nfe


noise_level = 2 * float(torch.trapezoid(F * (1 - F), grid)) / many
print(f"{many} exact samples: {noise_level:.1e} on average")

solvers = {
    "predictor alone": (sm.make_solver("pc", corrector="none"), 1),
    "with corrector, snr 0.16": (sm.make_solver("pc", snr=0.16), 2),
    "with corrector, snr 0.4": (sm.make_solver("pc", snr=0.4), 2),
}
distances = {}
for label, (solver, cost) in solvers.items():
    for budget in (16, 32, 64, 128):
        distances[label, budget], nfe = run(solver, budget // cost)
        assert nfe == budget
    row = [f"{distances[label, budget]:.1e}" for budget in (16, 32, 64, 128)]
    print(f"{label:26} 16, 32, 64, 128 evaluations:", *row)

same_steps, _ = run(sm.make_solver("pc", snr=0.4), 16)  # 32 evaluations
alone = {n: distances["predictor alone", n] for n in (16, 32)}
print(f"16 steps without: {alone[16]:.1e}, with: {same_steps:.1e}")
assert same_steps < alone[16]
assert distances["with corrector, snr 0.16", 32] > alone[32]

# %% [markdown]
# At an equal number of *steps* the corrector with the longer step
# improves the samples. At an equal number of *evaluations*, with an exact score and a correct start,
# neither corrector helps here: it is better to take twice as many steps of the predictor, whose own
# noise already corrects. Song et al. 2021 (table 1) did see a gain at equal evaluations, with learned
# scores on images, where the steps are not the only error.
#
# ## What the corrector is for
#
# The error of the steps is only one kind. For another, we start at $t = 0.3$ from samples that are
# right except for a shift of 0.5. How much of the shift is left in the data? Each run has 200
# evaluations.

# %%
middle = 0.3
shifted = 0.5 + mixture.diffuse(sde, middle).sample(
    many, generator=torch.Generator().manual_seed(5)
)
left = {}
for label, eta, options in (
    ("flow", 0.0, {"predictor": "ddim", "corrector": "none"}),
    ("flow + corrector", 0.0, {"predictor": "ddim", "snr": 0.3}),
    ("reverse SDE", 1.0, {"corrector": "none"}),
    ("reverse SDE + corrector", 1.0, {"snr": 0.3}),
):
    solution = sm.solve(
        sm.ReverseSDE(model, (1,), eta=eta),
        shifted,
        (middle, sde.t_min),
        sm.make_solver("pc", **options),
        steps=200 if options.get("corrector") == "none" else 100,
        generator=torch.Generator().manual_seed(6),
    )
    left[label] = energy_distance(solution.x)
    off = float(solution.x.mean() - mixture.mean())
    print(
        f"{label:24} {solution.cost}: mean off by {off:+.2f}, "
        f"energy distance {left[label]:.1e}"
    )

assert left["reverse SDE"] < left["flow"] / 2
assert left["flow + corrector"] < left["reverse SDE"] / 2
assert left["reverse SDE + corrector"] < left["flow + corrector"]

# %% [markdown]
# The flow, a deterministic map, transports the error to the data. The reverse SDE removes a part of it,
# since each of its steps contains some Langevin dynamics. The corrector removes the most. So noise
# makes a sampler robust against errors of the start, of the steps, or of the score at noisier
# levels. It cannot correct an error of the score at its own level. And fixed Langevin steps have their
# own error, up to $\mathrm{snr}^2$ of the variance, that more steps do not remove.
#
# For few evaluations the flow is cheaper, since smooth paths can be followed with long steps of high
# order; the [benchmarks](../reference/benchmarks.md#samplers) have the figures.
#
# ## Exercises
#
# 1. How sensitive is the test? Find the weight of the score nearest to 1 that it still detects, with
#    `count = 4000`, and with 40,000. *Hint: the largest distance that passes shrinks like
#    $1/\sqrt{\text{count}}$.*
# 2. Show on paper that with $\eta \to \infty$ and $\eta^2 dt$ fixed, a step becomes pure Langevin
#    dynamics. How many steps does it then take to reach $t_\text{min}$? Compare `sm.sample(model, (many,
#    1), "ald", steps=64)`, and note its `nfe`.
# 3. In the last experiment move `middle` to 0.1 and to 0.6. When is the error corrected, and why?
#    *Hint: how wide is the density, in units of $\sigma_t$, and how much time is left?*
# 4. Find the largest useful `snr`: run the budget of 128 with 0.1, 0.2, 0.4, 0.6 and 0.8.
# 5. With `steps=25` in the call of `sm.sample` the test raises an alarm. With which of `grid="uniform"`,
#    `"quadratic"` and `"karras"` does it not? *Hint: plot the nodes of each; where is the drift
#    large?*
#
# ## Further reading
#
# - Anderson 1982, *Reverse-time diffusion equation models*, Stochastic Processes and their
#   Applications 12, 313-326: the theorem.
# - Haussmann and Pardoux 1986, *Time reversal of diffusions*, Annals of Probability 14, 1188-1205:
#   when it holds.
# - Song et al. 2021, [arXiv:2011.13456](https://arxiv.org/abs/2011.13456): reverse SDE, predictors
#   and correctors, with the algorithms in appendix G.
# - Karras et al. 2022, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364), section 4:
#   the split into flow and Langevin part, and how much noise is useful.
# - Székely and Rizzo 2013, *Energy statistics*, Journal of Statistical Planning and Inference 143:
#   the distance used here.
#
# Next: [The Fokker-Planck equation](fokker-planck.md)
