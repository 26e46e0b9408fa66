# %% [markdown]
# # Your own SDE
#
# Two functions of time define a forward SDE with a Gaussian kernel, and everything else follows from
# them: drift, diffusion, training, every solver, likelihoods, latents. Without a kernel a drift and
# a diffusion suffice, and less of the library applies. This page builds one of each and checks
# both against closed forms.
#
# | your SDE has | subclass | what works |
# |---|---|---|
# | $\alpha(t)$ and $\sigma(t)$ | [`GaussianSDE`][sde_models.sdes.gaussian.GaussianSDE] | everything |
# | any $f(t, x)$, and $g(t)$ | [`SDE`][sde_models.sdes.base.SDE] | simulation, sliced score matching, the reverse SDE and the flow by solvers "of anything" |
# | any $f(t, x)$, and $g(t, x)$ | the same, `state_dependent_noise = True` | simulation |
#
# ## Two functions of time
#
# The schedule here lets the log-SNR fall along a straight line from $\ell_0$ to $\ell_1$ while the
# variance stays one, so that $\alpha^2$ is the logistic function of the log-SNR:
#
# $$
# \ell(t) = \ell_0 + (\ell_1 - \ell_0)\, t, \qquad
# \alpha^2 = \frac{1}{1 + e^{-\ell}}, \qquad \sigma^2 = \frac{1}{1 + e^{\ell}} .
# $$
#
# A time may be a number, a scalar tensor or a tensor of one time for each sample; the method
# `line` below converts it to a tensor. Use torch operations, since drift and diffusion are found by differentiating:
# $f = x \, d \log \alpha / dt$ and $g^2 = d\sigma^2/dt - 2 \sigma^2 \, d \log \alpha / dt$.

# %%
import matplotlib.pyplot as plt
import torch
import torchsde

import sde_models as sm


class LogSNRLinear(sm.GaussianSDE):
    """Variance preserving, with a log-SNR that is linear in time."""

    def __init__(self, first=13.0, last=-9.0, *, data_std=1.0):
        super().__init__(t_min=0.0, t_max=1.0, data_std=data_std)
        self.first, self.last = first, last

    def line(self, t):
        t = torch.as_tensor(
            t, dtype=None if torch.is_tensor(t) else torch.float32
        )
        return self.first + (self.last - self.first) * t

    def alpha(self, t):
        return torch.sigmoid(self.line(t)).sqrt()

    def sigma(self, t):
        return torch.sigmoid(-self.line(t)).sqrt()


sde = LogSNRLinear()
t = torch.linspace(0, 1, 7)
print("log-SNR", sde.log_snr(t))
print("g      ", sde.diffusion(t))

assert torch.allclose(sde.log_snr(t), sde.line(t), atol=1e-4)
# With alpha^2 + sigma^2 = 1 the diffusion is g^2 = -(d log-SNR / dt) sigma^2.
assert torch.allclose(sde.diffusion(t), sde.sigma(t) * 22**0.5, rtol=1e-4)

# %% [markdown]
# Compared with two of the library's SDEs:

# %% alt="Signal, noise and log-SNR of three schedules; that of LogSNRLinear is a line"
figure, panels = plt.subplots(1, 3, figsize=(8.4, 2.8))
times = torch.linspace(0.005, 0.995, 200)
for each in (sde, sm.VPSDE(), sm.CosineSDE()):
    for panel, values in zip(
        panels,
        (each.alpha(times), each.sigma(times), each.log_snr(times)),
        strict=True,
    ):
        panel.plot(times, values, label=type(each).__name__)
for panel, title in zip(
    panels, (r"Signal $\alpha$", r"Noise $\sigma$", "log-SNR (nats)"), strict=True
):
    panel.set(title=title, xlabel="time $t$")
panels[2].legend()
plt.show()

# %% [markdown]
# ## Is it right?
#
# Drift and diffusion were derived automatically, so simulate them and compare with the kernel. torchsde
# can integrate the object directly, here from a point $x_0$:

# %%
x0 = torch.full((4000, 1), 2.0)
ends = torch.tensor([0.0, 0.5])
brownian = torchsde.BrownianInterval(0.0, 0.5, size=(4000, 1), entropy=1)
x = torchsde.sdeint(sde, x0, ends, bm=brownian, dt=0.002, method="euler")[-1]
mean, std = 2 * float(sde.alpha(0.5)), float(sde.sigma(0.5))
print(f"mean {float(x.mean()):.4f}, by the kernel {mean:.4f}")
print(f"std  {float(x.std()):.4f}, by the kernel {std:.4f}")

# Four standard errors of 4,000 paths, and 1% for the steps of Euler-Maruyama.
assert abs(float(x.mean()) - mean) < 4 * std / 4000**0.5 + 0.01 * std
assert abs(float(x.std()) / std - 1) < 4 / 8000**0.5 + 0.01

# %% [markdown]
# The second check is end to end. For a Gaussian mixture score and density are known under
# *every* Gaussian kernel, including this one: the density that the flow computes must be the mixture's.
# The remainder of the data at `t_max` would change the third decimal, so the exact prior is given.

# %%
source = torch.Generator().manual_seed(0)
mixture = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.4).double()
exact = mixture.diffuse(sde, sde.t_min)
points = exact.sample(200, generator=source)

for each in (sde, sm.VPSDE()):
    model = mixture.score_model(each)
    here = mixture.diffuse(each, each.t_min)
    prior = mixture.diffuse(each, each.t_max)
    lp = sm.log_prob(model, points, tol=0.01, prior=prior)
    error = (lp.value - here.log_prob(points)).abs()
    print(
        f"{type(each).__name__:13} off by {float(error.mean()):.4f} nats, "
        f"reported {float(lp.error.mean()):.4f}, {lp.nfe:.0f} evaluations"
    )
    assert float((error <= lp.error).double().mean()) > 0.9
    assert float(error.max()) < 0.01

# %% [markdown]
# ## What a schedule changes, and what it does not
#
# In terms of the scaled state $x / \alpha$ and the ratio $\sigma / \alpha$ the probability flow of every
# Gaussian kernel is the same equation (Kingma et al. 2021; Karras et al. 2022). So noise of the same
# scaled size is decoded to the *same* point under every schedule; a schedule only affects the accuracy of
# solvers with their default grids, and how often training visits each noise level. To check, decode the
# same noise under both, from the log-SNR that both reach:

# %%
lowest = max(float(each.log_snr(each.t_max)) for each in (sde, sm.VPSDE()))
highest = min(float(each.log_snr(each.t_min)) for each in (sde, sm.VPSDE()))
noise = torch.randn(200, 2, generator=source, dtype=torch.float64)
scaled = {}
for each in (sde, sm.VPSDE()):
    level = torch.tensor([lowest, highest], dtype=torch.float64)
    start, end = each.t_from_log_snr(level).tolist()
    flow = sm.ProbabilityFlow(mixture.score_model(each))
    solved = sm.solve(
        flow,
        noise * each.sigma(start),
        (start, end),
        solver="adams-batch",
        rtol=1e-8,
        atol=1e-8,
    )
    scaled[type(each).__name__] = solved.x / each.alpha(end)
    print(f"{type(each).__name__:13} t from {start:.4f} to {end:.5f}")

apart = (scaled["LogSNRLinear"] - scaled["VPSDE"]).abs().max()
print(f"largest difference of the decoded points: {float(apart):.1e}")
assert apart < 1e-6  # two solves at a tolerance of 1e-8

# %% [markdown]
# ## A schedule with parameters
#
# Trainable parts of `alpha` and `sigma` are registered as parameters, as in any module. The derivative
# passes through drift, diffusion and losses. With the likelihood weighting the loss does not depend on
# the schedule between its ends, only its variance does (Kingma et al. 2021), so maximum likelihood
# can learn only the ends.


# %%
class LearnedEnds(LogSNRLinear):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.tensor(13.0))
        self.last = torch.nn.Parameter(torch.tensor(-9.0))


learned = LearnedEnds()
learned.diffusion(torch.tensor(0.5)).backward()
print("d g(0.5) / d first =", round(float(learned.first.grad), 4))


def diffusion(first):
    return LogSNRLinear(first).double().diffusion(torch.tensor(0.5).double())


difference = float(diffusion(13.001) - diffusion(12.999)) / 0.002
print("by a difference    =", round(difference, 4))
assert abs(float(learned.first.grad) - difference) < 1e-4

# %% [markdown]
# ## A drift without a kernel
#
# Now a drift that rotates the plane while it pulls inward, which no $\alpha(t)$ can do:
#
# $$
# dx = -\tfrac{1}{2}\beta x\,dt + \Omega x\,dt + \sqrt{\beta}\,dB, \qquad
# \Omega = \omega \begin{pmatrix} 0 & -1 \\ 1 & 0 \end{pmatrix} .
# $$
#
# Only `f` and `g` are needed, and for sampling the distribution at `t_max`.


# %%
class Turning(sm.SDE):
    def __init__(self, beta=3.0, omega=2.0):
        super().__init__(t_min=0.0, t_max=1.0)
        self.beta, self.omega = beta, omega

    def f(self, t, x):
        turned = torch.stack((-x[:, 1], x[:, 0]), dim=1)
        return -0.5 * self.beta * x + self.omega * turned

    def g(self, t, x):
        return torch.full_like(x, self.beta**0.5)

    def prior(self, event_shape):
        return sm.VPSDE().prior(event_shape)


turning = Turning()

# %% [markdown]
# Denoising score matching needs a kernel. Without one, data are diffused by simulation and
# [`simulated_score_matching`][sde_models.losses.simulated.simulated_score_matching] trains on the
# resulting points. The network then predicts the score itself, and the
# [`ScoreModel`][sde_models.models.score_model.ScoreModel] can be sampled by any solver "of anything".
#
# The score of this SDE is known: in a rotating frame, $y = R_t^{-1} x$, it is an
# ordinary VP process, whose score for a mixture is exact. So the trained model can be compared with it.

# %%
from functools import partial

data = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5)
x0 = data.sample(4000, generator=source)


class Pulled(torch.nn.Module):
    """A network plus the score of the prior, -x, which remains where there are no data."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, t, x):
        return self.network(t, x) - x


torch.manual_seed(0)
network = Pulled(sm.nn.ResidualNetwork((2,), width=48, depth=2))
trained = sm.fit(
    sm.ScoreModel(network, turning, "score"),
    x0,
    steps=600,
    learning_rate=4e-3,
    ema_decay=0.98,
    loss=partial(sm.losses.simulated_score_matching, steps=32),
    seed=0,
    progress=False,
).model


def exact_score(t, x):
    """The score of the rotated VP process, at one time."""
    angle = torch.as_tensor(turning.omega * t)
    c, s = angle.cos(), angle.sin()
    frame = torch.tensor([[c, -s], [s, c]])
    # A VP process of constant beta: alpha = exp(-beta t / 2).
    still = sm.VPSDE(beta_min=turning.beta, beta_max=turning.beta)
    return data.score_model(still).score(t, x @ frame) @ frame.T


print("t     error of the score, over its size")
for t in (0.05, 0.2, 0.6):
    there = sm.solve(
        turning,
        x0[:2000],
        (0.0, t),
        solver="euler-maruyama",
        steps=100,
        generator=source,
    ).x
    true = exact_score(t, there)
    with torch.no_grad():
        off = trained.score(t, there) - true
    share = float(off.square().mean() / true.square().mean())
    print(f"{t:.2f}  {share:.3f}")
    assert share < 0.1

# %% [markdown]
# The error is largest near the data, where the score is largest and few of the uniform times fall;
# `weight=` of the loss and more training are the remedies. Sampling works as for any model, by the
# reverse SDE and by the flow:

# %% alt="The data, and samples by the reverse SDE and by the flow, lie in the same two clouds"
solvers = {
    "Reverse SDE": {"solver": "euler-maruyama", "steps": 200},
    "Probability flow": {"solver": "ode:dopri5", "rtol": 1e-4, "atol": 1e-4},
}
figure, panels = plt.subplots(1, 3, figsize=(8.4, 2.7), sharex=True, sharey=True)
panels[0].scatter(*x0[:1000].T, s=2)
panels[0].set(title="Data", xlabel="$x_1$", ylabel="$x_2$")
for panel, (title, options) in zip(panels[1:], solvers.items(), strict=True):
    drawn = sm.sample(trained, (1000, 2), generator=source, **options).x
    panel.scatter(*drawn.T, s=2)
    panel.set(title=title, xlabel="$x_1$")
    spread = drawn.std(0) / x0.std(0)
    print(f"{title:17} spread over that of the data", spread)
    assert bool(((spread - 1).abs() < 0.3).all())
plt.show()

# %% [markdown]
# Along $x_2$, where the data are narrow, the flow has a larger error than the SDE with the same score: it
# transports every error to the end, while noise reduces the errors of the SDE (see
# [reversing time](reversing-time.md)).

# %% [markdown]
# ## Noise that depends on the state
#
# Geometric Brownian motion, $dx = \mu x\,dt + s x\,dB$, can be simulated forward. Its reverse would need
# the divergence of $g^2$, and raises an error. The mean is known, $x_0 e^{\mu t}$, and that of the
# logarithm, $\log x_0 + (\mu - s^2/2) t$, the correction of [Ito's formula](ornstein-uhlenbeck.md).


# %%
class Geometric(sm.SDE):
    state_dependent_noise = True

    def f(self, t, x):
        return 0.5 * x

    def g(self, t, x):
        return 0.4 * x


motion = Geometric()
grown = sm.solve(
    motion,
    torch.ones(8000, 1),
    (0.0, 1.0),
    solver="sde:srk",
    steps=50,
    generator=source,
).x
logs = grown.log()
stderr = float(logs.std()) / 8000**0.5
print(f"mean of the logarithm {float(logs.mean()):.4f}, exact {0.5 - 0.08:.4f}")
assert abs(float(logs.mean()) - 0.42) < 4 * stderr + 1e-3

try:
    sm.ReverseSDE(sm.ScoreModel(network, motion, "score"), (1,))
except ValueError as error:
    print(error)
else:
    raise AssertionError("an unknown reverse SDE was built")

# %% [markdown]
# ## Checklist
#
# - `alpha` falls, `sigma / alpha` rises, both smooth, both finite from `t_min` to `t_max` in float32.
# - `log_snr` at `t_min` is high enough that the blurring does not matter, and at `t_max` low enough
#   that the prior does not depend on the data: the first cell prints both.
# - The kernel agrees with a simulation, and a mixture's density with the flow's.
# - Closed forms, where you have them, override `alpha_rate`, `sigma_rate`, `drift_coefficient`,
#   `diffusion` and `t_from_log_snr`: the same values for less work.
#
# ## Further reading
#
# - Kingma, Salimans, Poole and Ho 2021, *Variational diffusion models*,
#   [arXiv:2107.00630](https://arxiv.org/abs/2107.00630): schedules as functions of the log-SNR.
# - Karras, Aittala, Aila and Laine 2022, *Elucidating the design space of diffusion-based generative
#   models*, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364): the purpose of a schedule.
# - Särkkä and Solin 2019, *Applied Stochastic Differential Equations*: linear SDEs and their moments.
#
# Next: [Your own network](your-own-network.md)
