"""The same numbers on every device that is here, and from a generator on the CPU.

On a machine without an accelerator the CPU is held against itself.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

import sde_models as sm

TABLE = sm.solvers()
DEVICES = ["cpu"]
DEVICES += ["cuda"] if torch.cuda.is_available() else []
DEVICES += ["mps"] if torch.backends.mps.is_available() else []
every_device = pytest.mark.parametrize("device", DEVICES)

MIXTURE = sm.GaussianMixture([[-1.0, 0.2], [0.8, -0.3]], [0.3, 0.5], [0.4, 0.6])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_on(device: str, sde: sm.GaussianSDE) -> sm.Model:
    return sm.GaussianMixture(MIXTURE.means, [0.3, 0.5], [0.4, 0.6]).score_model(sde).to(device)


@every_device
@pytest.mark.parametrize("name", TABLE)
def test_every_solver_samples_the_same_in_float32(device: str, name: str) -> None:
    sde = sm.VPSDE(t_min=1e-3)
    here, there = (
        sm.sample(model_on(d, sde), (5, 2), name, generator=generator()).x for d in ("cpu", device)
    )
    assert there.device.type == device
    assert there.dtype == torch.float32
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-3)


@every_device
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_likelihood_and_latents_are_the_same(device: str, divergence: str) -> None:
    sde = sm.VPSDE()
    x = MIXTURE.sample(5, generator=generator())
    results = []
    for d in ("cpu", device):
        model = model_on(d, sde)
        lp = sm.log_prob(model, x.to(d), divergence=divergence, generator=generator(1))
        assert lp.value.device.type == d
        back = sm.decode(model, lp.z).x
        results.append((lp.value.cpu(), back.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-3)
    torch.testing.assert_close(results[1][1], x, rtol=0, atol=1e-3)


@every_device
def test_gradients_and_bits_per_dim(device: str) -> None:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((1, 2, 2), width=16, depth=1)
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3), preconditioning="edm").to(device)
    z = torch.randn(3, 1, 2, 2, generator=generator()).to(device).requires_grad_()
    for way in ("direct", "adjoint"):
        loss = sm.decode(model, z, gradient=way, rtol=1e-3, atol=1e-3).x.square().sum()
        (gradient,) = torch.autograd.grad(loss, z)
        assert gradient.device.type == device
        assert float(gradient.abs().max()) > 0
    images = torch.randint(0, 4, (3, 1, 2, 2), generator=generator())
    bits = sm.bits_per_dim(model, images, levels=4, generator=generator(), rtol=1e-3, atol=1e-3)
    assert bits.value.device.type == device


LOSSES = {
    "denoising": partial(sm.losses.denoising_score_matching, weighting="edm"),
    "levels": partial(
        sm.losses.denoising_score_matching,
        weighting="likelihood",
        times=sm.losses.level_times([0.1, 0.5, 1.0]),
    ),
    "one level": partial(sm.losses.denoising_score_matching, weighting="min-snr", sigma=0.5),
    "implicit": sm.losses.implicit_score_matching,
    "sliced": partial(sm.losses.sliced_score_matching, probes=2, stratified=False),
    "finite differences": sm.losses.finite_difference_sliced,
    "simulated": partial(sm.losses.simulated_score_matching, steps=8),
    "penalty": sm.losses.fokker_planck_penalty,
    "maximum likelihood": partial(sm.maximum_likelihood_loss, divergence="hutchinson"),
}


@every_device
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_same_in_float32(device: str, name: str) -> None:
    x0 = torch.randn(16, 2, generator=generator())
    here, there = (
        LOSSES[name](model_on(d, sm.VPSDE(t_min=1e-2)), x0.to(d), generator=generator()).detach()
        for d in ("cpu", device)
    )
    assert there.device.type == device
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)


@every_device
def test_learned_times_and_asymmetry_on_every_device(device: str) -> None:
    times, model = sm.losses.LearnedTimes(), model_on(device, sm.VPSDE())
    x0 = torch.randn(16, 2, generator=generator()).to(device)
    for _ in range(3):
        loss = sm.losses.denoising_score_matching(
            model, x0, weighting="likelihood", times=times, generator=generator()
        )
    assert loss.device.type == device
    assert float(times.density.std()) > 0
    assert float(sm.losses.asymmetry(model, 0.5, x0).max()) < 1e-4
