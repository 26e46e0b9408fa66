# %% [markdown]
# # Gradients through sampling and likelihood
#
# A sample is a function of its noise, and a log-density a function of its point; both are
# functions of the weights. This page differentiates them, checks the gradients against closed
# forms and finite differences, compares the two methods, and uses them: to increase the
# likelihood of a trained model, and to draw samples that a reward prefers.
#
# ## Two methods
#
# Every function that solves takes `gradient=`:
#
# | `gradient=` | method | memory | solvers |
# |---|---|---|---|
# | `None` | `"direct"` if `x` or a condition requires a gradient, otherwise no graph | | |
# | `"direct"` | backpropagation through each step | grows with the steps | all except `scipy:` |
# | `"adjoint"` | a second differential equation, solved backwards | does not grow | `ode:` |
#
# `"direct"` gives the derivative of the computed number, including errors of the steps.
# `"adjoint"` gives the derivative of the exact solution: with $a = \partial L /
# \partial x_t$, the equation (Pontryagin 1962; Chen et al. 2018)
#
# $$
# \frac{da}{dt} = - \Big(\frac{\partial v}{\partial x}\Big)^{\!\top} a,
# \qquad
# \frac{dL}{d\theta} = \int a^\top\, \frac{\partial v}{\partial \theta}\, dt
# $$
#
# along the path from start to end, which is solved again backwards, with its own
# errors. Weights alone do not switch a graph on, so that sampling stays cheap: choose
# one of the two explicitly.
#
# ## Gradient in the point
#
# The gradient of a log-density in its point is the score, so for a mixture the answer is known. Two
# differences should be small: to the closed form at $t_{min}$, where the flow ends, and to
# finite differences of `log_prob` itself.

# %%
import matplotlib.pyplot as plt
import torch

import sde_models as sm

sde = sm.VPSDE()
mixture = sm.GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], weights=[0.4, 0.6]
).double()
exact = mixture.score_model(sde)
prior = mixture.diffuse(sde, sde.t_max)
fine = {"rtol": 1e-6, "atol": 1e-6, "prior": prior}

x = mixture.sample(
    20, generator=torch.Generator().manual_seed(0)
).requires_grad_()
lp = sm.log_prob(exact, x, **fine)
(gradient,) = torch.autograd.grad(lp.value.sum(), x)

score = exact.score(sde.t_min, x.detach())
step = torch.tensor([1e-3, 0.0], dtype=torch.float64)
above, below = (
    sm.log_prob(exact, x.detach() + s * step, **fine) for s in (1, -1)
)
difference = (above.value - below.value) / 2e-3

to_score = float((gradient - score).abs().max())
to_difference = float((gradient[:, 0] - difference).abs().max())
print(f"largest component of the score   {float(score.abs().max()):.2f}")
print(f"gradient minus score             {to_score:.1e}")
print(f"gradient minus finite difference {to_difference:.1e}")

assert to_score < 1e-2
assert to_difference < 1e-2

# %% [markdown]
# If only the score is needed, `model.score` is much cheaper. The gradient of `log_prob` is the score of
# *the flow's* density, and the difference of the two measures the inconsistency of a trained network.
#
# ## Gradient in the weights
#
# [`maximum_likelihood_loss`][sde_models.likelihood.maximum_likelihood.maximum_likelihood_loss] is minus the mean
# log-density, with a graph to the weights. Take a small network, trained on two moons, and
# a random direction $d$ in the space of its weights. The cell compares the finite difference
# $(L(\theta + h d) - L(\theta - h d)) / 2h$ with the two gradients along $d$, for three numbers of
# steps. The direct one should agree for any number, the adjoint one only as the steps become fine.

# %%
moons = sm.data.toy("two-moons", 4000, generator=torch.Generator().manual_seed(0))
test = sm.data.toy("two-moons", 300, generator=torch.Generator().manual_seed(1))

torch.manual_seed(0)
network = sm.nn.ResidualNetwork((2,), width=48, depth=2)
model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3), preconditioning="edm")
trained = sm.fit(
    model,
    moons,
    steps=400,
    batch_size=128,
    learning_rate=4e-3,
    ema_decay=0.95,
    warmup=20,
    seed=0,
    progress=False,
).model

# %%
from copy import deepcopy

from torch.nn.utils import parameters_to_vector, vector_to_parameters

probe = deepcopy(trained).double()
points = moons[:4].double()
weights = parameters_to_vector(probe.parameters()).detach()
source = torch.Generator().manual_seed(2)
direction = torch.randn(weights.shape, generator=source, dtype=torch.float64)


def loss(theta, **arguments):
    """The loss with other weights."""
    vector_to_parameters(theta, probe.parameters())
    return sm.maximum_likelihood_loss(probe, points, "ode:rk4", **arguments)


print(
    "steps   finite difference    direct   adjoint   (direct and adjoint: error)"
)
wrong = {}
for steps in (6, 12, 24):
    h = 1e-5
    with torch.no_grad():
        up, down = (
            loss(weights + s * h * direction, steps=steps) for s in (1, -1)
        )
    slope = float(up - down) / (2 * h)
    for method in ("direct", "adjoint"):
        found = torch.autograd.grad(
            loss(weights, steps=steps, gradient=method),
            list(probe.parameters()),
        )
        along = float(parameters_to_vector(found) @ direction)
        wrong[steps, method] = abs(along - slope)
    print(
        f"{steps:5} {slope:19.4f} {wrong[steps, 'direct']:9.0e} "
        f"{wrong[steps, 'adjoint']:9.0e}"
    )

assert all(wrong[steps, "direct"] < 1e-4 for steps in (6, 12, 24))
assert wrong[24, "adjoint"] < wrong[6, "adjoint"]

# %% [markdown]
# So with few steps prefer `"direct"`: it is the gradient of the function that the optimiser minimises.
# An adaptive solver treats its steps as constant in the derivative, which is correct within its
# tolerance.
#
# ## Memory
#
# Backpropagation stores the intermediate values of each step until the backward pass. PyTorch has hooks
# for every stored tensor, so the peak can be counted. One line should rise with the steps, the other
# not.

# %% alt="Peak memory against steps: the direct method rises in proportion, the adjoint is constant"


class Kept:
    """A tensor that a graph stores, counted for as long as it is stored."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.peak = max(Kept.peak, Kept.now)

    def __del__(self):
        Kept.now -= self.tensor.nbytes


def peak(method, steps):
    """Most bytes stored at once while a batch is decoded and differentiated."""
    Kept.now = Kept.peak = 0
    noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(3))
    noise.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        sm.decode(
            trained, noise, "ode:rk4", steps=steps, gradient=method
        ).x.sum().backward()
    return Kept.peak / 2**20


counts = [5, 10, 20]
peaks = {
    method: [peak(method, n) for n in counts] for method in ("direct", "adjoint")
}
for method, found in peaks.items():
    plt.plot(counts, found, "o-", label=method)
plt.gca().set(
    title="Memory of a gradient through 256 samples",
    xlabel="steps of ode:rk4",
    ylabel="stored at once (MiB)",
    xticks=counts,
)
plt.legend()
plt.show()

times = peaks["direct"][-1] / peaks["adjoint"][-1]
print(f"{counts[-1]} steps: direct stores {times:.0f} times as much")
assert peaks["direct"][-1] > 3 * peaks["direct"][0]
assert peaks["adjoint"][-1] < 1.5 * peaks["adjoint"][0]

# %% [markdown]
# The adjoint saves memory at the cost of time: the backward pass solves the path again, with a product
# for every evaluation. Another solution is to take fewer steps. Solvers made for diffusion need only
# ten or twenty, and only `"direct"` works with them.
#
# ## Increase the likelihood of a trained model
#
# [Denoising score matching](matching-scores.md) minimises a sum of squares over all noise levels. It is
# a good proxy for the likelihood, but not the likelihood itself. With the gradient available, the
# latter can be trained directly, at the cost of a solve per step. So train with denoising, and
# fine-tune at the end. [`fit`][sde_models.training.fitting.fit] takes the loss as it is. For
# a fair comparison, denoising is continued for the same number of steps, and for eight times as many. The
# gain is measured on new points, to 0.3 nats for each.


# %%
def likelihood(model, x0, **arguments):
    return sm.maximum_likelihood_loss(
        model, x0, "dpmpp-2m", steps=16, intervals=16, **arguments
    )


def fine_tune(loss, steps):
    """Further steps with a loss."""
    return sm.fit(
        deepcopy(trained),
        moons,
        steps=steps,
        batch_size=128,
        learning_rate=2e-3,
        ema_decay=0.9,
        warmup=5,
        seed=1,
        loss=loss,
        progress=False,
    ).model


def on_test(model):
    return sm.log_prob(model, test, tol=0.3).value


before = on_test(trained)
print(f"before                     {float(before.mean()):.3f} nats")
gains = {}
for name, objective, steps in (
    ("denoising", sm.losses.denoising_score_matching, 50),
    ("denoising", sm.losses.denoising_score_matching, 400),
    ("likelihood", likelihood, 50),
):
    gain = on_test(fine_tune(objective, steps)) - before
    gains[name] = float(gain.mean()), float(gain.std()) / len(test) ** 0.5
    print(
        f"gain by {steps:3} of {name:10}  {gains[name][0]:+.3f} ± {2 * gains[name][1]:.3f}"
    )

mean, stderr = gains["likelihood"]
assert mean > 3 * stderr

# %% [markdown]
# The steps differ in cost: one of likelihood is a complete solve with its traces and their backward
# pass, one of denoising a single evaluation and its gradient. As long as denoising still
# improves a model it may be cheaper; afterwards use the likelihood. For large
# events the trace is estimated, `divergence=sm.Hutchinson(1)`; the gradient stays unbiased. And the flow's
# likelihood does not measure the reverse SDE, whose samples may get worse while it rises. Check both.
#
# A caution: with few `intervals` and many steps the optimiser learns to exploit the error of the
# quadrature. The loss then falls below the value of `log_prob(tol=)` on new points. The script
# `examples/fine_tune_likelihood.py` prints both; where they differ, take more `intervals`.
#
# ## Samples that a reward prefers
#
# Let $r(x)$ be any differentiable reward. The aim is to sample from
#
# $$
# q(x) \propto p(x)\, e^{r(x)} .
# $$
#
# In the space of latents this is an easy problem. A sample is $x(z)$ with $z$ normal, so $q$ is the law
# of $x(z)$ if $z$ is drawn from
#
# $$
# \pi(z) \propto \exp\big(-\tfrac12 \|z\|^2 + r(x(z))\big),
# $$
#
# whose gradient goes through the sampler. [Langevin dynamics](scores-and-langevin.md) samples from it: a
# step along the gradient of $\log \pi$, plus noise, and a test that accepts or rejects the step
# so that $\pi$ is exactly stationary (MALA, Roberts and Tweedie 1996).
#
# For a check take the linear reward $r(x) = \lambda \cdot x$ on the mixture above. Completing the square,
# each Gaussian $N(m, s^2 I)$ moves to $m + s^2 \lambda$, and its weight is multiplied by
# $\exp(\lambda \cdot m + s^2 \|\lambda\|^2 / 2)$: again a mixture. The figure shows the first and the last
# samples, and the contours of the closed form.

# %% alt="Before, samples fill both modes; after, mostly the left one, inside the exact contours"
tilt = torch.tensor([-1.5, 1.0], dtype=torch.float64)
variances = mixture.variances
shifted = sm.GaussianMixture(
    mixture.means + variances * tilt,
    variances.sqrt(),
    weights=torch.softmax(
        mixture.log_weights
        + mixture.means @ tilt
        + 0.5 * variances @ tilt.square(),
        0,
    ),
)


def reward(x):
    return x @ tilt


def target(z):
    """Log of pi up to a constant, its gradient, and the samples."""
    z = z.detach().requires_grad_()
    x = sm.decode(exact, z, "dpmpp-2m", steps=30).x
    value = reward(x) - 0.5 * z.square().sum(1)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient, x.detach()


source = torch.Generator().manual_seed(4)
size, chains = 0.3, 400
z = torch.randn(chains, 2, generator=source, dtype=torch.float64)
value, slope, x = target(z)
first = x
for _ in range(50):
    jump = size * slope + (2 * size) ** 0.5 * torch.randn(
        z.shape, generator=source, dtype=torch.float64
    )
    new_value, new_slope, new_x = target(z + jump)
    forth = (jump - size * slope).square().sum(1)
    back = (jump + size * new_slope).square().sum(1)
    odds = new_value - value + (forth - back) / (4 * size)
    taken = torch.rand(chains, generator=source).log() < odds
    z = torch.where(taken[:, None], z + jump, z)
    value = torch.where(taken, new_value, value)
    slope = torch.where(taken[:, None], new_slope, slope)
    x = torch.where(taken[:, None], new_x, x)

figure, panels = plt.subplots(1, 2, sharex=True, sharey=True, figsize=(7.5, 3.2))
ticks = (
    torch.linspace(-2.5, 2.8, 100).double(),
    torch.linspace(-1.6, 2.4, 80).double(),
)
plane = torch.cartesian_prod(*ticks)
for panel, title, samples, law in (
    (panels[0], "Samples of $p$", first, mixture),
    (panels[1], "Samples of $q$", x, shifted),
):
    density = law.log_prob(plane).exp().reshape(100, 80).T
    panel.contour(*ticks, density, levels=5, linewidths=1)
    panel.scatter(*samples.T, s=5, color="C1")
    panel.set(title=title, xlabel="$x_1$")
panels[0].set_ylabel("$x_2$")
plt.show()

print(f"mean reward  before {float(reward(first).mean()):+.3f}, after", end=" ")
after, known = float(reward(x).mean()), float(reward(shifted.mean()[None]))
error = float(reward(x).std()) / chains**0.5
print(f"{after:+.3f} ± {2 * error:.3f}, closed form {known:+.3f}")

assert abs(after - known) < 4 * error

# %% [markdown]
# The two modes are far apart for a chain in $x$, but in $z$ they are halves of one normal density, with
# no valley between. A network can be the reward too. Plain gradient
# ascent in $z$, without the noise and without $-\frac12 \|z\|^2$, would find the highest
# reward and leave the data.
#
# ## When it fails
#
# - *"element 0 of tensors does not require grad"*: nothing in the call required a gradient. Give
#   `gradient="direct"`.
# - *Out of memory*: fewer steps, fewer `intervals`, probes in place of the exact trace, or `"adjoint"`.
# - *A model with dropout in training mode* raises an error: call `model.eval()`.
# - *Fused attention* has no second derivative. Density gradients need one: choose the plain
#   kernel, `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)`.
#
# ## Further reading
#
# - Chen et al. 2018, *Neural ordinary differential equations*,
#   [arXiv:1806.07366](https://arxiv.org/abs/1806.07366): the adjoint equation, with a short proof.
# - Gholami, Keutzer and Biros 2019, *ANODE*, [arXiv:1902.10298](https://arxiv.org/abs/1902.10298): where
#   the adjoint's gradient is wrong, and checkpoints as a remedy.
# - Kidger 2022, *On neural differential equations*,
#   [arXiv:2202.02435](https://arxiv.org/abs/2202.02435): chapter 5 on both methods and their costs.
# - Song et al. 2021, *Maximum likelihood training of score-based diffusion models*,
#   [arXiv:2101.09258](https://arxiv.org/abs/2101.09258): the weighting that makes denoising a bound.
# - Roberts and Tweedie 1996, *Exponential convergence of Langevin distributions and their discrete
#   approximations*, Bernoulli 2: the accepted Langevin step.
#
# Next: [Models from elsewhere](models-from-elsewhere.md)
