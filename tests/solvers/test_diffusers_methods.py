"""The schedulers of diffusers: their orders, their laws, and the same steps as ours to rounding."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.diffusers_solvers import diffusers_solvers
from support.marginals import FALSE_ALARM, ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers.external.diffusers_schedulers import LEFT_OUT, SCHEDULERS

pytestmark = [
    pytest.mark.skipif(find_spec("diffusers") is None, reason="the extra diffusers is absent"),
    # diffusers has two algorithms that it will drop in 1.0 and says so; they are offered till then.
    pytest.mark.filterwarnings("ignore:.*algorithm_type.* is deprecated:FutureWarning"),
]

SDES = {
    "sub-vp": sm.SubVPSDE(),
    "ve": sm.VESDE(),
    "cosine": sm.CosineSDE(),
    "flow-matching": sm.FlowMatchingSDE(),
}
VP = ProductMixture(sm.VPSDE(), (2,))
ROUNDING = 1e-5
"""Of schedulers that hold the state in float32."""

Case = tuple[str, dict[str, Any]]
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
EDM, UNIPC = "EDMDPMSolverMultistepScheduler", "UniPCMultistepScheduler"
FLOW: list[Case] = [
    *((name, {}) for name, scheduler in SCHEDULERS.items() if scheduler.etas[0] == 0),
    *((MULTISTEP, {"algorithm_type": "dpmsolver", "solver_order": n}) for n in (1, 2, 3)),
    (MULTISTEP, {"solver_type": "heun"}),
    (MULTISTEP, {"solver_order": 3}),
    *((SINGLESTEP, {"solver_order": n, "solver_type": "heun"}) for n in (2, 3)),
    (SINGLESTEP, {"solver_order": 3, "algorithm_type": "dpmsolver"}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    (UNIPC, {"solver_order": 1, "predict_x0": False}),
    (UNIPC, {"solver_order": 3, "lower_order_final": False}),
    ("SASolverScheduler", {"algorithm_type": "noise_prediction", "corrector_order": 3}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("LMSDiscreteScheduler", {"order": 3}),
]
NOISY: list[Case] = [
    *((name, {}) for name, scheduler in SCHEDULERS.items() if scheduler.etas[1] > 0),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver"}),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    (SINGLESTEP, {"algorithm_type": "sde-dpmsolver++"}),
    (EDM, {"algorithm_type": "sde-dpmsolver++"}),
]


def label(case: Case) -> str:
    return "-".join([case[0].removesuffix("Scheduler"), *map(str, case[1].values())])


def make(case: Case) -> sm.Solver:
    name, options = case
    return sm.make_solver(f"diffusers:{name}", **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def system(solver: sm.Solver, exact: ProductMixture = VP) -> sm.System:
    return exact.flow() if solver.deterministic else sm.ReverseSDE(exact.model, exact.event_shape)


flow = pytest.mark.parametrize("case", FLOW, ids=label)
noisy = pytest.mark.parametrize("case", NOISY, ids=label)
every = pytest.mark.parametrize("name", list(SCHEDULERS))


@flow
def test_error_of_the_flow_falls_at_the_order(case: Case) -> None:
    """The model is seen at the scheduler's own times, so nothing but its own error is left."""
    solver, x = make(case), VP.sample(4, 1.0, generator())
    end = VP.sde.t_min
    truth = VP.flow_map(x, 1.0, end)
    coarse, fine = (
        float((sm.solve(VP.flow(), x, (1.0, end), solver, steps=steps).x - truth).abs().max())
        for steps in (60, 120)
    )
    assert fine < coarse * 2 ** (0.5 - solver.order)
    assert fine < (0.05 if solver.order == 1 else 5e-3)


@pytest.mark.parametrize("span", [(1.0, 1e-5), (0.7, 0.3)], ids=["whole", "inside"])
@noisy
def test_noisy_schedulers_reach_the_marginal(case: Case, span: tuple[float, float]) -> None:
    """False-alarm rate 1e-6 a case; the seed is fixed."""
    x, reverse = VP.sample(2000, span[0], generator(1)), sm.ReverseSDE(VP.model, (2,))
    got = sm.solve(reverse, x, span, make(case), steps=60, generator=generator(2))
    VP.check_marginal(got.x, span[1], bias=0.1)


@pytest.mark.parametrize("sde", list(SDES.values()), ids=list(SDES))
@every
def test_same_steps_whatever_the_scale(name: str, sde: sm.GaussianSDE) -> None:
    """A scheduler knows sigma / alpha alone, so x / alpha does not depend on the SDE; what is shown
    of VP holds for all."""
    levels, start = torch.linspace(-4, 4, 8, dtype=torch.float64), VP.sample(4, 1.0, generator())
    ends, solver = [], make((name, {}))
    for exact in (VP, ProductMixture(sde, (2,))):
        grid = exact.sde.t_from_log_snr(levels)
        alpha, span = exact.sde.alpha(grid), (float(grid[0]), float(grid[-1]))
        equation = system(solver, exact)
        noise = {"generator": generator(1)} if equation.stochastic else {}
        got = sm.solve(equation, alpha[0] * start, span, solver, grid=grid, **noise)
        ends.append(got.x / alpha[-1])
    torch.testing.assert_close(*ends, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 1.4])
@noisy
def test_noise_is_that_of_eta(case: Case, eta: float) -> None:
    r"""From one point, on N(0, I) under VP, where the law of the end is known: with B the integral
    of beta over the span, the mean is :math:`e^{-\eta^2 B / 2} x` and the variance
    :math:`1 - e^{-\eta^2 B}`. False-alarm rate 1e-6 for mean and variance; the seed is fixed.
    """
    solver, sde, n = make(case), sm.VPSDE(), 4000
    model = sm.GaussianMixture(torch.zeros(1, 1), 1.0).double().score_model(sde)
    reverse = sm.ReverseSDE(model, (1,), eta)
    x = torch.full((n, 1), 2.0, dtype=torch.float64)
    least, most = solver.etas
    if not least <= eta <= most:
        with pytest.raises(ValueError, match=f"eta of ReverseSDE is {eta:g}"):
            sm.solve(reverse, x, (0.5, 0.3), solver)
        return
    end = sm.solve(reverse, x, (0.5, 0.3), solver, steps=40, generator=generator()).x
    shrink = float((sde.alpha(0.5) / sde.alpha(0.3)) ** (eta**2))
    z = float(-torch.special.ndtri(torch.tensor(FALSE_ALARM / 4, dtype=torch.float64)))
    std, bias = math.sqrt(1 - shrink**2), 0.02
    assert abs(float(end.mean()) - 2 * shrink) < z * std / math.sqrt(n) + bias
    assert abs(float(end.var()) - std**2) < z * std**2 * math.sqrt(2 / n) + bias


OURS: list[tuple[Case, str, dict[str, Any], float]] = [
    (("DDIMScheduler", {}), "ddim", {}, 1e-10),
    (("DDIMParallelScheduler", {}), "ddim", {}, 1e-10),
    (("CogVideoXDDIMScheduler", {}), "ddim", {}, 1e-10),
    (("EulerDiscreteScheduler", {}), "ddim", {}, ROUNDING),
    (("EDMEulerScheduler", {}), "ddim", {}, ROUNDING),
    (("FlowMatchEulerDiscreteScheduler", {}), "ddim", {}, ROUNDING),
    (("LMSDiscreteScheduler", {"order": 1}), "ddim", {}, 1e-10),
    (("DEISMultistepScheduler", {"solver_order": 1}), "ddim", {}, 1e-10),
    ((MULTISTEP, {"lower_order_final": False}), "dpmpp-2m", {}, ROUNDING),
    ((EDM, {"lower_order_final": False}), "dpmpp-2m", {}, 1e-10),
    ((UNIPC, {"lower_order_final": False}), "unipc-2", {}, 1e-10),
    ((UNIPC, {"lower_order_final": False, "solver_type": "bh1"}), "unipc-2",
     {"variant": "bh1"}, 1e-10),
    (("HeunDiscreteScheduler", {}), "heun-edm", {}, 1e-10),
]  # fmt: skip


@pytest.mark.parametrize("grid", ["log-snr", "karras"])
@pytest.mark.parametrize(("case", "ours", "options", "rounding"), OURS)
def test_same_steps_as_ours(
    case: Case, ours: str, options: dict[str, Any], rounding: float, grid: str
) -> None:
    x, span = VP.sample(5, 1.0, generator()), (1.0, 1e-3)
    got = sm.solve(VP.flow(), x, span, make(case), steps=12, grid=grid)
    wanted = sm.solve(VP.flow(), x, span, sm.make_solver(ours, **options), steps=12, grid=grid)
    torch.testing.assert_close(got.x, wanted.x, rtol=0, atol=rounding)
    assert got.nfe == wanted.nfe


@pytest.mark.parametrize(
    ("case", "ours", "eta", "rounding"),
    [
        (("DDIMScheduler", {}), "ddim", 0.5, 1e-10),
        (("DDPMScheduler", {}), "ddim", 1.0, 1e-10),
        (("EulerAncestralDiscreteScheduler", {}), "ddim", 1.0, ROUNDING),
        ((EDM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}), "ddim", 1.0, 1e-10),
        ((EDM, {"algorithm_type": "sde-dpmsolver++"}), "dpmpp-2m-sde", 1.0, 1e-10),
        (("CosineDPMSolverMultistepScheduler", {}), "dpmpp-2m-sde", 1.0, 1e-10),
    ],
)
def test_same_steps_and_numbers_as_ours(case: Case, ours: str, eta: float, rounding: float) -> None:
    x, reverse = VP.sample(5, 1.0, generator()), sm.ReverseSDE(VP.model, (2,), eta)
    got, wanted = (
        sm.solve(reverse, x, (1.0, 1e-3), solver, steps=20, generator=generator(1)).x
        for solver in (make(case), ours)
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=rounding)


@pytest.mark.parametrize(
    "case",
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("KDPM2DiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        (MULTISTEP, {"solver_order": 3, "lower_order_final": False}),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False}),
        (SINGLESTEP, {"lower_order_final": True}),
        ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
        (UNIPC, {"solver_order": 3, "lower_order_final": False}),
    ],
    ids=label,
)
def test_same_steps_as_diffusers_on_its_own_table(case: Case) -> None:
    """A scheduler as its users run it, with the table that it makes of 1000 betas, in float32. It
    goes on to noise 0, which is left out of the comparison; what it saw is read off its own scaling
    of the input."""
    solver, (name, options) = make(case), case
    scheduler = getattr(importlib.import_module("diffusers"), name)(beta_end=0.015, **options)
    scheduler.set_timesteps(10)
    ratios = scheduler.sigmas[scheduler.sigmas > 0].unique_consecutive().double()
    sde = VP.sde
    grid = sde.t_from_log_snr(-2 * ratios.log())
    alpha, x = sde.alpha(grid), VP.sample(4, float(grid[0]), generator())
    ve = SCHEDULERS[name].size.__name__ == "ve"
    state = x / alpha[0] if ve else x
    noise = {"generator": generator(1)} if not solver.deterministic else {}
    for k, timestep in enumerate(scheduler.timesteps[: solver.evaluations * (len(ratios) - 1)]):
        shown = scheduler.scale_model_input(state, timestep)
        scale = float((state / shown).mean())
        ratio = math.sqrt(scale**2 - 1) if ve else float(scheduler.sigmas[k])
        eps = VP.model.eps(sde.t_from_log_snr(torch.tensor(-2 * math.log(ratio))), shown)
        state = scheduler.step(eps, timestep, state, **noise).prev_sample
    native = alpha[-1] * state if ve else state
    noise = {"generator": generator(1)} if not solver.deterministic else {}
    span = (float(grid[0]), float(grid[-1]))
    got = sm.solve(system(solver), x, span, solver, grid=grid, **noise)
    torch.testing.assert_close(got.x, native, rtol=0, atol=2e-4)


@every
def test_any_event_shape_precision_and_number_of_steps(name: str) -> None:
    """In float32 the state is as far from that in float64 as a few roundings at t_max make it."""
    exact, solver = ProductMixture(sm.VPSDE(), (1, 4, 4)), make((name, {}))
    x, equation = exact.sample(2, 1.0, generator()), system(solver, exact)
    for steps in (1, 2, 3, 7):
        if name == "PNDMScheduler" and steps < 4:
            with pytest.raises(ValueError, match="steps=4 or more"):
                sm.solve(equation, x, (1.0, 0.1), solver, steps=steps)
            continue
        double, single = (
            sm.solve(equation, x.to(dtype), (1.0, 0.1), solver, steps=steps)
            for dtype in (torch.float64, torch.float32)
        )
        assert (double.x.dtype, single.x.dtype) == (torch.float64, torch.float32)
        assert double.accepted == steps
        if solver.deterministic:
            scale = double.x.abs().max()
            torch.testing.assert_close(single.x.double(), double.x, rtol=0, atol=1e-3 * scale)


@every
def test_path_callback_and_evaluations(name: str) -> None:
    """States are told at the nodes alone, whatever a scheduler evaluates in between."""
    solver, told = make((name, {})), []
    x, nodes = VP.sample(3, 1.0, generator()), [1.0, 0.8, 0.5, 0.3, 0.15, 0.1]
    arguments: dict[str, Any] = {"path": True, "callback": told.append}
    got = sm.solve(system(solver), x, (1.0, 0.1), solver, grid=nodes, **arguments)
    extra = 9 if name == "PNDMScheduler" else 0
    assert got.nfe == 5 * solver.evaluations + extra
    assert got.times is not None
    assert got.path is not None
    assert got.times.tolist() == nodes
    assert [step.t for step in told] == nodes[1:]
    assert [step.index for step in told] == [1, 2, 3, 4, 5]
    assert torch.equal(got.path[0], x)
    assert torch.equal(got.path[-1], got.x)
    if solver.deterministic:
        part = sm.solve(system(solver), x, (1.0, 0.1), solver, path=[0.4], steps=40)
        assert part.path is not None
        error = (part.path[0] - VP.flow_map(x, 1.0, 0.4)).abs().max()
        assert error < (0.05 if solver.order == 1 else 0.01)


@pytest.mark.parametrize("skip", [False, True])
def test_pndm_starts_without_loss_and_reports_full_steps(skip: bool) -> None:
    """Four steps, most of which are those of the start; a start of order 1 is off by 8e-4."""
    x, solver = VP.sample(8, 0.5, generator()), make(("PNDMScheduler", {"skip_prk_steps": skip}))
    got = sm.solve(VP.flow(), x, (0.5, 0.4), solver, steps=4, path=True)
    assert got.nfe == (5 if skip else 13)
    assert got.times is not None
    assert got.path is not None
    for t, state in zip(got.times.tolist(), got.path, strict=True):
        torch.testing.assert_close(state, VP.flow_map(x, 0.5, t), rtol=0, atol=1.5e-4)


@noisy
def test_seed_gives_the_sample(case: Case) -> None:
    solver, x = make(case), VP.sample(3, 1.0, generator())
    reverse = sm.ReverseSDE(VP.model, (2,))
    state = torch.get_rng_state()
    a, b, c = (
        sm.solve(reverse, x, (1.0, 0.1), solver, steps=5, generator=generator(seed)).x
        for seed in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_flow_leaves_the_global_generator_alone() -> None:
    solver, x = make(("SASolverScheduler", {})), VP.sample(3, 1.0, generator())
    state = torch.get_rng_state()
    sm.solve(VP.flow(), x, (1.0, 0.1), solver, steps=5)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="deterministic here"):
        sm.solve(VP.flow(), x, (1.0, 0.1), solver, generator=generator())


def test_gradient_flows_through_the_steps() -> None:
    x = VP.sample(3, 1.0, generator())
    gradients = []
    for solver in ("diffusers:DDIMScheduler", "ddim"):
        point = x.clone().requires_grad_()
        sm.solve(VP.flow(), point, (1.0, 0.1), solver, steps=5).x.square().sum().backward()
        assert point.grad is not None
        gradients.append(point.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


class LearnedSDE(sm.GaussianSDE):
    """A schedule with a parameter."""

    def __init__(self) -> None:
        super().__init__(t_min=0.01, t_max=1.0)
        self.rate = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def alpha(self, t: Any) -> Tensor:
        return torch.exp(-self.rate * torch.as_tensor(t))

    def sigma(self, t: Any) -> Tensor:
        return torch.sqrt(1 - self.alpha(t).square())


def test_learned_schedule_is_used_and_its_gradient_is_not_lost_silently() -> None:
    model = sm.GaussianMixture(torch.zeros(1, 2), 0.5).double().score_model(LearnedSDE())
    system, x = sm.ProbabilityFlow(model), torch.ones(2, 2, dtype=torch.float64)
    got, wanted = (
        sm.solve(system, x, (1.0, 0.1), solver, steps=9).x
        for solver in ("diffusers:DDIMScheduler", "ddim")
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="no gradient for the parameters of alpha and sigma"):
        sm.solve(system, x, (1.0, 0.1), "diffusers:DDIMScheduler", gradient="direct")


def test_clipping_is_off_unless_asked_for() -> None:
    far = sm.GaussianMixture(torch.full((1, 2), 3.0), 0.1).double().score_model(sm.VPSDE())
    flow, x = sm.ProbabilityFlow(far), torch.randn(4, 2, dtype=torch.float64, generator=generator())
    for name in ("DDIMScheduler", "HeunDiscreteScheduler"):
        free = sm.solve(flow, x, (1.0, 1e-3), make((name, {})), steps=20).x
        clipped = make((name, {"clip_sample": True, "clip_sample_range": 2.0}))
        assert free.mean() > 2.9
        assert sm.solve(flow, x, (1.0, 1e-3), clipped, steps=20).x.max() < 2.1


def test_nan_ends_the_solve_where_it_appears() -> None:
    class Spoiled(torch.nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.where((t < 0.5)[:, None], torch.nan, x)

    flow = sm.ProbabilityFlow(sm.ScoreModel(Spoiled(), sm.VPSDE()))
    with pytest.raises(sm.NonFiniteError, match="after"):
        sm.solve(flow, torch.zeros(2, 2), (1.0, 0.1), make((UNIPC, {})))


def test_every_scheduler_is_offered_or_left_out_for_a_reason() -> None:
    module = importlib.import_module("diffusers.schedulers")
    theirs = {n for n in dir(module) if n.endswith("Scheduler") and not n.startswith("Flax")}
    assert theirs <= SCHEDULERS.keys() | LEFT_OUT.keys()
    assert not SCHEDULERS.keys() & LEFT_OUT.keys()
    offered = diffusers_solvers()
    assert set(offered) == {f"diffusers:{name}" for name in SCHEDULERS.keys() & theirs}
    assert all(maker().name == name for name, maker in offered.items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("UniPC", {}, "did you mean 'diffusers:UniPCMultistepScheduler'"),
        ("EulerDiscretScheduler", {}, "did you mean 'diffusers:EulerDiscreteScheduler'"),
        ("LCMScheduler", {}, "there is no solver 'diffusers:LCMScheduler'.*distilled"),
        (UNIPC, {"solver_ordr": 2}, "no option 'solver_ordr'; did you mean 'solver_order'"),
        (UNIPC, {"use_karras_sigmas": True}, "'use_karras_sigmas'.*grid='karras'"),
        (UNIPC, {"prediction_type": "sample"}, "does not take 'prediction_type'"),
        (UNIPC, {"solver_type": "bh3"}, "bh3 is not implemented"),
        (UNIPC, {"solver_order": 0}, "'solver_order' must be positive"),
        ("EulerDiscreteScheduler", {"order": 2}, "no option 'order'"),
        ("SASolverScheduler", {"predictor_order": 6}, "cannot run"),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "wrong sign"),
    ],
)
def test_what_it_cannot_use_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make((name, options))


def test_name_without_prefix_brings_the_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'diffusers:UniPCMultistepScheduler'"):
        sm.make_solver("UniPCMultistepScheduler")


def test_systems_and_directions_are_refused_as_declared() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="runs down"):
        sm.solve(VP.flow(), x, (0.1, 1.0), make((UNIPC, {})))
    with pytest.raises(ValueError, match="is for ODEs"):
        sm.solve(sm.ReverseSDE(VP.model, (2,)), x, (1.0, 0.1), make((UNIPC, {})))
    with pytest.raises(ValueError, match="is for SDEs"):
        sm.solve(VP.flow(), x, (1.0, 0.1), make(("DDPMScheduler", {})))


def test_without_diffusers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.schedulers", None)
    with pytest.raises(ImportError, match=r"pip install sde-models\[diffusers\]"):
        sm.make_solver("diffusers:DDIMScheduler")


def test_diffusers_is_not_imported_until_it_is_needed() -> None:
    """It takes seconds; in a process of its own, since other tests import it."""
    program = "import sys, sde_models; sde_models.list_solvers(); print('diffusers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
