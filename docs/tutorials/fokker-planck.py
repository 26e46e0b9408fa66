# %% [markdown]
# # The Fokker-Planck equation of the score
#
# A score model learns the score of every time as if the times were independent.
# But the densities are those of one process and obey its Fokker-Planck equation, so their scores
# obey an equation too. This page derives it, measures how far a learned score violates it, and
# reduces that by a penalty. It also explains why the penalty is usually omitted.
#
# ## The equation of the score
#
# For a forward SDE $dx = a(t)\, x\, dt + g(t)\, dB$ the density obeys
# $\partial_t p = -\nabla \cdot (a x p) + \tfrac12 g^2 \Delta p$, as
# [derived before](ornstein-uhlenbeck.md). Divide by $p$, and use
# $\Delta p / p = \nabla \cdot s + \|s\|^2$ with $s = \nabla \log p$:
#
# $$
# \partial_t \log p = -a D - a\, x \cdot s
#   + \tfrac12 g^2 \big( \nabla \cdot s + \|s\|^2 \big) .
# $$
#
# The gradient of both sides is an equation for the score alone, the **score Fokker-Planck
# equation** (Lai et al. 2023):
#
# $$
# \partial_t s = \nabla \Big[ \tfrac12 g^2 \big( \nabla \cdot s + \|s\|^2 \big)
#   - a\, x \cdot s \Big] .
# $$
#
# If $s$ is right at one time, the equation determines it at all others. The difference of the two
# sides for a model is its **residual**.
#
# ## The exact score has no residual

# %%
import matplotlib.pyplot as plt
import torch

import sde_models as sm
from sde_models.losses import (
    asymmetry,
    denoising_score_matching,
    fokker_planck_penalty,
    fokker_planck_residual,
)

means = torch.tensor([[-1.5, -0.5], [1.5, -0.8], [0.2, 1.4]])
mixture = sm.GaussianMixture(means, 0.4, weights=[0.5, 0.3, 0.2])
sde = sm.VPSDE(t_min=1e-2)
exact = mixture.score_model(sde)
times = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def points(t, count=256):
    generator = torch.Generator().manual_seed(5)
    return mixture.diffuse(sde, t).sample(count, generator=generator)


def rms(values):
    return float(values.square().mean().sqrt())


largest = max(
    rms(fokker_planck_residual(exact, t, points(t).double()).detach())
    for t in times
)
print(f"largest residual of the exact score: {largest:.1e}")

assert largest < 1e-9

# %% [markdown]
# Zero up to rounding, in double precision: two space derivatives by automatic differentiation and the
# time derivative agree.
#
# ## A learned score has one
#
# Now train a small network by denoising score matching, and another with the
# mean square of the residual added as a penalty, in the same number of steps.


# %%
def train(weight):
    def loss(model, x0, *, generator=None):
        value = denoising_score_matching(
            model, x0, weighting="simple", times="log-snr", generator=generator
        )
        if weight:
            penalty = fokker_planck_penalty(
                model, x0, divergence="hutchinson", generator=generator
            )
            value = value + weight * penalty
        return value

    torch.manual_seed(0)
    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=32, depth=1), sde)
    data = mixture.sample(
        5000, generator=torch.Generator().manual_seed(0)
    ).float()
    return sm.fit(
        model, data, steps=250, batch_size=128, loss=loss, seed=0, ema_decay=0.97,
        warmup=10, learning_rate=5e-3, progress=False,
    ).model  # fmt: skip


models = {"plain": train(0.0), "with the penalty": train(1.0)}

# %% alt="The residual is lower with the penalty, the error of the score about the same"
figure, panels = plt.subplots(1, 2, figsize=(7.8, 3))
residuals, errors = {}, {}
for name, model in models.items():
    residuals[name], errors[name] = [], []
    for t in times:
        x = points(t).float()
        with torch.no_grad():
            # In units of the noise and of the log-SNR, so that times are comparable.
            unit = float(sde.sigma(t) ** 3 / sde.diffusion(t) ** 2)
            residuals[name].append(
                unit * rms(fokker_planck_residual(model, t, x))
            )
            off = model.score(t, x) - exact.score(t, x)
            errors[name].append(float(sde.sigma(t)) * rms(off))
    panels[0].plot(times, residuals[name], "o-", label=name)
    panels[1].plot(times, errors[name], "o-", label=name)
panels[0].set(title="Residual", xlabel="time $t$", ylim=(0, None))
panels[0].set_ylabel(r"residual times $\sigma^3 / g^2$")
panels[1].set(title="Error of the score", xlabel="time $t$", ylim=(0, None))
panels[1].set_ylabel(r"error times $\sigma$")
panels[0].legend()
plt.show()

ratio = sum(residuals["with the penalty"]) / sum(residuals["plain"])
print(f"the penalty multiplies the mean residual by {ratio:.2f}")

assert ratio < 0.9

# %% [markdown]
# The penalty reduces the residual. The error of the score, in the right panel, falls less, and
# not at every time: consistency is not correctness.
#
# ## Is a learned score a gradient?
#
# The right side of the equation is a gradient, so a score that starts as a gradient remains one. A
# network need not be one. [`asymmetry`][sde_models.losses.symmetry.asymmetry] compares the Jacobian with
# its transpose: 0 for a gradient, 2 for a rotation.

# %%
x = points(0.2).float()
for name, model in (("exact", exact), *models.items()):
    print(f"{name:<17} asymmetry {float(asymmetry(model, 0.2, x).mean()):.3f}")

assert float(asymmetry(exact, 0.2, x).mean()) < 1e-4

# %% [markdown]
# A smaller residual need not mean a score that is nearer to a gradient: the equation is about how the
# score changes in time.
#
# ## Why train the levels as if they were independent?
#
# Because the minimiser is the same. Each denoising loss has its minimum at the exact
# score of its own time, and these obey the equation automatically; the penalty is zero there too.
# So it adds no information about the data. It can only redistribute errors: where the network is
# wrong at one time and right at another, it brings the two closer. And it has a cost.

# %%
batch = mixture.sample(128, generator=torch.Generator().manual_seed(1)).float()
for name, objective, settings in (
    ("denoising", denoising_score_matching, {"weighting": "simple"}),
    (
        "penalty, estimated trace",
        fokker_planck_penalty,
        {"divergence": "hutchinson"},
    ),
    ("penalty, exact trace", fokker_planck_penalty, {"divergence": "exact"}),
):
    with sm.count_evaluations() as counter:
        objective(models["plain"], batch, **settings)
    cost = counter.cost(len(batch))
    print(f"{name:<25} {cost.nfe:g} pass, {cost.vjps:g} products")

# %% [markdown]
# Each product is differentiated again for the gradient, so a step with the penalty costs several
# times a plain one; the [benchmark](../reference/benchmarks.md#score-matching) has the ratio, and
# [another](../reference/benchmarks.md#fokker-planck) the effect of longer training. In the same
# *time* plain denoising usually gets closer. The residual is most useful as a diagnostic: it needs no
# known score, and shows at which times a model is inconsistent.
#
# ## Exercises
#
# 1. Check the equation by hand for $p_t = N(0, v_t)$ with $\dot v = 2 a v + g^2$.
# 2. Add a constant vector to the exact score. At which times is the residual largest, and why? (Hint:
#    `sm.ScoreModel(network, sde, prediction="score")`, with a `torch.nn.Module` whose `forward(self,
#    t, x)` gives the score and the vector. The residual is $g^2 J c - a c$, $J$ the score's Jacobian.)
# 3. Train the plain network for as long as the other took. Which is nearer to the exact score?
# 4. A score that is wrong can have no residual at all: find one. (Hint: another data distribution.)
#
# ## Further reading
#
# - Lai et al. 2023, *FP-Diffusion*, [arXiv:2210.04296](https://arxiv.org/abs/2210.04296): the
#   equation, the penalty, and experiments with images.
# - Song et al. 2021, *Maximum likelihood training of score-based diffusion models*,
#   [arXiv:2101.09258](https://arxiv.org/abs/2101.09258): what the errors at all times together mean
#   for the likelihood.
#
# Next: [the probability-flow ODE](probability-flow.md).
