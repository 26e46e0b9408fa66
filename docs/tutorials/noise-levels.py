# %% [markdown]
# # Noise-conditional score networks
#
# No single level of noise is right, as the [last page](matching-scores.md) showed: little
# noise leaves holes between the modes, much noise blurs them. So take many levels, from one that
# hides the data to one that is barely visible, and let a single network learn the scores of all. This
# page trains one, samples with it, and counts the cost of the levels in training and in sampling.
#
# ## Many levels, one network
#
# Take levels $\sigma_1 > \sigma_2 > \dots > \sigma_L$ in a geometric sequence, since their
# ratio matters. The noised densities $q_{\sigma_i}$ each have a score; the network
# $s(x, \sigma)$ receives the level as an input and learns all of them:
#
# $$
# J = \frac1L \sum_{i=1}^L \lambda_i\,
#     E \Big\| s(x + \sigma_i z, \sigma_i) + \frac{z}{\sigma_i} \Big\|^2 .
# $$
#
# This is a **noise-conditional score network** (Song and Ermon 2019). Each term has its minimum at
# the score of its own level independently of the others, so for a network of unlimited capacity the
# weights $\lambda_i > 0$ do not matter. For a real one they do.
#
# ## Weighting the losses
#
# A score at level $\sigma$ is of size $1/\sigma$, and so is its error: without weights the smallest
# level would dominate. With $\lambda = \sigma^2$ each term becomes the error of the *noise*
# $\hat z = -\sigma s$, which is of size 1 at every level. The cell uses the exact score of two bumps,
# whose denoising loss cannot be lowered any further. (`VESDE(0.01, 20.0, data_std=3.2)` takes the
# smallest and the largest level and the standard deviation of the data; `perturb` computes
# $x + \sigma z$ from $x$ and $z$.)

# %%
import matplotlib.pyplot as plt
import torch

import sde_models as sm

bumps = sm.GaussianMixture([[-4.0], [4.0]], 0.5, weights=[0.8, 0.2])
data = bumps.sample(20_000, generator=torch.Generator().manual_seed(0)).float()
sde = sm.VESDE(0.01, 20.0, data_std=3.2)
exact = bumps.score_model(sde)
generator = torch.Generator().manual_seed(1)

print("sigma   loss without weight   with sigma^2")
for sigma in (10.0, 1.0, 0.1, 0.01):
    (t,) = sm.times_of_sigmas(sde, [sigma])
    noise = torch.randn(data.shape, generator=generator)
    error = exact.score(t, sde.perturb(t, data, noise)) + noise / sigma
    plain = float(error.square().mean())
    print(f"{sigma:<7} {plain:19.4g} {sigma**2 * plain:14.4f}")

# %% [markdown]
# The unweighted terms differ by many orders of magnitude; with $\sigma^2$ all lie between 0 and 1.
# `weighting="simple"` is this one. (The loss is rightly *not* zero at the exact score: the
# noise cannot be predicted completely. Only its minimiser is known, not its minimum.)
#
# ## Training sees the levels in any order
#
# A step draws a random level for each sample of the batch. So a thousand levels cost no more
# than ten: a step takes one pass of the network, whatever $L$ is.


# %%
def levels(count):
    return 20.0 * (0.01 / 20.0) ** torch.linspace(0, 1, count)


torch.manual_seed(0)
network = sm.nn.ResidualNetwork((1,), width=48, depth=2)
model = sm.ScoreModel(network, sde, preconditioning="edm")
for count in (10, 1000):
    times = sm.losses.level_times(levels(count))
    with sm.count_evaluations() as counter:
        sm.losses.denoising_score_matching(
            model, data[:256], weighting="simple", times=times
        )
    print(f"{count:4d} levels: {counter.calls} pass of the network in a step")

# %% [markdown]
# Train it on twenty levels, and plot the learned score at three of them:

# %% alt="Learned scores lie on the exact ones where the noised data are, and leave them elsewhere"
from functools import partial

SIGMAS = levels(20)
loss = partial(
    sm.losses.denoising_score_matching,
    weighting="simple",
    times=sm.losses.level_times(SIGMAS),
)
torch.manual_seed(0)
trained = sm.fit(
    model, data, steps=800, loss=loss, learning_rate=5e-3, ema_decay=0.99, seed=0,
    progress=False,
).model  # fmt: skip

figure, panels = plt.subplots(1, 3, figsize=(8, 2.6))
for panel, sigma in zip(panels, (SIGMAS[4], SIGMAS[9], SIGMAS[12]), strict=True):
    (t,) = sm.times_of_sigmas(sde, [float(sigma)])
    x = torch.linspace(-8, 8, 200)[:, None]
    with torch.no_grad():
        panel.plot(x, sigma * exact.score(t, x), label="exact", lw=3, alpha=0.5)
        panel.plot(x, sigma * trained.score(t, x), label="learned")
    panel.set(title=rf"$\sigma = {sigma:.2g}$", xlabel="$x$")
panels[0].set_ylabel(r"$\sigma \nabla \log q_\sigma$")
panels[0].legend()
plt.show()

# %% [markdown]
# With much noise the learned score is right everywhere. With little it is right where the noised
# data are, around $\pm 4$, and not between the bumps or beyond them, where there were no data. That
# does no harm: samples come from the level above, and are where the data of this level are.
#
# ## Sampling visits them in order
#
# **Annealed Langevin dynamics** starts from the largest noise, where the two bumps are one, takes a
# few Langevin steps at each level, and goes down: each level starts where the previous one ended.
# The solver is called `ald`. For comparison the cell repeats the experiment of
# [two pages ago](scores-and-langevin.md): Langevin dynamics with the *exact* score of the clean
# data, started from the same wide noise.

# %%
x0 = 20.0 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(2))
grid = sm.times_of_sigmas(sde, SIGMAS.tolist())
solver = sm.make_solver("ald", steps_per_level=10)
annealed = sm.sample(
    trained, (2000, 1), solver=solver, grid=grid,
    generator=torch.Generator().manual_seed(3),
)  # fmt: skip


def clean_score(x):
    return torch.func.grad(lambda x: bumps.log_prob(x).sum())(x)


plain = x0
for _ in range(annealed.cost.calls):
    noise = torch.randn(plain.shape, generator=generator)
    plain = plain + 0.5 * 0.05 * clean_score(plain) + 0.05**0.5 * noise

shares = {}
for name, x in (
    ("annealed, learned scores", annealed.x),
    ("one level, exact score", plain),
):
    shares[name] = float((x < 0).float().mean())
    left = x[x < 0]
    print(
        f"{name:<26} {shares[name]:.2f} on the left (0.80 is right), "
        f"left bump at {left.mean():.2f} ± {left.std():.2f} (-4.00 ± 0.50)"
    )

assert abs(shares["annealed, learned scores"] - 0.8) < 0.06
assert abs(shares["one level, exact score"] - 0.5) < 0.06

# %% [markdown]
# With many levels a *learned* score nearly gives the weights of the modes; the exact score of the
# clean data does not, in any practical time.
#
# ## What is expensive
#
# In training a level is a random number. In sampling it costs time: at each of $L$ levels
# there are $T$ steps, each a pass of the network, one after the other. One more pass at the end
# removes the noise of the last level.

# %%
for count, steps_per_level in ((20, 10), (20, 5), (40, 5), (80, 5)):
    grid = sm.times_of_sigmas(sde, levels(count).tolist())
    solver = sm.make_solver("ald", steps_per_level=steps_per_level)
    drawn = sm.sample(trained, (10, 1), solver=solver, grid=grid)
    print(
        f"{count:3d} levels x {steps_per_level:2d} steps: {drawn.nfe:4g} evaluations"
    )

# %% [markdown]
# The following pages reduce that product: neighbouring levels are connected by a *path*, the solution
# of a differential equation, and good solvers need few steps along it. The
# [next page](forward-sdes.md) takes the limit of a continuum of levels.
#
# ## Exercises
#
# 1. The largest level should be about as large as the largest distance between data points. Change
#    20.0 to 2.0 in `levels` and in `VESDE`, and remove the level 10.0 from the first table. What
#    happens to the weights?
# 2. Neighbouring levels should overlap. Use five levels and ten steps each (and look at levels 1, 2
#    and 3 in the figure). What happens to the weights, and to the widths?
# 3. Train without a weight on the error of the score, and plot the learned scores again. Which levels
#    suffer? (Hint: `weighting=sm.losses.noise_weighting(lambda batch:
#    batch.sde.log_snr(batch.t).exp(), "uniform")` weighs the error of the noise by $1/\sigma^2$.)
# 4. Why can training not be shortened in the same way as sampling, by starting each level from the
#    one before? (Hint: what would be gained?)
#
# ## Further reading
#
# - Song and Ermon 2019, [arXiv:1907.05600](https://arxiv.org/abs/1907.05600): the model of this page.
# - Song and Ermon 2020, *Improved techniques for training score-based generative models*,
#   [arXiv:2006.09011](https://arxiv.org/abs/2006.09011): how to choose levels and steps;
#   [`langevin_epsilon`][sde_models.solvers.langevin.levels.langevin_epsilon] and
#   [`level_ratio`][sde_models.solvers.langevin.levels.level_ratio] are its rules.
#
# Next: [from noise levels to a forward SDE](forward-sdes.md).
