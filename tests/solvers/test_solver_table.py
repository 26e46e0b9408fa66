"""The table tells the truth: names, evaluations a step, and nothing of the libraries is missing."""

from __future__ import annotations

import pytest
import scipy.integrate
import torch
import torchsde
from support.marginals import ProductMixture
from torchdiffeq._impl.odeint import SOLVERS as TORCHDIFFEQ

import sde_models as sm

TABLE = sm.list_solvers()
FIXED = [name for name, s in TABLE.items() if not s.adaptive and s.evaluations is not None]

# Left out with a reason in docs/solvers.md.
LEFT_OUT = {"ode:scipy_solver", "sde:reversible_heun", "sde:adjoint_reversible_heun"}


def test_every_method_of_the_libraries_is_offered_or_left_out_for_a_reason() -> None:
    methods = torchsde.settings.METHODS.all()
    theirs = {f"ode:{name}" for name in TORCHDIFFEQ} | {f"sde:{name}" for name in methods}
    ours = {name for name in TABLE if name.startswith(("ode:", "sde:"))}
    assert theirs - ours == LEFT_OUT
    assert ours <= theirs
    scipys = {"RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA"}
    assert {name for name in TABLE if name.startswith("scipy:")} == {f"scipy:{m}" for m in scipys}
    assert all(hasattr(scipy.integrate, m) for m in scipys)


def test_the_page_has_every_solver_and_explains_what_is_left_out(
    request: pytest.FixtureRequest,
) -> None:
    page = (request.config.rootpath / "docs" / "solvers.md").read_text()
    for name in [*LEFT_OUT, *TABLE]:
        assert f"`{name}`" in page


@pytest.mark.parametrize("name", FIXED)
def test_evaluations_a_step_are_as_declared(name: str) -> None:
    """Counted in the model, at two numbers of steps, so that constants cancel."""
    exact = ProductMixture(sm.VPSDE(), (2,))
    solver = TABLE[name]
    x = exact.sample(3, 1.0, torch.Generator().manual_seed(0))
    system = sm.ReverseSDE(exact.model, (2,)) if solver.stochastic else exact.flow()
    few, many = (sm.solve(system, x, (1.0, 0.1), name, steps=n) for n in (20, 50))
    assert many.nfe - few.nfe == 30 * solver.evaluations
    assert (few.accepted, few.rejected) == (20, 0)


@pytest.mark.parametrize("name", ["ode:dopri5", "ode:bosh3", "scipy:RK45", "scipy:DOP853"])
def test_adaptive_counts_agree_with_evaluations(name: str) -> None:
    stages = {"ode:dopri5": 6, "ode:bosh3": 3, "scipy:RK45": 6, "scipy:DOP853": 12}[name]
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, 1.0, torch.Generator().manual_seed(0))
    got = sm.solve(exact.flow(), x, (1.0, 1e-5), name, rtol=1e-6, atol=1e-6)
    assert got.rejected is not None
    assert got.rejected > 0
    assert got.nfe - stages * (got.accepted + got.rejected) == 2  # slope and first step size


def test_table_prints_every_solver() -> None:
    text = str(TABLE)
    assert all(name in text for name in TABLE)
    assert len(text.splitlines()) == len(TABLE) + 2


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("dopri5", "'ode:dopri5'"),
        ("ode:dopri6", "'ode:dopri5'"),
        ("scipy:dop853", "'scipy:DOP853'"),
        ("heun", "'sde:heun'"),
        ("euler-maryuama", "'euler-maruyama'"),
        ("zzz", "sm.list_solvers()"),
    ],
)
def test_unknown_name_brings_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match="unknown solver") as caught:
        sm.make_solver(wrong)
    assert near in str(caught.value)


def test_options_are_checked_and_used() -> None:
    with pytest.raises(ValueError, match=r"no option 'first_stp'; did you mean 'first_step'"):
        sm.make_solver("ode:dopri5", first_stp=0.1)
    with pytest.raises(ValueError, match="takes none"):
        sm.make_solver("euler-maruyama", seed=1)
    with pytest.raises(ValueError, match="options already"):
        sm.make_solver(sm.make_solver("ode:dopri5"), first_step=0.1)
    with pytest.raises(TypeError, match="name or a solver"):
        sm.make_solver(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="brownian must be"):
        sm.make_solver("sde:euler", brownian="old")
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(2, 1.0, torch.Generator().manual_seed(0))
    for name in ("ode:dopri5", "scipy:RK45"):
        plain = sm.solve(exact.flow(), x, (1.0, 0.1), name)
        held = sm.solve(exact.flow(), x, (1.0, 0.1), sm.make_solver(name, max_step=0.01))
        assert held.accepted >= 90 > plain.accepted
