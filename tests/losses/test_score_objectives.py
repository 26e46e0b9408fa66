"""Implicit, sliced and finite-difference score matching: what they share with denoising."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from support.gaussian_score import GaussianScore
from torch import Tensor, nn

import sde_models as sm
from sde_models.losses import (
    denoising_score_matching,
    finite_difference_sliced,
    implicit_score_matching,
    sliced_score_matching,
)

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
INTEGRATED: dict[str, Any] = {
    "implicit": implicit_score_matching,
    "implicit, Hutchinson": partial(implicit_score_matching, divergence="hutchinson"),
    "sliced": partial(sliced_score_matching, variance_reduced=False),
    "sliced, Gaussian": partial(
        sliced_score_matching, variance_reduced=False, distribution="gaussian", probes=2
    ),
    "variance-reduced": sliced_score_matching,
    "finite differences": finite_difference_sliced,
}
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
every_objective = pytest.mark.parametrize("name", INTEGRATED)


def mixture() -> sm.GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    return sm.GaussianMixture(means, 0.4)


def network_model(sde: sm.GaussianSDE, seed: int = 0) -> sm.ScoreModel:
    """A network whose output is not zero."""
    torch.manual_seed(seed)
    network = sm.nn.ResidualNetwork((2,), width=16, depth=1).double()
    nn.init.normal_(network.write.weight, std=0.3)
    return sm.ScoreModel(network, sde, preconditioning="edm")


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    parts = torch.autograd.grad(
        loss, list(model.parameters()), materialize_grads=True, retain_graph=True
    )
    return torch.cat([part.flatten() for part in parts])


@every_sde
@every_objective
def test_gradients_agree_with_those_of_denoising(sde: sm.GaussianSDE, name: str) -> None:
    """On the same noised data, 100 batches; 3 numbers within 5 standard errors: 6e-7 each.

    The Gaussian is not that of the data, so the gradients are not small. Its score is linear, so
    finite differences have no bias.
    """
    generator = torch.Generator().manual_seed(0)
    model = GaussianScore(sde, torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5)
    differences, sizes = [], []
    for _ in range(100):
        x0 = mixture().sample(256, generator=generator)
        noise = torch.randn(256, 2, dtype=torch.float64, generator=generator)
        t, _ = sm.losses.draw_times(sde, x0, "log-snr", generator=generator)
        denoising = denoising_score_matching(model, x0, t, noise, weighting="simple")
        integrated = 2 * INTEGRATED[name](model, x0, t, noise, generator=generator)
        differences.append(gradient(denoising - integrated, model))
        sizes.append(gradient(denoising, model))
    sample = torch.stack(differences)
    stderr = sample.std(0) / math.sqrt(len(sample))
    assert bool((sample.mean(0).abs() < 5 * stderr + 1e-12).all())
    assert float(torch.stack(sizes).mean(0).norm()) > 5 * float(stderr.norm())  # a sharp test


@pytest.mark.parametrize("weighting", ["simple", "edm", "min-snr", "likelihood"])
def test_weightings_mean_the_same_for_both_kinds(weighting: str) -> None:
    """A network on a mixture, one product with the gradient of 60 batches; false alarm 6e-7."""
    generator = torch.Generator().manual_seed(1)
    sde = sm.VPSDE(t_min=1e-2)
    model = network_model(sde)
    direction = torch.randn(
        sum(p.numel() for p in model.parameters()), dtype=torch.float64, generator=generator
    )
    differences, sizes = [], []
    for _ in range(60):
        x0 = mixture().sample(512, generator=generator)
        noise = torch.randn(512, 2, dtype=torch.float64, generator=generator)
        t, _ = sm.losses.draw_times(sde, x0, generator=generator)
        denoising = denoising_score_matching(model, x0, t, noise, weighting=weighting)
        integrated = 2 * implicit_score_matching(model, x0, t, noise, weighting=weighting)
        differences.append(gradient(denoising - integrated, model) @ direction)
        sizes.append(gradient(denoising, model) @ direction)
    sample = torch.stack(differences)
    stderr = float(sample.std()) / math.sqrt(len(sample))
    assert abs(float(sample.mean())) < 5 * stderr
    assert abs(float(torch.stack(sizes).mean())) > 5 * stderr


def test_the_constant_between_implicit_and_simple() -> None:
    """Twice the one plus 1 is the other on average; false alarm 6e-7."""
    generator = torch.Generator().manual_seed(2)
    model = network_model(sm.VPSDE())
    x0 = mixture().sample(20_000, generator=generator)
    noise = torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        gaps = torch.stack([
            denoising_score_matching(model, x, 0.3, n, weighting="simple")
            - 2 * implicit_score_matching(model, x, 0.3, n)
            for x, n in zip(x0.split(200), noise.split(200), strict=True)
        ])  # fmt: skip
    assert abs(float(gaps.mean()) - 1) < 5 * float(gaps.std()) / 10


@pytest.mark.parametrize("name", [n for n in INTEGRATED if not n.startswith("sliced")])
def test_minimiser_on_raw_data_is_the_sample_mean_and_variance(name: str) -> None:
    """For a Gaussian each finds maximum likelihood, Hyvarinen's example, to the solver's rounding.

    The Jacobian is a multiple of the identity, which random signs see exactly.
    """
    sde = sm.VESDE(0.01, 10.0)
    x0 = mixture().sample(5000)
    model = GaussianScore(sde, torch.zeros(2, dtype=torch.float64), 1.0)
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        # In units in which the stopping rules of the optimiser have a meaning.
        loss = INTEGRATED[name](model, x0, sde.t_min, torch.zeros_like(x0)) / 0.01**2
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(model.mean, x0.mean(0), atol=1e-7)
    variance = float((x0 - x0.mean(0)).square().mean())
    assert float(model.log_variance.detach().exp()) + 0.01**2 == pytest.approx(variance, rel=1e-7)


@every_objective
def test_gradient_vanishes_at_the_exact_score(name: str) -> None:
    """An affine map added to the exact score, 100 batches, 6 numbers; false alarm 4e-6 in all."""
    generator = torch.Generator().manual_seed(3)
    sde = sm.VPSDE()

    class Shifted(sm.Model):
        def __init__(self) -> None:
            super().__init__(sde)
            self.exact = mixture().score_model(sde)
            self.affine = nn.Linear(2, 2).double()
            for parameter in self.affine.parameters():
                nn.init.zeros_(parameter)

        def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            x0, eps = self.exact.denoise(t, x)
            return x0, eps + self.affine(x)

    model, gradients = Shifted(), []
    for _ in range(100):
        x0 = mixture().sample(128, generator=generator)
        loss = INTEGRATED[name](model, x0, sigma=0.7, generator=generator)
        gradients.append(gradient(loss, model))
    sample = torch.stack(gradients)
    z = sample.mean(0) / (sample.std(0) / 10)
    # The bias of finite differences at the usual step lies far below the noise of 12,800 samples.
    assert float(z.abs().max()) < 5


def test_error_of_finite_differences_is_of_second_order() -> None:
    model = network_model(sm.VPSDE())
    x0, noise = mixture().sample(64), torch.randn(64, 2, dtype=torch.float64)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    with torch.no_grad():
        exact = sliced_score_matching(model, x0, 0.3, noise, generator=generator())
        errors = [
            float(finite_difference_sliced(model, x0, 0.3, noise, step=h, generator=generator())
                  - exact)
            for h in (0.08, 0.04, 0.02)
        ]  # fmt: skip
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.03)


def test_variance_reduction_reduces_the_variance() -> None:
    """By a factor well above the 1.4 that 400 draws could show by chance."""
    model = network_model(sm.VPSDE())
    x0, noise = mixture().sample(16), torch.randn(16, 2, dtype=torch.float64)
    variances = [
        torch.stack([
            sliced_score_matching(model, x0, 0.5, noise, variance_reduced=reduced).detach()
            for _ in range(400)
        ]).var()
        for reduced in (False, True)
    ]  # fmt: skip
    assert float(variances[0]) > 1.5 * float(variances[1])


@pytest.mark.parametrize(
    ("objective", "nfe", "vjps"),
    [
        (partial(denoising_score_matching, weighting="simple"), 1, 0),
        (implicit_score_matching, 1, 2),
        (sliced_score_matching, 1, 1),
        (partial(sliced_score_matching, probes=3), 1, 3),
        (finite_difference_sliced, 2, 0),
    ],
)
def test_costs_are_counted(objective: Any, nfe: int, vjps: int) -> None:
    with sm.count_evaluations() as counter:
        objective(network_model(sm.VPSDE()), torch.randn(4, 2, dtype=torch.float64))
    assert counter.cost(4) == sm.Cost(nfe, vjps, calls=nfe)


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(torch.cat((x, t[:, None]), 1))


@pytest.mark.parametrize(
    "objective",
    [
        *INTEGRATED.values(),
        partial(denoising_score_matching, weighting="edm"),
        partial(denoising_score_matching, weighting="min-snr"),
        sm.losses.simulated_score_matching,
        sm.losses.fokker_planck_penalty,
        partial(sm.maximum_likelihood_loss, rtol=1e-2, atol=1e-2, intervals=12),
    ],
)
def test_energy_models_learn_by_every_objective(objective: Any) -> None:
    """The gradient is that of central differences along a random direction."""
    torch.manual_seed(0)
    model = sm.EnergyModel(Energy(), sm.VPSDE(t_min=0.1))
    x0 = mixture().sample(8)

    def loss() -> Tensor:
        return objective(model, x0, generator=torch.Generator().manual_seed(0))

    slope = gradient(loss(), model)
    assert float(slope.norm()) > 0
    step, h = slope / slope.norm(), 1e-5
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    values = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * h * step, model.parameters())
        values.append(float(loss().detach()))
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(slope @ step), rel=1e-4)


@pytest.mark.parametrize("objective", [*INTEGRATED.values(), sm.losses.simulated_score_matching])
def test_losses_go_into_fit_and_take_images_and_labels(objective: Any) -> None:
    network = sm.nn.ResidualNetwork((1, 2, 2), width=8, depth=1, classes=2)
    model = sm.ScoreModel(network, sm.VPSDE())

    def batch(size: int, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Any]]:
        return torch.randn(size, 1, 2, 2, generator=generator), {"label": torch.zeros(size).long()}

    trained = sm.fit(model, batch, steps=2, batch_size=8, loss=objective, progress=False)
    assert trained.steps == 2


def relative_error(model: sm.Model, sigma: float) -> float:
    """Root mean square of the error of the score over that of the score, on fresh points."""
    t = sm.times_of_sigmas(model.sde, [sigma])[0]
    x = mixture().diffuse(model.sde, t).sample(2000, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        truth = mixture().score_model(model.sde).score(t, x)
        error = model.score(t, x.float()).double() - truth
    return float((error.square().sum() / truth.square().sum()).sqrt())


@pytest.mark.parametrize(
    "objective",
    [
        partial(denoising_score_matching, weighting="simple"),
        implicit_score_matching,
        partial(sliced_score_matching, variance_reduced=False),
        sliced_score_matching,
        finite_difference_sliced,
    ],
)
def test_a_network_learns_the_score_at_one_level(objective: Any) -> None:
    """To 20% of the score of a mixture noised to 0.5 after 300 steps."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=32, depth=1), sm.VESDE())
    data = mixture().sample(10_000, generator=generator).float()
    loss = partial(objective, sigma=0.5)
    trained = sm.fit(
        model, data, steps=300, batch_size=512, loss=loss, generator=generator, progress=False,
        ema_decay=0.98, learning_rate=5e-3,
    )  # fmt: skip
    assert relative_error(trained.model, 0.5) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(implicit_score_matching, divergence="hutchinsen"), "'hutchinson'"),
        (partial(implicit_score_matching, weighting="output"), "use 'simple', 'edm'"),
        (partial(implicit_score_matching, weighting="min_snr"), "'min-snr'"),
        (partial(sliced_score_matching, distribution="gausian"), "'gaussian'"),
        (partial(sliced_score_matching, times="importanse"), "'importance'"),
        (partial(sliced_score_matching, probes=0), "1 or more"),
        (partial(sliced_score_matching, sigma=100.0), "from 0.01 to 50, and 100"),
        (partial(sliced_score_matching, sigma=1.0, t=0.5), "t and sigma"),
        (partial(sliced_score_matching, sigma=1.0, times="uniform"), "sigma and times"),
        (partial(finite_difference_sliced, step=0.0), "step must be positive"),
        (partial(finite_difference_sliced, step=math.nan), "step must be positive"),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(network_model(sm.VESDE()), torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    "loss",
    [denoising_score_matching, *INTEGRATED.values(), sm.losses.fokker_planck_penalty],
)
def test_misspelt_options_are_refused(loss: Any) -> None:
    model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
    with pytest.raises(
        TypeError,
        match=f"{getattr(loss, 'func', loss).__name__} got .* stratifed=: did you mean stratified=",
    ):
        loss(model, torch.zeros(4, 2), stratifed=False)
