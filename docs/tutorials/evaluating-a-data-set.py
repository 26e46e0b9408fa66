# %% [markdown]
# # Evaluating a data set
#
# The mean log-likelihood of a test set, with error bars that you can defend, in a
# run that may be killed. After this page you know where to spend your
# evaluations: on points, on probes or on steps.
#
# ## In short
#
# | question | answer |
# |---|---|
# | which call | `sm.evaluate(model, test_set, "runs/test", ...)` |
# | trace, for a mean over many points | `divergence=sm.Hutchinson(1)` |
# | trace, where each point matters | `tol=`, or `"exact"` in few dimensions |
# | steps | `rtol=` so small that `solver_error` is below the error of the mean |
# | images | `levels=256`, and the dequantisation that the model was trained on |
# | it was killed | call again with the same folder |
# | many processes | start the same script in each |
#
# ## Against a closed form
#
# To judge an evaluation we need the truth. Take three Gaussians in 24 dimensions,
# narrow in turned directions and so far apart that they do not overlap. Then the
# entropy is a sum of theirs,
#
# $$
# H = \sum_k w_k \left( \tfrac12 \log \det 2 \pi e \Sigma_k - \log w_k \right) ,
# $$
#
# and the mean of $\log p$ over infinitely many points is $-H$. The model is the
# exact score, and `prior=` its law at $t_{max}$, so that all errors are of the
# evaluation. The points follow the law at $t_{min}$, where the flow ends.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import sde_models as sm

work = Path(tempfile.mkdtemp())
D = 24
source = torch.Generator().manual_seed(0)
turned = torch.linalg.qr(torch.randn(3, D, D, generator=source).double())[0]
squares = torch.logspace(0, -3, D, dtype=torch.float64)
covariances = turned @ torch.diag(squares) @ turned.mT
mixture = sm.GaussianMixture(
    torch.randn(3, D, generator=source).double(),
    weights=[0.5, 0.3, 0.2],
    covariances=0.5 * (covariances + covariances.mT),
)

sde = sm.VPSDE()
model = mixture.score_model(sde)
law = mixture.diffuse(sde, sde.t_min)
prior = mixture.diffuse(sde, sde.t_max)
w = law.log_weights.exp()
logdet = (2 * torch.pi * torch.e * law.variances).log().sum(1)
entropy = float((w * (0.5 * logdet - law.log_weights)).sum())

many = law.log_prob(law.sample(100_000, generator=source))
print(f"-H = {-entropy:.4f}, a mean over 100,000 draws {float(many.mean()):.4f}")
assert abs(float(many.mean()) + entropy) < 4 * float(many.std()) / 100_000**0.5

# %% [markdown]
# `evaluate` takes a tensor, or any map-style `Dataset` however large: it reads
# `chunk=` samples at a time and writes each chunk to a file when it is done.

# %%
x = law.sample(1000, generator=source)
truth = law.log_prob(x)
one_probe = {
    "divergence": sm.Hutchinson(1),
    "nodes": 32,
    "rtol": 0.01,
    "atol": 0.01,
}
found = sm.evaluate(
    model, x, work / "first", chunk=250, prior=prior, progress=False, **one_probe
)
print(found)

mean, stderr = float(found.mean), float(found.mean_stderr)
steps = float((found.solver_error + found.quadrature_error).mean())
print(f"-H lies {abs(mean + entropy) / stderr:.1f} standard errors away")
assert abs(mean + entropy) < 3 * stderr + steps

# %% [markdown]
# ## Whose error is it?
#
# A value is the truth for this point, plus noise of the probes, plus an error of
# the steps. Points are drawn independently and so are probes, so with $n$ points
#
# $$
# \mathrm{Var}(\text{mean}) = \frac{1}{n} \Big(
# \underbrace{\mathrm{Var} \log p(x)}_{\text{points}} +
# \underbrace{E\, \texttt{stderr}^2}_{\text{probes}} \Big) ,
# $$
#
# and `mean_stderr`, from the spread of the values, holds both. The error of the
# steps is no noise: all points have it in common, and more of them do not help.
# Here the truth is known, so all can be seen:

# %%
points = float(truth.var())
probes = float(found.stderr.square().mean())
measured = float(found.value.var())
print(f"variance of log p       {points:6.2f}")
print(f"variance of the probes  {probes:6.2f}")
print(f"sum {points + probes:.2f}, of the values {measured:.2f}")
print(f"error of a point {probes**0.5:.2f} nats, of the mean {stderr:.2f}")

assert abs(measured / (points + probes) - 1) < 0.15  # 1000 points are good to 5%

# %% [markdown]
# The sum is a little above what it should be: a single probe cannot tell the
# diagonal of the Jacobian, which costs it nothing, from the rest, and so its
# `stderr` is on the safe side. From two probes on it can.
#
# ## Points or probes?
#
# A probe more at each node costs $c_v$ for each point, and a point more costs
# $c_x + m c_v$, with $c_x$ for its path. For a budget $C$ the error of the mean
# is
#
# $$
# \sqrt{\frac{c_x + m c_v}{C} \Big( V_x + \frac{V_p}{m} \Big)} ,
# \qquad \text{least at} \quad m = \sqrt{\frac{c_x}{c_v} \frac{V_p}{V_x}} .
# $$
#
# A run with four probes on 400 points tells all four numbers, without knowing the
# truth: $V_x$ is what the probes leave of the variance of the values. The line is
# what they predict, the dots are runs of their own, all scaled to a budget of a
# million forward passes. A product counts as two of them, as in the
# [benchmarks](../reference/benchmarks.md#likelihood).

# %% alt="Error of the mean against probes: least at one; dots lie near the line"
budget = 1e6
runs = {}
for m in (1, 2, 4, 16):
    trial = one_probe | {"divergence": sm.Hutchinson(m), "prior": prior}
    out = sm.evaluate(
        model, x[:400], work / f"{m} probes", progress=False, **trial
    )
    cost = (out.rows + 2 * out.vjp_rows) / 400
    runs[m] = out, float(out.value.std()) * (cost / budget) ** 0.5

four = runs[4][0]
v_p = 4 * float(four.stderr.square().mean())
v_x = float(four.value.var()) - v_p / 4
c_x, c_v = four.rows / 400, 2 * four.vjp_rows / 400 / 4
print(f"V_x = {v_x:.1f}, V_p = {v_p:.1f}, c_x = {c_x:.0f}, c_v = {c_v:.0f}")
print(f"best m = {(c_x / c_v * v_p / v_x) ** 0.5:.1f}")


def predict(m):
    """Error of the mean with m probes."""
    return ((c_x + m * c_v) / budget * (v_x + v_p / m)) ** 0.5


line = torch.linspace(0.5, 20, 200)
plt.plot(line, predict(line), label="predicted from four probes")
plt.plot(list(runs), [dot for _, dot in runs.values()], "o", label="measured")
plt.gca().set(
    title="A million passes, spent on points or on probes",
    xlabel="probes at a node $m$",
    ylabel="error of the mean (nats)",
    ylim=(0, None),
)
plt.legend()
plt.show()

for m, (_, dot) in runs.items():
    assert (
        abs(dot / predict(m) - 1) < 0.15
    )  # spreads of 400 values, each good to 4%
assert runs[1][1] < runs[4][1] < runs[16][1]
assert float(runs[1][0].stderr.square().mean()) > v_p  # on the safe side

# %% [markdown]
# So for a mean: one probe, more points. If the test set is finite and you have
# used all of it, more probes lower the second term only, and below a tenth of the
# first it adds less than a twentieth to the error.
#
# ## Which tolerance?
#
# The exact trace leaves steps and quadrature. Look at the bias, which is known
# here, beside what is told, and at how many points it would take until the bias
# is all that is left, $V_x / \text{bias}^2$.

# %%
print("tolerance  intervals   bias     told   points until bias dominates")
for tolerance, nodes in ((0.1, 16), (0.03, 24), (0.01, 32), (0.003, 48)):
    out = sm.evaluate(
        model,
        x[:200],
        work / f"tolerance {tolerance}",
        divergence="exact",
        nodes=nodes,
        rtol=tolerance,
        atol=tolerance,
        prior=prior,
        progress=False,
    )
    bias = float((out.value - truth[:200]).mean())
    told = float((out.solver_error + out.quadrature_error).mean())
    enough = points / bias**2
    print(f"{tolerance:9}{nodes:11}{bias:8.3f}{told:9.3f}{enough:12,.0f}")
    assert abs(bias) < told

# %% [markdown]
# At a loose tolerance a hundred points are as good as a million: the answer is
# wrong for all of them alike, and `mean_stderr` cannot know. What is told of the
# steps is on the safe side. The rule: make `solver_error` and `quadrature_error`,
# on average, smaller than `mean_stderr`, and report both. `tol=` chooses steps,
# nodes and probes by itself, for each point; for a mean that is more than needed.
#
# ## Killed, and shared by several processes
#
# All that can go wrong at once: two processes share a data set of eight chunks,
# each dies by SIGKILL when it reads a certain sample, and the remains are
# finished by one process alone.

# %%
import multiprocessing
import os
import signal
import socket

from torch.utils.data import Dataset


class Points(Dataset):
    """Items read when they are wanted, of which some may be fatal."""

    def __init__(self, fatal=()):
        self.fatal = fatal

    def __len__(self):
        return 200

    def __getitem__(self, index):
        if index in self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return x[index]


def run(out, dataset, **variables):
    """What the script of each process says."""
    os.environ |= variables
    return sm.evaluate(
        model, dataset, out, chunk=25, prior=prior, progress=False, **one_probe
    )


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "MASTER_PORT": port}
shared |= {"MASTER_ADDR": "127.0.0.1"}
fatal = Points(fatal=(125, 160))  # in the sixth chunk, and in the seventh
both = [
    multiprocessing.get_context("fork").Process(
        target=run,
        args=(work / "shared", fatal),
        kwargs=shared | {"RANK": rank, "LOCAL_RANK": rank},
    )
    for rank in "01"
]
for process in both:
    process.start()
for process in both:
    process.join(120)
    assert process.exitcode == -9
print("left:", len(list((work / "shared").glob("chunk-*"))), "chunks of 8")

finished = run(work / "shared", Points())
alone = run(work / "alone", Points())
for name in ("value", "stderr", "solver_error", "quadrature_error"):
    assert torch.equal(getattr(finished, name), getattr(alone, name))
print(
    f"{finished.resumed} samples found done; the numbers are equal, bit for bit"
)
assert finished.resumed == 125

refused = ""
try:
    sm.evaluate(
        model, x[:200], work / "alone", chunk=25, nodes=24, progress=False
    )
except ValueError as error:
    refused = str(error)
assert "argument nodes: 32 there, 24 now" in refused

# %% [markdown]
# Random numbers follow from `seed=` and the place of a sample in the data set,
# and from nothing else. The forks stand for a script, which the last line does
# without:
#
# ```sh
# accelerate launch --num_processes 8 evaluate.py                     # GPUs
# ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 evaluate.py     # none
# sde-models log-prob runs/digits digits --tol 1 --out bits.json
# ```
#
# Other settings or weights are refused in the same folder, as the cell tried. A
# `DataLoader` is not needed, and conditioning such as labels goes in as
# `cond={"label": labels}`.
#
# ## Bits per dimension
#
# Grey levels have probabilities, and the bits are those of the levels: [exact
# likelihoods](exact-likelihoods.md) derives the bound. What goes wrong most often
# is the pairing. *Uniform* dequantisation fits models that were trained on
# uniformly dequantised data, and *truncated-normal* those trained on the centres
# of the cells. Take eight images of 4 by 4 pixels and four levels, each as likely
# as the others, so that the entropy is $\log_2 8 / 16$ bits per dimension, and
# two models: one fills the cells, the other has spikes at the centres, both known
# exactly.

# %%
levels, width = 4, 0.5
patterns = torch.randint(
    levels, (8, 16), generator=torch.Generator().manual_seed(1)
)
centres = (-1 + width * (patterns + 0.5)).double()
images = patterns[torch.arange(32) % 8]
entropy_of_levels = torch.tensor(8.0).log2() / 16


def bits(std, t_min, bounds):
    """Bits of Gaussians at the centres: exactly, and by some bounds."""
    sde = sm.VPSDE(t_min=t_min)
    gaussians = sm.GaussianMixture(centres, std)
    end = gaussians.diffuse(sde, sde.t_min)
    normal = torch.distributions.Normal(
        end.means[:, None], end.variances.sqrt()[:, None]
    )
    cells = normal.cdf(centres + width / 2) - normal.cdf(centres - width / 2)
    row = [-float(cells.prod(2).mean(0).log2().mean()) / 16]
    for name, draws in bounds:
        out = sm.evaluate(
            gaussians.score_model(sde),
            images,
            work / f"{std} {name} {draws}",
            levels=levels,
            dequantization=name,
            importance_samples=draws,
            prior=gaussians.diffuse(sde, sde.t_max),
            nodes=32,
            rtol=0.01,
            atol=0.01,
            progress=False,
        )
        row.append(float(out.mean))
    return row


pair = [("uniform", 1), ("truncated-normal", 1)]
filled = bits(width / 12**0.5, 1e-5, [*pair, ("uniform", 4)])
spikes = bits(1e-3, 0.028, pair)
print(f"entropy {float(entropy_of_levels):.3f} bits per dimension")
print("model         exactly  uniform  truncated-normal")
for name, row in (("fills cells", filled), ("has spikes", spikes)):
    print(f"{name:14}{row[0]:7.3f}{row[1]:9.3f}{row[2]:18.3f}")
print(f"fills cells, uniform, 4 draws: {filled[3]:.3f}")

assert abs(spikes[2] - spikes[0]) < 0.01 < spikes[1] - spikes[0]
assert 0 < filled[3] - filled[0] < 0.7 * (filled[1] - filled[0])
assert filled[1] - filled[0] < 0.25 < filled[2] - filled[0]

# %% [markdown]
# Either pairing is a valid upper bound, and the wrong one is useless. The gap of
# the right one on the first model is there because a Gaussian is no flat density,
# and `importance_samples=` closes it by and by.
#
# ## Ranking: what does the model not know?
#
# A model of the digits 0, 1 and 2, here a Gaussian for each with its exact score,
# should find other digits unlikely. For a ranking errors matter only as far as
# the two groups overlap.

# %% alt="Bits of known digits lie to the left, of unknown ones far to the right"
data = sm.data.digits()
pixels = sm.data.dequantize(
    data.train, data.levels, generator=source, dtype=torch.float64
).flatten(1)
classes = [pixels[data.train_labels == k] for k in range(3)]
ridge = 1e-3 * torch.eye(64, dtype=torch.float64)
digits = sm.GaussianMixture(
    torch.stack([c.mean(0) for c in classes]),
    covariances=torch.stack([torch.cov(c.T) + ridge for c in classes]),
)
digit_model = digits.score_model(sde)

tests = data.test[:200].flatten(1)
known = data.test_labels[:200] < 3
quick = {"divergence": sm.Hutchinson(1), "nodes": 16, "rtol": 0.1, "atol": 0.1}
quick |= {
    "prior": digits.diffuse(sde, sde.t_max),
    "levels": 17,
    "progress": False,
}
scores = sm.evaluate(digit_model, tests, work / "digits", **quick)
inside, outside = scores.value[known], scores.value[~known]
told = 2 * scores.stderr + scores.solver_error + scores.quadrature_error
print(f"known digits: {float(inside.mean()):.2f} bits per dimension on average,")
print(f"each to within {float(told[known].mean()):.2f}, as is told")

drawn = sm.data.dequantize(tests, 17, generator=source, dtype=torch.float64)
exact = -digits.diffuse(sde, sde.t_min).log_prob(drawn)
print("pairs in which an unknown digit has more bits than a known one:")
for name, score in (("evaluated", scores.value), ("closed form", exact)):
    share = float((score[~known][:, None] > score[known]).double().mean())
    print(f"  {name:12} {share:.1%}")
    assert share > 0.97

edges = torch.linspace(float(scores.value.min()), 8.0, 40).tolist()
for name, group in (("0, 1, 2", inside), ("3 to 9", outside)):
    plt.hist(
        group.clamp(max=8).tolist(), edges, alpha=0.6, label=name, density=True
    )
plt.gca().set(
    title="Bits of test digits (those above 8 at 8)",
    xlabel="bits per dimension",
    ylabel="density",
)
plt.legend()
plt.show()

# %% [markdown]
# The groups are so far apart that one probe and coarse steps rank as well as the
# closed form does. Use such scores with care all the same: few bits do not mean a
# typical image. The mean of the zeros, rounded to levels, is blander than any
# digit, and the model likes it better than the best five. To see that, each image
# has to be known well: the exact trace, finer steps, and the mean of four
# dequantisations.

# %%
bland = sm.data.quantize(digits.means[:1], 17)
five = tests[known][inside.argsort()[:5]]
fine = quick | {"divergence": "exact", "rtol": 0.03, "atol": 0.03, "repeats": 4}
liked = sm.evaluate(digit_model, torch.cat([bland, five]), work / "bland", **fine)
print(f"bland {float(liked.value[0]):.2f}, five digits from", end=" ")
print(f"{float(liked.value[1:].min()):.2f} to {float(liked.value[1:].max()):.2f}")
assert float(liked.value[0]) < float(liked.value[1:].min())

# %% [markdown]
# ## What will it cost?
#
# Counts grow in proportion to the points, so a trial on a hundred of your own
# tells the rest. The operations of a pass are counted by torch without running
# it. Here for the U-Net for CIFAR-10, were its paths as hard as those of the
# digits:

# %%
from torch.utils.flop_counter import FlopCounterMode

with torch.device("meta"):
    unet = sm.nn.UNet((3, 32, 32), "ddpm++").requires_grad_(False)
    image = torch.empty(1, 3, 32, 32, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = unet(torch.empty(1), image)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, image, torch.empty_like(out))
passes, products = scores.rows / len(tests), scores.vjp_rows / len(tests)
flops = passes * forward.get_total_flops() + products * backward.get_total_flops()
ratio = backward.get_total_flops() / forward.get_total_flops()
size = sum(f.stat().st_size for f in (work / "digits").iterdir()) / len(tests)
print(f"{passes:.0f} passes and {products:.0f} products for an image")
print(f"a pass {forward.get_total_flops():.2e} operations")
print(f"a product {ratio:.2f} times as many, on top of the pass at its node")
print(f"a million images: {1e6 * flops:.1e} operations, {size:.0f} MB")
print(
    f"error of the mean of 10,000: {float(inside.std()) / 100:.4f} bits per dim"
)

# Half the images, half the products; paths differ a little from image to image.
half = sm.evaluate(digit_model, tests[:100], work / "half", **quick)
assert half.vjp_rows / 100 == products
assert abs(half.rows / 100 / passes - 1) < 0.1
assert 0.8 < ratio < 1.3

# %% [markdown]
# A product is about as many operations as a pass, so to count it as two is on the
# safe side. Divide by the operations that your device sustains in a second on
# such a network, which is a fraction of what its maker says, and by the number of
# devices. And ask first whether it has to be a million: the error of the mean
# falls with the square root only.

# %%
import shutil

shutil.rmtree(work)

# %% [markdown]
# ## Further reading
#
# - Theis, van den Oord and Bethge 2016, *A note on the evaluation of generative
#   models*, [arXiv:1511.01844](https://arxiv.org/abs/1511.01844): what bits say
#   about samples, and what not.
# - Nalisnick et al. 2019, *Do deep generative models know what they don't know?*,
#   [arXiv:1810.09136](https://arxiv.org/abs/1810.09136): bland images with high
#   likelihoods.
# - Zheng et al. 2023, [arXiv:2305.03935](https://arxiv.org/abs/2305.03935):
#   truncated-normal dequantisation.
# - The guide on [likelihoods](../likelihood.md), and the
#   [benchmarks](../reference/benchmarks.md#likelihood).
#
# Next: [Gradients](gradients.md)
