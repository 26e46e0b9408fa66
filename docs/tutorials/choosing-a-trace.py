# %% [markdown]
# # Choosing a trace estimator
#
# A log-density wants the trace of a Jacobian at each node of a path. `divergence=` says how it is
# found: exactly, by random probes, or by cleverer ones. First the answer in a table, then the
# measurements behind it, each made when this page was built. Why a trace, and what a probe is:
# [exact likelihoods](exact-likelihoods.md).
#
# ## In short
#
# | you have | give | products at a node |
# |---|---|---|
# | an accuracy in mind | `tol=0.1`, nothing else | as many as it takes |
# | up to some dozens of numbers | `divergence="exact"` (what you get without `tol=`) | $D$ |
# | images, and a mean over many of them | `divergence=sm.Hutchinson(1)` | 1 |
# | images, and each one matters | `tol=`, or `divergence="auto"` with your own `rtol=` | few, many where needed |
# | a Jacobian that is $c I$ and a rank below $n$ | `divergence=sm.XTrace(n)` | $2n$ |
# | a low rank, and no $c I$ | `divergence=sm.HutchPlusPlus(n)` | $3n$ |
# | a gradient through the density | `"exact"` or `sm.Hutchinson(n)` | $D$ or $n$ |
# | importance-weighted bits | `divergence="exact"`, or many probes | $D$ or $n$ |
#
# Rademacher probes, the ones you get, are the right choice almost always. `"gaussian"` is there for
# comparison, `"sphere"` for Jacobians near a multiple of the identity in unknown axes.
#
# ## Error for equal work
#
# A *product* is one vector-Jacobian product, about two forward passes of the network. Three
# Jacobians, of the predicted noise at $t = 0.1$, from scores that are known:
#
# - a mixture in the **plane**;
# - a mixture of full Gaussians fitted to the **digits** 0, 1 and 2, with 64 pixels;
# - data in a **thin sheet**, 4 dimensions of 64 in a random direction. Its Jacobian is a multiple of
#   the identity plus a rank of 4.
#
# Look at which curve is the lowest in each panel, and for those that leave it at the bottom: they
# have become exact.

# %% alt="Error against products: Rademacher lowest on digits, XTrace exact on the thin sheet"
import matplotlib.pyplot as plt
import torch

import sde_models as sm

source = torch.Generator().manual_seed(0)
plane = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5]).double()

data = sm.data.digits()
pixels = sm.data.dequantize(
    data.train, data.levels, generator=source, dtype=torch.float64
).flatten(1)
classes = [pixels[data.train_labels == k] for k in range(3)]
digits = sm.GaussianMixture(
    torch.stack([c.mean(0) for c in classes]),
    covariances=torch.stack(
        [
            torch.cov(c.T) + 1e-3 * torch.eye(64, dtype=torch.float64)
            for c in classes
        ]
    ),
)

axes = torch.linalg.qr(torch.randn(64, 4, generator=source).double())[0]
sheet = sm.GaussianMixture(
    torch.zeros(1, 64).double(),
    covariances=(axes @ axes.T + 1e-4 * torch.eye(64))[None],
)

sde = sm.VPSDE()
problems = {"plane": plane, "digits": digits, "thin sheet": sheet}
estimators = {
    "Rademacher": lambda n: sm.Hutchinson(n),
    "Gaussian": lambda n: sm.Hutchinson(n, "gaussian"),
    "sphere": lambda n: sm.Hutchinson(n, "sphere"),
    "Hutch++": lambda n: sm.HutchPlusPlus(n // 3),
    "XTrace": lambda n: sm.XTrace(n // 2),
}
budgets = [6, 12, 24]


def jacobians(mixture):
    """Those of the predicted noise at 8 points, shape (8, D, D)."""
    model = mixture.score_model(sde)
    generator = torch.Generator().manual_seed(1)
    points = mixture.diffuse(sde, 0.1).sample(8, generator=generator)
    return torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda y: model.eps(0.1, y[None])[0], point, vectorize=True
            )
            for point in points
        ]
    )


def measure(jacobian, estimator):
    """Errors of the trace, and the standard errors told: 16 for each point."""
    jacobian = jacobian.repeat(16, 1, 1)
    x = torch.zeros_like(jacobian[:, 0])
    probes = estimator.draw(x, torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = estimator(lambda y: (jacobian @ y[..., None])[..., 0], x, probes)[
            1
        ]
    return found.value - jacobian.diagonal(dim1=1, dim2=2).sum(1), found.stderr


figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.4), sharey=True)
errors, told = {}, {}
for panel, (title, mixture) in zip(panels, problems.items(), strict=True):
    jacobian = jacobians(mixture)
    for name, make in estimators.items():
        curve = []
        for products in budgets:
            off, stderr = measure(jacobian, make(products))
            errors[title, name, products] = float(off.square().mean().sqrt())
            told[title, name, products] = float(stderr.square().mean().sqrt())
            curve.append(max(errors[title, name, products], 1e-3))
        panel.loglog(budgets, curve, "o-", ms=3, label=name)
    panel.set(title=title.capitalize(), xlabel="products")
    panel.minorticks_off()
    panel.set_xticks(budgets, budgets)
panels[0].set_ylabel("error of the trace (0.001: exact)")
figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5
)
plt.show()

# %% [markdown]
# The same at 24 products in numbers, with the standard error that each tells beside the error that
# it makes. A user sees the second of the two, so they had better agree.

# %%
print(f"{'24 products':12}" + "".join(f"{title:>20}" for title in problems))
print(" " * 12 + "      error     told" * 3)
for name in estimators:
    row = ""
    for title in problems:
        made, said = errors[title, name, 24], told[title, name, 24]
        row += f"{made:11.3f}{said:9.3f}"
        assert (
            made < 1e-9 or 0.7 < said / made < 1.4
        )  # 128 errors are good to 10%
    print(f"{name:12}" + row)

assert errors["digits", "Rademacher", 24] == min(
    errors["digits", name, 24] for name in estimators
)
assert (
    errors["thin sheet", "XTrace", 24]
    < 1e-9
    < errors["thin sheet", "Hutch++", 24]
)

# %% [markdown]
# - **Plane.** With as many products as dimensions there is nothing to estimate. XTrace and Hutch++ notice,
#   and take the exact trace; Hutchinson with 24 probes does 12 times its work and is still random.
# - **Digits.** Much of the Jacobian of pixels is on its diagonal, which costs Rademacher probes nothing
#   and Gaussian ones a lot: the variances are $2 \sum_{i \ne j} S_{ij}^2$ and
#   $2 \sum_{i, j} S_{ij}^2$. Probes on the sphere make no error for the *mean* of the diagonal, and so
#   stand between. The spectrum falls too slowly for XTrace and Hutch++ to be worth their products.
# - **Thin sheet.** XTrace looks for the directions in which $J$ differs from *some* multiple of the
#   identity, and has all four with five probes. Hutch++ wants a low rank by itself: here its sketch is
#   misled by the multiple.
#
# A trained network on your data is somewhere between these. Where, only a trial tells, and `"auto"` makes
# such a trial.
#
# ## Along a path
#
# In [`log_prob`][sde_models.likelihood.log_densities.log_prob] there are many nodes, each with probes of its own,
# whose errors average out. And the multiple of the identity that Gaussian data would have is
# taken analytically by all estimators. What counts in the end is the error in nats against products.
# The path is the same for all rows but the last two, where the tolerance chooses it.

# %%
model = digits.score_model(sde)
prior = digits.diffuse(sde, sde.t_max)
x = digits.diffuse(sde, sde.t_min).sample(30, generator=source)
truth = digits.diffuse(sde, sde.t_min).log_prob(x)
path = {"nodes": 32, "rtol": 3e-4, "atol": 3e-4}
ways = {
    "Hutchinson(1)": {"divergence": sm.Hutchinson(1), **path},
    "Hutchinson(8)": {"divergence": sm.Hutchinson(8), **path},
    "XTrace(4)": {"divergence": sm.XTrace(4), **path},
    "auto": {"divergence": "auto", **path},
    "exact": {"divergence": "exact", **path},
    "tol=3": {"tol": 3.0},
    "tol=0.3": {"tol": 0.3},
}
print(f"{'':14} error   told   products   (nats, for a point)")
for name, way in ways.items():
    generator = torch.Generator().manual_seed(2)
    lp = sm.log_prob(model, x, prior=prior, generator=generator, **way)
    off = (lp.value - truth).abs()
    print(
        f"{name:14}{float(off.mean()):6.3f} {float(lp.error.mean()):6.3f} "
        f"{lp.vjp_rows / len(x):8.0f}"
    )
    assert float((off <= lp.error).double().mean()) > 0.9
    assert bool((lp.error <= way.get("tol", torch.inf)).all())

# %% [markdown]
# One probe a node is enough for a few nats, and for the mean over a test set nothing more is needed: the
# errors of different points are independent, so a thousand points divide the error by more than
# thirty. `"auto"` begins with one probe and gives more only to those nodes whose noise counts, until
# probes are no worse than the path. It goes over to XTrace or to the exact trace where a trial says
# that they pay. `tol=` does that, and chooses path and nodes too. A table over more costs is in the
# [benchmarks](../reference/benchmarks.md#likelihood).
#
# One recipe to avoid: `method="augmented"`, which adds the trace to the equation, has to keep one
# probe for the whole path. Its errors add up instead of averaging out, and a single such probe
# cannot tell its error, so `stderr` is NaN.
#
# ## Memory
#
# All products of a node could go through the network as one batch: fast, and $D$ times the memory.
# The library takes them in chunks of as many numbers as suit the device. `sm.Exact(chunk=...)` says
# otherwise. The cell watches the largest tensor that is made for the exact trace of a network on
# images of 16 by 16.

# %%
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that any tensor inside the block has."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [
            v for v in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(v)
        ]
        self.most = max([self.most, *(v.numel() for v in tensors)])
        return out


network = sm.nn.ResidualNetwork((1, 16, 16), width=64, depth=1)
images = torch.randn(16, 1, 16, 16)
untrained = sm.ScoreModel(network, sde)
largest = {}
for chunk in (1, 16, 256):
    with LargestTensor() as seen:
        sm.Exact(chunk=chunk)(lambda y: untrained.eps(0.5, y), images, None)
    largest[chunk] = seen.most
    print(
        f"{chunk:3} coordinates at once: {seen.most:9,} numbers in the largest tensor"
    )

assert largest[1] < largest[16] < largest[256]

# %% [markdown]
# The number of products stays the same, so this trades memory for time alone. For the exact trace
# work still grows as $D$ for each node, and so it is not begun unasked for events above 4,096 numbers:

# %%
import textwrap

big = sm.ScoreModel(sm.nn.ResidualNetwork((4100,), width=8, depth=1), sde)
try:
    sm.log_prob(big, torch.randn(1, 4100), divergence="exact")
except ValueError as error:
    print(textwrap.fill(str(error), 80))
else:
    raise AssertionError("4,100 numbers were let through")

# %% [markdown]
# ## Gradients
#
# A gradient of the density goes through the products, so each keeps its graph. The exact trace then
# needs the memory of $D$ of them at every node, and one or a few probes are usual:
# [gradients through sampling and likelihood](gradients.md).
#
# ## Further reading
#
# - Hutchinson 1989, *A stochastic estimator of the trace of the influence matrix for Laplacian
#   smoothing splines*, Communications in Statistics: the one-line idea.
# - Meyer, Musco, Musco and Woodruff 2021, *Hutch++: optimal stochastic trace estimation*,
#   [arXiv:2010.09649](https://arxiv.org/abs/2010.09649): why a low rank should be found first.
# - Epperly, Tropp and Webber 2024, *XTrace: making the most of every sample in stochastic trace
#   estimation*, [arXiv:2301.07825](https://arxiv.org/abs/2301.07825).
# - The guide on [likelihoods](../likelihood.md), for all arguments.
#
# Next: [Troubleshooting](troubleshooting.md)
