# %% [markdown]
# # The Ornstein-Uhlenbeck process and the Fokker-Planck equation
#
# One SDE can be solved with pen and paper, and it is the one that turns data into noise in every
# variance-preserving diffusion model. This page derives the two tools that solve it, Itô's formula
# for paths and the Fokker-Planck equation for densities, and checks both against simulations.
#
# ## Itô's formula
#
# Let $dx = f\,dt + g\,dB$ and let $\phi(t, x)$ be smooth. How does $\phi(t, x_t)$ change? Expand to
# second order,
#
# $$
# d\phi = \partial_t \phi\, dt + \partial_x \phi\, dx + \tfrac12 \partial_{xx} \phi\, (dx)^2 + \dots
# $$
#
# and use the rule of [Brownian motion](brownian-motion.md): $(dB)^2 = dt$, while $dt\,dB$ and
# $dt^2$ are smaller and vanish in the sum. So $(dx)^2 = g^2\, dt$, and
#
# $$
# d\phi = \big(\partial_t \phi + f\, \partial_x \phi + \tfrac12 g^2\, \partial_{xx} \phi\big)\, dt
#       + g\, \partial_x \phi\, dB .
# $$
#
# This is **Itô's formula**: the chain rule with one more term. In $D$ dimensions each coordinate has
# its own Brownian motion; products $dB_i\, dB_j$ of different ones have mean 0 and vanish in the
# sum, so that for scalar $g$ the additional term is $\tfrac12 g^2 \sum_i \partial^2 \phi / \partial x_i^2$. With $\phi = \log x$ and
# $dx = \mu x\,dt + \nu x\,dB$ it gives $d \log x = (\mu - \tfrac12 \nu^2)\,dt + \nu\,dB$ at once,
# the solution that the last page used.
#
# ## Solving the Ornstein-Uhlenbeck equation
#
# $$
# dx = -\theta x\, dt + \nu\, dB, \qquad \theta > 0 .
# $$
#
# The drift pulls to zero, the noise pushes away. Take $\phi = e^{\theta t} x$: the drift cancels,
# $d\phi = e^{\theta t} \nu\, dB$, and so
#
# $$
# x_t = e^{-\theta t} x_0 + \nu \int_0^t e^{-\theta (t - s)}\, dB_s .
# $$
#
# The integral is a sum of independent Gaussian numbers, with mean 0 and by Itô's isometry variance
# $\nu^2 \int_0^t e^{-2 \theta (t - s)} ds$. Given $x_0$, then,
#
# $$
# x_t \sim N\Big(e^{-\theta t} x_0,\; \frac{\nu^2}{2 \theta} \big(1 - e^{-2 \theta t}\big)\Big) .
# $$
#
# The start is forgotten at the rate $\theta$, and what remains is $N(0, \nu^2 / 2\theta)$.

# %% alt="Paths from two starts forget them and fill a band around zero"
import matplotlib.pyplot as plt
import torch

import sde_models as sm

THETA, NU = 1.0, 1.0
generator = torch.Generator().manual_seed(0)


def simulate(x, end, steps):
    """Euler-Maruyama; returns the states at all times."""
    dt, path = end / steps, [x]
    for _ in range(steps):
        noise = torch.randn(x.shape, generator=generator)
        x = x - THETA * x * dt + NU * dt**0.5 * noise
        path.append(x)
    return torch.stack(path)


starts = torch.tensor([-2.0] * 4 + [2.0] * 4)
t = torch.linspace(0, 4, 401)
path = simulate(starts, 4.0, 400)
for sign, colour, columns in ((-2, "C0", path[:, :4]), (2, "C1", path[:, 4:])):
    lines = plt.plot(t, columns, colour, lw=0.8)
    lines[0].set_label(f"four paths from {sign}")
    spread = (NU**2 / (2 * THETA) * (1 - torch.exp(-2 * THETA * t))).sqrt()
    mean = torch.exp(-THETA * t) * sign
    plt.fill_between(
        t, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.15
    )
plt.gca().set(
    title="Ornstein-Uhlenbeck paths, and two standard deviations",
    xlabel="time $t$",
    ylabel="$x_t$",
)
plt.legend()
plt.show()

# %% [markdown]
# Mean and variance of many paths that start at 2, against the formulas:

# %%
n = 20_000
many = simulate(torch.full((n,), 2.0), 1.0, 200)[-1]
mean = 2 * torch.exp(torch.tensor(-THETA))
variance = NU**2 / (2 * THETA) * (1 - torch.exp(torch.tensor(-2 * THETA)))
print(f"mean     {many.mean():.4f}, formula {mean:.4f}")
print(f"variance {many.var():.4f}, formula {variance:.4f}")

# Four standard errors, and an error of the steps of size theta dt.
assert abs(many.mean() - mean) < 4 * (variance / n) ** 0.5 + 0.005 * mean
assert abs(many.var() - variance) < variance * (4 * (2 / n) ** 0.5 + 0.01)

# %% [markdown]
# ## The Fokker-Planck equation
#
# Single paths are random, but their density $p_t(x)$ is not: it obeys a partial differential
# equation. To find it, take any smooth test function $\phi(x)$ that vanishes far away, and compute
# the change of $E[\phi(x_t)]$ twice. By Itô's formula, whose $dB$ term has mean 0,
#
# $$
# \frac{d}{dt} \int \phi\, p\, dx = \int \big(f \phi' + \tfrac12 g^2 \phi''\big)\, p\, dx
#   = \int \phi \,\Big[ -(f p)' + \tfrac12 (g^2 p)'' \Big] dx ,
# $$
#
# where the second step integrates by parts, once and twice. The left side is
# $\int \phi\, \partial_t p\, dx$. Both hold for every $\phi$, so
#
# $$
# \partial_t p = -\partial_x (f p) + \tfrac12\, \partial_{xx} (g^2 p) .
# $$
#
# This is the **Fokker-Planck equation**. It says that probability is moved by the drift and spread
# by the noise, and that none is lost. In $D$ dimensions, with $g$ a function of time alone, the same
# steps give
#
# $$
# \partial_t p = -\nabla \cdot (f p) + \tfrac12 g^2 \Delta p .
# $$
#
# Here $\nabla p$ is the vector of the derivatives $\partial p / \partial x_i$, the *divergence* of a
# vector field $v$ is $\nabla \cdot v = \sum_i \partial v_i / \partial x_i$, and
# $\Delta p = \nabla \cdot \nabla p$ is the sum of the second derivatives. Later pages use all three.
#
# ## A histogram against the solved equation
#
# Start from two narrow bumps. The equation is solved on a grid, with differences of the probability
# *flux* $J = f p - \tfrac12 \partial_x (g^2 p)$ through the walls of the cells and many small
# steps. For comparison 20,000 paths start from the same two bumps.
#
# [`GaussianMixture`][sde_models.models.gaussian_mixture.GaussianMixture] takes centres, widths and weights. It has
# a density and can be sampled. Points are the rows of a tensor of shape `(n, D)`, also in one
# dimension, hence `cells[:, None]`.

# %%
cells = torch.linspace(-4, 4, 401, dtype=torch.float64)
width = float(cells[1] - cells[0])
walls = 0.5 * (cells[1:] + cells[:-1])
bumps = sm.GaussianMixture([[-1.5], [1.5]], 0.2, weights=[0.7, 0.3])
p = bumps.log_prob(cells[:, None]).exp()


def flux(p):
    moved = -THETA * walls * 0.5 * (p[1:] + p[:-1])
    return moved - 0.5 * NU**2 * p.diff() / width


def solve(p, span):
    dt = 0.4 * width**2 / NU**2  # a larger step would not be stable
    steps = int(span / dt) + 1
    dt = span / steps
    none = torch.zeros(1, dtype=p.dtype)  # nothing passes the outer walls
    for _ in range(steps):
        p = p - dt * torch.cat([none, flux(p), none]).diff() / width
    return p


times = (0.1, 0.4, 1.5)
solved, last = [], 0.0
for end in times:
    p = solve(p, end - last)
    solved.append(p)
    last = end

# %% alt="Histograms of paths follow the solved density from two bumps to one"
x0 = bumps.sample(20_000, generator=generator)[:, 0].float()
path = simulate(x0, 1.5, 300)

figure, panels = plt.subplots(1, 3, sharey=True, figsize=(8, 2.8))
for panel, end, density in zip(panels, times, solved, strict=True):
    panel.hist(
        path[round(end * 200)].numpy(),
        80,
        range=(-4, 4),
        density=True,
        alpha=0.5,
        label="paths",
    )
    panel.plot(cells, density, "C1", label="Fokker-Planck")
    panel.set(title=f"$t = {end}$", xlabel="$x$")
panels[0].set_ylabel("density")
panels[0].legend()
plt.show()

# %% [markdown]
# Here the answer is also known in closed form: each bump is a Gaussian, and stays one. The cell prints
# the largest difference of the solved density from it, and the total probability:

# %%
for end, density in zip(times, solved, strict=True):
    shrink = torch.exp(torch.tensor(-THETA * end))
    spread = (0.2**2 * shrink**2 + NU**2 / (2 * THETA) * (1 - shrink**2)) ** 0.5
    known = sm.GaussianMixture(
        [[-1.5 * float(shrink)], [1.5 * float(shrink)]],
        float(spread),
        weights=[0.7, 0.3],
    )
    exact = known.log_prob(cells[:, None]).exp()
    off = float((density - exact).abs().max())
    mass = float(density.sum() * width)
    print(
        f"t = {end}: equation off by {off:.5f}, its total probability {mass:.6f}"
    )
    assert off < 0.005
    assert abs(mass - 1) < 1e-4

# %% [markdown]
# ## The stationary law
#
# Where does it end? Set $\partial_t p = 0$: the flux is the same everywhere, and as nothing comes
# from infinity it is zero, $-\theta x p = \tfrac12 \nu^2 p'$. So
# $(\log p)' = -2 \theta x / \nu^2$, the normal law $N(0, \nu^2 / 2\theta)$ from above. Conversely
# this is a recipe: a drift of $\tfrac12 \nu^2 (\log p)'$ has $p$ as its stationary law,
# whatever $p$ is. That is Langevin dynamics, the subject of the
# [next page](scores-and-langevin.md).
#
# ## This is how data become noise
#
# The variance-preserving SDE of diffusion models,
#
# $$
# dx = -\tfrac12 \beta(t)\, x\, dt + \sqrt{\beta(t)}\, dB ,
# $$
#
# is this process with $\theta = \tfrac12$, $\nu = 1$, run on the clock
# $\tau(t) = \int_0^t \beta$: in a time $dt$ the clock advances by $d\tau = \beta\, dt$, so the
# drift is $-\tfrac12 x\, d\tau$, and the noise $\sqrt{\beta}\, dB$ has the variance $d\tau$. The
# stationary law is $N(0, 1)$, and $\beta$ only sets the speed of the clock. So [`VPSDE`][sde_models.sdes.linear_beta.VPSDE] must have the mean and the variance of
# the formulas above at time $\tau$:

# %%
sde = sm.VPSDE()
for time in (0.1, 0.5, 1.0):
    tau = sde.integrated_beta(torch.tensor(time, dtype=torch.float64))
    alpha, sigma = torch.exp(-0.5 * tau), (1 - torch.exp(-tau)).sqrt()
    print(
        f"t = {time}: alpha {sde.alpha(time):.4f} and {alpha:.4f}, "
        f"sigma {sde.sigma(time):.4f} and {sigma:.4f}"
    )
    assert abs(sde.alpha(time) - alpha) < 1e-6
    assert abs(sde.sigma(time) - sigma) < 1e-6

# %% [markdown]
# ## Exercises
#
# 1. Use Itô's formula on $x^2$ to find an equation for $E[x_t^2]$ of the Ornstein-Uhlenbeck
#    process, and solve it. Does it agree with the variance above?
# 2. Start the simulation from the stationary law. Estimate the covariance of $x_s$ and $x_t$; it
#    should be $\frac{\nu^2}{2\theta} e^{-\theta |t - s|}$.
# 3. Make the step of `solve` three times as long. What happens, and why? (Hint: diffusion moves
#    about $\sqrt{\Delta t}$ in a step, and the scheme couples neighbouring cells only.)
# 4. Replace the drift by $-x (x^2 - 1)$ in the simulation and in `flux`, and add the time 8.0. What
#    is the stationary law? (Hint: set the flux to zero. The path needs to be as long, and the closed
#    forms above no longer hold. With a drift that is four times as strong the scheme breaks down
#    near $\pm 4$: the drift, too, may cross at most one cell in a step.)
#
# ## Further reading
#
# - Pavliotis 2014, *Stochastic Processes and Applications*, chapters 2 to 4: Fokker-Planck equations
#   and how fast they relax.
# - Särkkä and Solin 2019, *Applied Stochastic Differential Equations*, chapters 4 to 6: linear SDEs
#   and their moments.
# - Gardiner, *Handbook of Stochastic Methods*: the same for physicists, with many examples.
#
# Next: [scores and Langevin dynamics](scores-and-langevin.md).
