# %% [markdown]
# # Score matching
#
# A score can be learned from samples alone, although no sample comes with its score. This page
# derives the three methods in use, implicit, sliced and denoising score matching, tests them
# on a problem whose score is known, and shows the cost of each. It ends with a dilemma: the
# noise that is best for estimating a score is not the best for sampling with it.
#
# ## The Fisher divergence
#
# The natural measure of how far a model $s(x)$ is from the score of the data is
#
# $$
# J = \tfrac12\, E_{x \sim p} \big\| s(x) - \nabla \log p(x) \big\|^2 ,
# $$
#
# the **Fisher divergence**. It contains the unknown score. All of score matching is about
# eliminating it.
#
# ## Implicit score matching
#
# Expand the square. The term $\tfrac12 E \|\nabla \log p\|^2$ does not depend on the model; the
# mixed one does, and integration by parts removes the unknown from it: since
# $p\, \nabla \log p = \nabla p$,
#
# $$
# E[s \cdot \nabla \log p] = \int s \cdot \nabla p\, dx = -\int p\, \nabla \cdot s\, dx
#   = -E[\nabla \cdot s],
# $$
#
# if $p\,s$ vanishes far away. So, up to a constant,
#
# $$
# J = E\big[ \nabla \cdot s(x) + \tfrac12 \|s(x)\|^2 \big] ,
# $$
#
# and both terms can be computed from the model and samples (Hyvärinen 2005). To see it work, take
# normal data of variance $v$ and the family $s_k(x) = -k x$: the divergence is $-k$, so
# $J = -k + \tfrac12 k^2 v$, least at $k = 1/v$, the true score.

# %% alt="Two parabolas with the same minimum, one above the other by a constant"
import time
from functools import partial

import matplotlib.pyplot as plt
import torch

import sde_models as sm

VARIANCE = 0.5
x = VARIANCE**0.5 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
k = torch.linspace(0.5, 3.5, 61)
fisher = 0.5 * (((1 / VARIANCE - k)[:, None] * x) ** 2).mean(1)
implicit = -k + 0.5 * k**2 * (x**2).mean()

plt.plot(k, fisher, label="Fisher divergence")
plt.plot(k, implicit, label="implicit objective")
plt.axvline(1 / VARIANCE, color="C7", ls=":", label="$1/v$")
plt.gca().set(
    title="Two objectives, one minimum", xlabel="slope $k$", ylabel="objective"
)
plt.legend()
plt.show()

assert abs(k[implicit.argmin()] - 1 / VARIANCE) < 0.1

# %% [markdown]
# The expensive part is the divergence $\nabla \cdot s = \sum_i \partial s_i / \partial x_i$: each of
# its $D$ terms takes a separate *vector-Jacobian product*, $e^\top \partial s / \partial x$ with
# $e$ a unit vector. Automatic differentiation computes one by a backward pass, for the price of about
# two evaluations of the network; so a step costs $D$ backward passes.
#
# ## Sliced score matching
#
# For a random vector $e$ with $E[e e^\top] = I$, $E[e^\top A e] = \operatorname{tr} A$. So one
# product estimates the divergence without bias (Song et al. 2019):
#
# $$
# J = E\big[ e^\top \nabla (e \cdot s(x)) + \tfrac12 (e \cdot s(x))^2 \big] .
# $$
#
# The last term has the known mean $\tfrac12 \|s\|^2$ over $e$; using the mean instead reduces
# the variance.
#
# ## Denoising score matching
#
# The third method changes the problem. Add noise to the data, $\tilde x = x + \sigma z$, and learn
# the score of the *noised* density $q_\sigma$. Given $x$ it is known:
# $\nabla \log q_\sigma(\tilde x \mid x) = -z / \sigma$. Vincent (2011) showed that it is enough to
# regress on that:
#
# $$
# \nabla \log q_\sigma(\tilde x)
#   = \frac{\int p(x)\, \nabla q_\sigma(\tilde x \mid x)\, dx}{q_\sigma(\tilde x)}
#   = E\big[ \nabla \log q_\sigma(\tilde x \mid x) \,\big|\, \tilde x \big] ,
# $$
#
# and the mean squared error is least at the conditional mean. So
#
# $$
# J_\sigma = \tfrac12\, E \Big\| s(x + \sigma z) + \frac{z}{\sigma} \Big\|^2
# $$
#
# has its minimum at the score of the noised data. No derivative of $s$ in $x$ is left.
#
# ## All of them on one problem
#
# Three bumps in the plane, noised to $\sigma = 0.5$, so that all of them estimate the same score,
# which is known. The same network and the same number of steps for each.
#
# [`VESDE`][sde_models.sdes.variance_exploding.VESDE] is the process that only adds noise; its
# time determines $\sigma$, and `times_of_sigmas` gives the time of a $\sigma$. A
# [`ScoreModel`][sde_models.models.score_model.ScoreModel] is a network together with such a process, and
# [`fit`][sde_models.training.fitting.fit] trains it: it draws a batch of the data, computes the gradient
# of the loss in the weights, and moves them a little downhill, a few hundred times. It returns the
# weights averaged over the last steps (`ema_decay=`). `weighting="simple"` counts errors in units of
# the noise, which the next page explains; `count_evaluations` counts the passes of the network and
# the vector-Jacobian products.

# %%
means = torch.tensor([[-1.5, -0.5], [1.5, -0.8], [0.2, 1.4]])
mixture = sm.GaussianMixture(means, 0.4, weights=[0.5, 0.3, 0.2])
sde = sm.VESDE()
SIGMA = 0.5
(t,) = sm.times_of_sigmas(sde, [SIGMA])
noised = mixture.diffuse(sde, t)
points = noised.sample(2000, generator=torch.Generator().manual_seed(9)).float()
truth = mixture.score_model(sde).score(t, points)
data = mixture.sample(10_000, generator=torch.Generator().manual_seed(0)).float()

OBJECTIVES = {
    "denoising": partial(sm.losses.denoising_score_matching, weighting="simple"),
    "implicit": sm.losses.implicit_score_matching,
    "sliced": partial(sm.losses.sliced_score_matching, variance_reduced=False),
    "sliced, less variance": sm.losses.sliced_score_matching,
}


def train(objective, steps=300):
    torch.manual_seed(0)
    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=32, depth=1), sde)
    loss = partial(objective, sigma=SIGMA)
    start = time.process_time()
    result = sm.fit(
        model, data, steps=steps, loss=loss, ema_decay=0.98, learning_rate=5e-3,
        seed=0, progress=False,
    )  # fmt: skip
    return result.model, time.process_time() - start


train(OBJECTIVES["denoising"], steps=5)  # the first run includes start-up time
errors, seconds = {}, {}
for name, objective in OBJECTIVES.items():
    model, seconds[name] = train(objective)
    with torch.no_grad():
        off = model.score(t, points) - truth
    errors[name] = float((off.square().sum() / truth.square().sum()).sqrt())
    with sm.count_evaluations() as counter:
        objective(model, data[:64], sigma=SIGMA)
    cost = counter.cost(64)
    print(
        f"{name:<22} error {errors[name]:.3f}, {cost.nfe:g} pass and {cost.vjps:g} products "
        f"a step, time {seconds[name] / seconds['denoising']:.1f}"
    )

assert max(errors.values()) < 0.3

# %% [markdown]
# Errors are relative to the size of the score, times to that of denoising. All find
# the same score; denoising needs the least work. Sliced score matching pays for the product
# *and* for differentiating through it, and its random vectors add noise to the gradient. In
# two dimensions the exact trace is only two products; in 64 it is 64. The table of
# [benchmarks](../reference/benchmarks.md#score-matching) has both, with the variance of each gradient.
#
# Sliced and implicit score matching have their uses: they need no noise, and no formula for the
# noised data. An SDE whose kernel is not known can be learned by
# [`simulated_score_matching`][sde_models.losses.simulated.simulated_score_matching], which is
# sliced score matching on simulated paths.
#
# ## The best sigma
#
# Denoising estimates the score of the *noised* data. So take $\sigma$ as small as possible? Take
# two bumps, and train a network at each of a few levels. How far is its score from that of the
# clean data, on the data; and how far are samples that Langevin dynamics draws with it? The measure
# for samples is the *transport distance*: how far each must move, on average, to become the data. In
# one dimension that is the mean distance after both are sorted. (`preconditioning="edm"` scales the
# input and output of the network to size one at each level, after Karras et al. 2022.)

# %%
bumps = sm.GaussianMixture([[-1.5], [1.5]], 0.3, weights=[0.8, 0.2])
clean = bumps.sample(4000, generator=torch.Generator().manual_seed(1)).float()
exact = torch.func.grad(lambda x: bumps.log_prob(x).sum())(clean)
wide = sm.VESDE(0.01, 10.0, data_std=1.3)


def score_and_samples(sigma):
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((1,), width=32, depth=2)
    model = sm.ScoreModel(network, wide, preconditioning="edm")
    loss = partial(
        sm.losses.denoising_score_matching, sigma=sigma, weighting="simple"
    )
    model = sm.fit(
        model, clean, steps=250, loss=loss, ema_decay=0.98, learning_rate=5e-3,
        warmup=20, seed=0, progress=False,
    ).model  # fmt: skip
    (at,) = sm.times_of_sigmas(wide, [sigma])
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2000, 1, generator=generator)
    with torch.no_grad():
        error = (
            model.score(at, clean) - exact
        ).square().mean() / exact.square().mean()
        for _ in range(150):
            noise = torch.randn(x.shape, generator=generator)
            x = x + 0.5 * sigma**2 * model.score(at, x) + sigma * noise
    distance = (x.sort(0).values - clean[:2000].sort(0).values).abs().mean()
    return float(error), float(distance)


# %% alt="The error of the score is least at small sigma, that of the samples at larger sigma"
sigmas = [0.05, 0.1, 0.2, 0.4, 0.8]
error, distance = zip(
    *(score_and_samples(sigma) for sigma in sigmas), strict=True
)

figure, panels = plt.subplots(1, 2, figsize=(7.5, 2.8))
for panel, values, title, label in (
    (panels[0], error, "Error of the score", "relative squared error"),
    (panels[1], distance, "Error of the samples", "transport distance"),
):
    panel.semilogx(sigmas, values, "o-")
    panel.set_xticks(sigmas, [str(sigma) for sigma in sigmas])
    panel.minorticks_off()
    panel.set(title=title, xlabel=r"noise $\sigma$", ylabel=label, ylim=(0, None))
plt.show()

best_score = sigmas[error.index(min(error))]
best_samples = sigmas[distance.index(min(distance))]
print(f"best for the score: {best_score}; best for sampling: {best_samples}")

assert best_score < best_samples

# %% [markdown]
# Little noise blurs little, and its score is closest to that of the data. (At the smallest level it
# is harder to learn: the target $-z/\sigma$ is larger, and so is its scatter.) But the network saw
# nothing between the bumps, and steps as short as the noise do not carry samples across; so they
# keep the wrong weights. Much noise carries them across, to a blurred law. No single
# $\sigma$ does both. The solution is to use [all of them](noise-levels.md).
#
# ## Exercises
#
# 1. Show that for $s_k(x) = -k x$ denoising score matching at $\sigma$ has its minimum at
#    $k = 1 / (v + \sigma^2)$, and check it on the first figure's data.
# 2. Why does the integration by parts fail for data in a box with a density that is positive at the
#    walls?
# 3. In the table give sliced score matching four probes (`probes=4`). What happens to error and
#    time?
# 4. In the last experiment start the samples from the data instead. Which sigma is best now, and
#    why is that no solution?
#
# ## Further reading
#
# - Hyvärinen 2005, *Estimation of non-normalized statistical models by score matching*: short and
#   readable.
# - Vincent 2011, *A connection between score matching and denoising autoencoders*.
# - Song et al. 2019, *Sliced score matching*, [arXiv:1905.07088](https://arxiv.org/abs/1905.07088).
# - The guide [Score matching](../score-matching.md): every objective of this library, with options.
#
# Next: [noise-conditional score networks](noise-levels.md).
