# %% [markdown]
# # From noise levels to a forward SDE
#
# The length of the list of noise levels is an arbitrary choice. This
# page takes it to infinity. The chains of NCSN and of DDPM then become two stochastic
# differential equations, VE and VP. You will know how an SDE of this kind follows from two functions
# of time, $\alpha$ and $\sigma$, what the five SDEs of the library have in common, and what is lost
# by stopping at a finite `t_max` and a positive `t_min`.
#
# ## More and more levels
#
# [Noise levels](noise-levels.md) added noise of each of $L$ levels to the data. The same can be done
# from one level to the next, with levels that now rise with $i$: a chain, from data $x_0$ to noise
# $x_L$. With independent standard normal $z_i$, the chain of noise-conditional score networks (NCSN)
# adds noise, and that of denoising diffusion probabilistic models (DDPM, Ho et al. 2020) also shrinks
# the state:
#
# $$
# \text{NCSN:}\quad x_i = x_{i-1} + \sqrt{\sigma_i^2 - \sigma_{i-1}^2}\; z_i,
# \qquad\qquad
# \text{DDPM:}\quad x_i = \sqrt{1 - \beta_i}\; x_{i-1} + \sqrt{\beta_i}\; z_i.
# $$
#
# Put level $i$ at the time $t_i = i / L$, so that a step takes $\Delta t = 1/L$, and take the
# levels from curves that do not depend on $L$: $\sigma_i = \sigma(t_i)$, and $\beta_i =
# \beta(t_i)\,\Delta t$. In the first chain a step has variance
#
# $$
# \sigma^2(t_i) - \sigma^2(t_{i-1}) = \frac{d\sigma^2}{dt}\,\Delta t + O(\Delta t^2),
# $$
#
# and in the second $\sqrt{1 - \beta\,\Delta t} = 1 - \tfrac12 \beta\,\Delta t + O(\Delta t^2)$. Up to
# these remainders both are steps of the Euler-Maruyama method, and as $\Delta t \to 0$ they converge
# in law (the distribution of their paths does) to the corresponding equations (Kloeden
# and Platen 1992, chapter 9; the general theorem for Markov chains is that of Stroock and Varadhan
# 1979, chapter 11):
#
# $$
# \text{VE:}\quad dx = \sqrt{\frac{d\sigma^2}{dt}}\; dB,
# \qquad\qquad
# \text{VP:}\quad dx = -\tfrac12 \beta(t)\, x\, dt + \sqrt{\beta(t)}\; dB.
# $$
#
# The names describe the variance: it *explodes*, or is *preserved* at one, if it was
# one initially.
#
# All random variables in a chain with Gaussian data are Gaussian, so its variance $v_i$ can be
# computed without sampling. Here the data have variance 1/4. A chain is constant
# between two levels, and we compute the largest $|\log(v_\text{chain}/v_\text{SDE})|$ over all
# times, including those between levels. Since $\beta_i$ is a variance taken out of one, DDPM's chain
# needs $\beta_i < 1$: more than 20 levels for the usual $\beta_\text{max} = 20$.

# %%
import matplotlib.pyplot as plt
import torch
import torchsde

import sde_models as sm

ve, vp = sm.VESDE(0.01, 50.0), sm.VPSDE(beta_min=0.1, beta_max=20.0)
data_variance = 0.25


def sde_variance(sde, t):
    return sde.alpha(t) ** 2 * data_variance + sde.sigma(t) ** 2


def levels(length):
    return torch.linspace(0, 1, length + 1, dtype=torch.float64)


def ncsn_variance(length):
    added = ve.sigma(levels(length)).square().diff()
    start = data_variance + ve.sigma_min**2
    return torch.cat([torch.tensor([start]), start + added.cumsum(0)])


def ddpm_variance(length):
    beta = vp.beta(levels(length)[1:]) / length
    kept = torch.cat([torch.ones(1), (1 - beta).cumprod(0)])
    return kept * data_variance + (1 - kept)


def gap(chain, sde, length):
    truth = sde_variance(sde, levels(length))
    stays = chain(length)[:-1]  # from each level to just before the next
    return max(
        float((stays / truth[:-1]).log().abs().max()),
        float((stays / truth[1:]).log().abs().max()),
    )


gaps = {}
for name, chain, sde, lengths in (
    ("NCSN to VE", ncsn_variance, ve, (10, 100, 1000, 10_000)),
    ("DDPM to VP", ddpm_variance, vp, (30, 100, 1000, 10_000)),
):
    gaps[name] = [gap(chain, sde, length) for length in lengths]
    row = "   ".join(
        f"L={n}: {g:.4f}" for n, g in zip(lengths, gaps[name], strict=True)
    )
    print(f"{name}   {row}")

# Ten times as many levels, a tenth of the gap: first order in 1/L.
assert all(8 < found[-2] / found[-1] < 12 for found in gaps.values())

# %% [markdown]
# Ten times as many levels leave a tenth of the gap. That is the order of Euler's method, as
# expected. In the figure the steps are the chains and the curves the SDEs.

# %% alt="Variance against time: the steps of the chains with more and more levels approach the curves of the VE and VP SDEs"
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4))
t = torch.linspace(0, 1, 500)
for panel, chain, sde, lengths, title in (
    (panels[0], ncsn_variance, ve, (10, 30, 100), "NCSN and VE"),
    (panels[1], ddpm_variance, vp, (25, 50, 200), "DDPM and VP"),
):
    for i, n in enumerate(lengths):
        stairs = chain(n)
        panel.step(
            levels(n),
            stairs,
            where="post",
            color=f"C{i + 1}",
            lw=1,
            label=f"L = {n}",
        )
    panel.plot(t, sde_variance(sde, t), color="C0", label="SDE")
    panel.set(title=title, xlabel="time $t$", ylabel="variance of $x_t$")
    panel.legend()
panels[0].set_yscale("log")
plt.show()

# %% [markdown]
# What is gained by the limit? The number of levels is no longer part of the model. It belongs to the
# *solver*, chosen after training, which may be any method for differential equations. And
# the state is defined at all times, as exact likelihoods need.
#
# ## From alpha and sigma to drift and diffusion
#
# Both limits are linear: $dx = a(t)\, x\, dt + g(t)\, dB$. As in
# [the Ornstein-Uhlenbeck process](ornstein-uhlenbeck.md), a solution that starts at a fixed $x_0$ is
# Gaussian, a sum of Gaussian numbers. Itô's formula for $x$ and for $x^2$, with the mean taken on both
# sides, gives what its mean $m$ and its variance $v$ obey:
#
# $$
# \frac{dm}{dt} = a\, m, \qquad \frac{dv}{dt} = 2 a\, v + g^2 .
# $$
#
# Call the mean $\alpha_t x_0$ and the variance $\sigma_t^2$; the law of $x_t$ given $x_0$ is
# called the *kernel* of the SDE. Solved for $a$ and $g$, the same two equations give the SDE from its
# kernel:
#
# $$
# p(x_t \mid x_0) = N(\alpha_t x_0,\ \sigma_t^2 I)
# \quad\Longleftrightarrow\quad
# a = \frac{\alpha'}{\alpha}, \qquad g^2 = \frac{d\sigma^2}{dt} - 2 a\, \sigma^2 .
# $$
#
# So only two functions of time have to be chosen. For VE, $\alpha = 1$ gives $a = 0$. For VP,
# with $B(t) = \int_0^t \beta$, the choice $\alpha^2 = e^{-B}$ and $\sigma^2 = 1 - e^{-B}$ gives
# $a = -\beta/2$ and $g^2 = \beta e^{-B} + \beta (1 - e^{-B}) = \beta$, as it should. Choosing the
# smaller $\sigma = 1 - e^{-B}$ with the same $\alpha$ gives *sub-VP*:
#
# $$
# g^2 = 2 (1 - e^{-B})\, \beta e^{-B} + \beta (1 - e^{-B})^2 = \beta\, (1 - e^{-2B}),
# $$
#
# the drift of VP with less noise. The library has two more: the *cosine* schedule,
# $\alpha = \cos(\pi t/2)$ and $\sigma = \sin(\pi t/2)$, and the straight line of *flow matching*,
# $\alpha = 1 - t$ and $\sigma = t$. Each states its $a$ and $g$ in closed form. The cell below
# differentiates $\alpha$ and $\sigma$ and compares. It uses PyTorch's older interface for this, *autograd*:
# `requires_grad_()` makes a tensor record what is computed from it, and
# `torch.autograd.grad(y.sum(), t)` gives the derivative, here of each entry of `y` at its own time.

# %%
sdes = {
    "VESDE": ve,
    "VPSDE": vp,
    "SubVPSDE": sm.SubVPSDE(),
    "CosineSDE": sm.CosineSDE(),
    "FlowMatchingSDE": sm.FlowMatchingSDE(),
}


def derivative(function, t):
    t = t.clone().requires_grad_()
    value = function(t)
    if not value.requires_grad:  # the alpha of VE is constant
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t)[0]


for name, sde in sdes.items():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    a = derivative(sde.alpha, t) / sde.alpha(t)
    g_squared = (
        derivative(lambda t, sde=sde: sde.sigma(t) ** 2, t)
        - 2 * a * sde.sigma(t) ** 2
    )
    drift_error = (a - sde.drift_coefficient(t)).abs().max()
    noise_error = (g_squared / sde.diffusion(t) ** 2 - 1).abs().max()
    print(f"{name:16} a off by {drift_error:.0e}, g^2 by {noise_error:.0e}")
    assert drift_error < 1e-10
    assert noise_error < 1e-10

# %% [markdown]
# The errors are those of double precision. The next figure shows all five. In the third panel
# the log-SNR, $\log(\alpha^2/\sigma^2)$, falls from data to noise for each of them. In the first,
# sub-VP covers VP, since both have the same $\alpha$.

# %% alt="Alpha, sigma and log-SNR of the five SDEs against time; sigma of VE rises to 50, all log-SNRs fall"
figure, panels = plt.subplots(1, 3, figsize=(10, 3.6))
for name, sde in sdes.items():
    t = torch.linspace(sde.t_min, sde.t_max, 500, dtype=torch.float64)
    panels[0].plot(t, sde.alpha(t), label=name)
    panels[1].semilogy(t, sde.sigma(t), label=name)
    panels[2].plot(t, sde.log_snr(t), label=name)
panels[0].set(title="Signal", ylabel=r"$\alpha_t$")
panels[1].set(title="Noise", ylabel=r"$\sigma_t$")
panels[2].set(title="Signal to noise", ylabel=r"$\log(\alpha_t^2/\sigma_t^2)$")
for panel in panels:
    panel.set_xlabel("time $t$")
panels[2].legend(fontsize=8)
plt.show()

# %% [markdown]
# The log-SNR is the natural clock. Divide $x_t$ by $\alpha_t$, and every one of these processes is
# data plus noise of standard deviation $\sigma_t/\alpha_t$: all are VE in other units, run at a different
# speed (Kingma et al. 2021; Karras et al. 2022). The choice still matters: for the scale of
# the network's input, for the noise levels that training visits, and for the steps of a solver.
# [Another page](your-own-sde.md) shows how to add a sixth.
#
# ## The kernel against simulated paths
#
# An SDE of the library is a system that [torchsde](https://github.com/google-research/torchsde) can
# integrate directly. We start many paths at $x_0 = 1$, and compare mean and standard deviation
# with $\alpha_t$ and $\sigma_t$. The differences are printed in standard errors: of $n$ Gaussian
# numbers, $\sigma/\sqrt n$ for the mean and $\sigma/\sqrt{2n}$ for the standard deviation.

# %%
paths, step = 4000, 1 / 400
ts = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
for name in ("VPSDE", "SubVPSDE"):
    sde = sdes[name]
    noise = torchsde.BrownianInterval(
        0.0, 1.0, size=(paths, 1), dtype=torch.float32, entropy=0
    )
    x = torchsde.sdeint(
        sde, torch.ones(paths, 1), ts, bm=noise, dt=step, method="euler"
    )
    x, alpha, sigma = x[1:, :, 0], sde.alpha(ts[1:]), sde.sigma(ts[1:])
    mean_off = (x.mean(1) - alpha) / sigma * paths**0.5
    std_off = (x.std(1) / sigma - 1) * (2 * paths) ** 0.5
    print(name)
    print("  mean, in standard errors: ", *(f"{z:+.1f}" for z in mean_off))
    print("  std,  in standard errors: ", *(f"{z:+.1f}" for z in std_off))
    # Twenty normal numbers in all: one is beyond 4 in one draw of 800.
    assert mean_off.abs().max() < 4
    assert std_off.abs().max() < 4

# %% [markdown]
# The kernel is what makes training cheap: [`perturb`][sde_models.sdes.gaussian.GaussianSDE.perturb]
# draws $x_t = \alpha_t x_0 + \sigma_t z$ for any $t$ in one line, and no path is simulated. An
# SDE without a kernel needs simulated paths at each training step.
#
# ## The end of the noise: prior and mismatch
#
# Sampling must start from a law that we can draw from: the *prior*, a Gaussian of variance
# $\alpha^2 s^2 + \sigma^2$ at `t_max`, where $s$ is the standard deviation of the data. The law
# $p_{t_\text{max}}$ is not quite that, since a little of the data is left: $\alpha(t_\text{max})$ is
# small, not zero. How much does it cost? The measure is the *relative entropy*
# $\mathrm{KL}(p \,\|\, q) = E_p[\log (p / q)]$, in units of the natural logarithm, *nats*: zero for
# equal laws, positive for others. Sampling runs the process backwards, as the
# [next page](reversing-time.md) shows; suppose it is done exactly, once from each of the two. No map or
# Markov chain can increase the relative entropy of two laws (the data-processing
# inequality; Cover and Thomas 2006, section 4.4), so for the law $\hat p$ of samples
#
# $$
# \mathrm{KL}(p_{t_\text{min}} \,\|\, \hat p) \;\le\; \mathrm{KL}(p_{t_\text{max}} \,\|\, \text{prior}) .
# $$
#
# The right side can be measured where the data are a mixture, whose law is known at every time. Ours
# has two peaks and mean 0.6: far from Gaussian, and not centred, like raw data. The integral over
# the line is a sum over a fine grid. For comparison, the KL of two Gaussians of equal width whose
# means differ by $\alpha\, m$ is $\alpha^2 m^2 / 2 s_T^2$, with $s_T$ the width.

# %%
double = torch.float64
mixture = sm.GaussianMixture(
    torch.tensor([[-0.9], [1.1]], dtype=double), 0.4, weights=[0.25, 0.75]
)
mean, std = float(mixture.mean()), float(mixture.covariance()) ** 0.5


def kl(p, q, width):
    x = torch.linspace(-12 * width, 12 * width, 40_001, dtype=double)[:, None]
    log_p = p.log_prob(x)
    return float((log_p.exp() * (log_p - q.log_prob(x))).sum() * (x[1] - x[0]))


print(f"data: mean {mean:.2f}, standard deviation {std:.2f}")
print(
    "SDE              alpha(t_max)  sigma(t_max)  KL in nats  KL of the mean alone"
)
for name, sde in sdes.items():
    end = torch.tensor(sde.t_max, dtype=double)
    at_end, prior = mixture.diffuse(sde, end), sde.prior((1,))
    measured = kl(at_end, prior, prior.std)
    alone = float(sde.alpha(end) * mean / prior.std) ** 2 / 2
    print(
        f"{name:16} {sde.alpha(end):12.4f} {sde.sigma(end):13.2f}"
        f" {measured:11.1e} {alone:21.1e}"
    )
    assert abs(measured / alone - 1) < 0.05

# %% [markdown]
# The mismatch is small, and nearly all of it is due to the mean of the data. Over
# independent coordinates it adds up, so in thousands of dimensions it is no longer negligible: centre
# your data. For centred data the rest is of higher order in $\alpha/\sigma$. The figure shows
# the mismatch of VP as a function of the time at which the noising stops.

# %% alt="The KL between the diffused mixture and a standard normal falls over the end time, much lower for centred data"
ends = torch.linspace(0.3, 1.0, 15, dtype=double)
centred = sm.GaussianMixture(
    (mixture.means - mean) / std, 0.4 / std, [0.25, 0.75]
)
for label, data in (("mean 0.6", mixture), ("centred, variance 1", centred)):
    found = [kl(data.diffuse(vp, t), vp.prior((1,)), 1.0) for t in ends]
    plt.semilogy(ends, found, "o-", ms=4, label=label)
plt.semilogy(
    ends, (vp.alpha(ends) * mean) ** 2 / 2, "--", label=r"$\alpha^2 m^2 / 2$"
)
plt.title("What is lost by stopping: VP, mixture in one dimension")
plt.xlabel("end time")
plt.ylabel("KL to the prior (nats)")
plt.legend()
plt.show()

# %% [markdown]
# Longer noising is not free: it has to be reversed in steps. Once the mismatch is far
# below your other errors, it only adds cost.
#
# ## The other end: t_min
#
# At $t = 0$ (for VE: if $\sigma_\text{min}$ were 0) there is no noise, the log-SNR is infinite, and
# so is the score wherever the data lie on a curve, on a surface, or on integers. A training set is
# a finite number of points: its score at noise level $\sigma$ is of size $1/\sigma$ without bound.
# So models stop at a `t_min` above zero, and what they model is the data with noise of
# $\sigma(t_\text{min})$ in them. The last column measures that in nats, on our mixture.

# %%
print(
    "SDE                t_min   sigma/alpha   log-SNR   KL(data, data at t_min)"
)
for name, sde in sdes.items():
    t = torch.tensor(sde.t_min, dtype=double)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    blurred = sm.GaussianMixture(
        mixture.means, (0.4**2 + (sigma / alpha) ** 2) ** 0.5, [0.25, 0.75]
    )
    lost = kl(mixture, blurred, 1.0)
    print(
        f"{name:16} {sde.t_min:7.0e} {sigma / alpha:13.1e}"
        f" {float(sde.log_snr(t)):9.1f} {lost:20.1e}"
    )
    assert lost < 1e-6

# %% [markdown]
# For data this smooth the loss is negligible. For data with fine detail choose `t_min` so that
# $\sigma/\alpha$ is well below the finest detail; for 8-bit images, one grey level is 1/255 of the
# range. Much lower is not better: the score grows like $1/\sigma$, and with it the work of the solver
# and the rounding errors in it.
#
# ## Exercises
#
# 1. Take `beta_max = 10` in the first cell. What is the shortest chain now, and what happens to
#    the gap at $L = 1000$, and to `vp.alpha(1.0)`? *Hint: the gap is about the largest
#    $\tfrac{d}{dt} \log v$, divided by $L$.*
# 2. For which $\sigma$ does the drift of flow matching, $a = -1/(1-t)$, go with $g = 1$? Solve
#    $\tfrac{d}{dt}\sigma^2 = 2a\sigma^2 + 1$ from $\sigma(0) = 0$ and check with autograd. *Hint: look
#    at $\sigma^2/(1-t)^2$. Its kernel is a Brownian bridge.*
# 3. Add `"VESDE"` to the simulated paths. At the first time its standard deviation is off by many
#    standard errors, whatever `step` is. Why? *Hint: what is $\sigma(0)$, and where do the paths
#    start?* Correct that, and take `step = 1 / 50`: what is off now? *Hint: Euler takes $g^2$ from the
#    start of a step. Compare $g^2(t)\,\Delta t$ with $\sigma^2(t + \Delta t) - \sigma^2(t)$.*
# 4. Give the mixture mean 3 in place of 0.6, then use it with `sm.VPSDE(beta_max=30.0)`. Which of
#    the two changes the KL more?
#
# ## Further reading
#
# - Song et al. 2021, [arXiv:2011.13456](https://arxiv.org/abs/2011.13456), section 3 and appendix B:
#   the limits of both chains, and sub-VP. Yang Song's
#   [blog post](https://yang-song.net/blog/2021/score/) explains it with figures.
# - Ho, Jain and Abbeel 2020, *Denoising diffusion probabilistic models*,
#   [arXiv:2006.11239](https://arxiv.org/abs/2006.11239): the chain of DDPM.
# - Kingma, Salimans, Poole and Ho 2021, [arXiv:2107.00630](https://arxiv.org/abs/2107.00630): the
#   the variational bound depends only on the log-SNR.
# - Karras, Aittala, Aila and Laine 2022, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364): the
#   same freedom expressed as scale and schedule, and how to use it.
# - Särkkä and Solin, *Applied Stochastic Differential Equations*, Cambridge 2019, chapter 6: moment
#   equations of linear SDEs.
# - Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, Springer 1992:
#   in what sense, and how fast, chains converge to SDEs.
#
# Next: [Reversing time](reversing-time.md)
