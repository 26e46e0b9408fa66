# %% [markdown]
# # Your own network
#
# Any module that is called as `network(t, x, **cond)` and returns the shape of `x` can be used. This
# page writes one, compares the meanings of its output, adds labels, and shows
# the additional requirements of likelihoods.
#
# ## The call
#
# `t` has shape `(B,)` and `x` has shape `(B, *event)`. The score changes most near the data, where all
# times are small and nearly equal as inputs. So use a clock that resolves them,
# $\tfrac14 \log(\sigma / \alpha)$, encoded by sines. With `preconditioning="edm"` the network already
# gets this clock in place of `t`.

# %%
import textwrap
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn

import sde_models as sm


class Layers(nn.Module):
    """Three layers for points, with sines of a clock."""

    def __init__(self, clock=None, dim=2, width=64, activation=nn.SiLU):
        super().__init__()
        self.clock = clock or (lambda t: t)
        self.register_buffer("frequencies", torch.linspace(0.5, 4.0, 8))
        self.layers = nn.Sequential(
            nn.Linear(dim + 16, width),
            activation(),
            nn.Linear(width, width),
            activation(),
            nn.Linear(width, dim),
        )

    def forward(self, t, x, extra=0.0):
        angle = self.clock(t)[:, None] * self.frequencies
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.layers(torch.cat([x, waves + extra], dim=1))


sde = sm.VPSDE(t_min=1e-3)


def clock(t):
    """The clock of the preconditioning: log(sigma / alpha) / 4."""
    return -sde.log_snr(t) / 8


mixture = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5])
source = torch.Generator().manual_seed(0)
data = mixture.sample(4000, generator=source)


def train(network, prediction=None, **options):
    """A short run, the same for all."""
    settings = {"steps": 300, "learning_rate": 3e-3, "ema_decay": 0.98}
    settings |= {"seed": 0, "progress": False}
    preconditioning = options.pop("preconditioning", None)
    model = sm.ScoreModel(
        network, sde, prediction, preconditioning=preconditioning
    )
    return sm.fit(model, data, **settings, **options).model


torch.manual_seed(0)
model = train(Layers(), preconditioning="edm")
x = sm.sample(model, (500, 2), solver="dpmpp-2m", steps=20, generator=source).x
print("mean of samples", x.mean(0), "of data", data.mean(0))
assert bool(((x.mean(0) - data.mean(0)).abs() < 0.2).all())

# %% [markdown]
# ## What the output means
#
# The network may predict the noise (`"eps"`), the clean data (`"x0"`), their combination
# (`"v"`), the score, or the velocity of the flow (`"velocity"`). Each determines the others, so that
# all functions work with all of them, but errors are transformed: $\hat x_0 = (x - \sigma \hat\epsilon) / \alpha$
# multiplies those of $\hat\epsilon$ by $\sigma / \alpha$, which is large at high noise, and the inverse
# factor is large near the data. `preconditioning="edm"` combines the two so that neither is amplified, and
# scales input and time as well.
#
# The cell compares five trainings from the same start with the exact mixture at six times: the error of
# the predicted noise, which a solver needs near the data, and that of the predicted data, which it needs
# at high noise. The best curve is low in both panels.

# %% alt="x0 has large errors of the noise near the data, eps and score of the data at high noise, v and edm neither"
exact = mixture.score_model(sde)
meanings = {
    "eps": {"prediction": "eps"},
    "x0": {"prediction": "x0"},
    "v": {"prediction": "v"},
    "score": {"prediction": "score"},
    "edm": {"preconditioning": "edm"},
}
times = [0.003, 0.01, 0.03, 0.1, 0.3, 0.9]


def error(model, t, quantity, n=2000):
    """Root mean square error of the predicted "eps" or "x0"."""
    generator = torch.Generator().manual_seed(1)
    noisy = mixture.diffuse(sde, t).sample(n, generator=generator)
    with torch.no_grad():
        found = getattr(model, quantity)(t, noisy)
        off = found - getattr(exact, quantity)(t, noisy)
    return float(off.square().mean().sqrt())


figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2), sharex=True)
errors = {}
for name, meaning in meanings.items():
    torch.manual_seed(0)
    # The same weighting for all: that of the error of the noise.
    loss = partial(sm.losses.denoising_score_matching, weighting="simple")
    network = Layers() if name == "edm" else Layers(clock)
    trained = train(network, **meaning, loss=loss)
    for panel, quantity in zip(panels, ("eps", "x0"), strict=True):
        values = [error(trained, t, quantity) for t in times]
        errors[name, quantity] = values
        panel.loglog(times, values, "o-", ms=3, label=name)
for panel, title in zip(panels, ("noise", "data"), strict=True):
    panel.set(
        title=f"Error of the predicted {title}",
        xlabel="time $t$",
        ylabel="root mean square",
    )
panels[0].legend()
plt.show()

worst = {key: round(max(values), 2) for key, values in errors.items()}
for quantity in ("eps", "x0"):
    print(quantity, {name: worst[name, quantity] for name in meanings})

assert worst["x0", "eps"] > 2 * worst["edm", "eps"]
assert worst["eps", "x0"] > 2 * worst["edm", "x0"]

# %% [markdown]
# For your own data start with `preconditioning="edm"`, or `"v"`; SDEs without a kernel allow only
# `"score"` ([your own SDE](your-own-sde.md)).
#
# ## Labels and other conditions
#
# Every function that solves takes `cond={"label": ...}` and gives it to the network, as a keyword of
# `forward`. A tensor, array or list has a row for each sample, or one row that all share; numbers and
# strings are shared. `model.bind(table=...)` is the same model with other arguments that all samples
# share. In training, conditions come with the data, as `(x0, {"label": ...})`. Here the label is
# the index of one of two Gaussians.


# %%
class Labelled(Layers):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 16)

    def forward(self, t, x, label):
        return super().forward(t, x, self.table(label))


parts = [
    sm.GaussianMixture([[-1.0, 0.0]], 0.3).sample(2000, generator=source),
    sm.GaussianMixture([[1.0, 0.5]], 0.5).sample(2000, generator=source),
]


def draw(batch_size, generator):
    label = torch.randint(0, 2, (batch_size,), generator=generator)
    row = torch.randint(0, 2000, (batch_size,), generator=generator)
    return torch.stack(parts)[label, row], {"label": label}


torch.manual_seed(0)
labelled = sm.fit(
    sm.ScoreModel(Labelled(), sde, preconditioning="edm"),
    draw,
    steps=300,
    learning_rate=3e-3,
    ema_decay=0.98,
    seed=0,
    progress=False,
).model

for k in (0, 1):
    label = torch.full((500,), k)
    drawn = sm.sample(
        labelled,
        (500, 2),
        solver="dpmpp-2m",
        steps=20,
        generator=source,
        cond={"label": label},
    )
    print(f"label {k}: mean of samples", drawn.x.mean(0), parts[k].mean(0))
    assert bool(((drawn.x.mean(0) - parts[k].mean(0)).abs() < 0.15).all())

# %% [markdown]
# `log_prob` gives a density for each label, and with Bayes' rule a classifier:

# %%
points = torch.cat([part[:50] for part in parts])
scores = torch.stack(
    [
        sm.log_prob(
            labelled, points, tol=0.1, cond={"label": torch.full((100,), k)}
        ).value
        for k in (0, 1)
    ]
)
right = (scores.argmax(0) == torch.arange(100) // 50).double().mean()
print(f"{float(right):.0%} of the points get their own label")
assert right > 0.9

# %% [markdown]
# A misspelt argument raises an error that names the nearest one:

# %%
try:
    sm.sample(labelled, (8, 2), step=20, cond={"label": 0})
except TypeError as problem:
    print(textwrap.fill(str(problem), 80))
else:
    raise AssertionError("a misspelt argument was accepted")

# %% [markdown]
# ## Another order of arguments
#
# A network with another signature is wrapped in three lines:


# %%
class StateFirst(nn.Module):
    """For networks that are called as network(x, t), with times of 0 to 999."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, x):
        return self.inner(x, 999 * t)


theirs = StateFirst(lambda x, steps: x / (1 + steps[:, None]))
print(sm.ScoreModel(theirs, sde).eps(0.5, torch.ones(1, 2)))

# %% [markdown]
# More examples are in [a model trained elsewhere](models-from-elsewhere.md).
#
# ## Requirements on a network
#
# A solver assumes that the network is one smooth function of $(t, x)$. Three violations raise an error
# at the first call:


# %%
class Wrong(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, t, x):
        return self.output(self.weight * x, x)


for title, output in {
    "another shape": lambda y, x: y.sum(1),
    "cuts the graph": lambda y, x: y.detach(),
}.items():
    wrong = sm.ScoreModel(Wrong(output), sde)
    try:
        sm.log_prob(wrong, data[:2], divergence="exact")
    except ValueError as problem:
        print(textwrap.fill(f"{title}: {problem}", 80), end="\n\n")
    else:
        raise AssertionError(title)

# %% [markdown]
# The third is a layer that is random, depends on the batch or learns in training mode, such as dropout or
# batch normalisation: `model.eval()`.
#
# A network gets copies in its own dtype. It may change them in place, and the state of a solve may be in
# double precision with a network in single precision.
#
# **Smoothness.** A likelihood uses the derivative of the network along a path, and an adaptive solver
# takes small steps wherever a derivative jumps. With ReLU it jumps at every
# kink. The cell trains with two activations and prints the cost of a solve and of the trace:

# %%
evaluations = {}
for activation in (nn.SiLU, nn.ReLU):
    torch.manual_seed(0)
    trained = train(Layers(activation=activation), preconditioning="edm")
    path = sm.encode(
        trained, data[:20], solver="ode:dopri5", rtol=1e-5, atol=1e-5
    )
    lp = sm.log_prob(trained, data[:20], tol=0.01)
    evaluations[activation.__name__] = path.nfe, lp.nfe
    print(
        f"{activation.__name__}: {path.nfe:g} evaluations to encode at a tolerance of"
        f" 1e-5, {lp.nfe:.0f} for log-densities within 0.01"
    )

for smooth, kinked in zip(*evaluations.values(), strict=True):
    assert smooth < kinked

# %% [markdown]
# **Attention.** Fused kernels have no second derivative. The trace by itself needs only first ones, so
# `log_prob` works; a *gradient* of it does not. If you need one, choose PyTorch's plain kernel, as
# [`UNet`][sde_models.nn.unet.UNet] does:
#
# ```python
# from torch.nn.attention import SDPBackend, sdpa_kernel
#
# with sdpa_kernel(SDPBackend.MATH):
#     sm.log_prob(model, x).value.sum().backward()
# ```
#
# **Half precision.** The network may be `network.half()` or `.bfloat16()`: it then gets half-precision
# inputs, and the state of the solver stays in float32, so that small steps are not lost.
#
# ## Saving
#
# [`save_model`][sde_models.models.model_files.save_model] writes the settings of this library's networks with the
# weights, and `load_model` rebuilds them. For your own network save the weights, and build the model by
# the same code that trained it:

# %%
import tempfile
from pathlib import Path

from safetensors.torch import load_model, save_model

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "weights.safetensors"
    save_model(model, path)
    again = sm.ScoreModel(Layers(), sde, preconditioning="edm")
    load_model(again, path)
    same = torch.equal(model.eps(0.3, data[:5]), again.eps(0.3, data[:5]))
print("the same after loading:", same)
assert same

# %% [markdown]
# ## Further reading
#
# - Karras, Aittala, Aila and Laine 2022, *Elucidating the design space of diffusion-based generative
#   models*, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364), section 5: the derivation of
#   preconditioning.
# - Salimans and Ho 2022, *Progressive distillation*,
#   [arXiv:2202.00512](https://arxiv.org/abs/2202.00512): $v$.
# - Tancik et al. 2020, *Fourier features*, [arXiv:2006.10739](https://arxiv.org/abs/2006.10739): why the
#   bare time is a poor input for a network.
#
# Next: [Training at scale](training-at-scale.md)
