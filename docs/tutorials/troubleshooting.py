# %% [markdown]
# # Troubleshooting
#
# Errors of this library say what was given, what is wanted, and how to get it. This page makes the
# ones that people meet most, one cell each, and adds why they come and what else helps. At the end
# stand the troubles that raise nothing. A message that is not here is found by its first words in the
# search above: [all messages](../reference/messages.md) are listed, by the module that raises them.

# %%
import tempfile
import textwrap
from pathlib import Path

import torch

import sde_models as sm

sde = sm.VPSDE()
mixture = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.3)
model = mixture.score_model(sde)
source = torch.Generator().manual_seed(0)
x = mixture.sample(64, generator=source)


def message(action):
    """Print the error that comes of an action."""
    try:
        action()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        print(textwrap.fill(text, 80))
    else:
        raise AssertionError("there was no error")


# %% [markdown]
# ## Shapes and types
#
# ### A batch of numbers is no batch of events

# %%
message(lambda: sm.log_prob(model, torch.zeros(64)))

# %% [markdown]
# **Cause.** Every `x` is a batch: its first dimension counts samples, the rest is one event. A vector
# of 64 numbers could be one event or 64 of them.
#
# **Cure.** `x.reshape(-1, 1)` for 64 events of one number, `x[None]` for one event.
#
# ### Bytes where numbers are wanted

# %%
message(lambda: sm.log_prob(model, torch.zeros(4, 2, dtype=torch.uint8), tol=0.1))

# %% [markdown]
# **Cause.** A density belongs to continuous data. Images of 256 levels have probabilities instead.
#
# **Cure.** [`bits_per_dim`][sde_models.likelihood.bits_per_dimension.bits_per_dim] spreads each level over its cell, and
# gives bits. To train on such images see [training at scale](training-at-scale.md).
#
# ### Times of the wrong shape

# %%
message(lambda: model.score(torch.full((64, 1), 0.5), x))

# %% [markdown]
# **Cause.** A time is one number or one for each sample: shape `()` or `(B,)`. The column `(B, 1)` that
# other code wants would silently broadcast to `(B, B, ...)` in some places.
#
# **Cure.** `t.flatten()`.
#
# ## Solvers and their arguments
#
# ### A name that is not known

# %%
message(lambda: sm.sample(model, (8, 2), solver="dopri5"))
message(lambda: sm.sample(model, (8, 2), solver="dpm++2m"))

# %% [markdown]
# **Cause.** The prefix says which library runs it: `ode:` torchdiffeq, `sde:` torchsde, `scipy:` SciPy,
# `diffusers:` a scheduler of diffusers, none this library.
#
# **Cure.** `print(sm.list_solvers())` shows all names.
#
# ### An argument that the solver cannot use

# %%
message(lambda: sm.sample(model, (8, 2), solver="ode:dopri5", steps=20))
message(lambda: sm.sample(model, (8, 2), solver="dpmpp-2m", rtol=1e-5))

# %% [markdown]
# **Cause.** Adaptive solvers take tolerances and choose their steps, the others take `steps=` and a
# `grid=`. What would have no effect is refused, so that nobody believes it had one.
#
# ### A solver for the other kind of equation

# %%
flow, reverse = sm.ProbabilityFlow(model), sm.ReverseSDE(model, (2,))
message(lambda: sm.solve(flow, x, (1.0, 1e-3), solver="euler-maruyama"))
message(lambda: sm.solve(reverse, x, (1.0, 1e-3), solver="ode:dopri5"))

# %% [markdown]
# **Cure.** Hand [`sample`][sde_models.sampling.samples.sample] the model and it makes the equation that the
# solver can integrate; `eta=` sets how random it is.
#
# ### The wrong way round

# %%
message(lambda: sm.solve(reverse, x, (1e-3, 1.0), solver="euler-maruyama"))

# %% [markdown]
# **Cause.** Time runs from data at `t_min` up to noise at `t_max`. The reverse SDE runs down only. The
# flow runs both ways, which is what makes [latents](latents.md).
#
# ### A word that nobody knows

# %%
message(lambda: sm.sample(model, (8, 2), solver="dpmpp-2m", step=20))

# %% [markdown]
# **Cause.** Keywords that a verb does not know are conditioning, and go to the network. One that looks like
# an argument of the verb is taken for a slip.
#
# **Cure.** The spelling; or name the word in your network's `forward`
# ([labels](your-own-network.md#labels-and-other-things-to-depend-on)).
#
# ### A generator that nothing is drawn from

# %%
message(lambda: sm.encode(model, x, generator=source))

# %% [markdown]
# **Cause.** Encoding follows the flow, which draws no noise. A seed there would look as if it mattered.
#
# ### An equation that cannot be reversed


# %%
class Shaken(sm.SDE):
    state_dependent_noise = True

    def f(self, t, x):
        return -x

    def g(self, t, x):
        return 1 + x.abs()


network = sm.nn.ResidualNetwork((2,), width=8, depth=1)
shaken = sm.ScoreModel(network, Shaken(), "score")
message(lambda: sm.ReverseSDE(shaken, (2,)))

# %% [markdown]
# **Cure.** Noise that depends on time alone; see [your own SDE](your-own-sde.md).
#
# ## While it solves
#
# ### NaN
#
# A solve stops at the first NaN or infinity, and the error carries what is needed to look into it: the
# time `.t`, the state `.x`, and the samples concerned, `.rows`.


# %%
class Broken(torch.nn.Module):
    def forward(self, t, x):
        return torch.where(x[:, :1] > 2, torch.nan, x)


broken = sm.ScoreModel(Broken(), sde, event_shape=(2,))
start = torch.zeros(4, 2)
start[3] = 3.0
try:
    sm.decode(broken, start, solver="ode:rk4", steps=20)
except sm.NonFiniteError as error:
    print(textwrap.fill(str(error), 80))
    print("samples", error.rows, "at", error.x[error.rows].tolist())
else:
    raise AssertionError("there was no error")

# %% [markdown]
# **Causes**, the likeliest first: weights that training left as NaN (look at
# `[name for name, p in model.named_parameters() if not p.isfinite().all()]`); a logarithm or a
# division in your network or SDE that fails at one end of time; half precision.
#
# ### Steps that do not end
#
# An adaptive solver that would take more than `max_steps` steps says where it is.

# %%
try:
    sm.decode(model, x, solver="ode:dopri5", rtol=1e-6, atol=1e-6, max_steps=10)
except sm.StepLimitError as error:
    print(textwrap.fill(str(error), 80))
    print("reached t =", round(error.t, 3), "after", error.nfe, "evaluations")
else:
    raise AssertionError("there was no error")

# %% [markdown]
# **Causes.** Tolerances below what the network is smooth enough for: features of time with high
# frequencies, ReLU. Or a `t_min` so small that the score there, of the size $1/\sigma$, is stiff.
#
# **Cures.** Looser tolerances; `t_min=1e-3` when the SDE is made; a solver made for diffusion,
# `adams-batch`, which steps in a clock in which the flow is smooth.
#
# ### Tolerances below rounding

# %%
message(lambda: sm.decode(model, x, solver="ode:dopri5", rtol=1e-9))

# %% [markdown]
# **Cause.** Numbers in float32 have seven digits, and no step is small enough for a ninth.
#
# **Cure.** `x.double()`: the state is then in float64, and the network is called in its own dtype. Where the
# rounding of the network counts, `model.double()` too.
#
# ### A network that is not one function

# %%
dropping = sm.ScoreModel(
    torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)), sde
)
message(lambda: sm.sample(dropping, (8, 2)))

# %% [markdown]
# **Cause.** Dropout draws anew at each call, batch normalisation mixes the samples of a batch. The
# equation would be another one at each step, and its density would be that of none.
#
# **Cure.** `model.eval()`. What [`fit`][sde_models.training.fitting.fit] hands back is in that mode.
#
# ## Likelihoods
#
# ### The exact trace of something large

# %%
big = sm.ScoreModel(sm.nn.ResidualNetwork((4100,), width=8, depth=1), sde)
message(lambda: sm.log_prob(big, torch.zeros(1, 4100), divergence="exact"))

# %% [markdown]
# **Cure.** `tol=` in place of `divergence=`: it takes as many probes as that accuracy needs. See
# [choosing a trace estimator](choosing-a-trace.md).
#
# ### Images that are scaled already

# %%
scaled = torch.rand(4, 1, 8, 8, generator=source)
pictures = sm.ScoreModel(sm.nn.ResidualNetwork((1, 8, 8), width=8, depth=1), sde)
message(lambda: sm.bits_per_dim(pictures, scaled, levels=256))

# %% [markdown]
# **Cause.** Bits belong to whole levels. Once an image is divided by 255, moved or cropped with
# interpolation, nobody can tell which levels it had.
#
# **Cure.** Hand over the bytes; scaling is the dequantisation's work.
#
# ### Results of other settings

# %%
with tempfile.TemporaryDirectory() as folder:
    sm.evaluate(model, x[:4], folder, tol=0.5, progress=False)
    message(lambda: sm.evaluate(model, x[:4], folder, tol=0.1, progress=False))

# %% [markdown]
# **Cause.** The folder holds what an earlier evaluation has finished, and goes on with it. Chunks of
# different settings would make a mean of nothing. A changed model is noticed too.
#
# **Cure.** Another folder for each evaluation.
#
# ## Training
#
# ### Data that the SDE is not for


# %%
def untrained():
    return sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=8, depth=1), sde)


message(lambda: sm.fit(untrained(), 100 * x, steps=10, progress=False))

# %% [markdown]
# **Cause.** Noise of the SDE's size does not hide data that are a hundred times larger, so that the
# prior would be wrong.
#
# **Cure.** Data of zero mean and a standard deviation about one, or an SDE that is told:
# `sm.VESDE(data_std=...)`.
#
# ### Training that diverges

# %%
message(
    lambda: sm.fit(
        untrained(),
        x,
        steps=200,
        learning_rate=1e30,
        clip_norm=1e30,
        progress=False,
    )
)

# %% [markdown]
# **Cures.** A lower `learning_rate`, more `warmup`, the default `clip_norm`. If it comes after
# thousands of good steps, look at the data of the batch, and at `mixed_precision="fp16"`, where
# `"bf16"` has a larger range.
#
# ### A folder that holds another run

# %%
with tempfile.TemporaryDirectory() as folder:
    settings = {"steps": 4, "progress": False, "out": Path(folder) / "run"}
    sm.fit(untrained(), x, learning_rate=1e-3, **settings)
    message(lambda: sm.fit(untrained(), x, learning_rate=2e-3, **settings))

# %% [markdown]
# **Cause.** `fit` goes on with the run that it finds in `out=`. With other settings this would be a
# run that nobody could repeat.
#
# **Cure.** The settings of old, or another folder.
#
# ### A model that cannot be saved

# %%
message(lambda: sm.save_model("model.safetensors", broken))

# %% [markdown]
# **Cause.** A file of numbers cannot hold the code of your class, and one that could would run
# whatever somebody put into it.
#
# **Cure.** Weights by safetensors, as in [your own network](your-own-network.md).
#
# ## Wrong without an error
#
# | what you see | the likeliest cause | what to do |
# |---|---|---|
# | samples are grey, or in between the modes | `averaging=` reaches back to the untrained network | `averaging=0.99` for a run of a thousand steps |
# | samples are grainy | noise of `t_min` is left in them | `sample(..., denoise=True)`, or a smaller `t_min` |
# | samples have the wrong size | the prior does not fit the data | `sm.VESDE(data_std=...)`, or `prior=` |
# | few steps give poor samples | the grid | `grid="log-snr"` or an adapted one, [measured here](choosing-a-solver.md) |
# | two runs differ | a generator was not given, or one was used up | a new `torch.Generator().manual_seed(0)` for each call |
# | a sample changes with the size of the batch | one generator draws for all samples at once | one for each sample: `generator=[torch.Generator().manual_seed(s) for s in seeds]` |
# | bits/dim are far below zero | images without dequantisation: next cell | `bits_per_dim` |
# | log-densities jump when tolerances change | the solver's error near `t_min` | `tol=`, which watches it; see [exact likelihoods](exact-likelihoods.md) |
# | a batch runs out of memory | traces take many products at once | `sm.Exact(chunk=...)`, smaller batches; [`evaluate`][sde_models.shards.evaluation.evaluate] halves them by itself |
#
# ### A likelihood that is too good
#
# Take data that have two values only, and a model that has learned them. Without dequantisation the
# density at these values grows without bound as `t_min` goes to zero, since the model is right that
# all data lie on two points. The number says nothing of how good it is.

# %%
two_values = sm.GaussianMixture([[-0.5], [0.5]], 1e-4)
levels = torch.randint(0, 2, (200, 1), generator=source)
print("t_min      raw bits/dim    dequantised bits/dim     truth")
raw = {}
for t_min in (1e-2, 1e-3, 1e-4):
    points = two_values.score_model(sm.VPSDE(t_min=t_min))
    density = sm.log_prob(points, levels - 0.5, tol=0.05).value.mean()
    raw[t_min] = -float(density) / torch.tensor(2.0).log()
    bits = sm.bits_per_dim(
        points,
        levels,
        levels=2,
        dequantization="truncated-normal",
        data_range=(-1.0, 1.0),
        generator=source,
    )
    print(
        f"{t_min:.0e}   {raw[t_min]:10.2f}      {float(bits.value):14.3f}"
        f"{1.0:17.3f}"
    )
    # What the bits lack of the truth is what the noise of t_min blurs.
    assert abs(float(bits.value) - 1) < 0.1

assert raw[1e-4] < raw[1e-3] < raw[1e-2]

# %% [markdown]
# ## Still stuck
#
# Make it small: a [`GaussianMixture`][sde_models.models.gaussian_mixture.GaussianMixture] in place of your model has
# known answers for everything here. If the trouble is gone, it is in the network; if it stays, it is in
# the equation or the solver, and the mixture with ten lines around it is what an issue should show.
#
# Next: [Brownian motion](brownian-motion.md)
