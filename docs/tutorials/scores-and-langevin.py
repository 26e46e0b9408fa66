# %% [markdown]
# # Scores and Langevin dynamics
#
# A density must integrate to one, which makes densities hard to learn. Its *score* has no such
# constraint, and suffices to draw samples. This page shows what a score is, why the constant
# drops out, how Langevin dynamics samples with it, and the two cases in which that fails. The
# remedy leads to diffusion models.
#
# ## What a score is
#
# The **score** of a density $p$ is the gradient of its logarithm with respect to the *data*,
#
# $$
# s(x) = \nabla_x \log p(x),
# $$
#
# a vector at every point in the direction in which the density rises, with its relative slope as
# length. For a normal law $N(\mu, \sigma^2 I)$ it is $(\mu - x) / \sigma^2$: toward the mean,
# in proportion to the distance. (Statisticians use the word for the gradient in the parameters, too.)
#
# The cell below differentiates the log-density of a mixture automatically. `torch.func.grad` needs a
# function with a scalar value, so the log-densities of all points are summed: each depends
# on its own point only, and the gradient of the sum is the score of each, row by row.

# %% alt="Arrows of the score point up the density of a mixture of three bumps"
import matplotlib.pyplot as plt
import torch

import sde_models as sm

means = torch.tensor([[-1.5, -0.5], [1.5, -0.8], [0.2, 1.4]])
mixture = sm.GaussianMixture(means, 0.6, weights=[0.5, 0.3, 0.2])


def score(x):
    return torch.func.grad(lambda x: mixture.log_prob(x).sum())(x)


side = torch.linspace(-3, 3, 80)
plane = torch.cartesian_prod(side, side)
density = mixture.log_prob(plane).exp().reshape(80, 80).T
coarse = torch.cartesian_prod(side[::6], side[::6])
arrows = score(coarse)

plt.figure(figsize=(4.6, 4.2))
plt.contour(side, side, density, levels=8, linewidths=1)
plt.quiver(*coarse.T, *arrows.T, color="C7", width=0.004)
plt.gca().set(
    title="Density and score", xlabel="$x_1$", ylabel="$x_2$", aspect="equal"
)
plt.show()

# %% [markdown]
# ## Energies, and the constant that drops out
#
# Any function $E(x)$ that grows fast enough defines a density,
#
# $$
# p(x) = \frac{e^{-E(x)}}{Z}, \qquad Z = \int e^{-E(x)}\, dx .
# $$
#
# That is an **energy-based model**: $E$ may be any network, so this is completely general.
# The price is the *partition function* $Z$, an integral over all of space, which maximum likelihood
# needs at every step. But
#
# $$
# \nabla \log p(x) = -\nabla E(x) - \nabla \log Z = -\nabla E(x) :
# $$
#
# $Z$ does not depend on $x$, so it does not appear in the score. To check, multiply the density by any
# number, that is, shift the energy. (A model of this library belongs to a process that adds noise to
# the data, here `VESDE`, and takes a time; later pages say why. At time 0 there is almost no noise.)

# %%
x = mixture.sample(5, generator=torch.Generator().manual_seed(0))


class Energy(torch.nn.Module):
    def forward(self, t, x):
        return 7.0 - mixture.log_prob(x)  # Z is e^-7, which is never used


model = sm.EnergyModel(Energy(), sm.VESDE())
difference = float((model.score(0.0, x).detach() - score(x)).abs().max())
print(f"largest difference of the two scores: {difference:.1e}")

assert difference < 1e-4

# %% [markdown]
# [`EnergyModel`][sde_models.models.energy_model.EnergyModel] takes a network for $E$ and differentiates it. Most
# models omit the energy and let the network be the score; then it need not be a gradient, and in
# practice it works as well or better.
#
# ## Langevin dynamics
#
# The [last page](ornstein-uhlenbeck.md) ended with a recipe: the SDE
#
# $$
# dx = \tfrac12 \nabla \log p(x)\, dt + dB
# $$
#
# has $p$ as its stationary law. Indeed, its Fokker-Planck equation is
# $\partial_t q = \nabla \cdot \big[ -\tfrac12 q \nabla \log p + \tfrac12 \nabla q \big]$, and for
# $q = p$ the bracket vanishes, because $p \nabla \log p = \nabla p$. Start anywhere, follow the
# score, add noise, wait. With Euler-Maruyama at step $\epsilon$ this is the **unadjusted Langevin
# algorithm**:
#
# $$
# x \leftarrow x + \tfrac{\epsilon}{2} \nabla \log p(x) + \sqrt{\epsilon}\, z, \qquad z \sim N(0, I).
# $$


# %% alt="Langevin samples fill the contours of the mixture"
def langevin(score, x, step, count, generator):
    for _ in range(count):
        noise = torch.randn(x.shape, generator=generator)
        x = x + 0.5 * step * score(x) + step**0.5 * noise
    return x


generator = torch.Generator().manual_seed(1)
x = langevin(
    score, torch.randn(4000, 2, generator=generator), 0.02, 1000, generator
)

plt.figure(figsize=(4.6, 4.2))
plt.scatter(*x[:1500].T, s=2, alpha=0.6)
plt.contour(side, side, density, levels=8, linewidths=1)
plt.gca().set(
    title="Langevin samples", xlabel="$x_1$", ylabel="$x_2$", aspect="equal"
)
plt.show()

own = mixture.sample(4000, generator=generator)
print(f"mean of Langevin samples {x.mean(0).tolist()}")
print(f"mean of own samples      {own.mean(0).tolist()}")

# %% [markdown]
# ### The step leaves a bias
#
# For $p = N(0, 1)$ the algorithm is $x \leftarrow (1 - \epsilon / 2) x + \sqrt{\epsilon} z$, whose
# stationary variance $v$ solves $v = (1 - \epsilon/2)^2 v + \epsilon$, so
# $v = 1 / (1 - \epsilon / 4)$: too large by about a quarter of the step, however long it runs.

# %%
for step in (0.8, 0.2, 0.05):
    x = torch.randn(20_000, 1, generator=generator)
    x = langevin(lambda x: -x, x, step, int(12 / step), generator)
    formula = 1 / (1 - step / 4)
    print(f"step {step:<5} variance {x.var():.3f}, formula {formula:.3f}")
    assert abs(x.var() - formula) < 5 * formula * (2 / 20_000) ** 0.5

# %% [markdown]
# ## How it fails: between modes
#
# Take two bumps far apart, with weights 0.8 and 0.2. Between them the density is nearly zero. A
# path crosses that region only by chance, and the waiting time grows exponentially with the depth of
# the valley in $\log p$ (Kramers' law). So the samples keep the weights that they *started* with:
# where the bumps do not overlap, $\nabla \log p$ does not contain the weights at all.

# %%
for distance in (1.0, 2.0, 4.0):
    far = sm.GaussianMixture([[-distance], [distance]], 0.5, weights=[0.8, 0.2])

    def slope(x, far=far):
        return torch.func.grad(lambda x: far.log_prob(x).sum())(x)

    start = torch.randn(2000, 1, generator=generator)
    x = langevin(slope, start, 0.02, 1000, generator)
    print(
        f"bumps at ±{distance}: {(x < 0).float().mean():.2f} are left, 0.80 is right"
    )

assert abs((x < 0).float().mean() - 0.5) < 0.05  # it never mixed

# %% [markdown]
# With the bumps close together the weights are right; far apart half of the samples stay on
# each side, because half of them started there.
#
# ## How it fails: where there are no data
#
# That was with an exact score. A *learned* score is worse: it is trained on data, and where
# there are none its values are arbitrary. Langevin dynamics starts in just such
# places. If the data lie on a surface, as images do among all arrays of pixels, nearly all of space
# is such a place, and the score is not even defined.
#
# ## The remedy: noise
#
# Add noise of size $\sigma$ to the data and the density becomes smooth and wide: the valleys fill,
# the score is defined everywhere, and there are noised data everywhere to learn it from. For a
# mixture only the width of the bumps changes. So sample first with much noise, then with
# less and less, each time from where the previous level ended. This is **annealed Langevin dynamics**:

# %%
far = sm.GaussianMixture([[-4.0], [4.0]], 0.5, weights=[0.8, 0.2])
x = 10 * torch.randn(2000, 1, generator=generator)
for sigma in torch.logspace(1, -1.5, 20).tolist():
    wide = sm.GaussianMixture(
        [[-4.0], [4.0]], (0.25 + sigma**2) ** 0.5, weights=[0.8, 0.2]
    )

    def slope(x, wide=wide):
        return torch.func.grad(lambda x: wide.log_prob(x).sum())(x)

    x = langevin(slope, x, 0.1 * (0.25 + sigma**2), 45, generator)
share = float((x < 0).float().mean())
print(
    f"{share:.2f} are left, 0.80 is right; variance of the left bump {x[x < 0].var():.2f}"
)

assert abs(share - 0.8) < 0.06

# %% [markdown]
# The same bumps, fewer steps in total, and the weights are nearly right: while the noise was large the
# two bumps were one, and paths went back and forth; as it fell they settled where the density is.
#
# Two steps remain. The scores of the noised densities have to be
# [learned from data](matching-scores.md), and [by one network for all levels](noise-levels.md).
#
# ## Exercises
#
# 1. Show that $E_p[\nabla \log p] = 0$ for every smooth density, and check it on samples of
#    `mixture`.
# 2. In the two-bump experiment start all samples at $-4$. Which share is on the left at the end?
# 3. Half-way between bumps at $\pm d$ of width $\sigma$ the density is lower than at the top by
#    a factor of about $e^{-d^2 / 2\sigma^2}$. How many steps of 0.02 would it take to cross at
#    $d = 4$? (Hint: more than any simulation can take.)
# 4. In the annealed run use only three levels. What goes wrong, and why?
#
# ## Further reading
#
# - Song and Ermon 2019, [arXiv:1907.05600](https://arxiv.org/abs/1907.05600): the two failures and
#   the remedy, in the original paper.
# - Pavliotis 2014, *Stochastic Processes and Applications*, chapters 4 and 6: Langevin dynamics, and
#   how fast it relaxes.
# - Yang Song's blog, *Generative modeling by estimating gradients of the data distribution*: the
#   same topics with animations.
#
# Next: [score matching](matching-scores.md).
