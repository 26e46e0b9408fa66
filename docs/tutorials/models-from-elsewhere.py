# %% [markdown]
# # A model trained elsewhere
#
# A checkpoint of another project becomes a model here once three things are specified: how it numbers
# the noise levels, the inputs of its network, and the meaning of the output. Then every solver, latents
# and likelihoods are available. This page wraps two kinds, and compares each with its original
# sampler.
#
# | project | noise levels | network is called as | and returns | here |
# |---|---|---|---|---|
# | DDPM, diffusers | steps $k$ = 0 ... 999 with $\bar\alpha_k$ | `(x, k)` | noise, or $v$ | `VPSDE`, `"eps"` or `"v"` |
# | score_sde, VP | $t$ from 0 to 1 | `(x, 999 t)` | noise | `VPSDE`, `"eps"` |
# | score_sde, VE | $\sigma(t)$ | `(x, sigma)` | score | `VESDE`, `"score"` |
# | EDM, azula | $\sigma$ | `(x, sigma)` | denoised image | `VESDE`, `"x0"` |
# | flow matching | $t$, often from noise to data | `(x, t)` | velocity $\epsilon - x_0$ | `FlowMatchingSDE`, `"velocity"`; for other paths [your own SDE](your-own-sde.md) |
#
# ## A checkpoint
#
# Nothing is downloaded here. Instead, this cell trains a small network of
# diffusers by the recipe of DDPM for a few seconds, on digits, and writes it in diffusers' format. Any
# folder of that format, such as that of `google/ddpm-cifar10-32`, can be read like this.

# %%
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import torch
from torch import nn

import sde_models as sm

torch.manual_seed(0)
source = torch.Generator().manual_seed(0)
digits = sm.data.digits()
folder = tempfile.TemporaryDirectory()
path = Path(folder.name)

scheduler = diffusers.DDIMScheduler(
    num_train_timesteps=1000,
    beta_start=1e-4,
    beta_end=0.02,
    clip_sample=False,
    set_alpha_to_one=False,
)
unet = diffusers.UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(16, 32),
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
optimizer = torch.optim.Adam(unet.parameters(), 3e-3)
for _ in range(80):
    rows = torch.randint(len(digits.train), (48,), generator=source)
    x0 = sm.data.dequantize(digits.train[rows], digits.levels, generator=source)
    k = torch.randint(1000, (48,), generator=source)
    noise = torch.randn(x0.shape, generator=source)
    predicted = unet(scheduler.add_noise(x0, noise, k), k).sample
    loss = (predicted - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
unet.save_pretrained(path / "unet")
scheduler.save_pretrained(path / "scheduler")
print(f"error of the noise in the last batch {float(loss.detach()):.3f}")

# %% [markdown]
# ## Discrete steps
#
# DDPM has a thousand noise levels, $\bar\alpha_k = \alpha^2$. Each time of the
# [`VPSDE`][sde_models.sdes.linear_beta.VPSDE] and each step has a log-SNR; the wrapper gives the
# network the step of the same log-SNR, with fractional steps in between. Such a network uses sines of
# the step, so fractions are meaningful.


# %%
class Steps(nn.Module):
    """A network of numbered steps, for an SDE with other times."""

    def __init__(self, unet, alphas_cumprod, sde):
        super().__init__()
        self.unet, self.sde = unet, sde
        log_snr = torch.logit(alphas_cumprod.double())
        self.register_buffer("log_snr", log_snr.flip(0).float())  # ascending

    def step(self, t):
        target = self.sde.log_snr(t)
        last = len(self.log_snr) - 1
        above = torch.searchsorted(self.log_snr, target).clamp(1, last)
        low, high = self.log_snr[above - 1], self.log_snr[above]
        place = above - 1 + (target - low) / (high - low)
        return (last - place).clamp(0, last)

    def forward(self, t, x):
        return self.unet(x, self.step(t), return_dict=False)[0]


unet = diffusers.UNet2DModel.from_pretrained(path / "unet", use_safetensors=True)
scheduler = diffusers.DDIMScheduler.from_pretrained(path / "scheduler")
alphas_cumprod = scheduler.alphas_cumprod

times = sm.VPSDE().t_from_log_snr(torch.logit(alphas_cumprod.double()))
sde = sm.VPSDE(t_min=float(times[0]), t_max=float(times[-1]), data_std=0.7)
wrapped = Steps(unet, alphas_cumprod, sde)
model = sm.ScoreModel(wrapped, sde, "eps", event_shape=(1, 8, 8)).eval()

print("t of the steps 0, 1, 500, 999:", times[[0, 1, 500, 999]])
print("back to steps:", wrapped.step(times[[0, 1, 500, 999]].float()))
assert torch.allclose(
    wrapped.step(times.float()), torch.arange(1000.0), atol=0.05
)

# %% [markdown]
# The times are those of $t = k / 1000$ up to about one step: the continuous SDE is the limit of the
# steps ([forward SDEs](forward-sdes.md)), and the wrapper corrects for the difference.
#
# ## The same samples
#
# The cell compares diffusers' own DDIM, 20 steps, with `"ddim"` here on the same steps from the same
# noise. The two implementations share only the network.

# %%
noise = torch.randn(16, 1, 8, 8, generator=source)
scheduler.set_timesteps(20)
theirs = noise
with torch.no_grad():
    for k in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, k).sample, k, theirs).prev_sample

nodes = times[scheduler.timesteps]
ours = sm.solve(
    sm.ProbabilityFlow(model),
    noise,
    (float(nodes[0]), float(nodes[-1])),
    solver="ddim",
    grid=nodes,
)
apart = float((ours.x - theirs).abs().max())
print(
    f"largest difference {apart:.1e}, over values up to {float(theirs.abs().max()):.1f}"
)
assert apart < 2e-3  # float32, and times that are good to a hundredth of a step

# %% [markdown]
# ## New possibilities
#
# Any solver by name, latents, and the likelihood of test images in bits per dimension.

# %%
noise = noise[:4]
reference = sm.decode(model, noise, rtol=1e-4, atol=1e-4)
for solver in ("ddim", "dpmpp-2m", "flow-abm-3"):
    out = sm.decode(model, noise, solver=solver, steps=20)
    off = float((out.x - reference.x).square().mean().sqrt())
    print(f"{solver:11} {out.cost}, off by {off:.3f}")

images = digits.test[:4]
bits = sm.bits_per_dim(model, images, digits.levels, tol=4.0, generator=source)
uniform = torch.tensor(float(digits.levels)).log2()
print(
    f"{float(bits.value):.2f} ± {float(bits.stderr):.2f} bits/dim, "
    f"compared with {float(uniform):.2f} for random levels"
)
assert bits.value < uniform

# %% [markdown]
# ## Is the wrapper right?
#
# Mistakes in wrappers raise no error: reversed time, an image scaled to $[0, 1]$ for a network
# trained on $[-1, 1]$, noise with the wrong sign. One figure reveals them: the error of the predicted
# noise on held-out data, at each noise level. For a correct wrapper it falls to zero at high noise and
# stays below one everywhere, since a prediction of zero has an error of one.

# %% alt="Error of the noise against time: the right wrapper falls below one, the three mistakes do not"
x0 = sm.data.dequantize(digits.test[:64], digits.levels, generator=source)
grid = torch.linspace(0.02, 0.98, 9)


def error(network):
    """Mean square error of the predicted noise at each time of the grid."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for t in grid:
        eps = torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            off = network(t.expand(64), sde.perturb(t, x0, eps)) - eps
        found.append(float(off.square().mean()))
    return found


curves = {
    "right": error(wrapped),
    "reversed time": error(lambda t, x: wrapped(1 - t, x)),
    "scaled to [0, 1]": error(lambda t, x: wrapped(t, (x + 1) / 2)),
    "wrong sign": error(lambda t, x: -wrapped(t, x)),
}
for name, curve in curves.items():
    plt.semilogy(grid, curve, "o-", ms=3, label=name)
plt.axhline(1.0, ls="--", color="C7", label="predicts zero")
plt.gca().set(
    title="Error of the predicted noise",
    xlabel="time $t$",
    ylabel="mean square",
)
plt.legend()
plt.show()

assert max(curves["right"]) < 1
assert all(max(curve) > 1 for name, curve in curves.items() if name != "right")

# %% [markdown]
# ## A denoiser of images with noise sigma
#
# EDM and azula give $D(x, \sigma)$, the mean of the data given $x = x_0 + \sigma \epsilon$. That is
# `prediction="x0"` on the [`VESDE`][sde_models.sdes.variance_exploding.VESDE], whose $\sigma(t)$ is the input
# of the network. For a denoiser that is known exactly, the wrapped model must give exact densities:


# %%
class Denoiser(nn.Module):
    """For networks that are called as D(x, sigma)."""

    def __init__(self, inner, sde):
        super().__init__()
        self.inner, self.sde = inner, sde

    def forward(self, t, x):
        return self.inner(x, self.sde.sigma(t))


ve = sm.VESDE(0.002, 80.0, data_std=0.5)
means = torch.tensor([[-0.5, 0.0], [0.5, 0.2]])


def denoiser(x, sigma):
    """E[x0 | x] where the data are two Gaussians of standard deviation 0.2."""
    variance = 0.2**2 + sigma.reshape(-1, 1) ** 2
    off = x[:, None] - means
    weights = (-0.5 * off.square().sum(2) / variance).softmax(1)[..., None]
    share = (0.2**2 / variance)[:, None]
    return (weights * (means + share * off)).sum(1)


theirs = sm.ScoreModel(Denoiser(denoiser, ve), ve, "x0", event_shape=(2,))
mixture = sm.GaussianMixture(means, 0.2)
x = mixture.sample(100, generator=source)
lp = sm.log_prob(theirs, x, tol=0.01, prior=mixture.diffuse(ve, ve.t_max))
truth = mixture.diffuse(ve, ve.t_min).log_prob(x)
print(
    f"densities off by {float((lp.value - truth).abs().max()):.4f} nats at most"
)
assert float((lp.value - truth).abs().max()) < 0.01

# %% [markdown]
# And the sampler of EDM, written out, against `"heun-edm"`. EDM ends with a step to $\sigma = 0$, which
# gives the denoised state: that is `denoise=True`.

# %%
count, rho = 12, 7
places = torch.linspace(0, 1, count)
sigmas = (
    80 ** (1 / rho) + places * (0.002 ** (1 / rho) - 80 ** (1 / rho))
) ** rho
start = 80 * torch.randn(200, 2, generator=source)
y = start
for now, after in zip(sigmas, [*sigmas[1:], torch.tensor(0.0)], strict=True):
    slope = (y - denoiser(y, now)) / now
    step = y + (after - now) * slope
    if after > 0:
        second = (step - denoiser(step, after)) / after
        step = y + (after - now) * (slope + second) / 2
    y = step

flow = sm.solve(
    sm.ProbabilityFlow(theirs),
    start,
    (1.0, 0.0),
    solver="heun-edm",
    steps=count - 1,
    grid="karras",
)
last = theirs.x0(0.0, flow.x)
print(f"largest difference {float((last - y).abs().max()):.1e}")
assert float((last - y).abs().max()) < 1e-3

# %% [markdown]
# ## Three warnings
#
# - **Guidance.** A score with guidance is not the score of a diffused density. Samples are fine; its
#   `log_prob` is the density of the flow that it defines, not of the training data.
# - **Latent diffusion.** The density is one of latents. The decoder from latents to images is not
#   invertible, so that images themselves have no density.
# - **Trained on few noise levels, or on steps that are far apart** (distilled models): between the levels
#   the network was never trained, but paths and traces pass through there.
#
# ## Further reading
#
# - Ho, Jain and Abbeel 2020, *Denoising diffusion probabilistic models*,
#   [arXiv:2006.11239](https://arxiv.org/abs/2006.11239).
# - Song, Meng and Ermon 2020, *Denoising diffusion implicit models*,
#   [arXiv:2010.02502](https://arxiv.org/abs/2010.02502).
# - Karras, Aittala, Aila and Laine 2022, *Elucidating the design space of diffusion-based generative
#   models*, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364), table 1: four projects in one notation.
# - The [notation table](../notation.md), for the names used by each.
#
# Next: [the guide on solvers](../solvers.md)
