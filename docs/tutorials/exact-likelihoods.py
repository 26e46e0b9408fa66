# %% [markdown]
# # Exact likelihoods
#
# The probability flow is a one-to-one map from data to noise, so the density of a point follows from
# that of its noise and from how much the flow stretches space in between. This page derives the formula,
# compares it with a known density, and separates the sources of error: steps, quadrature and probes.
# At the end it computes bits for data on integer levels. You will know what each field of the result
# of [`log_prob`][sde_models.likelihood.log_densities.log_prob] means, and when to trust it.
#
# ## The formula
#
# Let points move with a velocity, $\dot x = v(t, x)$, and let $p_t$ be their density. Points are
# neither made nor lost, which is the *continuity equation* of the page on the
# [probability flow](probability-flow.md):
#
# $$
# \frac{\partial p_t}{\partial t} + \nabla \cdot (p_t\, v) = 0,
# \qquad\text{so that}\qquad
# \frac{\partial \log p_t}{\partial t} = - \nabla \cdot v - v \cdot \nabla \log p_t .
# $$
#
# The second form is the first, divided by $p_t$. Now follow one point. Both the density at a fixed
# position and the position change:
#
# $$
# \frac{d}{dt} \log p_t(x_t)
# = \frac{\partial \log p_t}{\partial t} + \dot x_t \cdot \nabla \log p_t
# = - \nabla \cdot v(t, x_t) .
# $$
#
# The two gradient terms cancel. What is left is the *instantaneous change of variables* (Chen et
# al. 2018): the log-density falls at the rate at which the flow expands. It does not contain the
# score of $p_t$, only the velocity. Integrated from the data $x$ at $t_{min}$ to the noise $z$ at $t_{max}$,
#
# $$
# \log p(x) = \log p_{t_{max}}(z) + \int_{t_{min}}^{t_{max}} \nabla \cdot v(t, x_t)\, dt .
# $$
#
# The determinant of an ordinary change of variables costs $O(D^3)$ and needs an inverse. Here a
# trace is enough, $\nabla \cdot v = \mathrm{tr}\, \partial v / \partial x$.
#
# As an example take a mixture of two Gaussians. Its density and score are known at every time,
# so the formula can be checked along one path. The next cell plots the log-density from the
# closed form, and the prediction from the sum of divergences. (`Exact()` evaluates a function
# together with the trace of its Jacobian, and returns both.)

# %% alt="Log-density along a path: the dots from summed divergences lie on the closed form"

import matplotlib.pyplot as plt
import torch

import sde_models as sm

mixture = sm.GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], weights=[0.4, 0.6]
).double()
sde = sm.VPSDE()
model = mixture.score_model(sde)
flow = sm.ProbabilityFlow(model)

times = torch.linspace(sde.t_min, sde.t_max, 101, dtype=torch.float64)
start = torch.tensor([[0.4, -0.6]], dtype=torch.float64)
path = sm.solve(flow, start, (sde.t_min, sde.t_max), path=times).path

known = torch.cat(
    [
        mixture.diffuse(sde, t).log_prob(x)
        for t, x in zip(times, path, strict=True)
    ]
)
trace = sm.Exact()
with torch.no_grad():
    divergence = torch.cat(
        [
            trace(lambda y, t=t: flow(t, y), x, None)[1].value
            for t, x in zip(times, path, strict=True)
        ]
    )
predicted = known[0] - torch.cumulative_trapezoid(divergence, times)

plt.plot(times, known, label=r"closed form $\log p_t(x_t)$")
plt.plot(times[1::5], predicted[::5], "o", ms=4, label="start minus integral")
plt.gca().set(
    title="Along one path", xlabel="time $t$", ylabel="log-density (nats)"
)
plt.legend()
plt.show()

worst = float((predicted - known[1:]).abs().max())
print(f"largest difference {worst:.4f} nats")
assert worst < 0.02  # the trapezoidal rule with 100 intervals

# %% [markdown]
# ## Against the closed form
#
# The library does the same for a batch, with a better rule and its own choice of steps. The exact value
# is the density at $t_{min}$, where the flow ends. At the other end the flow of this mixture reaches
# a density that is nearly, but not exactly, a standard normal. `prior=` gives the exact one. The
# last line of the output shows the error without it.

# %%
x = mixture.sample(300, generator=torch.Generator().manual_seed(0))
truth = mixture.diffuse(sde, sde.t_min).log_prob(x)
prior = mixture.diffuse(sde, sde.t_max)

lp = sm.log_prob(model, x, prior=prior)
off = (lp.value - truth).abs()
print(f"error, mean over points    {float(off.mean()):.5f} nats")
print(f"error, largest             {float(off.max()):.5f} nats")
print(f"reported error, mean       {float(lp.error.mean()):.5f} nats")
normal = sm.log_prob(model, x).value
print(f"standard normal as prior   {float((normal - truth).abs().mean()):.5f}")

assert bool((off <= lp.error).all())

# %% [markdown]
# Note what was computed: the density that *the flow* defines. With an exact score this is the
# density of the data. With a trained one it is a density close to it, that of the samples that
# `sm.decode` makes from the prior, and the reported error is the distance to *that* density.
#
# ## When the exact trace is too expensive
#
# The exact trace takes one vector-Jacobian product for each of $D$ coordinates. *Hutchinson's
# estimator* takes a single one. For a random probe $e$ with $E[e e^\top] = I$,
#
# $$
# E[e^\top J e] = E[\mathrm{tr}(J e e^\top)] = \mathrm{tr}(J) .
# $$
#
# It is unbiased, but how noisy? Let $S$ be the symmetric part of $J$, on which alone
# $e^\top J e$ depends. For *Rademacher* probes, whose entries are $-1$ or $+1$, the diagonal gives
# $\sum_i S_{ii}$ without error, and the rest is $2 \sum_{i<j} S_{ij}\, e_i e_j$, a sum of
# uncorrelated terms of variance $4 S_{ij}^2$. For *Gaussian* probes, rotate to the eigenvectors of
# $S$: a sum of $\lambda_i g_i^2$, and $g^2$ has variance 2. So
#
# $$
# \mathrm{Var}_{\text{Rademacher}} = 2 \sum_{i \ne j} S_{ij}^2,
# \qquad
# \mathrm{Var}_{\text{Gauss}} = 2 \sum_{i,j} S_{ij}^2 .
# $$
#
# The cell measures both on the velocity's Jacobian at one point, for a mixture in 32 dimensions
# whose components are flat in some directions and wide in others.

# %%
D = 32
source = torch.Generator().manual_seed(1)
turned = torch.linalg.qr(torch.randn(4, D, D, generator=source).double())[0]
spread = torch.logspace(0, -3, D, dtype=torch.float64)
covariances = turned @ torch.diag(spread) @ turned.mT
large = sm.GaussianMixture(
    0.5 * torch.randn(4, D, generator=source).double(),
    covariances=0.5 * (covariances + covariances.mT),
)
large_model = large.score_model(sde)
large_flow = sm.ProbabilityFlow(large_model)

point = large.diffuse(sde, 0.1).sample(1, generator=source)
jacobian = torch.autograd.functional.jacobian(
    lambda y: large_flow(0.1, y)[0], point
)[:, 0]
square = (0.5 * (jacobian + jacobian.T)).square()
formula = {
    "rademacher": 2 * (square.sum() - square.trace()),
    "gaussian": 2 * square.sum(),
}
for name, variance in formula.items():
    probes = sm.Hutchinson(8000, name).draw(point, source)[:, 0]
    estimates = (probes @ jacobian * probes).sum(1)
    ratio = float(estimates.var() / variance)
    print(f"{name:10}  variance measured / formula = {ratio:.3f}")
    assert abs(ratio - 1) < 0.1  # a sample variance of 8000 is good to 2%

# %% [markdown]
# ## Fresh probes, or one for the whole path?
#
# The usual recipe appends the log-density to the state and solves both with one ODE solver. The probe
# must then be drawn once and kept: with a new one at each call, the equation would be a random
# function, and an adaptive solver would reduce its steps without end. But the path does not depend
# on the trace. So it can be solved first, and the trace integrated along it afterwards, with a new
# probe at each node. The sum $\sum_i w_i\, \hat\tau_i$ of estimates with standard deviations $s_i$ has
#
# $$
# \text{fresh: } \mathrm{Var} = \sum_i w_i^2 s_i^2,
# \qquad
# \text{fixed: } \mathrm{Var} \le \Big(\sum_i w_i s_i\Big)^2,
# $$
#
# with equality where the errors agree from node to node. For $n$ nodes of equal weight the
# second is up to $n$ times the first. The cell repeats both computations with one probe
# each, and compares variances and costs.

# %%
points = large.sample(100, generator=torch.Generator().manual_seed(2))
law = large.diffuse(sde, sde.t_max)
exact = large.diffuse(sde, sde.t_min).log_prob(points)
coarse = {"rtol": 1e-3, "atol": 1e-3}
choices = {
    "fresh": {"intervals": 32, **coarse},
    "fixed": {"solver": "ode:dopri5", "trace": "augmented", **coarse},
}

squares = {}
for name, options in choices.items():
    errors = []
    for seed in range(3):
        lp = sm.log_prob(
            large_model,
            points,
            divergence=sm.Hutchinson(1),
            prior=law,
            estimate_solver_error=False,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        errors.append(lp.value - exact)
    squares[name] = float(torch.stack(errors).square().mean())
    rms = squares[name] ** 0.5
    print(f"{name}: error {rms:4.1f} nats, {lp.vjps:.0f} products a point")

gain = squares["fixed"] / squares["fresh"]
print(f"the variance of fixed probes is {gain:.1f} times that of fresh ones")
assert gain > 3

# %% [markdown]
# ## Where the error comes from
#
# The error has three parts. Each has its own field and parameter:
#
# | part | field | reduced by |
# |---|---|---|
# | the probes are random | `lp.stderr`, one standard error | more probes, or `"exact"` |
# | the path is solved in steps | `lp.solver_error` | `rtol=`, `atol=` |
# | the integral is a sum | `lp.quadrature_error` | `intervals=` |
#
# The error of the steps may have one sign for all points, the other two are random: `lp.error` is
# `solver_error` plus the root of the sum of squares of $2 \cdot$ `stderr` and `quadrature_error`. It is meant to
# cover the true error 95 times in 100. To test each, vary one parameter and keep the others so fine that they do
# not matter. The dots (true errors) should lie below the lines (reported errors), both falling together.

# %% alt="Three panels: true errors lie below the reported ones, for steps, quadrature and probes"
fine = {"rtol": 1e-6, "atol": 1e-6}
tolerances, counts, probes = [1e-1, 1e-2, 1e-3], [12, 24, 48], [1, 4, 16]
trials = {
    "steps": ("tolerance of the path", tolerances, "solver_error"),
    "quadrature": ("intervals", counts, "quadrature_error"),
    "probes": ("probes per node", probes, "stderr"),
}


def run(part, setting):
    """Log-densities with one source of error, and their true errors."""
    if part == "steps":
        given = {"rtol": setting / 2, "atol": setting / 2, "intervals": 96}
    elif part == "quadrature":
        given = {"intervals": setting, **fine}
    else:
        given = {"divergence": sm.Hutchinson(setting), "intervals": 32}
        given |= {"rtol": 1e-4, "atol": 1e-4}
        given |= {"generator": torch.Generator().manual_seed(setting)}
        lp = sm.log_prob(large_model, points, prior=law, **given)
        return lp, lp.value - exact
    lp = sm.log_prob(model, x, prior=prior, **given)
    return lp, lp.value - truth


figure, panels = plt.subplots(1, 3, figsize=(8.4, 3))
inside = {}
for panel, (part, (label, settings, field)) in zip(
    panels, trials.items(), strict=True
):
    reported, true, within = [], [], []
    for setting in settings:
        lp, off = run(part, setting)
        bar = getattr(lp, field) * (2 if field == "stderr" else 1)
        reported.append(float(bar.mean()))
        true.append(float(off.abs().mean()))
        within.append((off.abs() <= bar + 1e-5).double())
    inside[part] = float(torch.cat(within).mean())
    panel.loglog(settings, reported, label="reported")
    panel.loglog(settings, true, "o", label="true")
    panel.set(title=part.capitalize(), xlabel=label)
    panel.minorticks_off()
    panel.set_xticks(settings, [f"{setting:g}" for setting in settings])
panels[0].set_ylabel("mean error (nats)")
panels[2].set_ylim(0.1, 10)
panels[0].legend()
plt.show()

for part, share in inside.items():
    print(f"{part:10}  covered by the reported error: {share:.1%} of points")
assert min(inside.values()) > 0.92

# %% [markdown]
# Reported errors of steps and quadrature are conservative, since an error bar that is too short is
# worse than one that is too long. Those of the probes are random, and two standard errors cover the true
# error about as often as the normal law predicts. The same count over all SDEs is in the
# [benchmarks](../reference/benchmarks.md#calibration).
#
# ## A tolerance for the result
#
# It is simpler to set one parameter than three. `tol=` is the largest acceptable error in nats, and the
# three follow from it for each sample: points with a difficult path get more steps, and nodes where the
# trace is noisy get more probes. Note that the true error stays below the tolerance, and the cost of
# another digit.

# %%
print("  tol reported   true   network  products   (largest, and per point)")
few = points[:60]
for tol in (3.0, 1.0, 0.3):
    lp = sm.log_prob(
        large_model,
        few,
        tol=tol,
        prior=law,
        generator=torch.Generator().manual_seed(0),
    )
    off = (lp.value - exact[:60]).abs()
    print(
        f"{tol:5.1f}  {float(lp.error.max()):6.3f}  {float(off.max()):6.3f}"
        f"{lp.nfe:9.0f} {lp.vjps:9.0f}"
    )
    assert bool((lp.error <= tol).all())
    assert float((off <= lp.error).double().mean()) > 0.92

# %% [markdown]
# ## Data on integer levels
#
# Grey levels are integers. They have probabilities, not densities, and a density fitted to them
# could be made arbitrarily high by spikes at the levels. The meaningful quantity is the number of
# *bits* that the model needs for the levels. Let level $k$ fill a cell $C_k$ of width $w$ in each dimension. A
# density $p$ gives the levels the probability $P(k) = \int_{C_k} p(y)\, dy$. Draw a point of
# the cell from any density $q$ on it. Then by Jensen's inequality, since $\log$ is concave,
#
# $$
# \log P(k) = \log E_q\!\left[\frac{p(y)}{q(y)}\right]
# \ge E_q\!\left[\log \frac{p(y)}{q(y)}\right] .
# $$
#
# *Uniform dequantisation* takes $q = w^{-D}$, and the bound is $E_q \log p(y) + D \log w$ (Theis et
# al. 2016). Averaging $K$ draws before the logarithm gives a bound that rises with $K$ and converges
# to the exact value as $K \to \infty$ (Burda et al. 2016). And a $q$ proportional to $p$ makes the
# ratio constant, and the bound an equality. For a model trained on the centres of the cells that shape is
# known: at $t_{min}$ each centre $c$ has become $N(\alpha c, \sigma^2 I)$, and
# `"truncated-normal"` is that law, truncated at the edges (Zheng et al. 2023).
#
# For a test, take two pixels with four levels each, and sixteen probabilities of known entropy.
# The model is the exact score for data at the centres, stopped at a $t_{min}$ with a noticeable
# $\sigma$. Its bits cannot be fewer than the entropy, $E[-\log_2 P] / D$.

# %%
levels, width = 4, 0.5
weights = torch.rand(16, generator=torch.Generator().manual_seed(3)).double()
weights = weights.square() / weights.square().sum()
entropy = float(-(weights * weights.log2()).sum()) / 2

pixels = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
centres = -1 + width * (pixels + 0.5)
stopped = sm.VPSDE(t_min=0.028)
print(f"sigma at t_min: {float(stopped.sigma(stopped.t_min)):.3f}")
spikes = sm.GaussianMixture(centres.double(), 1e-3, weights)
pixel_model = spikes.score_model(stopped)

chosen = torch.multinomial(
    weights, 100, replacement=True, generator=torch.Generator().manual_seed(4)
)
images = pixels[chosen]

# %% [markdown]
# The exact value for these images needs no sampling: the probability of each Gaussian in each cell is
# a difference of error functions.

# %%
end = spikes.diffuse(stopped, stopped.t_min)
normal = torch.distributions.Normal(
    end.means[:, None], end.variances.sqrt()[:, None]
)
edges = centres.double() - width / 2
mass = (normal.cdf(edges + width) - normal.cdf(edges)).prod(2)
probability = weights @ mass  # P(k) of each of the sixteen images
truth = float(-probability[chosen].log2().mean()) / 2

print(f"entropy                {entropy:.3f} bits per dimension")
print(
    f"of the model, exactly  {float(-(weights * probability.log2()).sum()) / 2:.3f}"
)
print(f"for these 100 images   {truth:.3f}")

# %% [markdown]
# Now the bounds. Uniform dequantisation is far above the exact value and falls with $K$; the
# truncated normal is nearly exact from the first draw.

# %% alt="Bits per dimension against draws: uniform falls to the truth, the other starts there"
settings = {"rtol": 0.01, "atol": 0.01, "intervals": 32, "repeats": 2}
settings |= {"prior": spikes.diffuse(stopped, stopped.t_max)}
bounds = {}
for name, draws in (("uniform", [1, 2, 4]), ("truncated-normal", [1])):
    bounds[name] = [
        sm.bits_per_dim(
            pixel_model,
            images,
            levels,
            name,
            importance_samples=k,
            generator=torch.Generator().manual_seed(k),
            **settings,
        )
        for k in draws
    ]
    values = [float(bits.value) for bits in bounds[name]]
    errors = [2 * float(bits.dequantization_stderr) for bits in bounds[name]]
    plt.errorbar(draws, values, errors, marker="o", ms=4, capsize=3, label=name)
    print(f"{name:17}", *(f"{value:.3f}" for value in values))
plt.axhline(truth, ls="--", color="C2", label="truth")
plt.xscale("log", base=2)
plt.gca().set(
    title="Bounds on the bits of the levels",
    xlabel="draws per bound $K$",
    ylabel="bits per dimension",
)
plt.legend()
plt.show()

loose, tight = bounds["uniform"], bounds["truncated-normal"]
assert float(loose[0].value) > float(loose[-1].value) > truth - 0.05
# Gaussians of neighbours reach a little into a cell, so the bound is not quite tight.
assert abs(float(tight[0].value) - truth) < 0.02

# %% [markdown]
# Uniform dequantisation is not wrong, but does not fit a model that was trained on centres. It fits
# one that was trained on uniformly dequantised data. With probes in place of the exact trace, their
# noise enters the average over $K$ exponentially, and *lowers* the bits by up to half their variance
# (in nats). Importance weighting needs the exact trace, or many probes.
#
# ## Exercises
#
# 1. Give `log_prob` on the first mixture the solver `"ode:dopri5"` with `rtol=atol=1e-3`, and then
#    with 1e-6. Compare the reported error with the true one. *Hint:* near the data $\sigma$ is small, and a
#    displacement of $d$ changes the log-density by $|d \cdot \nabla \log p|$, which may be large even for a
#    small tolerance in units of $x$.
# 2. Derive the variance for probes on the sphere of radius $\sqrt D$. *Hint:* a Gaussian probe is a
#    direction and a length that are independent; its fourth moments are known.
# 3. In the comparison of fresh and fixed, double `intervals`. How does the variance of fresh probes
#    change, and what does this say about more nodes compared with more probes?
# 4. Make `stopped` end at a `t_min` of 0.1. Why are the model's bits now above the entropy, and why
#    is uniform dequantisation less bad? Then at 0.002: what happens to it?
# 5. Use `divergence=sm.Hutchinson(1)` with `importance_samples=4` for the images of the last part.
#    In two dimensions its noise is small. By how much are the bits too low?
#
# ## Further reading
#
# - Chen, Rubanova, Bettencourt and Duvenaud 2018, *Neural ordinary differential equations*,
#   [arXiv:1806.07366](https://arxiv.org/abs/1806.07366): the instantaneous change of variables, with
#   a proof from finite steps in the appendix.
# - Grathwohl et al. 2019, *FFJORD*, [arXiv:1810.01367](https://arxiv.org/abs/1810.01367): Hutchinson's
#   estimator for flows, and the fixed probe.
# - Song et al. 2021, *Score-based generative modeling through stochastic differential equations*,
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456): likelihoods of diffusion models, appendix D.
# - Trefethen and Weideman 2014, *The exponentially convergent trapezoidal rule*, SIAM Review 56: why
#   equal steps can be so accurate.
# - Theis, van den Oord and Bethge 2016, *A note on the evaluation of generative models*,
#   [arXiv:1511.01844](https://arxiv.org/abs/1511.01844): what bits do and do not say about samples.
# - Burda, Grosse and Salakhutdinov 2016, *Importance weighted autoencoders*,
#   [arXiv:1509.00519](https://arxiv.org/abs/1509.00519); Zheng et al. 2023, *Improved techniques for
#   maximum likelihood estimation for diffusion ODEs*,
#   [arXiv:2305.03935](https://arxiv.org/abs/2305.03935): the two better bounds.
#
# Next: [Latents](latents.md)
