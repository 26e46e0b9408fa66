"""Samples with their log-densities, integrated along the paths by which they were drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
MIXTURE = sm.GaussianMixture(
    torch.tensor([[-1.0, 0.5, 0.0], [0.8, -0.4, 0.6]], dtype=torch.float64), [0.3, 0.5]
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("solver", ["adams-batch", "ode:dopri5", "ode:rk4"])
def test_density_is_that_of_the_mixture(sde: sm.GaussianSDE, solver: str) -> None:
    model, prior = MIXTURE.score_model(sde), MIXTURE.diffuse(sde, sde.t_max)
    arguments: dict[str, Any] = {"steps": 200, "grid": "log-snr"} if solver == "ode:rk4" else {}
    out = sm.sample(
        model, (20, 3), solver,
        return_log_prob=True, prior=prior, generator=generator(), **arguments,
    )  # fmt: skip
    truth = MIXTURE.diffuse(sde, sde.t_min).log_prob(out.x)
    assert out.log_prob is not None
    assert (out.log_prob.value - truth).abs().max() < 2e-3
    # The noise is what the sample decodes from: encoding finds it again.
    torch.testing.assert_close(
        sm.encode(model, out.x, rtol=1e-8, atol=1e-8).z, out.log_prob.z, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize(
    "solver", [name for name, row in sm.list_solvers().items() if row.deterministic]
)
def test_any_solver_by_changing_one_word(solver: str) -> None:
    """Data to density and noise to sample with density; at 100 steps to 0.3 nats, Euler's too."""
    model, prior = MIXTURE.score_model(sm.VPSDE()), MIXTURE.diffuse(sm.VPSDE(), 1.0)
    row = sm.list_solvers()[solver]
    steps: dict[str, Any] = {} if row.adaptive else {"steps": 100}
    x = MIXTURE.sample(3, generator=generator())
    given = {"intervals": 48} if sm.make_solver(solver).diffusion_only else {}
    lp = sm.log_prob(model, x, solver, prior=prior, **given, **steps)
    out = sm.sample(
        model, (3, 3), solver, return_log_prob=True, prior=prior, density=given, **steps
    )
    law = MIXTURE.diffuse(sm.VPSDE(), sm.VPSDE().t_min)
    assert out.log_prob is not None
    for value, point in ((lp.value, x), (out.log_prob.value, out.x)):
        assert (value - law.log_prob(point)).abs().max() < 0.3


def test_samples_are_those_without_densities() -> None:
    model = MIXTURE.score_model(sm.VPSDE())
    for solver in ("adams-batch", "ode:dopri5"):
        plain = sm.sample(model, (4, 3), solver, generator=generator(), rtol=1e-8, atol=1e-8)
        out = sm.sample(
            model, (4, 3), solver, generator=generator(), rtol=1e-8, atol=1e-8,
            return_log_prob=True,
        )  # fmt: skip
        assert plain.log_prob is None
        torch.testing.assert_close(out.x, plain.x, rtol=1e-5, atol=1e-5)


def test_error_bars_of_probes_and_the_cost_are_reported() -> None:
    """200 samples at 95%: fewer than 178 within has a chance of 1e-4."""
    model, prior = MIXTURE.score_model(sm.VPSDE()), MIXTURE.diffuse(sm.VPSDE(), 1.0)
    with sm.count_evaluations() as counter:
        out = sm.sample(
            model, (200, 3), "adams-batch", return_log_prob=True, prior=prior,
            generator=generator(), density={"divergence": sm.Hutchinson(2), "intervals": 48},
        )  # fmt: skip
    lp = out.log_prob
    assert lp is not None
    assert out.cost == lp.cost == counter.cost(len(out.x))
    truth = MIXTURE.diffuse(sm.VPSDE(), sm.VPSDE().t_min).log_prob(out.x)
    assert int(((lp.value - truth).abs() <= lp.error).sum()) >= 178


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "euler-maruyama"}, "samples of the probability flow"),
        ({"solver": "ddim", "eta": 0.5}, "samples of the probability flow"),
        ({"denoise": True}, "cannot go with denoise="),
        ({"path": True}, "cannot go with path="),
        ({"density": {"tol": 0.1}}, "draw the samples first"),
        ({"return_log_prob": False, "density": {}}, "give return_log_prob=True with it"),
    ],
    ids=str,
)
def test_what_has_no_density_is_refused(arguments: dict[str, Any], message: str) -> None:
    model = MIXTURE.score_model(sm.VPSDE())
    with pytest.raises(ValueError, match=message):
        sm.sample(model, (2, 3), **{"return_log_prob": True, **arguments})
