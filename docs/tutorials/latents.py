# %% [markdown]
# # Latents
#
# The probability flow maps every point to a *latent*, a point of noise, and back. This page encodes
# and decodes, first where the answer is known and then handwritten
# digits, shows that the code is a property of the data and not of the network, and uses it: to
# interpolate between images, to vary their density, and to change the label of a digit while
# keeping its style.
#
# ## A code that is known
#
# Through each point and time runs exactly one solution of the
# [flow](probability-flow.md) $\dot x = v(t, x)$, if $v$ is smooth enough (the theorem of Picard and
# Lindelöf). So paths never meet, and the map from start to end is invertible:
# [`encode`][sde_models.sampling.latents.encode] solves from $t_{min}$ to $t_{max}$,
# [`decode`][sde_models.sampling.latents.decode] back.
#
# In one dimension the map has a closed form. Paths that cannot meet keep their order, so the share
# of points to the left of a path is constant:
#
# $$
# F_{t_{min}}(x) = F_{t_{max}}(z)
# \qquad\Longrightarrow\qquad
# z = F_{t_{max}}^{-1}\big(F_{t_{min}}(x)\big),
# $$
#
# with $F_t$ the distribution function of $p_t$. At $t_{max}$ it is nearly that of the standard normal,
# and $z$ is what statisticians call a *normal score*. The cell encodes points of a mixture of two
# Gaussians and compares shares.

# %% alt="The encoded points lie on the curve known in closed form; it is flat between the modes"
import matplotlib.pyplot as plt
import torch

import sde_models as sm

sde = sm.VPSDE()
line = sm.GaussianMixture(
    [[-2.0], [1.0]], [0.3, 0.6], weights=[0.3, 0.7]
).double()
line_model = line.score_model(sde)


def share_below(t, x):
    """Share of the points at time t that lie below x."""
    law = line.diffuse(sde, t)
    normal = torch.distributions.Normal(
        law.means[:, 0], law.variances[:, 0].sqrt()
    )
    return normal.cdf(x) @ law.log_weights.exp()


x = torch.linspace(-2.8, 2.5, 60).double()[:, None]
z = sm.encode(line_model, x, rtol=1e-7, atol=1e-7).z
shares = share_below(sde.t_min, x)
worst = float((share_below(sde.t_max, z) - shares).abs().max())
print(f"shares before and after the flow differ by {worst:.1e}")

plt.plot(x, torch.special.ndtri(shares), label=r"$\Phi^{-1}(F_{t_{min}}(x))$")
plt.plot(x[::3], z[::3], "o", ms=4, label="encode")
plt.gca().set(
    title="The code of a mixture", xlabel="data $x$", ylabel="latent $z$"
)
plt.legend()
plt.show()

assert worst < 1e-4

# %% [markdown]
# ## Round trips
#
# Decoding inverts encoding up to the errors of the solver. `rtol=` and `atol=` bound
# these for each step. The next cell tightens them and prints the error of a round trip,
# and that of the latent, which is known here.

# %%
print("tolerance   round trip   latent   network evaluations")
truth = sm.encode(line_model, x, rtol=1e-9, atol=1e-9).z
found = {}
for tolerance in (1e-2, 1e-4, 1e-6):
    given = {"rtol": tolerance, "atol": tolerance}
    up = sm.encode(line_model, x, **given)
    down = sm.decode(line_model, up.z, **given)
    found[tolerance] = float((down.x - x).abs().max())
    off = float((up.z - truth).abs().max())
    print(
        f"{tolerance:9g}   {found[tolerance]:10.1e} {off:8.1e}   {up.nfe + down.nfe:5g}"
    )

assert found[1e-6] < found[1e-4] < found[1e-2]

# %% [markdown]
# Choose what you need: an error of a thousandth of the range is invisible in a picture, but may matter
# when latents are compared. A small round-trip error does not imply an accurate latent: errors of
# decoding can cancel those of encoding. Solvers with noise, such as `"euler-maruyama"`, give no code,
# and `decode` raises an error for them.
#
# ## Digits
#
# Now 1,437 handwritten digits of 8 by 8 pixels, and a small network with the label as an input. Two
# copies are trained, with different seeds for their weights, the order of the data and
# the noise. They share only the data.

# %% alt="Test images, and the same images after encoding and decoding, which look identical"
digits = sm.data.digits()
source = torch.Generator().manual_seed(0)
train = sm.data.dequantize(digits.train, digits.levels, generator=source)
images = sm.data.dequantize(digits.test, digits.levels, generator=source)[:150]
labels = digits.test_labels[:150]


def batch(count, generator):
    """Images and their labels, drawn with replacement."""
    rows = torch.randint(len(train), (count,), generator=generator)
    return train[rows], {"label": digits.train_labels[rows]}


def trained(make_network, sde, data, steps, seed):
    torch.manual_seed(seed)
    model = sm.ScoreModel(make_network(), sde, preconditioning="edm")
    return sm.fit(
        model,
        data,
        steps=steps,
        batch_size=128,
        learning_rate=4e-3,
        ema_decay=0.99,
        seed=seed,
        progress=False,
    ).model


def digit_network():
    return sm.nn.ResidualNetwork((1, 8, 8), width=96, depth=2, classes=10)


def show(rows, names, title):
    """Draw rows of images, with a name for each row."""
    figure, panels = plt.subplots(
        len(rows), 1, figsize=(6.4, 0.56 * len(rows) + 0.35), squeeze=False
    )
    for panel, row, name in zip(panels[:, 0], rows, names, strict=True):
        strip = torch.nn.functional.pad(row[:, 0], (0, 1), value=float("nan"))
        panel.imshow(
            strip.permute(1, 0, 2).flatten(1).numpy(),
            cmap="gray",
            vmin=-1,
            vmax=1,
        )
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=11)
    plt.show()


digit_sde = sm.VPSDE(t_min=1e-3)
first, second = (
    trained(digit_network, digit_sde, batch, 400, seed) for seed in (0, 1)
)
tolerance = {"rtol": 1e-4, "atol": 1e-4}
z = sm.encode(first, images, cond={"label": labels}, **tolerance).z
again = sm.decode(first, z, cond={"label": labels}, **tolerance).x
show(
    [images[:12], again[:12], z[:12] / 3],
    ["image", "decoded", "latent"],
    "Round trip",
)
print(
    f"largest error of the round trip {float((again - images).abs().max()):.4f}"
)
print(f"standard deviation of the latents {float(z.std()):.3f}")

assert float((again - images).abs().max()) < 0.05

# %% [markdown]
# The latents look like noise, as they should: with the exact score they would be normal over the data,
# and here they are nearly so, with a slightly small norm after a short training. Yet each contains all
# information about its image.
#
# ## The code is a property of the data
#
# The velocity of the flow is $f - \frac12 g^2 \nabla \log p_t$. The forward SDE and the data determine
# $p_t$, hence the velocity, hence the code. A network only approximates it. The code of an
# autoencoder, by contrast, could be rotated without any change of the decoded data, so that two
# trainings give two codes. Song et al. (2021) call the code of the flow *uniquely identifiable*. Two
# networks differ only by their errors. The cell encodes the same images with both, and, for comparison,
# repeats this with the images shuffled.


# %%
def correlation(a, b):
    """Correlation of two sets of latents, over images and pixels."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


other = sm.encode(second, images, cond={"label": labels}, **tolerance).z
alike = correlation(z, other)
print(f"two networks, same images        {alike:.3f}")
print(f"two networks, shuffled images    {correlation(z, other.roll(1, 0)):.3f}")

assert alike > 0.8

# %% [markdown]
# For points in the plane the networks can be compared with an exact score. The first two
# lines show the error of each network. The third, between the networks, should be of the same size.

# %%
plane = sm.GaussianMixture(
    [[-1.2, 0.0], [0.6, 1.0], [0.6, -1.0]], [0.3, 0.4, 0.5]
)
points = plane.sample(4000, generator=torch.Generator().manual_seed(0))


def point_network():
    return sm.nn.ResidualNetwork((2,), width=48, depth=2)


fresh = plane.sample(300, generator=torch.Generator().manual_seed(1))
codes = [
    sm.encode(model, fresh, rtol=1e-4, atol=1e-4).z
    for model in (
        plane.score_model(sde),
        *(trained(point_network, sde, points, 300, seed) for seed in (0, 1)),
    )
]
for name, i, j in (
    ("exact, first", 0, 1),
    ("exact, second", 0, 2),
    ("first, second", 1, 2),
):
    print(f"{name:14} correlation {correlation(codes[i], codes[j]):.4f}")
    assert correlation(codes[i], codes[j]) > 0.97

# %% [markdown]
# ## From one image to another
#
# The straight line $(1 - s) z_0 + s z_1$ from $z_0$ to $z_1$ seems natural. But a normal vector
# of $D$ numbers has $\|z\|^2 \approx D \pm \sqrt{2D}$: nearly all of the noise lies in a
# thin shell. For two independent latents the middle of the line has squared norm near $D / 2$,
# where the model has seen no data. *Spherical* interpolation stays in the shell. With $\theta$ the angle
# between the two,
#
# $$
# z_s = \frac{\sin((1-s)\,\theta)\, z_0 + \sin(s\,\theta)\, z_1}{\sin\theta} .
# $$
#
# Both paths connect the same two images. The rows look similar at so few pixels; the output below them
# has norms and log-densities in the middle.

# %% alt="Two similar rows of images from one two to another"


def slerp(a, b, s):
    """Spherical interpolation of two latents of shape (1, ...) at times s."""
    cosine = torch.nn.functional.cosine_similarity(
        a.flatten(), b.flatten(), dim=0
    )
    angle, s = cosine.acos(), s.reshape(-1, 1, 1, 1)
    return (((1 - s) * angle).sin() * a + (s * angle).sin() * b) / angle.sin()


def log_density(x, label):
    """Log-densities, to within a nat or two."""
    source = torch.Generator().manual_seed(3)
    few = {
        "divergence": sm.Hutchinson(8),
        "intervals": 16,
        "rtol": 0.01,
        "atol": 0.01,
    }
    return sm.log_prob(
        first, x, cond={"label": label}, generator=source, **few
    ).value


# Two images of the same digit, so that one label is right along the path.
pair = (labels == 2).nonzero().flatten()[:2]
a, b = z[pair[:1]], z[pair[1:]]
s = torch.linspace(0, 1, 12)
between = {
    "line": (1 - s.reshape(-1, 1, 1, 1)) * a + s.reshape(-1, 1, 1, 1) * b,
    "sphere": slerp(a, b, s),
}
decoded = {
    name: sm.decode(first, path, cond={"label": 2}, **tolerance).x
    for name, path in between.items()
}
show(list(decoded.values()), list(between), "From one two to another")

squares = z.flatten(1).square().sum(1)
print(f"squared norm over D of the latents: {float(squares.mean()) / 64:.2f}")
middles = {}
for name, path in between.items():
    square = float(path[5:7].flatten(1).square().sum(1).mean()) / 64
    middles[name] = float(
        log_density(decoded[name][5:7], torch.tensor([2, 2])).mean()
    )
    print(
        f"middle of the {name:7} {square:.2f}, log-density {middles[name]:.1f} nats"
    )

assert middles["line"] > middles["sphere"]

# %% [markdown]
# The line passes through latents whose norm is too small, and they decode to images of higher density
# than the data: smoother, with less noise. The sphere stays where the model was trained. The next
# section uses the same effect deliberately.
#
# ## Temperature
#
# Latents can be scaled: $z = \tau\,\xi$ with $\xi$ normal. For Gaussian data the flow is linear, and
# scaling the latents scales the deviations of the decoded data from the mean. In general $\tau < 1$ draws
# from the inner part of the noise, and gives simpler samples of higher density; $\tau > 1$ gives more
# irregular ones. It is not sampling from $p^{1/\tau^2}$, which would also change the weights of the
# modes. The cell scales the same noise to four temperatures, and computes the log-density of the decoded
# images.

# %% alt="Rows of digits at four temperatures: simple and similar at 0.5, irregular at 1.3"
noise = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
drawn = torch.arange(40) % 10
temperatures = [0.5, 0.8, 1.0, 1.3]

rows, means = [], []
for tau in temperatures:
    decoded = sm.decode(first, tau * noise, cond={"label": drawn}, **tolerance).x
    means.append(float(log_density(decoded, drawn).mean()))
    rows.append(decoded[:12])
    print(
        f"temperature {tau:.1f}: spread {float(decoded.std(0).mean()):.2f}, "
        f"mean log-density {means[-1]:7.1f} nats"
    )
show(rows, [rf"$\tau = {tau}$" for tau in temperatures], "Temperature")

densest = float(log_density(images, labels).max())
print(f"the densest of {len(images)} test images has {densest:.1f} nats")

assert means == sorted(means, reverse=True)
assert densest < means[0]

# %% [markdown]
# High density does not mean typical: by the last line of the output, every test image has a lower
# density than the mean of the row at the lowest temperature. A temperature below 1 trades variety for
# smoothness, and the samples are no longer those of the model.
#
# ## Editing
#
# With a network that takes labels, an image can be encoded with its own label and decoded with
# another. The label determines the digit; the latent contains the rest, such as the style.
# Each row below is one latent, decoded as each of the ten digits.

# %% alt="Four digits, each redrawn as all ten digits in the same style: bold stays bold"
rows = [
    torch.cat(
        [
            images[i : i + 1],
            sm.decode(
                first,
                z[i : i + 1].expand(10, -1, -1, -1),
                cond={"label": torch.arange(10)},
                **tolerance,
            ).x,
        ]
    )
    for i in (1, 4, 6, 7)
]
show(rows, [f"a {int(labels[i])}, as 0 to 9" for i in (1, 4, 6, 7)], "New labels")

# %% [markdown]
# Two properties of such edits can be measured. Do they show the new label? A classifier
# trained on the training images reads them. And is anything preserved? Compare the amount of ink of an
# edit with that of its original, and do the same with edits of other images to the same labels.

# %%
from sklearn.neighbors import KNeighborsClassifier

reader = KNeighborsClassifier(3).fit(train.flatten(1), digits.train_labels)
targets = (labels + 1 + torch.arange(len(labels)) % 9) % 10  # any but its own
edits = sm.decode(first, z, cond={"label": targets}, **tolerance).x
seen = torch.as_tensor(reader.predict(edits.flatten(1)))
right = float((seen == targets).double().mean())
kept = correlation(edits.mean((1, 2, 3)), images.mean((1, 2, 3)))
other = sm.decode(first, z.roll(1, 0), cond={"label": targets}, **tolerance).x
chance = correlation(other.mean((1, 2, 3)), images.mean((1, 2, 3)))
print(f"edits read as their new label    {right:.0%}")
print(f"correlation of ink with original {kept:.2f}")
print(f"the same, with another's latent  {chance:.2f}")

assert right > 0.6
assert kept > chance + 0.2

# %% [markdown]
# A latent can also be perturbed. $z \cos\phi + \xi \sin\phi$, with fresh noise $\xi$, is normal
# for every angle $\phi$, so that it decodes to samples of the model: close to the original for
# a small angle, unrelated at 90 degrees.

# %% alt="Variations of one image at three angles: slight changes, larger ones, images that have nothing in common with it"
fresh = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(4))
degrees = [15, 40, 90]
angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
moved = [z[3:4] * phi.cos() + fresh * phi.sin() for phi in angles]
near = [
    sm.decode(first, m, cond={"label": int(labels[3])}, **tolerance).x
    for m in moved
]
show(near, [f"{d} degrees" for d in degrees], "Variations of one image")

distances = [float((x - images[3]).square().mean().sqrt()) for x in near]
assert distances == sorted(distances)

# %% [markdown]
# ## Exercises
#
# 1. Encode `images` with the wrong labels, `(labels + 1) % 10`. Is the round trip with these labels
#    still exact? What do the latents look like? *Hint:* compare their norms with those of `z`.
# 2. Train with 100 steps, and with 1,500. How does the correlation between the two networks change? On
#    the digits, does it always rise? *Hint:* 1,437 images are few, and a network that memorises
#    them has a different score.
# 3. Replace the second network's SDE by `sm.CosineSDE()`. Is the code still the same? Which of the
#    two things that determine it has changed? *Hint:* both keep the variance, and pass through the same
#    densities at a different speed.
# 4. Scale the line's latents to the norm of its ends before decoding. How much of the advantage of
#    spherical interpolation is left?
# 5. Is anything of the label left in the latents? Let `KNeighborsClassifier` learn it from `z[:100]` and
#    read it from the rest. Then encode all images with `label=0`, and try again. What has changed, and
#    why? *Hint:* the latent must contain everything that the label does not.
#
# ## Further reading
#
# - Song et al. 2021, *Score-based generative modeling through stochastic differential equations*,
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456): section 4.3 and appendix D on encoding, the
#   uniqueness of the code, interpolation and temperature.
# - Song, Meng and Ermon 2021, *Denoising diffusion implicit models*,
#   [arXiv:2010.02502](https://arxiv.org/abs/2010.02502): the same in discrete steps, with spherical
#   interpolation.
# - White 2016, *Sampling generative networks*, [arXiv:1609.04468](https://arxiv.org/abs/1609.04468): the
#   reason for spherical interpolation, before diffusion.
# - Su et al. 2023, *Dual diffusion implicit bridges for image-to-image translation*,
#   [arXiv:2203.08382](https://arxiv.org/abs/2203.08382): encode with one model, decode with another.
# - Khrulkov et al. 2023, *Understanding DDPM latent codes through optimal transport*,
#   [arXiv:2202.07477](https://arxiv.org/abs/2202.07477): how close the code is to the optimal transport map.
#
# Next: [Questions from the lecture](../questions.md)
