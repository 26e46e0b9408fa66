# %% [markdown]
# # Evaluating a data set
#
# The mean log-likelihood of a test set, with justified error bars, in a
# run that may be interrupted. After this page you know where to spend your
# evaluations: on points, on probes or on steps.
#
# ## In short
#
# | question | answer |
# |---|---|
# | which call | `sm.evaluate(model, test_set, "runs/test", ...)` |
# | trace, for a mean over many points | `divergence=sm.Hutchinson(1)` |
# | trace, where each point matters | `tol=`, or `"exact"` in few dimensions |
# | steps | `rtol=` small enough that `solver_error` is below the error of the mean |
# | images | `levels=256`, and the dequantisation that the model was trained with |
# | after an interruption | call again with the same folder |
# | many processes | start the same script in each |
#
# ## Against a closed form
#
# To test an evaluation we need the exact answer. Take three Gaussians in 24 dimensions,
# narrow in rotated directions and so far apart that they do not overlap. Then the
# entropy is a sum over them,
#
# $$
# H = \sum_k w_k \left( \tfrac12 \log \det 2 \pi e \Sigma_k - \log w_k \right) ,
# $$
#
# and the mean of $\log p$ over infinitely many points is $-H$. The model is the
# exact score, and `prior=` its law at $t_{max}$, so that all errors are those of the
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
# `evaluate` takes a tensor, or any map-style `Dataset` of any size: it reads
# `chunk=` samples at a time and writes each chunk to a file when it is finished.

# %%
x = law.sample(1000, generator=source)
truth = law.log_prob(x)
one_probe = {
    "divergence": sm.Hutchinson(1),
    "intervals": 32,
    "rtol": 0.01,
    "atol": 0.01,
}
found = sm.evaluate(
    model, x, work / "first", chunk=250, prior=prior, progress=False, **one_probe
)
print(found)

mean, stderr = float(found.mean), float(found.mean_stderr)
steps = float((found.solver_error + found.quadrature_error).mean())
print(f"-H is {abs(mean + entropy) / stderr:.1f} standard errors away")
assert abs(mean + entropy) < 3 * stderr + steps

# %% [markdown]
# ## Sources of error
#
# A value is the exact one for this point, plus noise of the probes, plus an error of
# the steps. Points are drawn independently and so are probes, so with $n$ points
#
# $$
# \mathrm{Var}(\text{mean}) = \frac{1}{n} \Big(
# \underbrace{\mathrm{Var} \log p(x)}_{\text{points}} +
# \underbrace{E\, \texttt{stderr}^2}_{\text{probes}} \Big) ,
# $$
#
# and `mean_stderr`, from the spread of the values, includes both. The error of the
# steps is not noise: it is common to all points, and more points do not reduce it.
# Here the exact values are known, so all can be computed:

# %%
points = float(truth.var())
probes = float(found.stderr.square().mean())
measured = float(found.value.var())
print(f"variance of log p       {points:6.2f}")
print(f"variance of the probes  {probes:6.2f}")
print(f"sum {points + probes:.2f}, of the values {measured:.2f}")
print(f"error per point {probes**0.5:.2f} nats, of the mean {stderr:.2f}")

assert abs(measured / (points + probes) - 1) < 0.15  # 1000 points are good to 5%

# %% [markdown]
# The sum is a little too large: a single probe cannot distinguish the
# diagonal of the Jacobian, on which it makes no error, from the rest, so its
# `stderr` is conservative. Two or more probes can.
#
# ## Points or probes?
#
# One more probe at each node costs $c_v$ per point, and one more point costs
# $c_x + m c_v$, with $c_x$ for its path. For a budget $C$ the error of the mean
# is
#
# $$
# \sqrt{\frac{c_x + m c_v}{C} \Big( V_x + \frac{V_p}{m} \Big)} ,
# \qquad \text{smallest at} \quad m = \sqrt{\frac{c_x}{c_v} \frac{V_p}{V_x}} .
# $$
#
# A run with four probes on 400 points gives all four numbers, without the exact
# values: $V_x$ is the variance of the values minus that of the probes. The line is
# the prediction, the dots are separate runs, all scaled to a budget of a
# million forward passes. A product counts as two passes, as in the
# [benchmarks](../reference/benchmarks.md#likelihood).

# %% alt="Error of the mean against probes: least at one; dots lie near the line"
budget = 1e6
runs = {}
for m in (1, 2, 4, 16):
    trial = one_probe | {"divergence": sm.Hutchinson(m), "prior": prior}
    out = sm.evaluate(
        model, x[:400], work / f"{m} probes", progress=False, **trial
    )
    cost = out.nfe + 2 * out.vjps
    runs[m] = out, float(out.value.std()) * (cost / budget) ** 0.5

four = runs[4][0]
v_p = 4 * float(four.stderr.square().mean())
v_x = float(four.value.var()) - v_p / 4
c_x, c_v = four.nfe, 2 * four.vjps / 4
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
    xlabel="probes per node $m$",
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
assert float(runs[1][0].stderr.square().mean()) > v_p  # conservative

# %% [markdown]
# So for a mean: one probe, more points. If you have used all of a finite test set,
# more probes reduce only the second term, and once that is below a tenth of the
# first it adds less than a twentieth to the error.
#
# ## Which tolerance?
#
# With the exact trace, steps and quadrature remain. Compare the bias, which is known
# here, with the reported error, and note the number of points above which the bias
# dominates, $V_x / \text{bias}^2$.

# %%
print("tolerance  intervals   bias reported   points until bias dominates")
for tolerance, intervals in ((0.1, 16), (0.03, 24), (0.01, 32), (0.003, 48)):
    out = sm.evaluate(
        model,
        x[:200],
        work / f"tolerance {tolerance}",
        divergence="exact",
        intervals=intervals,
        rtol=tolerance,
        atol=tolerance,
        prior=prior,
        progress=False,
    )
    bias = float((out.value - truth[:200]).mean())
    reported = float((out.solver_error + out.quadrature_error).mean())
    enough = points / bias**2
    print(f"{tolerance:9}{intervals:11}{bias:8.3f}{reported:9.3f}{enough:12,.0f}")
    assert abs(bias) < reported

# %% [markdown]
# At a loose tolerance a hundred points are as good as a million: all values have the
# same bias, and `mean_stderr` does not include it. The reported error of the
# steps is conservative. The rule: make `solver_error` and `quadrature_error`,
# on average, smaller than `mean_stderr`, and report both. `tol=` chooses steps,
# nodes and probes for each point; for a mean that is more accurate than needed.
#
# ## Interruptions and several processes
#
# The worst case: two processes share a data set of eight chunks,
# each is killed by SIGKILL when it reads a certain sample, and a single process
# finishes the rest.

# %%
import multiprocessing
import os
import signal
import socket

from torch.utils.data import Dataset


class Points(Dataset):
    """Items read on demand, of which some kill the process."""

    def __init__(self, fatal=()):
        self.fatal = fatal

    def __len__(self):
        return 200

    def __getitem__(self, index):
        if index in self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return x[index]


def run(out, dataset, **variables):
    """The script of each process."""
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
    f"{finished.resumed} samples were done already; the numbers are equal bit for bit"
)
assert finished.resumed == 125

message = ""
try:
    sm.evaluate(
        model, x[:200], work / "alone", chunk=25, intervals=24, progress=False
    )
except ValueError as error:
    message = str(error)
assert "argument intervals: 32 there, 24 now" in message

# %% [markdown]
# Random numbers depend only on `seed=` and the position of a sample in the data set.
# The forks take the place of a script started by a launcher; the last line needs no
# script:
#
# ```sh
# accelerate launch --num_processes 8 evaluate.py                     # GPUs
# ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 evaluate.py     # none
# sde-models log-prob runs/digits digits --tol 1 --out bits.json
# ```
#
# Other settings or weights in the same folder raise an error, as the cell showed. A
# `DataLoader` is not needed, and conditions such as labels are given as
# `cond={"label": labels}`.
#
# ## Bits per dimension
#
# Grey levels have probabilities, and the bits are those of the levels: [exact
# likelihoods](exact-likelihoods.md) derives the bound. The most common mistake
# is the wrong pairing. *Uniform* dequantisation fits models that were trained on
# uniformly dequantised data, *truncated-normal* those trained on the centres
# of the cells. Take eight equally likely images of 4 by 4 pixels and four levels,
# so that the entropy is $\log_2 8 / 16$ bits per dimension, and
# two models, both known exactly: one fills the cells, the other has spikes at the
# centres.

# %%
levels, width = 4, 0.5
patterns = torch.randint(
    levels, (8, 16), generator=torch.Generator().manual_seed(1)
)
centres = (-1 + width * (patterns + 0.5)).double()
images = patterns[torch.arange(32) % 8]
entropy_of_levels = torch.tensor(8.0).log2() / 16


def bits(std, t_min, bounds):
    """Bits of Gaussians at the centres: exact, and by some bounds."""
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
            intervals=32,
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
# Each pairing is a valid upper bound, but the wrong one is useless. The gap of
# the right one on the first model exists because a Gaussian is not a flat density,
# and more `importance_samples=` gradually close it.
#
# ## Ranking: detecting unknown data
#
# A model of the digits 0, 1 and 2, here a Gaussian for each with its exact score,
# should give other digits a low probability. For a ranking errors matter only where
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
quick = {
    "divergence": sm.Hutchinson(1),
    "intervals": 16,
    "rtol": 0.1,
    "atol": 0.1,
}
quick |= {
    "prior": digits.diffuse(sde, sde.t_max),
    "levels": 17,
    "progress": False,
}
scores = sm.evaluate(digit_model, tests, work / "digits", **quick)
inside, outside = scores.value[known], scores.value[~known]
reported = scores.error
print(f"known digits: {float(inside.mean()):.2f} bits per dimension on average,")
print(f"with a mean reported error of {float(reported[known].mean()):.2f}")

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
# closed form. Use such scores with care: few bits do not mean a
# typical image. The mean of the zeros, rounded to levels, is smoother than any
# digit, and the model gives it fewer bits than the best five. To see that, each image
# must be evaluated accurately: the exact trace, finer steps, and the mean of four
# dequantisations.

# %%
smooth = sm.data.quantize(digits.means[:1], 17)
five = tests[known][inside.argsort()[:5]]
fine = quick | {"divergence": "exact", "rtol": 0.03, "atol": 0.03, "repeats": 4}
best = sm.evaluate(digit_model, torch.cat([smooth, five]), work / "best", **fine)
print(f"mean image {float(best.value[0]):.2f}, five digits from", end=" ")
print(f"{float(best.value[1:].min()):.2f} to {float(best.value[1:].max()):.2f}")
assert float(best.value[0]) < float(best.value[1:].min())

# %% [markdown]
# ## Estimating the cost
#
# Counts are proportional to the number of points, so extrapolate from a trial on a
# hundred of your own. torch counts the operations of a pass without running
# it. Here for the U-Net for CIFAR-10, assuming paths as difficult as those of the
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
passes, products = scores.nfe, scores.vjps
flops = passes * forward.get_total_flops() + products * backward.get_total_flops()
ratio = backward.get_total_flops() / forward.get_total_flops()
size = sum(f.stat().st_size for f in (work / "digits").iterdir()) / len(tests)
print(f"{passes:.0f} passes and {products:.0f} products per image")
print(f"a pass {forward.get_total_flops():.2e} operations")
print(f"a product {ratio:.2f} times as many, on top of the pass at its node")
print(f"a million images: {1e6 * flops:.1e} operations, {size:.0f} MB")
print(
    f"error of the mean of 10,000: {float(inside.std()) / 100:.4f} bits per dim"
)

# Half the images, half the products; paths differ a little from image to image.
half = sm.evaluate(digit_model, tests[:100], work / "half", **quick)
assert half.vjps == products
assert abs(half.nfe / passes - 1) < 0.1
assert 0.8 < ratio < 1.3

# %% [markdown]
# A product takes about as many operations as a pass, so counting it as two is
# conservative. Divide by the operations that your device sustains per second on
# such a network, a fraction of the manufacturer's figure, and by the number of
# devices. And ask first whether a million images are needed: the error of the mean
# falls only with the square root of their number.

# %%
import shutil

shutil.rmtree(work)

# %% [markdown]
# ## Further reading
#
# - Theis, van den Oord and Bethge 2016, *A note on the evaluation of generative
#   models*, [arXiv:1511.01844](https://arxiv.org/abs/1511.01844): what bits do and do
#   not say about samples.
# - Nalisnick et al. 2019, *Do deep generative models know what they don't know?*,
#   [arXiv:1810.09136](https://arxiv.org/abs/1810.09136): smooth images with high
#   likelihoods.
# - Zheng et al. 2023, [arXiv:2305.03935](https://arxiv.org/abs/2305.03935):
#   truncated-normal dequantisation.
# - The guide on [likelihoods](../likelihood.md), and the
#   [benchmarks](../reference/benchmarks.md#likelihood).
#
# Next: [Gradients](gradients.md)
