# %% [markdown]
# # Choosing a trace estimator
#
# A log-density needs the trace of a Jacobian at each node of a path. `divergence=` chooses how it is
# computed: exactly, by random probes, or by refinements of these. First the answer in a table, then
# the measurements behind it, each made when this page was built. For the reason for a trace, and the
# definition of a probe, see [exact likelihoods](exact-likelihoods.md).
#
# ## In short
#
# | you have | use | products per node |
# |---|---|---|
# | an accuracy in mind | `tol=0.1`, nothing else | as many as are needed |
# | up to some dozens of dimensions | `divergence="exact"` (the default without `tol=`) | $D$ |
# | images, and a mean over many of them | `divergence=sm.Hutchinson(1)` | 1 |
# | images, and each one matters | `tol=`, or `divergence="auto"` with your own `rtol=` | few, many where needed |
# | a Jacobian that is $c I$ and a rank below $n$ | `divergence=sm.XTrace(n)` | $2n$ |
# | a low rank, and no $c I$ | `divergence=sm.HutchPlusPlus(n)` | $3n$ |
# | a gradient through the density | `"exact"` or `sm.Hutchinson(n)` | $D$ or $n$ |
# | importance-weighted bits | `divergence="exact"`, or many probes | $D$ or $n$ |
#
# Rademacher probes, the default, are almost always the right choice. `"gaussian"` is there for
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
# Note which curve is the lowest in each panel. Curves at the bottom
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
    """Errors of the trace, and the standard errors reported: 16 for each point."""
    jacobian = jacobian.repeat(16, 1, 1)
    x = torch.zeros_like(jacobian[:, 0])
    probes = estimator.draw(x, torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = estimator(lambda y: (jacobian @ y[..., None])[..., 0], x, probes)[
            1
        ]
    return found.value - jacobian.diagonal(dim1=1, dim2=2).sum(1), found.stderr


figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.4), sharey=True)
errors, reported = {}, {}
for panel, (title, mixture) in zip(panels, problems.items(), strict=True):
    jacobian = jacobians(mixture)
    for name, make in estimators.items():
        curve = []
        for products in budgets:
            off, stderr = measure(jacobian, make(products))
            errors[title, name, products] = float(off.square().mean().sqrt())
            rms_stderr = float(stderr.square().mean().sqrt())
            reported[title, name, products] = rms_stderr
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
# The same at 24 products in numbers: the actual error, and the standard error that each reports. A
# user sees only the second, so the two should agree.

# %%
print(f"{'24 products':12}" + "".join(f"{title:>20}" for title in problems))
print(" " * 12 + "      error reported" * 3)
for name in estimators:
    row = ""
    for title in problems:
        error, stderr = errors[title, name, 24], reported[title, name, 24]
        row += f"{error:11.3f}{stderr:9.3f}"
        # 128 errors are good to 10%.
        assert error < 1e-9 or 0.7 < stderr / error < 1.4
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
# - **Plane.** With as many products as dimensions there is nothing to estimate. XTrace and Hutch++ detect this
#   and compute the exact trace; Hutchinson with 24 probes does 12 times its work and is still random.
# - **Digits.** Much of the Jacobian of pixels is on its diagonal, which costs Rademacher probes nothing
#   and Gaussian ones a lot: the variances are $2 \sum_{i \ne j} S_{ij}^2$ and
#   $2 \sum_{i, j} S_{ij}^2$. Probes on the sphere make no error for the *mean* of the diagonal, and so
#   are between the two. The spectrum falls too slowly for XTrace and Hutch++ to be worth their products.
# - **Thin sheet.** XTrace looks for the directions in which $J$ differs from *some* multiple of the
#   identity, and finds all four with five probes. Hutch++ needs a low rank without the multiple, which
#   spoils its sketch here.
#
# A trained network on your data is somewhere between these; only a trial shows where.
#
# ## Along a path
#
# In [`log_prob`][sde_models.likelihood.log_densities.log_prob] there are many nodes, each with separate
# probes, whose errors average out. And all estimators compute analytically the multiple of the identity
# that Gaussian data would have. What matters is the error in nats against products.
# The path is the same for all rows except the last two, where the tolerance chooses it.

# %%
model = digits.score_model(sde)
prior = digits.diffuse(sde, sde.t_max)
x = digits.diffuse(sde, sde.t_min).sample(30, generator=source)
truth = digits.diffuse(sde, sde.t_min).log_prob(x)
path = {"intervals": 32, "rtol": 3e-4, "atol": 3e-4}
choices = {
    "Hutchinson(1)": {"divergence": sm.Hutchinson(1), **path},
    "Hutchinson(8)": {"divergence": sm.Hutchinson(8), **path},
    "XTrace(4)": {"divergence": sm.XTrace(4), **path},
    "auto": {"divergence": "auto", **path},
    "exact": {"divergence": "exact", **path},
    "tol=3": {"tol": 3.0},
    "tol=0.3": {"tol": 0.3},
}
print(f"{'':14} error reported products   (nats, per point)")
for name, options in choices.items():
    generator = torch.Generator().manual_seed(2)
    lp = sm.log_prob(model, x, prior=prior, generator=generator, **options)
    off = (lp.value - truth).abs()
    print(
        f"{name:14}{float(off.mean()):6.3f}{float(lp.error.mean()):9.3f}"
        f"{lp.vjps:9.0f}"
    )
    assert float((off <= lp.error).double().mean()) > 0.9
    assert bool((lp.error <= options.get("tol", torch.inf)).all())

# %% [markdown]
# One probe per node is enough for an error of a few nats, and for the mean over a test set nothing more
# is needed: the errors of different points are independent, so a thousand points divide the error by
# more than thirty. `tol=` gives more probes only to those nodes whose noise matters, takes the exact trace
# where that is cheaper, and chooses path and nodes too. The
# [benchmarks](../reference/benchmarks.md#likelihood) have a table over more costs.
#
# One recipe to avoid: `trace="augmented"`, which adds the trace to the equation, has to keep one
# probe for the whole path. Its errors add up instead of averaging out, and a single such probe
# gives no estimate of its error, so `stderr` is NaN.
#
# ## Memory
#
# All products of a node could go through the network as one batch: fast, at $D$ times the memory.
# The library splits them into chunks whose size depends on the device; `sm.Exact(chunk=...)` sets it.
# The cell records the largest tensor created for the exact trace of a network on
# images of 16 by 16.

# %%
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor created inside the block."""

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
# The number of products stays the same, so this only trades memory for time. The work of the exact
# trace still grows as $D$ for each node, so above 4,096 dimensions it raises an error unless allowed:

# %%
import textwrap

big = sm.ScoreModel(sm.nn.ResidualNetwork((4100,), width=8, depth=1), sde)
try:
    sm.log_prob(big, torch.randn(1, 4100), divergence="exact")
except ValueError as error:
    print(textwrap.fill(str(error), 80))
else:
    raise AssertionError("4,100 dimensions were accepted")

# %% [markdown]
# ## Gradients
#
# A gradient of the density goes through the products, so each keeps its graph. The exact trace then
# needs the memory of $D$ of them at every node, so one or a few probes are usual:
# [gradients through sampling and likelihood](gradients.md).
#
# ## Further reading
#
# - Hutchinson 1989, *A stochastic estimator of the trace of the influence matrix for Laplacian
#   smoothing splines*, Communications in Statistics: the estimator.
# - Meyer, Musco, Musco and Woodruff 2021, *Hutch++: optimal stochastic trace estimation*,
#   [arXiv:2010.09649](https://arxiv.org/abs/2010.09649): why the low-rank part should be found first.
# - Epperly, Tropp and Webber 2024, *XTrace: making the most of every sample in stochastic trace
#   estimation*, [arXiv:2301.07825](https://arxiv.org/abs/2301.07825).
# - The guide on [likelihoods](../likelihood.md), for all arguments.
#
# Next: [Troubleshooting](troubleshooting.md)
