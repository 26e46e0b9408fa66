# %% [markdown]
# # The probability-flow ODE
#
# The densities of an SDE can also be obtained without noise, from an ordinary
# differential equation. This page derives it, shows that its marginals are those of the SDE and its
# paths are not, and treats it as a normalizing flow with infinitely many layers. You will know why
# it can be run in both directions, what that costs, and why its codes do not depend on the network.
#
# ## Noise rewritten as transport
#
# The densities $p_t$ of $dx = f(t, x)\,dt + g(t)\,dB$ obey the [Fokker-Planck
# equation](ornstein-uhlenbeck.md#the-fokker-planck-equation). With $\nabla p = p\, \nabla \log p$ its
# noise term can be written as the divergence of a velocity times $p$:
#
# $$
# \frac{\partial p_t}{\partial t}
# = -\nabla \cdot (f p_t) + \tfrac12 g^2\, \nabla \cdot (p_t\, \nabla \log p_t)
# = -\nabla \cdot \Big( \big[ f - \tfrac12 g^2\, \nabla \log p_t \big]\, p_t \Big) .
# $$
#
# The right side contains no noise. This is the *continuity equation*: points move
# with the velocity in brackets, and none appears or vanishes. So let points move accordingly,
#
# $$
# \frac{dx}{dt} = f(t, x) - \tfrac12 g(t)^2\, \nabla \log p_t(x) ,
# $$
#
# and if they have the density $p_t$ at one time, they have it at every time. This is the
# *probability-flow ODE* (Song et al. 2021; the idea is also in Maoutsa, Reich and Opper 2020).
# Noise would spread the points; the velocity points down the density and spreads them equally.
#
# ## The same marginals
#
# Draw two independent groups of samples of a mixture in one dimension. One follows the SDE, which
# needs random numbers and no score. The other follows the ODE, which needs the score and no random
# numbers: the library's [`encode`][sde_models.sampling.latents.encode]. At five times we test whether the
# two have the same distribution, by the two-sample Kolmogorov-Smirnov test. The alarm is at a
# p-value of 0.01/5: if they do, it is false in at most one run of 100.

# %%
import matplotlib.pyplot as plt
import torch
from scipy.stats import ks_2samp

import sde_models as sm

sde = sm.VPSDE()
mixture = sm.GaussianMixture(
    torch.tensor([[-1.0], [0.8]], dtype=torch.float64),
    [0.15, 0.4],
    weights=[0.4, 0.6],
)
model = mixture.score_model(sde)  # the exact score at every time
data = mixture.diffuse(sde, sde.t_min)
times = [sde.t_min, 0.15, 0.3, 0.5, 1.0]


def draw(seed, count=3000):
    return data.sample(count, generator=torch.Generator().manual_seed(seed))


by_sde = sm.solve(
    sde,
    draw(0),
    (sde.t_min, sde.t_max),
    "euler-maruyama",
    steps=300,
    path=times,
    generator=torch.Generator().manual_seed(2),
).path[..., 0]
by_ode = sm.encode(model, draw(1), path=times, rtol=1e-7, atol=1e-7).path[..., 0]

p_values = [ks_2samp(a, b).pvalue for a, b in zip(by_sde, by_ode, strict=True)]
print("time   ", *(f"{t:7.2g}" for t in times))
print("p-value", *(f"{p:7.2f}" for p in p_values))
assert min(p_values) > 0.01 / 5

# %% alt="Histograms of the SDE and of the ODE at five times agree, from two modes to one bell"
figure, panels = plt.subplots(1, 5, figsize=(11, 2.6), sharex=True)
for panel, t, a, b in zip(panels, times, by_sde, by_ode, strict=True):
    options = {"bins": 50, "range": (-3.5, 3.5), "density": True}
    panel.hist(a, alpha=0.4, label="SDE", **options)
    panel.hist(b, histtype="step", lw=1.5, label="ODE", **options)
    panel.set(title=f"t = {t:.2f}", xlabel="$x$")
panels[0].set_ylabel("density")
panels[0].legend()
plt.show()

# %% [markdown]
# ## Paths that never cross
#
# The paths are very different. Through each point $(t, x)$ there is exactly one solution of an ODE
# with a smooth velocity (the theorem of Picard and Lindelöf). Two paths that meet
# would be two solutions through one point, so they never meet. In one dimension this means that
# the points keep their order.

# %%
order = by_ode[0].argsort()
gaps = by_ode[:, order].diff(dim=1)
smallest = float(gaps.min())
print(f"ODE: smallest gap between neighbours at the five times {smallest:.1e}")
assert smallest > 0

half = len(by_sde[0]) // 2
before = by_sde[0, :half] < by_sde[0, half:]
after = by_sde[-1, :half] < by_sde[-1, half:]
swapped = float((before != after).double().mean())
print(f"SDE: {swapped:.0%} of pairs have changed places at the end")
# As if the order were random, within four standard errors.
assert abs(swapped - 0.5) < 4 * 0.5 / half**0.5

# %% alt="Left, smooth paths of the ODE that never cross; right, jagged paths of the SDE from the same points that cross often"
levels = torch.linspace(0.05, 0.95, 9).double()
starts = torch.quantile(by_ode[0], levels)[:, None]
ode = sm.encode(model, starts, path=torch.linspace(sde.t_min, 1, 200).tolist())
noisy = sm.solve(
    sde,
    starts,
    (sde.t_min, sde.t_max),
    "euler-maruyama",
    steps=400,
    grid="uniform",
    path=True,
    generator=torch.Generator().manual_seed(3),
)
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
panels[0].plot(ode.times, ode.path[..., 0], lw=1.2)
panels[1].plot(noisy.times, noisy.path[..., 0], lw=0.8)
panels[0].set(title="Probability flow", xlabel="time $t$", ylabel="$x_t$")
panels[1].set(title="SDE", xlabel="time $t$")
plt.show()

# %% [markdown]
# All of the thousands of paths keep their order at all five times; half of the SDE's pairs
# have changed places, as if the order were random.
#
# In one dimension this even gives the flow in closed form. Only one increasing map transports $p_0$ to
# $p_t$: the one that keeps the share of points to the left, $F_t(x_t) = F_0(x_0)$ with the
# distribution functions $F$. They are known for a mixture, and with them the exact result of the
# solver.


# %%
def share_left(density, x):
    stds = density.variances[:, 0].sqrt()
    z = (x - density.means[:, 0]) / stds
    return torch.special.ndtr(z) @ density.log_weights.exp()


x0 = draw(4, count=500)
noise_end = mixture.diffuse(sde, sde.t_max)


def error(encoding):
    return float(
        (share_left(noise_end, encoding.z) - share_left(data, x0)).abs().max()
    )


tight = error(sm.encode(model, x0, "ode:dopri8", rtol=1e-9, atol=1e-9))
print(f"largest difference of the two shares {tight:.0e}")
assert tight < 1e-7

# %% [markdown]
# In more dimensions there is no order, and the flow is in general *not* the map that moves
# points the least (Lavenant and Santambrogio 2022). But it is one to one, with paths that do not
# meet, in any dimension.
#
# ## A normalizing flow of infinite depth
#
# Write one Euler step as a layer, with the step $h_k = t_{k+1} - t_k$:
#
# $$
# x_{k+1} = x_k + h_k\, v(t_k, x_k), \qquad v = f - \tfrac12 g^2\, \nabla \log p_t .
# $$
#
# That is a residual block. If $h_k v$ changes more slowly than $x$, with a Lipschitz constant below
# one, the block is invertible: $x \mapsto x_{k+1} - h_k v(t_k, x)$ is then a contraction, and
# iterating it finds $x_k$ (Banach's fixed-point theorem; Behrmann et al. 2019 build flows like
# this). With many layers each $h_k$ is small, so the condition holds. The cell applies 64 layers and
# inverts them one by one.

# %%
clock = sde.t_from_log_snr(
    torch.linspace(
        float(sde.log_snr(sde.t_min)), float(sde.log_snr(sde.t_max)), 65
    ).double()
)
flow = sm.ProbabilityFlow(model)


def layer(k, x):
    return x + (clock[k + 1] - clock[k]) * flow(clock[k], x)


x = x0
for k in range(64):
    x = layer(k, x)
for k in reversed(range(64)):
    target = x
    for _ in range(30):
        x = x + target - layer(k, x)  # x <- target - h v(t, x)
undone = float((x - x0).abs().max())
print(f"64 layers inverted by iteration: off by {undone:.0e}")
assert undone < 1e-9

# %% [markdown]
# That is exact up to rounding, but thirty evaluations per layer are expensive. It is cheaper to
# integrate the *ODE* backwards: the same steps with $h < 0$, as in [`decode`][sde_models.sampling.latents.decode].
# Its layers are not exact inverses, but both directions converge to the same flow, so the
# error of the round trip vanishes as the number of steps grows. How fast? A step of a method of order
# $p$ has the error $C h^{p+1}$, and the step back $C (-h)^{p+1}$, with the same $C$ to first order. For
# odd $p$ the two add up, and the round trip has order $p$. For even $p$ they cancel, and it has order
# $p + 1$: 1, 3 and 5 for the methods of Euler, Heun and Runge and Kutta.

# %% alt="Round trip error against steps, log-log: straight lines, of slopes near -1, -3 and -5 for Euler, Heun and Runge-Kutta"
counts = [20, 40, 80, 160]
for name, expected in (("ode:euler", 1), ("ode:heun2", 3), ("ode:rk4", 5)):
    errors = []
    for steps in counts:
        z = sm.encode(model, x0, name, steps=steps).z
        back = sm.decode(model, z, name, steps=steps).x
        errors.append(float((back - x0).square().mean().sqrt()))
    order = torch.tensor(errors[-2] / errors[-1]).log2()
    plt.loglog(counts, errors, "o-", label=f"{name}, order {order:.1f}")
    assert abs(order - expected) < 0.5  # the others are 2 away
plt.xticks(counts, counts)
plt.minorticks_off()
plt.title("Encoding and decoding again")
plt.xlabel("steps in each direction (layers)")
plt.ylabel("root mean square error of $x_0$")
plt.legend()
plt.show()

# %% [markdown]
# The orders in the legend are measured from the last doubling. As the number of layers goes to
# infinity, they become the flow itself, which is invertible for every smooth network.
# In the same limit the log-determinants of the layers become an integral of
# the divergence of $v$, which gives [the exact likelihood](exact-likelihoods.md).
#
# ## Adaptive solvers
#
# If depth belongs only to the solver, it can be left to one that chooses its steps to meet a
# tolerance. Lower accuracy then costs fewer evaluations of the same network. The error below is the
# largest difference of shares from the closed form.

# %% alt="Error against evaluations, log-log: dopri5 at seven tolerances and rk4 fall steeply, Euler slowly"
adaptive = []
print("tolerance   evaluations   error")
for digits in range(2, 9):
    code = sm.encode(
        model, x0, "ode:dopri5", rtol=10.0**-digits, atol=10.0**-digits
    )
    adaptive.append((code.nfe, error(code)))
    print(f"{10.0**-digits:9.0e} {code.nfe:13g} {adaptive[-1][1]:7.0e}")
plt.loglog(*zip(*adaptive, strict=True), "o-", label="ode:dopri5, by tolerance")
for name in ("ode:rk4", "ode:euler"):
    codes = [sm.encode(model, x0, name, steps=n) for n in (10, 20, 40, 80)]
    plt.loglog(
        [c.nfe for c in codes], [error(c) for c in codes], "s--", label=name
    )
plt.title("Work and precision")
plt.xlabel("evaluations of the score")
plt.ylabel("largest error of $F_t(x_t)$")
plt.legend()
plt.show()

# The tolerance falls by six digits; the error must fall by at least three.
assert adaptive[-1][1] < 1e-3 * adaptive[0][1]
assert adaptive[-1][0] < 10 * adaptive[0][0]

# %% [markdown]
# A tolerance that is a million times smaller costs less than ten times the evaluations. The
# tolerance refers to the error of each step in units of $x$, not to the final error, so the two
# columns need not be equal.
#
# ## Trained without likelihood, never unrolled
#
# A normalizing flow is usually trained by maximum likelihood: each gradient goes back through all
# of its layers. A neural ODE (Chen et al. 2018) solves an ODE inside each training step. Here the
# velocity is determined by the score, and [score matching](matching-scores.md) learns the score at
# each time separately. These are the two computation graphs:
#
# ```text
# training   x0, t, noise -> x_t -> network(t) -> loss             any t, one call
# flow       x0 -> network(t_1) -> network(t_2) -> ... -> z        all t, in order
# ```
#
# The flow is assembled only after training. We train two networks of different size, seed and
# parametrisation on the same points in the plane, and count what a gradient passes through:
# calls of the network, and nodes of the graph of automatic differentiation.
# (`gradient="direct"` makes the solver keep that graph, as training through it would need.)

# %%
angles = 2 * torch.pi / 3 * torch.arange(3)
centres = 1.2 * torch.stack((angles.cos(), angles.sin()), dim=1)
truth = sm.GaussianMixture(centres, 0.4)
points = truth.sample(8000, generator=torch.Generator().manual_seed(0))


def train(seed, width, depth, **parametrisation):
    torch.manual_seed(seed)
    network = sm.nn.ResidualNetwork((2,), width=width, depth=depth)
    return sm.fit(
        sm.ScoreModel(network, sde, **parametrisation),
        points,
        steps=300,
        learning_rate=8e-3,
        ema_decay=0.98,
        warmup=30,
        seed=seed,
        progress=False,
    ).model


first = train(0, 32, 2, preconditioning="edm")
second = train(1, 64, 1, prediction="v")


def graph_nodes(value):
    seen, queue = set(), [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [parent for parent, _ in node.next_functions]
    return len(seen)


with sm.count_evaluations() as counter:
    loss = sm.losses.denoising_score_matching(first, points[:64])
print(f"score matching: {counter.calls} call, {graph_nodes(loss)} nodes")
assert counter.calls == 1
for steps in (10, 100):
    unrolled = sm.encode(
        first, points[:64], "ode:euler", steps=steps, gradient="direct"
    )
    nodes = graph_nodes(unrolled.z.sum())
    print(f"{steps} layers unrolled: {unrolled.cost.calls} calls, {nodes} nodes")

# %% [markdown]
# The depth of the flow affects neither the training nor its memory.
#
# ## Codes that depend on the score alone
#
# The velocity depends only on $f$ and $g$, which are fixed, and on the score, which is a property of
# the data. If two networks have learned the score, they define the same flow, and give
# each point the same code, whatever their architecture and seed. The codes of a variational
# autoencoder or a usual normalizing flow, by contrast, change with each training run. We encode new
# points by both networks and by the exact score.

# %%
fresh = truth.sample(500, generator=torch.Generator().manual_seed(1))
exact = sm.encode(truth.score_model(sde), fresh).z
codes = {name: sm.encode(m, fresh).z for name, m in (("A", first), ("B", second))}


def distance(a, b):
    return float((a - b).square().sum(1).mean().sqrt())


unrelated = distance(exact, exact.roll(1, 0))
pairs = {
    "A and B": (codes["A"], codes["B"]),
    "A and exact": (codes["A"], exact),
    "B and exact": (codes["B"], exact),
}
print(f"distance of the codes of different points: {unrelated:.2f}")
print("distance of two codes of one point, as a share of that:")
for name, (a, b) in pairs.items():
    print(f"  {name:11} {distance(a, b) / unrelated:.1%}")
    assert distance(a, b) < 0.2 * unrelated

# %% alt="Codes by the exact score and by two networks: points of one colour lie in the same sector in all three panels"
colour = torch.atan2(fresh[:, 1], fresh[:, 0])
figure, panels = plt.subplots(1, 3, figsize=(9.5, 3.2), sharex=True, sharey=True)
for panel, (name, z) in zip(
    panels, {"exact score": exact, **codes}.items(), strict=True
):
    panel.scatter(*z.T, c=colour, cmap="hsv", s=6)
    panel.set(title=f"Codes by {name}", xlabel="$z_1$", aspect="equal")
panels[0].set_ylabel("$z_2$")
plt.show()

# %% [markdown]
# The colour of a point is its direction in the plane of the data. The three panels agree as
# far as the networks have learned the same score. [Latents](latents.md) uses such codes.
#
# ## Exercises
#
# 1. On paper: for Gaussian data $N(0, s^2)$ on the line, find the velocity for VP, and solve the
#    ODE. *Hint: the order is kept, and both ends are Gaussian.* Check with
#    `sm.GaussianMixture([[0.0]], s)`.
# 2. In the derivation, write $\tfrac12 g^2 \Delta p$ as noise of strength $\eta g$ plus transport.
#    Which term of [the reverse SDE](reversing-time.md) appears?
# 3. Use 8 layers in place of 64 in the stack that is inverted. Does the iteration still converge?
#    Print the largest $|h_k\, \partial v / \partial x|$. *Hint: `torch.autograd.grad(flow(t,
#    x).sum(), x)`.*
# 4. Make the round trip with `"ddim"`, `"dpmpp-2m"` and `"flow-abm-4"`. Which order does each have?
# 5. Train for 100 steps and for 3,000. How fast do the codes of the two networks approach the exact
#    ones?
#
# ## Further reading
#
# - Song et al. 2021, [arXiv:2011.13456](https://arxiv.org/abs/2011.13456), section 4.3 and appendix
#   D: the ODE, its likelihood, and uniquely identifiable encoding.
# - Maoutsa, Reich and Opper 2020, [arXiv:2006.00702](https://arxiv.org/abs/2006.00702): particles
#   that follow the score instead of noise.
# - Chen et al. 2018, [arXiv:1806.07366](https://arxiv.org/abs/1806.07366): neural ODEs and
#   continuous normalizing flows, trained by solving.
# - Behrmann et al. 2019, [arXiv:1811.00995](https://arxiv.org/abs/1811.00995): invertible residual
#   networks.
# - Lavenant and Santambrogio 2022, *The flow map of the Fokker-Planck equation does not provide
#   optimal transport*, Applied Mathematics Letters 133.
# - Lipman et al. 2022, [arXiv:2210.02747](https://arxiv.org/abs/2210.02747): flow matching, which
#   learns the velocity itself.
#
# Next: [Exact likelihoods](exact-likelihoods.md)
