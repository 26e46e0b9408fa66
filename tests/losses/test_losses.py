"""Denoising score matching: its minimiser, its weightings and its times, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from sde_models import losses
from sde_models.losses import (
    denoising_score_matching,
    draw_times,
    level_times,
    log_normal_times,
    log_snr_times,
    min_snr,
    noise_weighting,
    uniform_times,
)
from sde_models.models.energy_model import EnergyModel
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow
from sde_models.nn import ResidualNetwork
from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.grids import times_of_sigmas

SDES: list[GaussianSDE] = [
    VPSDE(data_std=0.7),
    SubVPSDE(data_std=0.7),
    VESDE(data_std=0.7),
    CosineSDE(data_std=0.7),
    FlowMatchingSDE(data_std=0.7),
]
SAMPLERS = [uniform_times, log_snr_times, log_normal_times]
MODELS: list[dict[str, str]] = [
    {"prediction": "eps"},
    {"prediction": "x0"},
    {"prediction": "v"},
    {"prediction": "score"},
    {"preconditioning": "edm"},
]

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


class ExactPlusAffine(nn.Module):
    """The output that the exact score implies, plus an affine map that is zero."""

    def __init__(self, mixture: GaussianMixture, sde: GaussianSDE) -> None:
        super().__init__()
        self.exact = mixture.score_model(sde)
        self.affine = nn.Linear(mixture.dim, mixture.dim).double()
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)
        self.model: list[ScoreModel] = []  # in a list, not to become a submodule

    def at(self, t: Tensor, x: Tensor) -> ExactPlusAffine:
        """Remember where the model is evaluated; preconditioning hides it from the network."""
        self.t, self.x = t, x
        return self

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x0, eps = self.exact.denoise(self.t, self.x)
        return self.model[0].target(self.t, x0, eps) + self.affine(x)


def exact_model(
    mixture: GaussianMixture, sde: GaussianSDE, names: dict[str, str]
) -> tuple[ScoreModel, ExactPlusAffine]:
    network = ExactPlusAffine(mixture, sde)
    model = ScoreModel(network, sde, **names)
    network.model.append(model)
    return model, network


def balanced_pairs(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Data and noise whose sample moments are exactly those of the distributions.

    Columns of a Hadamard matrix have mean 0 and variance 1 and are uncorrelated.
    """
    dim = mixture.dim
    signs = torch.from_numpy(hadamard(8)).double()
    root = torch.linalg.cholesky(mixture.covariance())
    return mixture.mean() + signs[:, 1 : 1 + dim] @ root.T, signs[:, 1 + dim : 1 + 2 * dim]


@pytest.fixture
def gaussian() -> GaussianMixture:
    covariance = torch.tensor([[0.8, 0.3], [0.3, 0.2]], dtype=torch.float64)
    mean = torch.tensor([[0.4, -0.9]], dtype=torch.float64)
    return GaussianMixture(mean, covariances=covariance[None])


@every_sde
@pytest.mark.parametrize("names", MODELS, ids=lambda names: "-".join(names.values()))
@pytest.mark.parametrize("weighting", ["output", "edm", "simple", "min-snr", "likelihood"])
@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
def test_minimiser_is_the_score_of_a_gaussian(
    gaussian: GaussianMixture,
    sde: GaussianSDE,
    names: dict[str, str],
    weighting: str,
    share: float,
) -> None:
    """On data with exact moments no affine change of the exact score lowers the loss.

    The loss is quadratic in the affine map: zero gradient and positive curvature make its only
    minimum.
    """
    x0, noise = balanced_pairs(gaussian)
    t = torch.tensor(sde.t_min + share * (sde.t_max - sde.t_min), dtype=torch.float64)
    model, network = exact_model(gaussian, sde, names)
    network.at(t, sde.perturb(t, x0, noise))

    def loss() -> Tensor:
        return denoising_score_matching(model, x0, t, noise, weighting=weighting)

    value = loss()
    assert float(value.detach()) > 0
    for gradient in torch.autograd.grad(value, list(network.affine.parameters())):
        # Compared to the curvature: 1e-8 of a step away from the minimum.
        assert float(gradient.abs().max()) < 1e-8 * max(1.0, float(value.detach()))
    for parameter in network.affine.parameters():
        for sign in (-1, 1):
            with torch.no_grad():
                parameter += 0.1 * sign
                assert float(loss()) > float(value.detach())
                parameter -= 0.1 * sign


def test_gradient_vanishes_on_average_at_the_score_of_a_mixture() -> None:
    """400 batches with times and noise drawn; false alarm about 6e-6 for each of 18 numbers."""
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), 0.4)
    sde = VPSDE()
    for weighting in ("output", "simple", "likelihood"):
        network = nn.Linear(2, 2).double()
        nn.init.zeros_(network.weight)
        nn.init.zeros_(network.bias)
        exact = mixture.score_model(sde)
        model = ScoreModel(_Sum(exact, network), sde)
        gradients = []
        for _ in range(400):
            x0 = mixture.sample(64, generator=generator)
            loss = denoising_score_matching(
                model, x0, weighting=weighting, generator=generator, times="log-snr"
            )
            parts = torch.autograd.grad(loss, list(network.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]))
        sample = torch.stack(gradients)
        z = sample.mean(0) / (sample.std(0) / math.sqrt(len(sample)))
        assert float(z.abs().max()) < 4.5


class _Sum(nn.Module):
    def __init__(self, exact: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.exact, self.extra = exact, extra

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.exact.eps(t, x) + self.extra(x)


@every_sde
def test_output_weighting_with_preconditioning_is_edms(sde: GaussianSDE) -> None:
    r"""EDM, table 1: :math:`\lambda(s) |D(x_0 + s n; s) - x_0|^2` in units without alpha."""
    torch.manual_seed(0)
    model = ScoreModel(_trained_looking((2,)), sde, preconditioning="edm")
    x0, noise = torch.randn(2, 16, 2, dtype=torch.float64)
    t = torch.linspace(sde.t_min, sde.t_max, 16, dtype=torch.float64)
    level = (sde.sigma(t) / sde.alpha(t))[:, None]
    error = model.x0(t, sde.perturb(t, x0, noise)) - x0
    weight = (level.square() + sde.data_std**2) / (level * sde.data_std).square()
    expected = (weight * error.square()).mean()
    assert torch.allclose(denoising_score_matching(model, x0, t, noise), expected, rtol=1e-9)


@every_sde
@pytest.mark.parametrize("names", MODELS, ids=lambda names: "-".join(names.values()))
def test_edm_weighting_is_the_same_for_every_model(sde: GaussianSDE, names: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = ScoreModel(_trained_looking((2,)), sde, **names)
    x0, noise = torch.randn(2, 16, 2, dtype=torch.float64)
    t = torch.linspace(sde.t_min, sde.t_max, 16, dtype=torch.float64)
    level = (sde.sigma(t) / sde.alpha(t))[:, None]
    error = model.x0(t, sde.perturb(t, x0, noise)) - x0
    weight = (level.square() + sde.data_std**2) / (level * sde.data_std).square()
    expected = (weight * error.square()).mean()
    loss = denoising_score_matching(model, x0, t, noise, weighting="edm")
    assert torch.allclose(loss, expected, rtol=1e-9)
    if "preconditioning" in names:
        assert torch.allclose(denoising_score_matching(model, x0, t, noise), loss, rtol=1e-9)


@every_sde
def test_min_snr_weighting_caps_that_of_x0(sde: GaussianSDE) -> None:
    torch.manual_seed(0)
    model = ScoreModel(_trained_looking((2,)), sde)
    x0, noise = torch.randn(2, 16, 2, dtype=torch.float64)
    t = torch.linspace(sde.t_min, sde.t_max, 16, dtype=torch.float64)
    error = model.x0(t, sde.perturb(t, x0, noise)) - x0
    snr = sde.log_snr(t).exp()[:, None]
    for weighting, gamma in (("min-snr", 5.0), (min_snr(0.5), 0.5)):
        expected = (snr.clamp(max=gamma) * error.square()).mean()
        loss = denoising_score_matching(model, x0, t, noise, weighting=weighting)
        assert torch.allclose(loss, expected, rtol=1e-9)
    of_x0 = noise_weighting(lambda batch: torch.exp(-batch.sde.log_snr(batch.t)), "uniform")
    loss = denoising_score_matching(model, x0, t, noise, weighting=of_x0)
    assert torch.allclose(loss, error.square().mean(), rtol=1e-9)
    with pytest.raises(ValueError, match="gamma"):
        min_snr(0)


@every_sde
def test_a_single_level_is_the_time_that_has_it(sde: GaussianSDE) -> None:
    model = ScoreModel(_trained_looking((2,)), sde)
    x0, noise = torch.randn(2, 16, 2, dtype=torch.float64)
    loss = denoising_score_matching(model, x0, noise=noise, sigma=0.3)
    (t,) = times_of_sigmas(sde, [0.3])
    assert float(sde.sigma(t) / sde.alpha(t)) == pytest.approx(0.3)
    assert torch.equal(loss, denoising_score_matching(model, x0, t, noise))


@every_sde
def test_importance_sampling_has_the_density_of_the_likelihood_weighting(
    sde: GaussianSDE,
) -> None:
    """q = g^2 / sigma^2 over its integral, which is that of the log-SNR; so the weight is flat."""
    t, inverse_density = losses.TIME_SAMPLERS["importance"](
        sde, torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    )
    weight = (sde.diffusion(t) / sde.sigma(t)).square()
    fine = torch.linspace(sde.t_min, sde.t_max, 400_001, dtype=torch.float64)
    fine = sde.t_min + (fine - sde.t_min) ** 3 / (sde.t_max - sde.t_min) ** 2  # dense at t_min
    fine[0], fine[-1] = sde.t_min, sde.t_max
    integral = torch.trapezoid((sde.diffusion(fine) / sde.sigma(fine)).square(), fine)
    assert torch.allclose(1 / inverse_density, weight / integral, rtol=1e-4)


def test_a_thousand_levels_are_equally_likely() -> None:
    sde = VESDE(0.01, 50.0)
    sigmas = torch.logspace(math.log10(0.01), math.log10(50.0), 1000, dtype=torch.float64)
    t, inverse_density = draw_times(sde, torch.zeros(2000, 1).double(), level_times(sigmas))
    found = sde.sigma(t).sort().values
    assert torch.allclose(found, sigmas.repeat_interleave(2), rtol=1e-6)
    assert torch.allclose(inverse_density, torch.ones(2000).double(), rtol=2e-3)
    with pytest.raises(ValueError, match="use sigma="):
        level_times([1.0])
    with pytest.raises(ValueError, match="is none of them"):
        draw_times(sde, torch.zeros(4, 1), level_times([1.0, 100.0]))


def test_independent_times_have_the_same_law_and_more_variance() -> None:
    """1,000 means of 16 times: near 1/2 (false alarm 6e-5), and varying as 1/12/16 (5 sigma)."""
    sde = FlowMatchingSDE(t_min=1e-9, t_max=1 - 1e-9)
    means = {
        stratified: torch.stack([
            draw_times(sde, torch.zeros(16, 1).double(), stratified=stratified)[0].mean()
            for _ in range(1000)
        ])
        for stratified in (True, False)
    }  # fmt: skip
    expected = 1 / 12 / 16
    assert abs(float(means[False].mean()) - 0.5) < 4 * math.sqrt(expected / 1000)
    assert float(means[False].var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / 1000))
    assert float(means[True].var()) == pytest.approx(expected / 16**2, rel=5 * math.sqrt(2 / 1000))


@every_sde
@pytest.mark.parametrize("names", MODELS, ids=lambda names: "-".join(names.values()))
def test_simple_and_likelihood_weightings_are_errors_of_the_noise(
    sde: GaussianSDE, names: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = ScoreModel(_trained_looking((2,)), sde, **names)
    x0, noise = torch.randn(2, 16, 2, dtype=torch.float64)
    t = torch.linspace(sde.t_min, sde.t_max, 16, dtype=torch.float64)
    score = model.score(t, sde.perturb(t, x0, noise))
    sigma, g = sde.sigma(t)[:, None], sde.diffusion(t)[:, None]
    gap = (score + noise / sigma).square()  # to the score of the kernel
    simple = denoising_score_matching(model, x0, t, noise, weighting="simple")
    assert torch.allclose(simple, (sigma.square() * gap).mean())
    likelihood = denoising_score_matching(model, x0, t, noise, weighting="likelihood")
    span = sde.t_max - sde.t_min
    assert torch.allclose(likelihood, 0.5 * span * (g.square() * gap).mean())


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
def test_output_weighting_is_the_error_of_the_prediction(prediction: str) -> None:
    torch.manual_seed(0)
    sde = VPSDE()
    model = ScoreModel(_trained_looking((2,)), sde, prediction)
    x0, noise = torch.randn(2, 8, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    of_x0, of_eps = sde.alpha_rate(t)[:, None], sde.sigma_rate(t)[:, None]
    truth = {
        "eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "score": -noise / sigma,
        "velocity": of_x0 * x0 + of_eps * noise,
    }  # fmt: skip
    predict = ProbabilityFlow(model) if prediction == "velocity" else getattr(model, prediction)
    error = predict(t, sde.perturb(t, x0, noise)) - truth[prediction]
    assert torch.allclose(denoising_score_matching(model, x0, t, noise), error.square().mean())


def _trained_looking(event_shape: tuple[int, ...]) -> ResidualNetwork:
    network = ResidualNetwork(event_shape, width=8, depth=1).double()
    nn.init.normal_(network.write.weight)
    return network


@every_sde
def test_likelihood_loss_of_a_gaussian_in_closed_form(sde: GaussianSDE) -> None:
    r"""The exact model of N(0, s^2) errs by :math:`s^2 e^l / (1 + s^2 e^l)` at log-SNR l, so

    .. math:: \tfrac12 \int \frac{g^2}{\sigma^2} E|\hat\epsilon - \epsilon|^2 dt
              = \tfrac12 \log \frac{1 + s^2 e^{l_{clean}}}{1 + s^2 e^{l_{noisy}}} .

    Data have exact moments, and times are the nodes of a midpoint rule in place of random ones.
    """
    count, s = 1024, 0.6
    mixture = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), s)
    model = mixture.score_model(sde)
    x0, noise = balanced_pairs(mixture)
    x0, noise = x0.repeat(count, 1), noise.repeat(count, 1)

    def midpoints(sde: GaussianSDE, u: Tensor) -> tuple[Tensor, Tensor]:
        nodes = (torch.arange(count).to(u) + 0.5) / count
        t, inverse_density = log_snr_times(sde, nodes)
        return t.repeat_interleave(8), inverse_density.repeat_interleave(8)

    loss = denoising_score_matching(model, x0, noise=noise, weighting="likelihood", times=midpoints)
    assert float(loss) == pytest.approx(_likelihood_loss_of_gaussian(sde, s), rel=1e-5)


def _likelihood_loss_of_gaussian(sde: GaussianSDE, s: float) -> float:
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    clean, noisy = torch.log1p(s**2 * ends.exp())
    return 0.5 * float(clean - noisy)


@pytest.mark.parametrize("times", [None, "uniform", "log-snr", "log-normal"])
def test_likelihood_loss_does_not_depend_on_the_times(times: str | None) -> None:
    """The same with all drawn, a z-test over 100 batches; false alarm about 6e-6 each."""
    generator = torch.Generator().manual_seed(1)
    sde, s = VPSDE(t_min=1e-2), 0.6
    model = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), s).score_model(sde)
    found = []
    for _ in range(100):
        x0 = s * torch.randn(256, 3, dtype=torch.float64, generator=generator)
        loss = denoising_score_matching(
            model, x0, weighting="likelihood", times=times, generator=generator
        )
        found.append(loss)
    sample = torch.stack(found)
    error = float(sample.mean()) - _likelihood_loss_of_gaussian(sde, s)
    assert abs(error) < 4.5 * float(sample.std()) / 10


@every_sde
@pytest.mark.parametrize("times", SAMPLERS)
def test_inverse_density_is_the_derivative_of_the_times(
    sde: GaussianSDE, times: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    u = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    h = 1e-6
    differences = (times(sde, u + h)[0] - times(sde, u - h)[0]) / (2 * h)
    assert torch.allclose(times(sde, u)[1], differences, rtol=1e-4, atol=1e-9)


@every_sde
@pytest.mark.parametrize("times", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_cover_the_span(
    sde: GaussianSDE, times: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype
) -> None:
    u = torch.tensor([0.0, 1 - torch.finfo(dtype).eps], dtype=dtype)
    t, inverse_density = times(sde, u)
    assert bool(torch.isfinite(inverse_density).all())
    assert float(t[0]) == pytest.approx(sde.t_min, abs=2e-4)
    assert float(t[1]) == pytest.approx(sde.t_max, rel=2e-2)


def test_log_normal_times_have_the_published_quantiles() -> None:
    sde = VESDE(1e-4, 1e4)  # so wide that nothing is cut
    u = torch.tensor([0.15865525, 0.5, 0.84134475], dtype=torch.float64)
    t, _ = log_normal_times(sde, u)
    expected = torch.tensor([-2.4, -1.2, 0.0], dtype=torch.float64)
    assert torch.allclose(sde.sigma(t).log(), expected, atol=1e-6)


def test_log_snr_times_are_even_in_log_snr() -> None:
    sde = CosineSDE()
    t, _ = log_snr_times(sde, torch.linspace(0, 1, 5, dtype=torch.float64))
    gaps = sde.log_snr(t).diff()
    assert torch.allclose(gaps, gaps.mean())


def test_drawn_times_are_stratified_and_in_random_order() -> None:
    """Each stratum once; order compared by the chance 1/64! of a sorted one."""
    generator = torch.Generator().manual_seed(0)
    sde = FlowMatchingSDE(t_min=0.0625, t_max=0.9375)
    t, inverse_density = draw_times(sde, torch.zeros(64, 2), "uniform", generator=generator)
    strata = ((t - 0.0625) / 0.875 * 64).floor().long()
    assert strata.sort().values.tolist() == list(range(64))
    assert strata.tolist() != list(range(64))
    assert torch.equal(inverse_density, torch.full((64,), 0.875))


def test_generator_fixes_times_and_noise() -> None:
    model = GaussianMixture(torch.zeros(1, 2), 1.0).score_model(VPSDE())
    x0 = torch.randn(8, 2)
    first, second = (
        denoising_score_matching(
            model, x0, weighting="simple", generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_conditioning_reaches_the_network() -> None:
    network = ResidualNetwork((2,), width=8, depth=1, classes=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    model, x0 = ScoreModel(network, VPSDE()), torch.zeros(4, 2)
    arguments = {"t": 0.5, "noise": torch.ones(4, 2)}
    found = [
        float(denoising_score_matching(model, x0, cond={"label": label}, **arguments).detach())
        for label in (0, 1)
    ]
    assert found[0] != found[1]


def test_an_energy_model_trains_by_the_noise() -> None:
    """For E = k |x|^2 / 2 under VP with unit data the exact k is 1."""

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return 0.5 * self.k * x.square().sum(1)

    gaussian = GaussianMixture(torch.zeros(1, 2).double(), 1.0)
    x0, noise = balanced_pairs(gaussian)
    model = EnergyModel(Bowl(), VPSDE())
    for weighting in ("simple", "likelihood"):
        loss = denoising_score_matching(model, x0, 0.4, noise, weighting=weighting)
        (gradient,) = torch.autograd.grad(loss, list(model.parameters()))
        assert abs(float(gradient)) < 1e-12
    with pytest.raises(TypeError, match="use weighting='simple', 'edm', 'min-snr' or 'likelihood'"):
        denoising_score_matching(model, x0)


def _model() -> ScoreModel:
    return ScoreModel(ResidualNetwork((2,), width=8, depth=1), VPSDE(), event_shape=(2,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weighting": "likelyhood"}, "'likelihood'"),
        ({"times": "log_snr"}, "'log-snr'"),
        ({"t": 0.5, "times": "uniform"}, "not both"),
        ({"sigma": 0.5, "times": "uniform"}, "not both"),
        ({"sigma": 1e6}, "is none of them"),
        ({"weighting": "min_snr"}, "'min-snr'"),
        ({"t": 1.5}, r"t=1\.5 outside"),
        ({"t": torch.full((3,), 0.5)}, r"\(B,\)"),
        ({"noise": torch.zeros(4, 3)}, "noise has shape"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoising_score_matching(_model(), torch.zeros(4, 2), **arguments)


@pytest.mark.parametrize(
    ("x0", "error", "message"),
    [
        (torch.zeros(4, 3), ValueError, r"event shape \(3,\)"),
        (torch.tensor([[0.0, math.nan]]), ValueError, "NaN.*row 0"),
        (torch.zeros(4, 2, dtype=torch.uint8), TypeError, "dequantize"),
    ],
)
def test_bad_data_are_refused(x0: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        denoising_score_matching(_model(), x0)


def test_an_sde_without_a_kernel_is_refused() -> None:
    class Brownian(SDE):
        def f(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

        def g(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    model = ScoreModel(ResidualNetwork((2,), width=8, depth=1), Brownian(), "score")
    with pytest.raises(TypeError, match="GaussianSDE, Brownian has none"):
        denoising_score_matching(model, torch.zeros(4, 2))
