# %% [markdown]
# # Ten lines: train, sample, encode, score
#
# This page trains a small model of points in the plane and uses it for the three tasks of this
# library: to draw new points, to find the latent of a point, and to compute its
# log-density. It takes about ten seconds on a laptop.
#
# ## Data
#
# Two interlocking half circles. Any other tensor of shape `(N, *event)` would do.

# %% alt="Two interlocking half circles of points"
import matplotlib.pyplot as plt
import torch

import sde_models as sm

x = sm.data.toy("two-moons", 4000, generator=torch.Generator().manual_seed(0))

plt.figure(figsize=(4.5, 3))
plt.scatter(*x.T, s=2)
plt.gca().set(title="Data", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
plt.show()

# %% [markdown]
# ## Train
#
# A model has three parts: a network, the forward SDE that turns data into noise, and the meaning of
# the network's output. [`fit`][sde_models.training.fitting.fit] trains it by
# [denoising score matching](../score-matching.md) and returns the averaged weights.

# %%
torch.manual_seed(0)  # the weights that training starts from
network = sm.nn.ResidualNetwork((2,), width=96, depth=2)
model = sm.ScoreModel(network, sm.VPSDE(), preconditioning="edm")
result = sm.fit(
    model,
    x,
    steps=1000,
    learning_rate=4e-3,
    ema_decay=0.99,
    seed=0,
    progress=False,
)
trained = result.model

# %% [markdown]
# ## Sample
#
# Sampling follows the probability flow from noise back to data, here in 20 steps of a solver made
# for diffusion. Any name in the [table of solvers](../solvers.md) may be used instead.

# %% alt="Samples lie on the same half circles as the data"
source = torch.Generator().manual_seed(1)
drawn = sm.sample(
    trained, (2000, 2), solver="dpmpp-2m", steps=20, generator=source
)
print(f"{drawn.nfe:g} evaluations of the network")

figure, panels = plt.subplots(1, 2, sharex=True, sharey=True, figsize=(7.5, 2.8))
for panel, title, points in (
    (panels[0], "Data", x[:2000]),
    (panels[1], "Samples", drawn.x),
):
    panel.scatter(*points.T, s=2)
    panel.set(title=title, xlabel="$x_1$", aspect="equal")
panels[0].set_ylabel("$x_2$")
plt.show()

# %% [markdown]
# ## Encode
#
# The flow runs in both directions. From data to noise it gives the latent of every point, and from noise
# to data the point again.

# %%
latents = sm.encode(trained, x[:500]).z
again = sm.decode(trained, latents).x
round_trip = float((again - x[:500]).abs().max())
print(f"standard deviation of the latents {float(latents.std()):.3f}")
print(f"largest error of the round trip   {round_trip:.4f}")

assert abs(float(latents.std()) - 1) < 0.05
assert round_trip < 0.05

# %% [markdown]
# The latents look like the standard normal noise that samples are drawn from, and decoding inverts
# encoding up to the tolerance of the solver. [Latents](latents.md) describes their uses.
#
# ## Score
#
# Along the same flow the density changes by a factor that can be computed, so each point has an
# exact log-density under the model. `tol` sets the accuracy in nats, and the result reports the
# error reached.

# %%
lp = sm.log_prob(trained, x[:5], tol=0.05)
for (a, b), value, error in zip(x[:5], lp.value, lp.error, strict=True):
    print(f"log p({a:+.2f}, {b:+.2f}) = {value:+.3f} ± {error:.3f} nats")

far = sm.log_prob(trained, torch.tensor([[0.0, 3.0]]), tol=0.05)
print(f"far from the data: {float(far.value):.1f} nats")

assert bool((lp.error < 0.05).all())
assert far.value < lp.value.min() - 5

# %% [markdown]
# ## Where to go next
#
# - New to stochastic differential equations: [Brownian motion](brownian-motion.md) is the first of
#   eleven pages that derive all of this from the beginning.
# - In a hurry: [choosing a solver](choosing-a-solver.md) and
#   [choosing a trace estimator](choosing-a-trace.md) are tables with figures.
# - With data of your own: [your own network](your-own-network.md), and
#   [training at scale](training-at-scale.md).
