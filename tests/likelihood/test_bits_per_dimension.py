"""Bits per dimension against closed forms: any levels, any range, every bound and its errors.

What concerns the draws alone is proved with the density of a mixture in place of a solve, which
takes no time; the solves are held against it afterwards. A tolerance of 5 standard errors raises a
false alarm once in 1.7 million.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    CumulativeDistributionTransform,
    Normal,
)

import sde_models as sm
from sde_models._utils.randomness import repeatable
from sde_models.data.truncated_normal import log_mass
from sde_models.likelihood.log_densities import LogProb

SDE = sm.VPSDE()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_model(mean: float, std: float, size: int) -> sm.Model:
    return gaussian(mean, std, size).score_model(SDE)


def gaussian(mean: float, std: float, size: int) -> sm.GaussianMixture:
    means = torch.full((1, size), mean, dtype=torch.float64)
    return sm.GaussianMixture(means, std)


def cell_bits(images: Tensor, levels: int, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Bits/dim of each image: with dequantisation averaged by quadrature, and of the cells.

    The first is what uniform dequantisation gives on average, the second what the discrete
    distribution of cell probabilities gives; the first is never below the second.
    """
    width = 2 / levels
    left = -1 + width * images.double()
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x = left[..., None] + width * u
    std_t = math.hypot(std * float(SDE.alpha(SDE.t_min)), float(SDE.sigma(SDE.t_min)))
    density = Normal(torch.tensor(mean, dtype=torch.float64), std_t)
    dequantised = -(density.log_prob(x).mean(-1) + math.log(width)) / math.log(2)
    cells = density.cdf(left + width) - density.cdf(left)
    return dequantised.mean(1), -(cells.log2()).mean(1)


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_against_quadrature_over_the_cells(levels: int) -> None:
    """A Gaussian of known cells; 400 dequantisations, 5 standard errors, false alarms 6e-7."""
    mean, std, size = 0.2, 0.5, 3
    model = gaussian_model(mean, std, size)
    image = torch.randint(0, levels, (1, size), generator=generator())
    wanted, discrete = cell_bits(image, levels, mean, std)
    got = sm.bits_per_dim(
        model, image.repeat(400, 1), levels=levels, generator=generator(1), rtol=1e-6, atol=1e-6,
        prior=gaussian(mean, std, size).diffuse(SDE, 1.0),
    )  # fmt: skip
    slack = 1e-5  # the solver
    assert (got.value - wanted[0]).abs() < 5 * got.stderr + slack
    assert wanted[0] >= discrete[0] - 1e-9  # cancellation in cells of 3e-5
    assert got.value.shape == got.stderr.shape == ()
    torch.testing.assert_close(got.value, got.per_image.mean())
    torch.testing.assert_close(got.stderr, got.per_image.std() / 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_uniform_density_of_65536_levels_has_16_bits(dtype: torch.dtype) -> None:
    """The probit of a uniform number is normal, and stays so at every time: no draw matters."""
    probit = CumulativeDistributionTransform(Normal(torch.zeros((), dtype=dtype), 1.0)).inv
    model = sm.GaussianMixture(torch.zeros(1, 2, dtype=dtype), 1.0).score_model(SDE)
    images = torch.tensor([[0, 65535], [1, 65534], [32767, 32768], [255, 256]]).to(torch.uint16)
    got = sm.bits_per_dim(
        model, images, 65536, transform=probit, data_range=(0.0, 1.0), generator=generator(),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip
    rounding = 100 * torch.finfo(dtype).eps  # of 16 bits, and of 22 nats
    assert bool(((got.per_image - 16).abs() <= got.errors.error + rounding).all())
    assert float((got.per_image - 16).abs().max()) < 1e-4


def test_same_bits_whatever_the_range_of_the_data() -> None:
    """Stretching data and model together changes nothing."""
    images = torch.randint(0, 8, (5, 2), generator=generator())
    values = []
    for low, high in [(-1.0, 1.0), (0.0, 1.0), (0.5, 3.5)]:
        stretch = (high - low) / 2
        mean, std = low + stretch * 1.1, 0.4 * stretch
        sde = sm.VPSDE(data_std=std)
        means = torch.full((1, 2), mean, dtype=torch.float64)
        mixture = sm.GaussianMixture(means, std)
        model = mixture.score_model(sde)
        got = sm.bits_per_dim(
            model, images, levels=8, data_range=(low, high), generator=generator(1),
            prior=mixture.diffuse(sde, 1.0), rtol=1e-8, atol=1e-8,
        )  # fmt: skip
        values.append(got.per_image)
    # t_min adds a noise of 1e-3 that is not stretched
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(values[0], values[2], rtol=0, atol=1e-4)


def test_the_generator_decides() -> None:
    model = gaussian_model(0.0, 0.5, 2)
    images = torch.zeros(3, 2, dtype=torch.uint8)
    first, again, other = (
        sm.bits_per_dim(model, images, levels=4, generator=generator(seed)).value
        for seed in (1, 1, 2)
    )
    assert first == again != other


LEVELS = 4
CELLS = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))
"""Every image of two coordinates."""

NOISY = sm.VPSDE(t_min=0.05)  # alpha 0.985, sigma 0.17, a third of a cell
MIXTURE = sm.GaussianMixture(
    torch.tensor([[-0.3, 0.2], [0.3, -0.4], [0.1, 0.3]], dtype=torch.float64),
    [[0.05, 0.1], [0.1, 0.05], [0.15, 0.05]], [0.3, 0.5, 0.2],
)  # fmt: skip
AT_CENTRES = sm.GaussianMixture(
    torch.tensor([[-0.25, 0.25], [0.25, -0.75], [0.75, 0.25]], dtype=torch.float64), 1e-6
)


def log_cells(
    mixture: sm.GaussianMixture, images: Tensor, edges: Callable[[Tensor], Tensor]
) -> Tensor:
    """Log-probabilities of cells under a mixture with diagonal covariances, shape (B,)."""
    lower, upper = edges(images.double()), edges(images.double() + 1)
    law = Normal(mixture.means[:, None], mixture.variances.sqrt()[:, None])
    cells = (law.cdf(upper) - law.cdf(lower)).prod(-1)
    return (mixture.log_weights.exp() @ cells).log()


def spread(k: Tensor) -> Tensor:
    return -1 + 2 * k / LEVELS


def bits(log_prob: Tensor) -> Tensor:
    return -log_prob / (2 * math.log(2))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Densities of the diffused mixture in place of solves; holds the error of a pair of probes."""
    noise = [0.0]
    source = generator(99)

    def exact(model: Any, x: Tensor, *_: Any, generator: Any, **__: Any) -> LogProb:
        repeatable(generator, len(x), x.device)  # draws as much as a solve
        value = model.mixture.diffuse(model.sde, model.sde.t_min).log_prob(x)
        value = value + noise[0] * torch.randn(value.shape, generator=source, dtype=value.dtype)
        zero = torch.zeros_like(value)
        return LogProb(value, zero + noise[0], zero + 0.5, zero + 0.25, x, sm.Cost(), 0, 0)

    monkeypatch.setattr("sde_models.likelihood.bits_per_dimension.log_prob", exact)
    return noise


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["uniform", "truncated-normal"])
@pytest.mark.parametrize("mixture", [MIXTURE, AT_CENTRES], ids=["smooth", "centres"])
def test_weights_are_unbiased(name: str, mixture: sm.GaussianMixture) -> None:
    """exp(-D ln2 bits) of one draw has the mean P(k): 5 standard errors for each of 4 cells."""
    images = torch.tensor([[1, 2], [2, 0], [2, 2], [3, 2]])
    count = 20_000
    got = sm.bits_per_dim(
        mixture.score_model(NOISY), images.repeat_interleave(count, 0), LEVELS, name,
        generator=generator(1),
    )  # fmt: skip
    weights = (-2 * math.log(2) * got.per_image).exp().reshape(-1, count)
    wanted = log_cells(mixture.diffuse(NOISY, NOISY.t_min), images, spread).exp()
    error = weights.std(1) / math.sqrt(count)
    assert bool(((weights.mean(1) - wanted).abs() < 5 * error).all())


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["uniform", "truncated-normal"])
def test_many_draws_come_down_to_the_entropy(name: str) -> None:
    """Over all images of a known distribution; 5 standard errors at each number of draws."""
    log_p = log_cells(MIXTURE.diffuse(NOISY, NOISY.t_min), CELLS, spread)
    entropy = float((log_p.exp() * bits(log_p)).sum())
    means, errors = [], []
    for count in (1, 4, 16, 64):
        got = sm.bits_per_dim(
            MIXTURE.score_model(NOISY), CELLS.repeat(2000, 1), LEVELS, name,
            importance_samples=count, generator=generator(count),
        )  # fmt: skip
        each = got.per_image.reshape(2000, -1) @ log_p.exp()
        means.append(float(each.mean()))
        errors.append(float(each.std()) / math.sqrt(2000))
    for i in range(3):
        assert means[i + 1] < means[i] - 5 * math.hypot(errors[i], errors[i + 1])
    assert entropy - 5 * errors[-1] < means[-1] < entropy + 0.02 < means[0] - 0.1


@pytest.mark.usefixtures("at_once")
def test_a_truncated_normal_is_exact_for_data_at_the_centres() -> None:
    """One normal in each cell: every weight is P(k), where the uniform bound loses bits."""
    images = torch.tensor([[1, 2], [2, 0], [3, 2]])
    model = AT_CENTRES.score_model(sm.VPSDE())
    wanted = bits(log_cells(AT_CENTRES.diffuse(SDE, SDE.t_min), images, spread))
    for name, slack in [("truncated-normal", 1e-4), ("uniform", math.inf)]:
        got = sm.bits_per_dim(model, images, LEVELS, name, generator=generator())
        assert (got.per_image - wanted).abs().max() < slack
    assert got.per_image.min() > wanted.max() + 10


@pytest.mark.usefixtures("at_once")
def test_dequantization_error_is_that_over_seeds() -> None:
    """200 seeds know a deviation within 5%: 25% is 5 of these."""
    results = [
        sm.bits_per_dim(
            MIXTURE.score_model(NOISY), CELLS, LEVELS, importance_samples=2, repeats=4,
            generator=generator(seed),
        )
        for seed in range(200)
    ]  # fmt: skip
    actual = torch.stack([result.value for result in results]).std()
    reported = torch.stack([result.dequantization_stderr for result in results])
    assert 0.75 < float(reported.square().mean().sqrt() / actual) < 1.25
    torch.testing.assert_close(float(results[0].solver_error), float(bits(torch.tensor(-0.5))))


@pytest.mark.usefixtures("at_once")
def test_random_errors_of_images_and_repeats_average_out() -> None:
    """A quadrature error of 0.25 nats at 95%, in 4 repeats of 16 images."""
    model = MIXTURE.score_model(NOISY)
    got = sm.bits_per_dim(model, CELLS, LEVELS, repeats=4, generator=generator())
    each = float(bits(torch.tensor(-0.25)))
    torch.testing.assert_close(
        got.errors.quadrature_error, torch.full_like(got.per_image, each / 2)
    )
    assert float(got.probe_stderr) == pytest.approx(each / 2 / math.sqrt(4 * len(CELLS)))


def test_errors_of_probes_and_draws_are_separated(at_once: list[float]) -> None:
    """Noise of the probes over 200 seeds with the same draws, within 25%, 5 deviations."""

    def run(seed: int) -> sm.BitsPerDim:
        return sm.bits_per_dim(
            MIXTURE.score_model(NOISY), CELLS, LEVELS, importance_samples=3, repeats=4,
            generator=generator(seed),
        )  # fmt: skip

    draws_alone = torch.stack([run(seed).dequantization_stderr for seed in range(50)])
    at_once[0] = 0.3
    results = [run(0) for _ in range(200)]
    actual = torch.stack([result.value for result in results]).std()
    reported = torch.stack([result.probe_stderr for result in results]).square().mean().sqrt()
    assert 0.75 < float(reported / actual) < 1.25
    with_probes = torch.stack([run(seed).dequantization_stderr for seed in range(50)])
    assert 0.75 < float(with_probes.square().mean() / draws_alone.square().mean()) < 1.25


def test_solves_give_what_the_density_gives(at_once: list[float]) -> None:
    """The same draws, within the reported error and 1e-4 nats a draw; and their cost."""
    model = MIXTURE.score_model(NOISY)
    arguments: dict[str, Any] = {"importance_samples": 2, "repeats": 2, "levels": LEVELS}
    wanted = sm.bits_per_dim(model, CELLS, generator=generator(), **arguments)
    with pytest.MonkeyPatch.context() as patch, sm.count_evaluations() as counter:
        patch.setattr("sde_models.likelihood.bits_per_dimension.log_prob", sm.log_prob)
        got = sm.bits_per_dim(
            model, CELLS, generator=generator(), rtol=1e-4, atol=1e-4,
            prior=MIXTURE.diffuse(NOISY, NOISY.t_max), **arguments,
        )  # fmt: skip
    error = got.solver_error + 4 * got.probe_stderr
    assert (got.value - wanted.value).abs() < error + 1e-4
    assert 0 < got.solver_error < 0.02
    torch.testing.assert_close(got.dequantization_stderr, wanted.dequantization_stderr, rtol=0.05,
                               atol=0)  # fmt: skip
    assert got.cost == counter.cost(len(got.per_image))
    assert got.nfe > 3.5 * got.log_prob.nfe
    assert got.stderr == got.per_image.std() / 4


def test_what_is_not_known_is_nan() -> None:
    model = gaussian_model(0.0, 0.5, 2)
    arguments: dict[str, Any] = {"levels": LEVELS, "generator": generator(), "intervals": 20}
    fixed = {**arguments, "divergence": "hutchinson", "solver": "ode:dopri5"}
    del fixed["intervals"]
    got = sm.bits_per_dim(model, CELLS, **fixed)
    assert got.dequantization_stderr.isnan()
    assert got.probe_stderr.isnan()
    got = sm.bits_per_dim(model, CELLS, divergence=sm.Hutchinson(4), **arguments)
    random = torch.hypot(got.log_prob.stderr, got.log_prob.quadrature_error / 2)
    wanted = -bits(random.norm() / len(CELLS))
    torch.testing.assert_close(got.probe_stderr, wanted)
    assert got.dequantization_stderr.isnan()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("levels", "dtype"), [(8, torch.float64), (65536, torch.float32)])
def test_logit_normals(levels: int, dtype: torch.dtype) -> None:
    """Pixels whose logit is normal: weights have the mean P(k), 5 standard errors for 4 cells.

    In single precision log-weights of 20 nats are rounded by some 1e-5.
    """
    mixture = sm.GaussianMixture(torch.tensor([[0.5, -1.0]], dtype=dtype), [[1.0, 0.7]])
    logit, count = sm.data.LogitTransform(margin=1e-3), 20_000
    images = torch.tensor([[0, 0], [3, 5], [levels // 2, 2], [levels - 1, 1]])
    got = sm.bits_per_dim(
        mixture.score_model(NOISY), images.repeat_interleave(count, 0), levels,
        transform=logit, data_range=(0.0, 1.0), generator=generator(2),
    )  # fmt: skip
    assert got.per_image.dtype == dtype
    weights = (-2 * math.log(2) * got.per_image.double()).exp().reshape(-1, count)
    law = mixture.to(torch.float64).diffuse(NOISY, NOISY.t_min)
    lower, upper = ((logit(k / levels) - law.means) / law.variances.sqrt()
                    for k in (images.double(), images.double() + 1))  # fmt: skip
    wanted = log_mass(lower, upper).sum(1).exp()
    error = weights.std(1) / math.sqrt(count) + (dtype == torch.float32) * 1e-5 * wanted
    assert bool(((weights.mean(1) - wanted).abs() < 5 * error).all())


@pytest.mark.usefixtures("at_once")
def test_an_affine_transform_is_another_range() -> None:
    model = MIXTURE.score_model(NOISY)
    values = [
        sm.bits_per_dim(
            model, CELLS, LEVELS, transform=transform, data_range=data_range,
            generator=generator(),
        ).per_image
        for transform, data_range in [
            (None, (-1.0, 1.0)),
            (AffineTransform(-1.0, 2 / 255), (0.0, 255.0)),
            (AffineTransform(torch.tensor([-1.0, -1.0]), 0.5, event_dim=1), (0.0, 4.0)),
        ]
    ]  # fmt: skip
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[2], values[0])


def test_conditioning_stays_with_its_image() -> None:
    class Shifted(nn.Module):
        def forward(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
            assert label.shape == x.shape[:1]
            return x - label[:, None]

    model = sm.ScoreModel(Shifted(), sm.VPSDE(), event_shape=(2,)).double()
    first, second = (
        sm.bits_per_dim(
            model, torch.zeros(3, 2), LEVELS, "truncated-normal", importance_samples=2,
            cond={"label": torch.tensor([0.0, 0.0, last], dtype=torch.float64)},
            solver="ode:rk4", steps=8, generator=generator(),
        ).per_image
        for last in (0.0, 1.0)
    )  # fmt: skip
    assert ((first - second).abs() > 0.01).tolist() == [False, False, True]


def test_bad_images_are_refused() -> None:
    model = gaussian_model(0.0, 0.5, 2)
    with pytest.raises(ValueError, match="levels"):
        sm.bits_per_dim(model, torch.full((2, 2), 17), levels=17)
    with pytest.raises(ValueError, match="levels"):
        sm.bits_per_dim(model, torch.full((2, 2), -1), levels=17)
    with pytest.raises((TypeError, ValueError), match="no integer"):
        sm.bits_per_dim(model, torch.full((2, 2), 0.5), levels=17)


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dequantization": "unifrom"}, ValueError, "'unifrom'; did you mean 'uniform'"),
    ({"dequantization": "truncated"}, ValueError, "did you mean 'truncated-normal'"),
    ({"dequantization": 3}, TypeError, r"such as sm\.data\.UniformDequantization\(\), got 3"),
    ({"importance_samples": 0}, ValueError, "importance_samples must be .* 1 or more, got 0"),
    ({"importance_samples": 2.5}, ValueError, "importance_samples must be .* got 2.5"),
    ({"repeats": -1}, ValueError, "repeats must be .* 1 or more, got -1"),
    ({"transform": torch.log}, TypeError, r"torch\.distributions\.Transform such as sm\.data"),
    ({"transform": AbsTransform()}, ValueError, "must be bijective"),
    ({"transform": sm.data.LogitTransform()}, ValueError, "give another data_range="),
    (
        {"transform": AffineTransform(0.0, 1.0), "dequantization": "truncated-normal"},
        ValueError,
        "use dequantization='uniform' with it",
    ),
    (
        {"transform": sm.data.LogitTransform(0.0).inv.inv, "data_range": (0, 1), "images": CELLS},
        ValueError,
        "infinite values in rows 0, 1",
    ),
    ({"generator": 3}, TypeError, "torch.Generator"),
    ({"importance_sample": 3}, TypeError, "did you mean importance_samples="),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_bad_input_is_refused(
    change: dict[str, Any], kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest: Callable[..., Tensor] = lambda x, generator=None: torch.zeros_like(x)  # noqa: E731
    monkeypatch.setattr("sde_models.data.dequantization.uniform_like", lowest)
    arguments = {"images": torch.zeros(2, 2), "levels": LEVELS, **change}
    with pytest.raises(kind, match=message):
        sm.bits_per_dim(gaussian_model(0.0, 0.5, 2), **arguments)


def test_an_equation_without_a_kernel_has_no_truncated_normal() -> None:
    class Free(sm.SDE):
        pass

    with pytest.raises(TypeError, match="Free has no alpha and sigma"):
        sm.data.TruncatedNormalDequantization.for_sde(Free(t_min=0.1, t_max=1.0))
