"""What log-densities are compared on: models, points, and references.

Mixtures with exact scores in 2, 64 and 1,024 dimensions; the demonstration's network, trained the
quick way, and the digits model that it trains in full, down to less noise; and a small U-Net on
patches of photographs. The references of mixtures use no code of the library's likelihoods.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common.sampler_problems import CACHE, digits_model, mixture
from safetensors.torch import load_file, save_file
from scipy.integrate import solve_ivp
from torch import Tensor

import sde_models as sm
from sde_models.data import dequantize, digits, patches
from sde_models.demo.run import DemoSettings
from sde_models.sdes.priors import IsotropicGaussian

T_MIN = 1e-5
"""Of the digits model: finer than it was trained with."""
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
"""Of dopri5 with the exact trace."""
PASSES = 4
"""Independent estimates that the reference of the U-Net averages."""


@dataclass(frozen=True)
class Reference:
    """Log-densities of points under the flow of a model.

    Attributes:
        value: Log-densities, shape ``(B,)``, float64.
        z: Latents, shape of the data.
        how: What they were computed by.
        error: Root-mean-square error where it matters, else 0.
    """

    value: Tensor
    z: Tensor
    how: str
    error: float = 0.0

    def under(self, model: sm.Model, prior: IsotropicGaussian) -> Tensor:
        """The values with another law at ``t_max``."""
        own = model.sde.prior(tuple(self.z.shape[1:]))
        return self.value - own.log_prob(self.z) + prior.log_prob(self.z)


@dataclass(frozen=True)
class Case:
    """A model, points, and what is tried on them.

    Attributes:
        name: What it is.
        model: The model.
        x: Points, shape ``(B, *event)``.
        reference: Their log-densities.
        tols: Errors in nats to ask this library for.
        repeats: Runs with one probe, each with another; to a tol= half as many.
        exact: Tolerances of dopri5 with the exact trace; none where that is not affordable.
        small: Whether this library and others take the exact trace as well.
    """

    name: str
    model: sm.Model
    x: Tensor
    reference: Reference
    tols: tuple[float, ...]
    repeats: int
    exact: tuple[float, ...] = ()
    small: bool = True


def solved_mixture(model: Any, x: Tensor, rtol: float = 1e-11) -> Reference:
    """Log-densities of a mixture of diagonal Gaussians, whose divergence has a closed form.

    The state is x / alpha, on the clock log sigma / alpha.
    """
    density, sde, size = model.mixture, model.sde, x.shape[1]
    ends = sde.times([sde.t_min, sde.t_max]).double()
    scales = sde.alpha(ends)
    first, last = (sde.sigma(ends) / scales).log().tolist()

    def rates(clock: float, state: Any) -> Any:
        level = math.exp(clock)
        y = torch.from_numpy(state[: x.numel()]).reshape(x.shape)
        deviation = density.means[:, None] - y
        spread = density.variances[:, None] + level**2
        distance = (deviation.square() / spread + spread.log()).sum(-1)
        share = (density.log_weights[:, None] - 0.5 * distance).softmax(0)
        slopes = deviation / spread
        score = (share[..., None] * slopes).sum(0)
        curved = (share * (slopes.square() - 1 / spread).sum(-1)).sum(0) - score.square().sum(1)
        return -(level**2) * torch.cat([score.flatten(), curved]).numpy()

    start = torch.cat([(x / scales[0]).flatten(), x.new_zeros(len(x))]).numpy()
    found = solve_ivp(rates, (first, last), start, method="DOP853", rtol=rtol, atol=rtol)
    end = torch.from_numpy(found.y[:, -1])
    z = scales[1] * end[: x.numel()].reshape(x.shape)
    change = size * float((scales[1] / scales[0]).log()) + end[x.numel() :]
    value = sde.prior((size,)).log_prob(z) + change
    return Reference(value, z, f"SciPy's DOP853 at {rtol:g} with the divergence in closed form")


def solved_exactly(model: sm.Model, x: Tensor) -> Reference:
    """Log-densities by this library with the exact trace, far below the errors to be measured."""
    found = sm.log_prob(model, x, rtol=5e-9, atol=5e-9, intervals=768)
    how = "this library's quadrature with the exact trace at a tolerance of 1e-8, 768 intervals"
    return Reference(found.value.detach(), found.z.detach(), how)


def averaged(model: sm.Model, x: Tensor, probes: int) -> Reference:
    """Log-densities by this library with many probes, computed once and then read from disk."""
    definition = hashlib.sha256(repr((probes, PASSES, model.sde)).encode())
    for tensor in (x, *model.state_dict().values()):
        definition.update(tensor.contiguous().numpy().tobytes())
    path = CACHE / f"log-prob-{definition.hexdigest()[:24]}.safetensors"
    if not path.exists():
        runs = [
            sm.log_prob(
                model, x, rtol=1e-4, atol=1e-4, intervals=64, divergence=sm.Hutchinson(probes),
                estimate_solver_error=False, generator=torch.Generator().manual_seed(1000 + seed),
            )
            for seed in range(PASSES)
        ]  # fmt: skip
        values = torch.stack([run.value.detach().double() for run in runs])
        save_file({"values": values, "z": runs[0].z.detach().clone()}, path)
    kept = load_file(path)
    error = float((kept["values"].var(0) / PASSES).mean().sqrt())
    how = (
        f"the mean of {PASSES} runs of this library with 64 intervals and {probes} probes at each, "
        f"whose own error is {error:.2g} nats; the exact trace is not affordable"
    )
    return Reference(kept["values"].mean(0), kept["z"], how, error)


def mixture_case(
    dim: int, points: int, tols: tuple[float, ...], exact: tuple[float, ...], small: bool = True
) -> Case:
    """A mixture of 8 to 12 round Gaussians."""
    density = mixture(dim, 0)
    model = density.score_model(sm.VPSDE())
    draw = torch.Generator().manual_seed(3)
    x = density.diffuse(model.sde, model.sde.t_min).sample(points, generator=draw)
    reference = solved_mixture(model, x)
    return Case(f"mixture, {dim:,}-D", model, x, reference, tols, 8, exact, small)


def demo_case(points: int) -> Case:
    """The demonstration's network, trained the quick way."""
    model = digits_model("demo-quick", DemoSettings.quick()).eval()
    return _images("demo, quick", model, points)


def digits_case(points: int) -> Case:
    """The model that the demonstration trains in full."""
    trained: Any = digits_model()
    sde = sm.VPSDE(t_min=T_MIN, data_std=trained.sde.data_std)
    model = sm.ScoreModel(
        trained.network, sde, preconditioning="edm", event_shape=trained.event_shape
    ).eval()
    return _images("digits", model, points)


def _images(name: str, model: sm.Model, points: int) -> Case:
    data = digits()
    x = dequantize(
        data.test[:points], data.levels,
        generator=torch.Generator().manual_seed(0), dtype=torch.float64,
    )  # fmt: skip
    tols = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
    return Case(name, model, x, solved_exactly(model, x), tols, 8, TOLERANCES)


def unet_case(points: int, train_steps: int = 400, probes: int = 32) -> Case:
    """A small U-Net in single precision, trained for a minute on patches of photographs."""
    path = CACHE / f"unet-{train_steps}.safetensors"
    draw = torch.Generator().manual_seed(0)
    data = patches(4096, 64, generator=draw)
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = sm.nn.UNet(
                (3, 32, 32), channels=8, multipliers=(1, 2, 2), blocks=1, attention_resolutions=()
            )
        untrained = sm.ScoreModel(
            network, sm.VPSDE(t_min=1e-4, data_std=0.5), preconditioning="edm",
            event_shape=(3, 32, 32),
        )  # fmt: skip
        images = dequantize(data.train, data.levels, generator=draw)
        fit = sm.fit(
            untrained, images, steps=train_steps, batch_size=16, learning_rate=2e-3,
            ema_decay=0.98, generator=draw,
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        sm.save_model(path, fit.model)
    model = sm.load_model(path).eval()
    x = dequantize(data.test[:points], data.levels, generator=torch.Generator().manual_seed(0))
    reference = averaged(model, x, probes)
    return Case("U-Net, 3x32x32", model, x, reference, (300.0, 100.0, 30.0), 2, small=False)


CASES: dict[str, Callable[[], Case]] = {
    "mixture-2d": partial(mixture_case, 2, 32, (3.0, 1.0, 0.3, 0.1, 0.03, 0.01), TOLERANCES),
    "mixture-64d": partial(mixture_case, 64, 32, (10.0, 3.0, 2.0, 1.0, 0.3, 0.1, 0.03), TOLERANCES),
    "mixture-1024d": partial(
        mixture_case, 1024, 4, (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03), (1e-5,), small=False
    ),
    "demo": partial(demo_case, 32),
    "digits": partial(digits_case, 32),
    "unet": partial(unet_case, 2),
}
"""Every case by name, made when called."""


def product_mixture() -> tuple[sm.Model, Tensor]:
    """A mixture whose coordinates are independent: one probe of signs gives its exact trace."""
    means = torch.tensor([[-1.0, -0.6], [-1.0, 0.9], [1.0, -0.6], [1.0, 0.9]]).double()
    weights = torch.tensor([0.3 * 0.6, 0.3 * 0.4, 0.7 * 0.6, 0.7 * 0.4]).double()
    density = sm.GaussianMixture(means, torch.full((4, 2), 0.4).double(), weights)
    x = density.sample(8, generator=torch.Generator().manual_seed(0))
    return density.score_model(sm.VPSDE()), x


def disagreements(peers: list[Any]) -> Iterator[tuple[str, float]]:
    """Name of each library and its largest difference to the reference, at a tight tolerance."""
    model, x = product_mixture()
    reference = solved_mixture(model, x)
    for peer in peers:
        truth = reference.under(model, peer.prior(model, tuple(x.shape[1:])))
        yield peer.library, float((peer.log_prob(model, x, seed=0) - truth).abs().max())
