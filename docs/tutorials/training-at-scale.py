# %% [markdown]
# # Training at scale
#
# From a folder of image files to weights, on one computer or on many. After this
# page you know how to give images to [`fit`][sde_models.training.fitting.fit], that
# an interrupted run ends at the same bits, that several processes train to the
# weights of one, and how to estimate memory in advance.
#
# ## In short
#
# | for | use |
# |---|---|
# | your own images | `sm.data.image_folder(root)` in `sm.data.TrainingData` |
# | a run that survives a crash | `out="runs/a"`, then start the script again |
# | all GPUs of a machine | `accelerate launch train.py`, with the same script |
# | a batch that fits into memory | `gradient_accumulation_steps=4`, `mixed_precision="bf16"` |
# | classes, and guidance | `classes=` in the network, `label` with the data |
# | no Python at all | `sde-models train`, with options of the same names |
#
# ## Images from files
#
# `mnist`, `fashion_mnist` and `cifar10` read the published files in their own
# formats, and `image_folder` reads any tree of pictures with one folder for each
# class. Nothing is downloaded without `download=True`. For a tree we write
# scikit-learn's digits 0, 1 and 2 as PNG files.

# %% alt="Eight handwritten digits of 8 by 8 pixels, read from files"
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torchvision.transforms import Grayscale
from torchvision.utils import make_grid, save_image

import sde_models as sm

torch.manual_seed(0)
work = Path(tempfile.mkdtemp())
digits = sm.data.digits()
few = digits.train_labels < 3
pairs = zip(digits.train[few], digits.train_labels[few].tolist(), strict=True)
for number, (image, label) in enumerate(pairs):
    folder = work / "images" / f"digit {label}"
    folder.mkdir(parents=True, exist_ok=True)
    save_image(image / 16, folder / f"{number:04}.png")

files = sm.data.image_folder(work / "images", Grayscale())
image, label = files[0]
print(files.classes, tuple(image.shape), image.dtype, f"{len(files)} files")


def show(images, title, columns=8):
    """Numbers on [-1, 1] as a grid of pictures."""
    grid = make_grid((images + 1) / 2, nrow=columns, padding=1, pad_value=0.5)
    plt.figure(figsize=(columns * 0.6, 0.6 * len(images) / columns + 0.4))
    plt.imshow(grid.permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
    plt.gca().set(title=title, xticks=[], yticks=[])
    plt.grid(visible=False)
    plt.show()


chosen = torch.linspace(0, len(files) - 1, 8).long().tolist()
show(torch.stack([files[i][0] / 127.5 - 1 for i in chosen]), "From files")
first = digits.train[digits.train_labels == 0][0]
assert torch.equal(files[0][0], (first / 16 * 255 + 0.5).byte())

# %% [markdown]
# The format of MNIST is simple: two zeros, the code of the type, the
# number of dimensions, the sizes as four bytes each, then bytes. The cell writes
# such files, and the loader reads them back.


# %%
def idx(array):
    """Bytes of a file of the MNIST kind."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.numpy().tobytes()


raw = work / "MNIST" / "raw"
raw.mkdir(parents=True)
pixels = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
for part in ("train", "t10k"):
    (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(torch.arange(5).byte()))

read = sm.data.mnist(work)
assert all(torch.equal(read[i][0][0], pixels[i]) for i in range(5))
assert [label for _, label in read] == [0, 1, 2, 3, 4]
print(f"{read}, labels {[label for _, label in read]}")

# %% [markdown]
# ## Levels become numbers
#
# A file has integer levels, but a density needs real numbers. Level $k$ of $K$ fills
# the cell from $-1 + 2k/K$ to $-1 + 2(k+1)/K$, and *dequantising* draws a point
# in it, so that the data lie on $[-1, 1]$ and a likelihood can be given in bits.
# Draw new noise each time an image is used, or the network learns the noise:
# [`TrainingData`][sde_models.data.training_data.TrainingData] does that.

# %%
data = sm.data.TrainingData(files, levels=files.levels, classes=3)
items = data.batches(labels=True)
once, again = items[0][0], items[0][0]
apart = float((once - again).abs().max()) * 128
print(f"one image read twice: at most {apart:.2f} levels apart")
print(f"conditions {items[0][1]}, data_std for the SDE {data.data_std}")

assert not torch.equal(once, again)
for x in (once, again):
    assert torch.equal(sm.data.quantize(x, 256), files[0][0].long())

# %% [markdown]
# `items` reads a file on demand, optionally in `num_workers=` processes;
# the noise depends on the seed of the run and the position in it. Data that are
# not levels should be centred and scaled to a standard deviation near 1, which is
# given to the SDE as `data_std=`. Unscaled bytes raise an error:

# %%
import textwrap

small = sm.nn.MixingNetwork((1, 8, 8), width=8, depth=1)
model = sm.ScoreModel(small, sm.VPSDE(data_std=0.5), preconditioning="edm")
try:
    sm.fit(model, torch.stack([files[i][0] for i in chosen]).float(), steps=1)
except ValueError as error:
    print(textwrap.fill(str(error), 80))
else:
    raise AssertionError("bytes were accepted")

# %% [markdown]
# ## Network, and its memory
#
# `sm.nn.MixingNetwork` is for images of up to 32 pixels a side on modest
# hardware. `sm.nn.UNet` is the published DDPM++ or NCSN++, made of the blocks of
# diffusers. How to use another one, such as diffusers' `UNet2DModel`: [your own
# network](your-own-network.md).
#
# Training needs five numbers per parameter, weight, gradient, two moments
# of AdamW, and the average, and the values stored for the backward pass, which grow
# with the batch. On torch's `meta` device both can be counted for any network in
# a second, without the memory. Here for the U-Net for CIFAR-10:

# %%
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(network, x, **cond):
    """Bytes stored for the backward pass, without the weights."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.ones(len(x), device=x.device), x, **cond)
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    return sum(size for key, (_, size) in kept.items() if key not in weights)


with torch.device("meta"):
    unet = sm.nn.UNet((3, 32, 32), "ddpm++")
    kept = {
        batch: kept_bytes(unet, torch.empty(batch, 3, 32, 32))
        for batch in (32, 64)
    }
parameters = sum(p.numel() for p in unet.parameters())
image = (kept[64] - kept[32]) / 32
print(f"{parameters / 1e6:.2f} million parameters, 20 bytes each")
print(f"{image / 1e6:.1f} MB more for each image of the batch")
for batch, parts in ((128, 1), (128, 4)):
    total = 20 * parameters + image * batch / parts
    print(f"batch of {batch} in {parts} parts: {total / 1e9:.2f} GB")

assert 61.7e6 < parameters < 61.9e6  # 61.80 million are published

# %% [markdown]
# Some buffers of kernels come in addition, and, with several GPUs, one more number
# per parameter. The cost of a likelihood is counted in [evaluating a data
# set](evaluating-a-data-set.md).
#
# ## A script that may be interrupted
#
# This is a complete training script. `out=` makes it safe: every
# `checkpoint_every=` steps a folder is written under a temporary name and renamed, so
# that a checkpoint is complete or absent.

# %%
script = work / "train.py"
_ = script.write_text(
    """
import os, signal, sys
import torch
from torchvision.transforms import Grayscale
import sde_models as sm


def train(images, out, killed_at=None, **changes):
    files = sm.data.image_folder(images, Grayscale())
    data = sm.data.TrainingData(files, levels=256, classes=3)
    torch.manual_seed(0)  # for the first weights
    network = sm.nn.MixingNetwork((1, 8, 8), width=8, depth=1, classes=3)
    model = sm.ScoreModel(network, sm.VPSDE(data_std=0.5), preconditioning="edm")

    def kill(progress):
        if progress.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return sm.fit(
        model.double(), data.batches(labels=True, dtype=torch.float64), out=out,
        steps=40, batch_size=32, seed=1, checkpoint_every=10, callback=kill,
        progress=False, **changes,
    )


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2])
"""
)

# %% [markdown]
# Double precision is used only so that rounding cannot hide differences below. We
# start it as a process that kills itself at step 25, like `kill -9` or a power cut,
# and as two processes on the CPU, with the variables that
# `torchrun --nproc_per_node 2` sets.

# %%
import multiprocessing
import os
import socket
import sys

sys.path.insert(0, str(work))
from train import train

images_at = work / "images"


def train_as(variables, *arguments):
    """Train in this process, which is one of several."""
    os.environ |= variables
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # no warnings of gloo
    train(*arguments)


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2"}
shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
fork = multiprocessing.get_context("fork").Process
doomed = fork(target=train, args=(images_at, work / "killed", 25))
both = [
    fork(
        target=train_as,
        args=(
            shared | {"RANK": rank, "LOCAL_RANK": rank},
            images_at,
            work / "two",
        ),
    )
    for rank in "01"
]
for process in (*both, doomed):
    process.start()

doomed.join(120)
left = sorted(path.name for path in (work / "killed").glob("step-*"))
print(f"ended with {doomed.exitcode}, left {', '.join(left)}")
assert doomed.exitcode == -9  # by SIGKILL: no handler ran
assert left == ["step-00000000", "step-00000010", "step-00000020"]

# %% [markdown]
# The same call resumes from step 20 to 40. For comparison, a run without
# interruption.

# %%
complete = train(images_at, work / "complete")
resumed = train(images_at, work / "killed")
for got, expected in zip(
    resumed.model.parameters(), complete.model.parameters(), strict=True
):
    assert torch.equal(got, expected)
assert torch.equal(resumed.losses, complete.losses)
print(f"{resumed.steps} losses and all weights are equal, bit for bit")

message = ""
try:
    train(images_at, work / "killed", learning_rate=1e-3)
except ValueError as error:
    message = str(error)
assert "learning_rate: 0.002 there, 0.001 now" in message

# %% [markdown]
# This holds on the same machine with the same number of processes. After Ctrl-C or
# SIGTERM, which clusters send before they stop a job, `fit` finishes the step
# and writes a checkpoint. Other settings, data or networks in the same
# folder raise an error, as the cell showed, with a list of what differs.
#
# ## Many GPUs, many machines
#
# ```sh
# accelerate launch --num_processes 8 train.py                   # eight GPUs
# accelerate launch --num_machines 2 --num_processes 16 \
#     --main_process_ip 10.0.0.1 --main_process_port 29500 \
#     --machine_rank 0 train.py             # two machines; on the other, rank 1
# ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 train.py   # without a GPU
# ```
#
# `batch_size` counts the samples of *all* processes. The batch of a step, its
# times and its noise are the same as with one process, and each takes its part. So
# no setting has to change, and the two processes that we started have reached
# the weights of one, within rounding:

# %%
for process in both:
    process.join(120)
    assert process.exitcode == 0
two = sm.load_model(work / "two" / "step-00000040" / "averaged.safetensors")


def farthest(a, b):
    """Largest difference of two models' weights."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


print(f"two processes and one: {farthest(two, complete.model):.1e}")
assert farthest(two, complete.model) < 1e-10  # only the order of sums differs

state = torch.load(work / "two" / "step-00000040" / "state.pt", weights_only=True)
assert len(state["generators"]["cpu"]) == 2  # one per process
moments = state["learner"]["optimiser"]["state"].values()
count = sum(
    m[name].numel() for m in moments for name in ("exp_avg", "exp_avg_sq")
)
assert count == 2 * sum(p.numel() for p in two.parameters())

# %% [markdown]
# All machines must see the folder `out`. Without a GPU use `torchrun`, since
# `accelerate launch --cpu` starts a single process.
#
# ## Less memory
#
# `gradient_accumulation_steps=4` processes a quarter of the batch at a time, with the
# same gradient. `mixed_precision="bf16"` runs the network in half precision and leaves
# weights, average and optimiser unchanged; it halves the memory of the backward pass.
# Counted on a small U-Net:

# %%
parts = train(images_at, None, gradient_accumulation_steps=4)
print(f"four parts and one: {farthest(parts.model, complete.model):.1e}")
assert farthest(parts.model, complete.model) < 1e-10

losses = {}
for precision in (None, "bf16"):
    torch.manual_seed(0)
    small = sm.nn.MixingNetwork((1, 8, 8), width=8, depth=1)
    model = sm.ScoreModel(small, sm.VPSDE(data_std=0.5), preconditioning="edm")
    settings = {"steps": 20, "batch_size": 32, "seed": 0, "progress": False}
    fitted = sm.fit(model, data.batches(), mixed_precision=precision, **settings)
    losses[precision] = fitted.losses
    assert fitted.model.dtype == torch.float32
off = float((losses["bf16"] / losses[None] - 1).abs().max())
print(f"bf16: the losses of 20 steps differ by {off:.1%} at most")
assert 0 < off < 0.02  # bfloat16 keeps eight bits, one part in 256

tiny = sm.nn.UNet((1, 16, 16), channels=32, multipliers=(1, 2), blocks=1)
x = torch.randn(32, 1, 16, 16)
counted = {"float32": kept_bytes(tiny, x), "a quarter": kept_bytes(tiny, x[:8])}
with torch.autocast("cpu", torch.bfloat16):
    counted["bfloat16"] = kept_bytes(tiny, x)
for name, size in counted.items():
    print(
        f"{name:10} {size / 1e6:6.1f} MB, {size / counted['float32']:.2f} of it"
    )
assert counted["a quarter"] < 0.3 * counted["float32"]
assert counted["bfloat16"] < 0.6 * counted["float32"]

# %% [markdown]
# ## Labels and guidance
#
# With `classes=` a network takes `label=`. For *classifier-free guidance* it must
# also learn the data without labels, so a function gives it "no label", the number
# `classes`, for one image in eight. Data that fit into memory are best
# read once.

# %%
images = torch.stack([files[i][0] for i in range(len(files))])
labels = torch.tensor([files[i][1] for i in range(len(files))])


def draw(batch_size, generator):
    rows = torch.randint(len(images), (batch_size,), generator=generator)
    x0 = sm.data.dequantize(images[rows], 256, generator=generator)
    hidden = torch.rand(batch_size, generator=generator) < 1 / 8
    return x0, {"label": labels[rows].masked_fill(hidden, 3)}


torch.manual_seed(0)
network = sm.nn.MixingNetwork((1, 8, 8), width=16, depth=2, classes=3)
model = sm.ScoreModel(network, sm.VPSDE(data_std=0.5), preconditioning="edm")
curve = {}


def watch(progress):
    if progress.step % 50 == 0:
        curve[progress.step] = progress.loss


result = sm.fit(
    model,
    draw,
    steps=300,
    batch_size=64,
    learning_rate=6e-3,
    ema_decay=0.99,
    warmup=30,
    seed=0,
    callback=watch,
    progress=False,
)
for step, loss in curve.items():
    print(f"step {step}: loss {loss:.3f}")
summary = result.summary()
print({name: summary[name] for name in ("steps", "last_loss", "parameters")})
assert summary["last_loss"] < 0.5 * float(result.losses[:10].mean())

# %% [markdown]
# Guidance wraps the network: the score is affine in the
# output, so scores combine like outputs,
# $s = s_{\text{none}} + w\, (s_{\text{label}} - s_{\text{none}})$. The figure has one row
# per label without guidance, $w = 1$, and one for $w = 4$.


# %% alt="Samples of 0, 1 and 2 in two rows each; the guided ones are more similar"
class Guided(torch.nn.Module):
    """Classifier-free guidance: Ho and Salimans 2022, arXiv:2207.12598."""

    def __init__(self, network, weight):
        super().__init__()
        self.network, self.weight = network, weight

    def forward(self, t, x, *, label):
        free = self.network(t, x)
        return free + self.weight * (self.network(t, x, label=label) - free)


def guided(weight):
    network = Guided(result.model.network, weight).eval()
    return sm.ScoreModel(
        network, result.model.sde, preconditioning="edm", event_shape=(1, 8, 8)
    )


targets = torch.arange(3).repeat_interleave(60)
drawn = {
    weight: sm.sample(
        guided(weight),
        (180, 1, 8, 8),
        solver="dpmpp-2m",
        steps=12,
        cond={"label": targets},
        generator=torch.Generator().manual_seed(0),
    ).x
    for weight in (1.0, 4.0)
}
rows = [drawn[w][60 * k : 60 * k + 12] for k in range(3) for w in drawn]
show(torch.cat(rows), "Labels 0, 1, 2: without and with guidance", columns=12)

spread = {
    w: float(x.unflatten(0, (3, 60)).var(1).mean().sqrt())
    for w, x in drawn.items()
}
print(", ".join(f"w = {w:g}: spread {s:.3f}" for w, s in spread.items()))
assert spread[4.0] < 0.9 * spread[1.0]

x, at = drawn[1.0], {"label": targets}
score = [m.score(0.3, x, **at) for m in (guided(0.0), guided(1.0), guided(4.0))]
mixed = score[0] + 4 * (score[1] - score[0])
assert torch.allclose(score[2], mixed, atol=1e-4)

# %% [markdown]
# Guidance reduces variety: the images of one label are more similar. A
# guided score is not the score of a diffused density, so its likelihoods mean little.
#
# ## The distribution of noise levels
#
# The loss is an average over times, and a batch contains few of them. The default
# of the `"edm"` preconditioning, log-normal times, is a good choice for
# samples. For likelihoods use `weighting="likelihood"`, whose mean does not depend
# on the distribution of times, which can therefore be chosen for small variance of the
# gradient. Compare the spread of that loss from batch to batch:

# %%
from functools import partial

from sde_models.losses import LearnedTimes, denoising_score_matching

learned = LearnedTimes()
choices = {
    "uniform": {"times": "uniform"},
    "log-SNR, independent": {"times": "log-snr", "stratified": False},
    "log-SNR": {"times": "log-snr"},
    "learned": {"times": learned},
}
found = {}
generator = torch.Generator().manual_seed(0)
for name, choice in choices.items():
    loss = partial(denoising_score_matching, weighting="likelihood", **choice)
    values = []
    for _ in range(60):
        x0, cond = draw(64, generator)
        value = loss(result.model, x0, generator=generator, cond=cond)
        values.append(float(value.detach()))
    late = torch.tensor(values[20:])
    mean, spread = float(late.mean()), float(late.std())
    found[name] = mean, spread, spread / len(late) ** 0.5
    print(f"{name:21}{mean:5.2f} ± {found[name][2]:.2f}, spread {spread:5.2f}")

means, spreads, errors = zip(*found.values(), strict=True)
assert list(spreads) == sorted(spreads, reverse=True)
for mean, error in zip(means, errors, strict=True):
    assert abs(mean - means[-1]) < 5 * (error**2 + errors[-1] ** 2) ** 0.5

# %% [markdown]
# `fit(..., loss=loss)` takes such a function. More on weightings: [score
# matching](../score-matching.md).
#
# ## Averaging
#
# `result.model` has the moving average of the weights, and `model` ends with the
# raw ones. An average with decay $d$ forgets half in $\log \tfrac12 / \log d$
# steps, which should be a small part of the run.

# %%
import math

for decay in (0.99, 0.995, 0.999, 0.9999):
    print(f"ema_decay={decay}: {math.log(0.5) / math.log(decay):6.0f} steps")

# %% [markdown]
# ## Monitoring
#
# `log_dir="runs/a/log"` writes loss, gradient norm and learning rate for
# TensorBoard. [`SampleImages`][sde_models.training.callbacks.SampleImages] draws
# pictures during training, from the same noise each time, and
# [`BitsPerDimCurve`][sde_models.training.callbacks.BitsPerDimCurve] records the
# bits of held-out images. A loss that is not finite stops the run, and is never
# written to a checkpoint.
#
# ## From the command line
#
# ```sh
# sde-models train images --labels --network ddpm++ --device cuda --out runs/a
# accelerate launch --num_processes 8 -m sde_models.cli train cifar10 \
#     --root data --num-workers 4 --mixed-precision bf16 --out runs/cifar
# sde-models sample runs/a --label 1 --out ones.png
# ```
#
# The same command resumes after a crash. The contents of the folder are listed under
# [command line](../command-line.md).

# %%
import shutil

shutil.rmtree(work)

# %% [markdown]
# ## Further reading
#
# - Song et al. 2021, [arXiv:2011.13456](https://arxiv.org/abs/2011.13456), and
#   Karras et al. 2022, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364): the
#   networks, the times, and averaging.
# - Ho and Salimans 2022, *Classifier-free diffusion guidance*,
#   [arXiv:2207.12598](https://arxiv.org/abs/2207.12598).
# - Kingma et al. 2021, *Variational diffusion models*,
#   [arXiv:2107.00630](https://arxiv.org/abs/2107.00630): times of least variance.
# - The guide on [training](../training.md), for all arguments.
#
# Next: [Evaluating a data set](evaluating-a-data-set.md)
