# %% [markdown]
# # Troubleshooting
#
# Errors of this library say what was given, what is expected, and how to get it. This page raises the
# most common ones, one cell each, and adds their causes and further remedies. At the end are problems
# that raise no error. A message that is not here can be found by its first words in the
# search above: [all messages](../reference/messages.md) are listed by the module that raises them.

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
    """Print the error that an action raises."""
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
# ### A batch of numbers is not a batch of events

# %%
message(lambda: sm.log_prob(model, torch.zeros(64)))

# %% [markdown]
# **Cause.** Every `x` is a batch: its first dimension counts samples, the rest is one event. A vector
# of 64 numbers could be one event or 64 of them.
#
# **Cure.** `x.reshape(-1, 1)` for 64 events of one number, `x[None]` for one event.
#
# ### Bytes where floating-point numbers are expected

# %%
message(lambda: sm.log_prob(model, torch.zeros(4, 2, dtype=torch.uint8), tol=0.1))

# %% [markdown]
# **Cause.** A density belongs to continuous data. Images of 256 levels have probabilities instead.
#
# **Cure.** [`bits_per_dim`][sde_models.likelihood.bits_per_dimension.bits_per_dim] spreads each level over its cell and
# returns bits. To train on such images see [training at scale](training-at-scale.md).
#
# ### Times of the wrong shape

# %%
message(lambda: model.score(torch.full((64, 1), 0.5), x))

# %% [markdown]
# **Cause.** A time is one number or one for each sample: shape `()` or `(B,)`. The column `(B, 1)` that
# other code expects would silently broadcast to `(B, B, ...)` in some places.
#
# **Cure.** `t.flatten()`.
#
# ## Solvers and their arguments
#
# ### An unknown name

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
# `grid=`. An argument without effect raises an error, so that nobody assumes it had one.
#
# ### A solver for the other kind of equation

# %%
flow, reverse = sm.ProbabilityFlow(model), sm.ReverseSDE(model, (2,))
message(lambda: sm.solve(flow, x, (1.0, 1e-3), solver="euler-maruyama"))
message(lambda: sm.solve(reverse, x, (1.0, 1e-3), solver="ode:dopri5"))

# %% [markdown]
# **Cure.** Give the model to [`sample`][sde_models.sampling.samples.sample], which makes the equation that
# the solver can integrate; `eta=` sets how random it is.
#
# ### The wrong direction of time

# %%
message(lambda: sm.solve(reverse, x, (1e-3, 1.0), solver="euler-maruyama"))

# %% [markdown]
# **Cause.** Time runs from data at `t_min` up to noise at `t_max`. The reverse SDE runs only down. The
# flow runs in both directions, which gives [latents](latents.md).
#
# ### An unknown argument

# %%
message(lambda: sm.sample(model, (8, 2), solver="dpmpp-2m", step=20))

# %% [markdown]
# **Cause.** Functions take the options that they list. Arguments of the network belong in `cond=`.
#
# **Cure.** Correct the spelling; or use `cond={"step": 20}`
# ([labels](your-own-network.md#labels-and-other-conditions)).
#
# ### A condition of another length

# %%
scales = torch.tensor([0.5, 2.0, 1.0])
message(lambda: sm.sample(model, (8, 2), "ddim", cond={"scales": scales}))

# %% [markdown]
# **Cause.** A tensor, array or list in `cond=` has a row for each sample, or one row that all share. Three
# numbers for eight samples are neither.
#
# **Cure.** If all samples share them, `model.bind(scales=scales)` gives them to the network as they are.
#
# ### A generator without a draw

# %%
message(lambda: sm.encode(model, x, generator=source))

# %% [markdown]
# **Cause.** Encoding follows the flow, which draws no noise. A seed would have no effect.
#
# ### An equation that cannot be reversed


# %%
class StateDependent(sm.SDE):
    state_dependent_noise = True

    def f(self, t, x):
        return -x

    def g(self, t, x):
        return 1 + x.abs()


network = sm.nn.ResidualNetwork((2,), width=8, depth=1)
irreversible = sm.ScoreModel(network, StateDependent(), "score")
message(lambda: sm.ReverseSDE(irreversible, (2,)))

# %% [markdown]
# **Cure.** Noise that depends only on time; see [your own SDE](your-own-sde.md).
#
# ## While it solves
#
# ### NaN
#
# A solve stops at the first NaN or infinity, and the error has attributes for the analysis: the
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
# **Causes**, most likely first: weights that are NaN after training (look at
# `[name for name, p in model.named_parameters() if not p.isfinite().all()]`); a logarithm or a
# division in your network or SDE that fails at one end of time; half precision.
#
# ### Too many steps
#
# An adaptive solver that would take more than `max_steps` steps reports where it is.

# %%
try:
    sm.decode(model, x, solver="ode:dopri5", rtol=1e-6, atol=1e-6, max_steps=10)
except sm.StepLimitError as error:
    print(textwrap.fill(str(error), 80))
    print(
        "reached t =", round(error.t, 3), "after", round(error.nfe), "evaluations"
    )
else:
    raise AssertionError("there was no error")

# %% [markdown]
# **Causes.** Tolerances too small for the smoothness of the network: features of time with high
# frequencies, ReLU. Or a `t_min` so small that the equation, with a score of size $1/\sigma$, is stiff.
#
# **Cures.** Looser tolerances; `t_min=1e-3` when the SDE is made; a solver made for diffusion,
# `adams-batch`, whose time variable makes the flow smooth.
#
# ### Tolerances below rounding

# %%
message(lambda: sm.decode(model, x, solver="ode:dopri5", rtol=1e-9))

# %% [markdown]
# **Cause.** Numbers in float32 have seven digits; no step can reach nine.
#
# **Cure.** `x.double()`: the state is then in float64, and the network is called in its own dtype. If the
# rounding of the network matters, also use `model.double()`.
#
# ### A network that is not a function

# %%
dropping = sm.ScoreModel(
    torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)), sde
)
message(lambda: sm.sample(dropping, (8, 2)))

# %% [markdown]
# **Cause.** Dropout draws new masks at each call, batch normalisation mixes the samples of a batch. The
# equation would differ at each step, and the density would have no meaning.
#
# **Cure.** `model.eval()`. [`fit`][sde_models.training.fitting.fit] returns a model in that mode.
#
# ## Likelihoods
#
# ### The exact trace in many dimensions

# %%
big = sm.ScoreModel(sm.nn.ResidualNetwork((4100,), width=8, depth=1), sde)
message(lambda: sm.log_prob(big, torch.zeros(1, 4100), divergence="exact"))

# %% [markdown]
# **Cure.** `tol=` in place of `divergence=`: it uses as many probes as that accuracy needs. See
# [choosing a trace estimator](choosing-a-trace.md).
#
# ### Images that are already scaled

# %%
scaled = torch.rand(4, 1, 8, 8, generator=source)
pictures = sm.ScoreModel(sm.nn.ResidualNetwork((1, 8, 8), width=8, depth=1), sde)
message(lambda: sm.bits_per_dim(pictures, scaled, levels=256))

# %% [markdown]
# **Cause.** Bits refer to integer levels. Once an image is divided by 255, moved or cropped with
# interpolation, its levels are no longer known.
#
# **Cure.** Pass the bytes; dequantisation scales them.
#
# ### Results of other settings

# %%
with tempfile.TemporaryDirectory() as folder:
    sm.evaluate(model, x[:4], folder, tol=0.5, progress=False)
    message(lambda: sm.evaluate(model, x[:4], folder, tol=0.1, progress=False))

# %% [markdown]
# **Cause.** The folder holds finished chunks of an earlier evaluation, which is resumed. A mean over chunks
# of different settings would have no meaning. A changed model is detected too.
#
# **Cure.** A separate folder for each evaluation.
#
# ## Training
#
# ### Data of the wrong scale


# %%
def untrained():
    return sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=8, depth=1), sde)


message(lambda: sm.fit(untrained(), 100 * x, steps=10, progress=False))

# %% [markdown]
# **Cause.** The noise of the SDE does not hide data that are a hundred times larger, so the
# prior would be wrong.
#
# **Cure.** Data of zero mean and a standard deviation about one, or an SDE for their scale:
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
# **Cures.** A lower `learning_rate`, more `warmup`, the default `clip_norm`. If it happens after
# thousands of good steps, check the data of the batch; in place of `mixed_precision="fp16"` use
# `"bf16"`, which has a larger range.
#
# ### A folder with another run

# %%
with tempfile.TemporaryDirectory() as folder:
    settings = {"steps": 4, "progress": False, "out": Path(folder) / "run"}
    sm.fit(untrained(), x, learning_rate=1e-3, **settings)
    message(lambda: sm.fit(untrained(), x, learning_rate=2e-3, **settings))

# %% [markdown]
# **Cause.** `fit` resumes the run that it finds in `out=`. With other settings the result could not be
# reproduced.
#
# **Cure.** The previous settings, or another folder.
#
# ### A model that cannot be saved

# %%
message(lambda: sm.save_model("model.safetensors", broken))

# %% [markdown]
# **Cause.** A file of numbers cannot contain the code of your class, and a format that can may execute
# malicious code.
#
# **Cure.** Weights by safetensors, as in [your own network](your-own-network.md).
#
# ## Wrong results without an error
#
# | symptom | most likely cause | remedy |
# |---|---|---|
# | samples are grey, or in between the modes | `ema_decay=` reaches back to the untrained network | `ema_decay=0.99` for a run of a thousand steps |
# | samples are grainy | they contain the noise of `t_min` | `sample(..., denoise=True)`, or a smaller `t_min` |
# | samples have the wrong scale | the prior does not match the data | `sm.VESDE(data_std=...)`, or `prior=` |
# | few steps give poor samples | the grid | `grid="log-snr"` or an adapted one, [measured here](choosing-a-solver.md) |
# | two runs differ | no generator was given, or one was reused | a new `torch.Generator().manual_seed(0)` for each call |
# | a sample changes with the size of the batch | one generator draws for all samples at once | one per sample: `generator=[torch.Generator().manual_seed(s) for s in seeds]` |
# | bits/dim are far below zero | images without dequantisation: next cell | `bits_per_dim` |
# | log-densities jump when tolerances change | the solver's error near `t_min` | `tol=`, which controls it; see [exact likelihoods](exact-likelihoods.md) |
# | a batch runs out of memory | traces take many products at once | `sm.Exact(chunk=...)`, smaller batches; [`evaluate`][sde_models.shards.evaluation.evaluate] halves them automatically |
#
# ### A likelihood that is too good
#
# Take data with only two values, and a model that has learned them. Without dequantisation the
# density at these values grows without bound as `t_min` goes to zero, since the model correctly puts
# all data on two points. The number does not measure its quality.

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
    # The difference from the exact value is due to the noise of t_min.
    assert abs(float(bits.value) - 1) < 0.1

assert raw[1e-4] < raw[1e-3] < raw[1e-2]

# %% [markdown]
# ## If the problem remains
#
# Reduce it: a [`GaussianMixture`][sde_models.models.gaussian_mixture.GaussianMixture] in place of your model has
# known answers for everything here. If the problem disappears, it is in the network; if it remains, it is
# in the equation or the solver, and the mixture in ten lines of code is a good example for an issue.
#
# Next: [Brownian motion](brownian-motion.md)
