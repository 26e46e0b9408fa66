# %% [markdown]
# # Brownian motion and the Itô integral
#
# A stochastic differential equation is an ordinary one with noise in it. This page builds the
# noise: Brownian motion, what its derivative would be, and the integral against it. At the end you
# can simulate an SDE, and know the error of the simulation.
#
# ## From a random walk to Brownian motion
#
# Toss a coin every $\Delta t$ seconds and step by $+\sqrt{\Delta t}$ or $-\sqrt{\Delta t}$. After
# time $t$ there were $t / \Delta t$ independent steps of variance $\Delta t$ each, so the position has
# variance $t$ whatever $\Delta t$ is, and by the central limit theorem it is nearly Gaussian. The
# limit $\Delta t \to 0$ is **Brownian motion** $B_t$:
#
# - $B_0 = 0$;
# - $B_t - B_s$ is normal with mean 0 and variance $t - s$;
# - over disjoint intervals the increments are independent.
#
# From these follows the covariance: for $s < t$,
# $E[B_s B_t] = E[B_s^2] + E[B_s (B_t - B_s)] = s$, that is $\min(s, t)$.
#
# To simulate it on a grid one only needs sums of Gaussian numbers.
#
# !!! note "PyTorch for those who know NumPy"
#     These pages use PyTorch like NumPy, plus six things that NumPy does differently or does not have:
#
#     - An array is a *tensor*, `torch.tensor([1.0, 2.0])`. `dim=` is NumPy's `axis=`, `cat` is
#       `concatenate`, and `float(x)` or `x.item()` turns a tensor with one entry into a number.
#     - Numbers have 32 bits (`float32`, seven digits) by default; for 64 use `x.double()`, or
#       `dtype=torch.float64`.
#     - Random numbers come from a `torch.Generator`. `manual_seed(0)` seeds it, and each draw with
#       `generator=` advances it.
#     - A tensor remembers how it was computed, so that it can be differentiated.
#       `torch.func.grad(f)` is the function that gives the gradient of `f`.
#     - Inside `with torch.no_grad():` nothing is remembered, which is faster.
#     - A network is a `torch.nn.Module`: an object that holds its weights and is called like a
#       function.
#
#     An `assert` at the end of a cell states what the text claims. If you change a cell, for an
#     exercise say, it may rightly fail: remove it then.

# %% alt="Five Brownian paths inside a parabola of two standard deviations"
import matplotlib.pyplot as plt
import torch
import torchsde

import sde_models as sm

generator = torch.Generator().manual_seed(0)
paths, steps = 4000, 1024
dt = 1 / steps
increments = dt**0.5 * torch.randn(steps, paths, generator=generator)
B = torch.cat([torch.zeros(1, paths), increments.cumsum(0)])
t = torch.linspace(0, 1, steps + 1)

plt.plot(t, B[:, :5], lw=0.8)
plt.plot(t, 2 * t.sqrt(), "C7--", label=r"$\pm 2\sqrt{t}$")
plt.plot(t, -2 * t.sqrt(), "C7--")
plt.gca().set(title="Five Brownian paths", xlabel="time $t$", ylabel="$B_t$")
plt.legend()
plt.show()

# %% [markdown]
# The covariance, estimated from all paths at two times, against $\min(s, t)$. The standard error
# of such a mean of products is about $\sqrt{(s t + \min(s, t)^2) / n}$.

# %%
s, u = 0.3, 0.8
product = B[round(s * steps)] * B[round(u * steps)]
error = ((s * u + min(s, u) ** 2) / paths) ** 0.5
print(f"E[B_s B_t] = {product.mean():.3f} ± {error:.3f}, min(s, t) = {min(s, u)}")

assert abs(product.mean() - min(s, u)) < 4 * error

# %% [markdown]
# ## A path without a slope
#
# Over a short time $\Delta t$ the path moves by about $\sqrt{\Delta t}$, so its slope is about
# $1 / \sqrt{\Delta t}$, and there is no limit. What has a limit is the sum of *squared* steps,
# the **quadratic variation**:
#
# $$
# \sum_i (B_{t_{i+1}} - B_{t_i})^2 \;\to\; t .
# $$
#
# Each term has mean $\Delta t$ and variance $2 \Delta t^2$, so the sum over $[0, 1]$ has mean 1 and
# variance $2 \Delta t$, which vanishes. A smooth path has quadratic variation 0: this is the entire
# difference between ordinary and stochastic calculus. The rule of thumb is $(dB)^2 = dt$.

# %%
for every in (256, 16, 1):
    steps_of_path = B[::every].diff(dim=0)
    squares = steps_of_path.square().sum(0)
    lengths = steps_of_path.abs().sum(0)
    print(
        f"dt = 1/{steps // every:<5d} squared steps {squares.mean():.3f} "
        f"± {squares.std():.3f},  length of the path {lengths.mean():6.1f}"
    )

assert abs(squares.std() - (2 * dt) ** 0.5) < 0.1 * (2 * dt) ** 0.5

# %% [markdown]
# The squares settle at 1 for every single path; the length grows without bound.
#
# The formal derivative $\dot B$ is called **white noise**: independent at all times, of
# infinite variance at each. It is not a function, and it is only used under an integral.
#
# ## The Itô integral
#
# To define $\int_0^1 h_t\, dB_t$, sum $h$ times the increments. At which point of each
# interval is $h$ evaluated? For smooth paths it does not matter. Here it does. Take $h = B$:
#
# $$
# \text{left: } \sum_i B_{t_i} (B_{t_{i+1}} - B_{t_i}),
# \qquad
# \text{middle: } \sum_i \tfrac12 (B_{t_i} + B_{t_{i+1}}) (B_{t_{i+1}} - B_{t_i}) .
# $$
#
# The second telescopes to $\tfrac12 B_1^2$, as in ordinary calculus (**Stratonovich**). The
# first is less by half the sum of squared steps, so it tends to $\tfrac12 (B_1^2 - 1)$ (**Itô**).

# %%
left = (B[:-1] * B.diff(dim=0)).sum(0)
middle = (0.5 * (B[:-1] + B[1:]) * B.diff(dim=0)).sum(0)
for name, value in (("left", left), ("middle", middle)):
    print(
        f"{name:>6}: mean {value.mean():+.3f}, "
        f"off (B^2 - 1)/2 by {(value - 0.5 * (B[-1] ** 2 - 1)).abs().mean():.3f}, "
        f"off B^2/2 by {(value - 0.5 * B[-1] ** 2).abs().mean():.3f}"
    )

assert (left - 0.5 * (B[-1] ** 2 - 1)).abs().mean() < 0.03
assert (
    abs(left.mean()) < 4 * (0.5 / paths) ** 0.5
)  # a sum of fair bets: mean 0, variance 1/2

# %% [markdown]
# The left end is Itô's choice, and it is the natural one for simulation and for learning: $h$ may
# depend on the past, and the increment is independent of it. So the integral has mean 0, and its variance
# is $E \int h^2\, dt$ (**Itô's isometry**). When $h$ depends on time only, the two integrals agree.
# That is the case for every forward SDE of this library, so both `sde_type="ito"` and
# `"stratonovich"` solvers of torchsde may be used on them.
#
# ## Stochastic differential equations
#
# $$
# dx = f(t, x)\, dt + g(t, x)\, dB
# $$
#
# is short for an integral equation: $x_t = x_0 + \int_0^t f\, ds + \int_0^t g\, dB$. The **drift**
# $f$ is the mean velocity of $x$, the **diffusion** $g$ the size of the noise. If $f$ and $g$ are Lipschitz
# in $x$ (their changes are at most a constant times the change of $x$) and grow no faster than $x$
# itself, there is exactly one solution for each Brownian path (Øksendal, theorem 5.2.1).
#
# The simplest way to simulate it is **Euler-Maruyama**: replace $dt$ by $\Delta t$ and $dB$ by
# $\sqrt{\Delta t}$ times a Gaussian number. An equation with a known solution shows how accurate
# that is. **Geometric Brownian motion**
#
# $$
# dx = \mu x\, dt + \nu x\, dB,
# \qquad
# x_t = x_0 \exp\big[(\mu - \tfrac12 \nu^2) t + \nu B_t\big]
# $$
#
# is the model of a share price; the term $-\tfrac12 \nu^2$ is what $(dB)^2 = dt$ leaves behind, as
# the [next page](ornstein-uhlenbeck.md) derives.

# %%
MU, NU = 0.5, 1.0


def euler_maruyama(increments):
    x, dt = torch.ones(increments.shape[1]), 1 / len(increments)
    for dB in increments:
        x = x + MU * x * dt + NU * x * dB
    return x


exact = ((MU - 0.5 * NU**2) + NU * B[-1]).exp()
sizes, strong, weak = [2**k for k in range(3, 10)], [], []
for n in sizes:
    coarse = increments.reshape(n, steps // n, paths).sum(
        1
    )  # the same Brownian paths
    strong.append(float((euler_maruyama(coarse) - exact).abs().mean()))
    weak.append(
        (1 + MU / n) ** n - torch.tensor(MU).exp().item()
    )  # mean of Euler, exactly

# %% [markdown]
# Two errors are of interest. The **strong** error compares paths of the same Brownian
# motion: $E|x^{\Delta t}_1 - x_1|$. The **weak** error compares distributions, here by their means.
# Euler's mean obeys $m \leftarrow m (1 + \mu \Delta t)$, so it is known without sampling.

# %% alt="Strong errors fall with slope one half, weak errors with slope one"
h = torch.tensor([1 / n for n in sizes])


def slope(errors):
    logs = torch.tensor(errors).abs().log()
    x = h.log() - h.log().mean()
    return float((x * logs).sum() / x.square().sum())


figure, panel = plt.subplots()
for name, errors, marker in (("strong", strong, "o-"), ("weak", weak, "s-")):
    values = torch.tensor(errors).abs()
    panel.loglog(h, values, marker, label=f"{name}, slope {slope(errors):.2f}")
panel.set(
    title="Errors of Euler-Maruyama", xlabel=r"step $\Delta t$", ylabel="error"
)
panel.legend()
plt.show()

assert abs(slope(strong) - 0.5) < 0.1
assert abs(slope(weak) - 1.0) < 0.1

# %% [markdown]
# Halving the step divides the strong error by $\sqrt 2$ only: the order is 1/2. What is lost is
# $\tfrac12 \nu^2 x \,(dB^2 - dt)$ in each step, the fluctuation of the squared increment. It comes
# from the change of $g$ along the path, and **if $g$ does not depend on $x$ it is not there**: the
# strong order is then 1. The weak order is 1 in both cases, if $f$ and $g$ are smooth. For
# sampling only the distribution matters.
#
# ## The same with a library
#
# torchsde takes an object with methods `f` and `g`, and two attributes that give their meaning:
# the Itô integral, and independent noise for each coordinate. It needs states of
# shape `(batch, size)`, here 2,000 paths of one number, and a `BrownianInterval`, an object that
# generates a Brownian path on demand and is consistent between calls: `entropy=` is its seed, and
# `bm(0.0, 1.0)` is $B_1 - B_0$. An [`SDE`][sde_models.sdes.base.SDE] of this library is such an
# object.


# %%
class Geometric(torch.nn.Module):
    sde_type, noise_type = "ito", "diagonal"

    def f(self, t, x):
        return MU * x

    def g(self, t, x):
        return NU * x


ends = torch.tensor([0.0, 1.0])
bm = torchsde.BrownianInterval(0.0, 1.0, size=(2000, 1), entropy=1)
x0 = torch.ones(2000, 1)
end = torchsde.sdeint(Geometric(), x0, ends, bm=bm, dt=1 / 64, method="milstein")[
    -1
]
known = ((MU - 0.5 * NU**2) + NU * bm(0.0, 1.0)).exp()
euler = torchsde.sdeint(Geometric(), x0, ends, bm=bm, dt=1 / 64, method="euler")[
    -1
]
print(f"euler    is off by {(euler - known).abs().mean():.4f}")
print(f"milstein is off by {(end - known).abs().mean():.4f}")

assert (end - known).abs().mean() < 0.5 * (euler - known).abs().mean()

# %% [markdown]
# Milstein's method adds the missing term, and has strong order 1 here too. The next cell runs one
# of this library's forward SDEs, [`VPSDE`][sde_models.sdes.linear_beta.VPSDE], on 2,000 points that
# all start at 1. Its mean and standard deviation, `alpha` and `sigma`, are known in closed form at
# every time, as the next page shows:

# %%
sde = sm.VPSDE()
bm = torchsde.BrownianInterval(0.0, 0.5, size=(2000, 1), entropy=2)
x = torchsde.sdeint(
    sde, x0, torch.tensor([0.0, 0.5]), bm=bm, dt=0.005, method="euler"
)[-1]
print(f"simulated   mean {x.mean():.3f}, standard deviation {x.std():.3f}")
print(
    f"closed form mean {sde.alpha(0.5):.3f}, standard deviation {sde.sigma(0.5):.3f}"
)

# Four standard errors, and an error of the steps.
assert abs(x.mean() - sde.alpha(0.5)) < 4 * sde.sigma(0.5) / 2000**0.5 + 0.01

# %% [markdown]
# ## Exercises
#
# 1. Replace the Gaussian increments by coin tosses $\pm\sqrt{\Delta t}$ and look at the figure of
#    five paths and at the quadratic variation. What changes? (Hint: the squares are now constant.)
# 2. Show by the isometry that $\int_0^1 t\, dB_t$ has variance $1/3$, and measure it.
# 3. Take the right end of each interval in the integral of $B\,dB$. What is the limit? (Hint: the
#    middle is the mean of left and right.)
# 4. Change `g` of the geometric motion to the constant `NU`, for which
#    $x_1 = e^\mu + \nu \int_0^1 e^{\mu (1 - s)} dB_s$. Measure the strong order with a very fine
#    Euler solution as the truth.
#
# ## Further reading
#
# - Särkkä and Solin 2019, *Applied Stochastic Differential Equations*, chapters 3 and 4: the same
#   with more examples and little measure theory.
# - Evans 2013, *An Introduction to Stochastic Differential Equations*: a short course with proofs.
# - Øksendal, *Stochastic Differential Equations*, chapters 3 to 5: the integral and existence of
#   solutions.
# - Kloeden and Platen 1992, *Numerical Solution of Stochastic Differential Equations*: strong and
#   weak orders, and Milstein's method.
#
# Next: [the Ornstein-Uhlenbeck process](ornstein-uhlenbeck.md).
