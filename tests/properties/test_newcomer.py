"""The mistakes a newcomer makes: each is refused, and the message says how to go on."""

from __future__ import annotations

import gc
import pickle
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sde_models as sm

MIXTURE = sm.GaussianMixture([[-1.0, 0.2], [0.8, -0.3]], [0.3, 0.5])
MODEL = MIXTURE.score_model(sm.VPSDE())
X = torch.zeros(4, 2)
SPAN = (1.0, 0.1)


def test_the_package_is_found_next_to_a_clone(tmp_path: Path) -> None:
    (tmp_path / "sde_models").symlink_to(Path(__file__).parents[2])
    code = "import sde_models; sde_models.VPSDE"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


class Any2D(nn.Module):
    """A network that takes any keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t: Tensor, x: Tensor, *, scale: float = 1.0, **rest: Any) -> Tensor:
        return self.linear(x) * scale


class Wrapped(Any2D):
    """The same with something done to what comes in or out."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, t: Tensor, x: Tensor, **rest: Any) -> Any:
        return self.change(self.linear, t, x)


def model(network: nn.Module | None = None) -> sm.ScoreModel:
    return sm.ScoreModel(network or Any2D(), sm.VPSDE())


FUNCTIONS: dict[str, Any] = {
    "sample": lambda **k: sm.sample(model(), (4, 2), **k),
    "encode": lambda **k: sm.encode(model(), X, **k),
    "decode": lambda **k: sm.decode(model(), X, **k),
    "log_prob": lambda **k: sm.log_prob(model(), X, **k),
    "bits_per_dim": lambda **k: sm.bits_per_dim(model(), X, **k),
    "solve": lambda **k: sm.solve(sm.ProbabilityFlow(model()), X, SPAN, **k),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("word", "message"),
    [("step", "did you mean steps="), ("rtoll", "did you mean rtol="),
     ("probes", r"cond=\{'probes': ...\}"), ("max_step", "did you mean max_steps="),
     ("label", r"cond=\{'label': ...\}")],
)  # fmt: skip
def test_misspelt_options_are_named(function: str, word: str, message: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected argument {word}=.*{message}"):
        FUNCTIONS[function](**{word: 10})


MISSPELT: list[tuple[Any, str]] = [
    (lambda: sm.VPSDE(beta=20), "^VPSDE got .* 'beta'; it takes beta_min, beta_max, t_min, t_max,"),  # type: ignore[call-arg]
    (lambda: sm.VESDE(sigma=20), "^VESDE got .* 'sigma'; it takes sigma_min, sigma_max, "),  # type: ignore[call-arg]
    (
        lambda: sm.nn.ResidualNetwork((2,), hidden=9),
        "^ResidualNetwork .* takes event_shape,",
    ),  # type: ignore[call-arg]
    (lambda: sm.nn.UNet((1, 8, 8), width=9), "^UNet .* it takes image_shape, layout, channels"),  # type: ignore[call-arg]
    (lambda: sm.encode(model(), X, solvr="ode:rk4"), "did you mean solver="),
    (lambda: sm.sample(model(), (4, 2), gnerator=None), "did you mean generator="),
    (lambda: sm.log_prob(model(), X, cnd={}), "did you mean cond="),
    (lambda: sm.evaluate(MODEL, X, "none", chnk=2), "evaluate got .* chnk=.*did you mean chunk="),
    (lambda: sm.sample_to_folder(MODEL, 4, "none", chnk=2), "sample_to_folder got .* chunk="),
    (lambda: sm.bits_per_dim(MODEL, X.long(), leves=4), "did you mean levels="),
    (lambda: sm.losses.denoising_score_matching(model(), X, weightng="edm"), "weighting="),
    (lambda: sm.losses.sliced_score_matching(model(), X, probs=1), "did you mean probes="),
    (lambda: sm.maximum_likelihood_loss(model(), X, intervls=12), "maximum_.*mean intervals="),
    (lambda: sm.losses.simulated_score_matching(model(), X, distributon="sphere"), "distribution="),
    (lambda: sm.losses.simulated_score_matching(model(), X, sigm=1.0), r"sigm=: simulated_score"),
    (lambda: sm.log_prob(MODEL, X, nodes=12), "did you mean intervals="),
    (lambda: sm.log_prob(MODEL, X, method="augmented"), "did you mean trace="),
    (lambda: sm.fit(model(), X, steps=1, workers=2), r"workers=: did you mean num_workers=\?$"),
    (lambda: sm.fit(model(), X, steps=1, accumulate=2), "mean gradient_accumulation_steps="),
    (lambda: sm.fit(model(), X, steps=1, ema=0.9), "did you mean ema_decay="),
    (lambda: sm.fit(model(), X, steps=1, learning_rte=0.1), "did you mean learning_rate="),
    (lambda: sm.fit(model(), X, steps=1, lr=0.1), "lr=: did you mean learning_rate="),
    (lambda: sm.fit(model(), X, epochs=1), "epochs=: did you mean steps="),
    (lambda: sm.fit(model(), X, steps=1, device="cpu"), r"device=: move .* model.to\(device\)"),
    (lambda: sm.fit(model(), X, steps=1, cond={}), "cond=: conditions go with the data"),
    (lambda: sm.sample(model(), (4, 2), seed=0), "seed=: give generator="),
    (lambda: sm.log_prob(model(), X, seed=0), "seed=: give generator="),
]


@pytest.mark.parametrize(("call", "message"), MISSPELT, ids=range(len(MISSPELT)))
def test_every_argument_of_a_function_may_be_misspelt(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"got an unexpected argument .*{message}|{message}"):
        call()


DEFAULT: dict[str, Any] = {
    **{
        f"log_prob {name}": lambda **given: (
            sm.log_prob(MODEL, X, "rk-batch", rtol=1e-3, atol=1e-3, **given).solver_error
        )
        for name in ("estimate_solver_error", "trace", "divergence", "intervals", "progress")
    },
    "maximum_likelihood_loss gradient": lambda **given: (
        sm.maximum_likelihood_loss(
            model().requires_grad_(), X, rtol=0.1, atol=0.1, **given
        ).requires_grad
    ),
    "denoising_score_matching stratified": lambda **given: _drawn(**given),
    "make_solver corrector": lambda **given: sm.make_solver("pc", **given).corrector,
    "make_solver solver_order": lambda **given: (
        sm.make_solver("diffusers:DPMSolverMultistepScheduler", **given).order
    ),
    "make_solver churn": lambda **given: sm.make_solver("heun-edm", **given).churn,
    "make_solver safety": lambda **given: sm.make_solver("adaptive-sde", **given).safety,
    "make_solver order": lambda **given: sm.make_solver("adams-batch", **given).order,
    "make_solver window": lambda **given: sm.make_solver("picard", **given).window,
}


def _drawn(**given: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    loss = sm.losses.denoising_score_matching
    return loss(MODEL, X, weighting="simple", generator=generator, **given)


@pytest.mark.parametrize("name", DEFAULT)
def test_none_is_the_default_of_an_option(name: str) -> None:
    function, option = DEFAULT[name], name.split()[1]
    given, left_out = function(**{option: None}), function()
    assert torch.equal(given, left_out) if isinstance(given, Tensor) else given == left_out


def test_conditions_may_have_any_name_but_that_of_time_and_state() -> None:
    class Steps(Any2D):
        def forward(self, t: Tensor, x: Tensor, *, steps: int, label: int) -> Tensor:  # type: ignore[override]
            return self.linear(x) * steps * label

    cond = {"steps": 1, "label": 0}
    out = sm.sample(model(Steps()), (3, 2), "ode:euler", steps=2, cond=cond)
    assert out.nfe == 2
    with pytest.raises(ValueError, match="a condition cannot be named 't'"):
        sm.encode(model(), X, cond={"t": 0.5})


NOT_MODELS: list[tuple[Any, str]] = [
    (MIXTURE, "got GaussianMixture: use mixture.score_model"),
    (Any2D(), "got Any2D: sm.ScoreModel"),
    (Any2D, "got the class Any2D: sm.ScoreModel"),
    ("m.safetensors", r"got str: sm.load_model\(path\)"),
    (Path("m.safetensors"), r"got PosixPath: sm.load_model\(path\)"),
    (sm.ProbabilityFlow(MODEL), "got ProbabilityFlow: it is made of one"),
    (sm.VPSDE(), "got VPSDE: sm.ScoreModel"),
]


@pytest.mark.parametrize(("thing", "message"), NOT_MODELS)
def test_what_is_no_model_is_refused(thing: Any, message: str) -> None:
    for call in (
        lambda: sm.sample(thing, (3, 2)),
        lambda: sm.encode(thing, X),
        lambda: sm.decode(thing, X),
        lambda: sm.log_prob(thing, X),
        lambda: sm.bits_per_dim(thing, X),
        lambda: sm.ProbabilityFlow(thing),
        lambda: sm.ReverseSDE(thing, (2,)),
        lambda: sm.fit(thing, X, steps=1),
    ):
        with pytest.raises(TypeError, match=message):
            call()


OUTPUTS: list[tuple[Any, type[Exception], str]] = [
    (lambda f, t, x: (f(x), None), TypeError, "returned a tuple: .* first entry"),
    (lambda f, t, x: type("Output", (), {"sample": f(x)})(), TypeError, r"\.sample of that"),
    (lambda f, t, x: f(t), RuntimeError, "."),
]


@pytest.mark.parametrize(("change", "kind", "message"), OUTPUTS)
def test_networks_that_would_spoil_the_answer(
    change: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        sm.encode(model(Wrapped(change)), X)


def test_a_network_that_cuts_the_graph_has_no_likelihood() -> None:
    network = Wrapped(torch.no_grad()(lambda f, t, x: f(x)))
    assert sm.encode(model(network), X).nfe > 0
    with pytest.raises(ValueError, match="cuts the graph"):
        sm.log_prob(model(network), X)
    cut = sm.EnergyModel(Wrapped(lambda f, t, x: x.detach().square().sum(1)), sm.VPSDE())
    with pytest.raises(ValueError, match="cuts the graph"):
        cut.score(0.5, X)


def test_the_order_of_the_networks_arguments_is_said() -> None:
    class Positional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(TypeError) as caught:
        sm.encode(model(Positional()), X)
    assert "network(t, x, **cond)" in caught.value.__notes__[0]


@pytest.mark.parametrize("order", ["t, x", "x, t"])
def test_a_network_that_fails_is_said_to_be_called_with_time_first(order: str) -> None:
    """Its own error stays, and the names of its arguments are added."""

    class Swapped(nn.Module):
        def forward(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
            return torch.cat([x, t[:, None]], 1)

    class Labelled(nn.Module):
        def forward(self, t: Tensor, x: Tensor, *, label: Tensor | None = None) -> Tensor:
            return x

    network, cond, kind = {
        "t, x": (Labelled(), {"lable": LABELS}, TypeError), "x, t": (Swapped(), {}, IndexError)
    }[order]  # fmt: skip
    with pytest.raises(kind, match=r"lable|Dimension out of range") as caught:
        sm.sample(model(network), (4, 2), cond=cond)
    [note] = caught.value.__notes__
    assert note == (
        "the network is called as network(t, x, **cond), with t of shape (B,), and its forward "
        f"takes ({order}, label)"
    )


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(2)])
def test_a_network_in_training_mode_is_refused(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    wrapped = model(Wrapped(lambda f, t, x: f(network(x))))
    wrapped.network.add_module("inner", network)
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        sm.encode(wrapped, X)
    assert sm.encode(wrapped.eval(), X).nfe > 0


def test_half_precision_networks_have_a_float32_state() -> None:
    half = model().to(torch.bfloat16)
    out = sm.sample(half, (3, 2), "ode:rk4", steps=5)
    assert out.x.dtype == torch.float32
    with pytest.raises(TypeError, match="too coarse for the state"):
        sm.encode(half, X.bfloat16())


def drawn(**given: Any) -> sm.Sample:
    return sm.sample(MODEL, (3, 2), **{"return_log_prob": True} | given)


def matched(**given: Any) -> Tensor:
    return sm.losses.denoising_score_matching(MODEL, X, **{"weighting": "simple"} | given)


def fitted(data: Any) -> Any:
    return sm.fit(model(), data, steps=1, progress=False)


LABELS = torch.zeros(4, dtype=torch.long)

CALLS: list[tuple[Any, type[Exception], str]] = [
    (lambda: fitted((X, LABELS)), TypeError, r"tuple of Tensor, Tensor; .* items \(x0, {"),
    (lambda: fitted(X.numpy()), TypeError, "a ndarray; .* as torch.as_tensor makes it"),
    (lambda: fitted(TensorDataset(X, LABELS)), TypeError, 'by name such as {"label": 3}'),
    (lambda: sm.decode(MODEL, sm.encode(MODEL, X)), TypeError, r"got Encoding; use its \.z"),
    (lambda: sm.log_prob(MODEL, sm.decode(MODEL, X)), TypeError, r"got Decoding; use its \.x"),
    (lambda: sm.save_model(model(), "m"), TypeError, r"save_model\(path, model\) writes a Score"),  # type: ignore[arg-type]
    (lambda: sm.sample(MODEL, torch.zeros(500, 2)), ValueError, r"a Tensor of shape \(500, 2\);"),
    (lambda: sm.encode(MODEL, X, path=torch.ones(9, 2)), ValueError, r"shape \(9, 2\) for a batch"),
    (lambda: sm.encode(MODEL, X, rtol=torch.ones(9)), ValueError, r"a Tensor of shape \(9,\)$"),
    (lambda: MODEL.score(X, 0.5), ValueError, r"arguments come as \(t, x\)"),
    (lambda: MODEL.eps(X, torch.rand(4)), ValueError, r"arguments come as \(t, x\)"),
    (lambda: MODEL(0.5, X), TypeError, r"not called itself: use its score, .* as score\(t, x\)"),
    (
        lambda: sm.ScoreModel(Any2D(), sm.VPSDE(), "noise"),
        ValueError, "unknown prediction 'noise'; known: eps, x0, v, score",
    ),
    (
        lambda: sm.ScoreModel(Any2D(), sm.VPSDE(), "esp"),
        ValueError, r"did you mean 'eps'\? known: eps, x0, v, score",
    ),
    (lambda: sm.sample(MODEL, 64), ValueError, r"\(n, \*event\).*got 64"),
    (lambda: sm.sample(MODEL, (3, 2), dtype=torch.int32), TypeError, "floating dtype"),
    (lambda: sm.sample(MODEL, (3, 2), "euler-maruyama", generator=0), TypeError, "manual_seed"),
    (lambda: sm.encode(MODEL, X.numpy()), TypeError, "got ndarray; use torch.as_tensor"),
    (lambda: MODEL.score(0.5, X.numpy()), TypeError, "got ndarray"),
    (lambda: MODEL.score("0.5", X), TypeError, "t must be a number or a tensor"),
    (lambda: MODEL.sde.perturb(0.5, [0.0], X), TypeError, "x0 must be a torch.Tensor"),
    (lambda: sm.ProbabilityFlow(MODEL)(X, torch.tensor(0.5)), TypeError, r"called as \(t, x\)"),
    (lambda: sm.ScoreModel(sm.VPSDE(), Any2D()), TypeError, "sde must be an SDE"),
    (lambda: sm.ScoreModel(Any2D(), sm.VPSDE), TypeError, "got the class VPSDE"),
    (lambda: sm.log_prob(MODEL, X, divergence=sm.Hutchinson), TypeError, "an object such as"),
    (lambda: sm.encode(MODEL, X, solver=sm.Solver), TypeError, "a name or a solver, got <class"),
    (lambda: sm.encode(MODEL, X, rtol="1e-3"), ValueError, "rtol must be positive"),
    (lambda: sm.encode(MODEL, X, path="all"), ValueError, "path must be True, False, or times"),
    (lambda: sm.encode(MODEL, X, "ode:rk4", grid=["a"]), ValueError, "grid must be a name"),
    (lambda: sm.encode(MODEL, X, "ode:rk4", steps=True), ValueError, "steps must be an integer"),
    (lambda: sm.make_solver("ode:dopri5", first_step=-1.0), ValueError, "must be positive"),
    (lambda: sm.make_solver("dpmpp-2m", orde=3), ValueError, "'dpmpp-2m' has no option 'orde'"),
    (lambda: sm.make_solver("flow-abm-4", order=3), ValueError, "no option 'order'"),
    (lambda: sm.evaluate(MODEL, X, "none", importance_samples=3), ValueError, "give levels="),
    (lambda: sm.sample_to_folder(MODEL, 4, "none", event_shape=3), ValueError, "event_shape must"),
    (lambda: drawn(density={"solver": "ode:rk4"}), TypeError, "is no option of the densities"),
    (lambda: drawn(density={"divergnce": "exact"}), TypeError, "did you mean 'divergence'"),
    (lambda: drawn(density=["exact"]), TypeError, "density must be a dictionary of options"),
    (lambda: drawn(prior="normal"), TypeError, "prior must be an object with sample,"),
    (lambda: sm.log_prob(MODEL, X, prior=3), TypeError, "prior must be an object with log_prob,"),
    (lambda: drawn(dtype="float64"), TypeError, "dtype must be a floating dtype .*'float64'"),
    (lambda: drawn(denoise="no"), ValueError, "denoise must be True or False"),
    (lambda: drawn(eta="a", solver="ddim", return_log_prob=False), ValueError, "eta must be 0 or"),
    (lambda: matched(weighting=None), TypeError, "weighting must be a name, or an object"),
    (lambda: matched(times=3), TypeError, "times must be a name, or a function"),
    (lambda: matched(noise=np.zeros((4, 2))), TypeError, "noise must be a tensor"),
    (lambda: matched(stratified="no"), ValueError, "stratified must be True or False"),
    (lambda: sm.losses.denoising_score_matching(Any2D(), X), TypeError, "expected a model"),
    (lambda: sm.losses.simulated_score_matching(Any2D(), X), TypeError, "expected a model"),
    (
        lambda: sm.losses.sliced_score_matching(MODEL, X, variance_reduced=None),
        ValueError, "variance_reduced must be True or False, got None",
    ),
    (
        lambda: sm.log_prob(MODEL, X, prior=torch.distributions.Normal(0.0, 1.0)),
        ValueError, "torch.distributions.Independent",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), CALLS, ids=range(len(CALLS)))
def test_other_slips(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_numpy_counts_and_torch_priors_are_fine() -> None:
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    out = sm.sample(MODEL, (np.int64(3), 2), "ode:rk4", steps=np.int64(4), prior=prior)  # type: ignore[arg-type]
    assert out.nfe == 16
    assert sm.log_prob(MODEL, X, prior=prior).value.shape == (4,)


def test_the_default_generator_moves_on() -> None:
    system = sm.ReverseSDE(MODEL, (2,))
    runs = [
        sm.solve(system, X, SPAN, name, steps=3, generator=torch.default_generator).x
        for name in ("sde:heun", "sde:heun", "euler-maruyama")
    ]
    assert not torch.equal(runs[0], runs[1])


@dataclass
class Scales:
    w: Tensor


PLACES: dict[str, tuple[str, Any, Any]] = {
    "tensor": ("w", lambda w: {"w": w}, lambda c: c["w"]),
    "first of two": (
        "a['w']", lambda w: {"a": {"w": w}, "b": {"w": w.detach()}}, lambda c: c["a"]["w"]
    ),
    "last of two": (
        "a['w']", lambda w: {"b": {"w": w.detach()}, "a": {"w": w}}, lambda c: c["a"]["w"]
    ),
    "list": ("w[0]", lambda w: {"w": list(w)}, lambda c: torch.stack(list(c["w"]))),
    "list of mappings": (
        "w[0]['v']", lambda w: {"w": [{"v": v} for v in w]},
        lambda c: torch.stack([v["v"] for v in c["w"]]),
    ),
    "dataclass": ("w['w']", lambda w: {"w": Scales(w)}, lambda c: c["w"].w),
}  # fmt: skip
BOUND_OR_GIVEN = [(place, bound) for place in PLACES for bound in (True, False)]
BOUND_OR_GIVEN.remove(("dataclass", False))


class Reads(nn.Module):
    """A network that multiplies by what it reads in its conditions."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.read, self.gain = read, nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, /, **cond: Any) -> Tensor:
        return self.gain * torch.tanh(x) * self.read(cond)


@pytest.mark.parametrize(("place", "bound"), BOUND_OR_GIVEN)
def test_conditions_get_their_gradient_or_are_refused(place: str, bound: bool) -> None:
    """Wherever they lie: that of a difference, and none by the adjoint."""
    name, put, read = PLACES[place]
    made, x = model(Reads(read)), torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)

    def end(w: Tensor, gradient: str | None = None) -> Tensor:
        used, cond = (made.bind(**put(w)), None) if bound else (made, put(w))
        return sm.decode(used, x, "ode:rk4", steps=5, gradient=gradient, cond=cond).x

    w = torch.linspace(0.5, 1, 4, dtype=torch.float64)[:, None].requires_grad_()
    step = torch.full_like(w, 1e-6, requires_grad=False)
    wanted = (end(w.detach() + step) - end(w.detach() - step)).sum(1, keepdim=True) / 2e-6
    assert not end(w.detach()).requires_grad
    with torch.no_grad():
        assert not end(w).requires_grad
    for gradient in (None, "direct"):
        (found,) = torch.autograd.grad(end(w, gradient).sum(), w)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=re.escape(f"to the condition {name!r}: use")):
        end(w, "adjoint")


def test_a_bound_tensor_has_its_gradient_in_densities() -> None:
    """By the augmented flow too, whose conditions are those of the flow in it."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    made = model(Reads(lambda cond: cond["w"]))
    options: Any = {"steps": 8, "estimate_solver_error": False, "trace": "augmented"}

    def value(w: Any, **own: Any) -> Tensor:
        return sm.log_prob(made.bind(w=w), x, "ode:rk4", **options, **own).value.sum()

    (found,) = torch.autograd.grad(value(w), w)
    wanted = (value(w.detach() + 1e-5) - value(w.detach() - 1e-5)) / 2e-5
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="to the condition 'w'"):
        value(w, gradient="adjoint")


def test_a_bound_parameter_is_one_of_the_model() -> None:
    """The adjoint gives its gradient, no graph is kept unasked, and fit trains it as a weight."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    w = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
    bound = model(Reads(lambda cond: cond["w"])).bind(w=w)
    assert not sm.decode(bound, x, "ode:rk4", steps=50).x.requires_grad
    direct, adjoint = (
        torch.autograd.grad(
            sm.decode(bound, x, "ode:rk4", steps=50, gradient=kind).x.sum(), w
        )[0]
        for kind in ("direct", "adjoint")
    )  # fmt: skip
    torch.testing.assert_close(adjoint, direct, rtol=1e-4, atol=1e-6)

    own = Reads(lambda cond: own.scale)  # type: ignore[has-type]
    own.scale = nn.Parameter(w.detach().clone())
    fit: Any = partial(
        sm.fit, data=x, steps=5, batch_size=4, learning_rate=0.1, warmup=1, seed=0, progress=False
    )
    trained, truth = fit(bound), fit(model(own))
    assert bool(w != 0.8)
    assert torch.equal(w, own.scale)
    assert torch.equal(trained.model.bound["w"], truth.model.network.scale)


def test_the_adjoint_refuses_a_path_it_would_cut() -> None:
    z = X.clone().requires_grad_()
    for solver, path in (("ode:rk4", True), ("ode:rk4", [0.5]), ("ode:dopri5", True)):
        with pytest.raises(ValueError, match="gradient to the states of path="):
            sm.decode(MODEL, z, solver, gradient="adjoint", path=path)
    got, wanted = (
        torch.autograd.grad(
            sm.decode(
                MODEL, z, "ode:dopri5", gradient=way, path=[0.5, 0.2], rtol=1e-6, atol=1e-6
            ).path.sum(), z
        )[0]
        for way in ("adjoint", "direct")
    )  # fmt: skip
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_a_single_step_has_no_coarser_solve() -> None:
    for arguments in ({"steps": 1}, {"grid": [1e-5, 1.0]}):
        lp = sm.log_prob(MODEL, X, "ode:euler", **arguments)  # type: ignore[arg-type]
        assert bool(lp.solver_error.isnan().all())


def test_path_times_in_float32_are_taken_and_not_stepped_twice() -> None:
    times = torch.linspace(1.0, 1e-5, 11)
    flow = sm.ProbabilityFlow(MODEL)
    got = sm.solve(flow, X, (1.0, 1e-5), "ode:euler", steps=10, grid="uniform", path=times)
    assert got.nfe == 10
    assert got.path is not None
    assert len(got.path) == 11


def test_denoising_counts_what_it_costs() -> None:
    class Twice(Any2D):
        pass

    class Guided(sm.ScoreModel):
        def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            super().denoise(t, x, **cond)
            return super().denoise(t, x, **cond)

    guided = Guided(Twice(), sm.VPSDE())
    with sm.count_evaluations() as counter:
        out = sm.sample(guided, (3, 2), "ode:euler", steps=5, denoise=True)
    assert out.nfe == counter.calls == 12


def test_answers_that_are_not_finite_are_refused() -> None:
    class Bursts(sm.SDE):
        def f(self, t: Any, x: Tensor) -> Tensor:
            return 0 * x

        def g(self, t: Any, x: Tensor) -> Tensor:
            return torch.full_like(x, float("inf") if t > 0.6 else 1.0)

    with pytest.raises(sm.NonFiniteError, match="ended at t=1"):
        sm.solve(Bursts(), X, (0.0, 1.0), "euler-maruyama", grid=[0.0, 0.61, 1.0])


def test_noise_of_another_shape_is_refused() -> None:
    class Norm(sm.SDE):
        def f(self, t: Any, x: Tensor) -> Tensor:
            return -x

        def g(self, t: Any, x: Tensor) -> Tensor:
            return x.norm(dim=1)

    for name in ("euler-maruyama", "sde:heun"):
        with pytest.raises(ValueError, match=r"noise scale of Norm has shape \(2,\)"):
            sm.solve(Norm(), torch.ones(2, 2), (0.0, 1.0), name, steps=2)


def test_a_failed_assertion_of_the_network_stays_its_own() -> None:
    def refuse(f: Any, t: Tensor, x: Tensor) -> Tensor:
        raise AssertionError("I want three channels")

    with pytest.raises(AssertionError, match="I want three channels"):
        sm.encode(model(Wrapped(refuse)), X)


def test_errors_travel_between_processes() -> None:
    with pytest.raises(sm.StepLimitError) as caught:
        sm.encode(MODEL, X, "ode:dopri5", max_steps=2)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is sm.StepLimitError
    assert str(copy) == str(caught.value)
    assert (copy.t, copy.nfe) == (caught.value.t, caught.value.nfe)
    assert torch.equal(copy.x, caught.value.x)


@pytest.mark.parametrize("name", ["ode:dopri5", "ode:rk4", "euler-maruyama", "sde:heun"])
def test_nothing_waits_for_the_garbage_collector(name: str) -> None:
    """With gradients on, what a solve leaves behind would be the whole graph."""
    gc.collect()
    gc.disable()
    try:
        x = X.clone().requires_grad_()
        stochastic = sm.list_solvers()[name].stochastic
        system = sm.ReverseSDE(model(), (2,)) if stochastic else sm.ProbabilityFlow(model())
        solution = sm.solve(system, x, SPAN, name)
        end = weakref.ref(solution.x)
        assert solution.x.requires_grad
        del solution
        assert end() is None
    finally:
        gc.enable()


def test_inference_mode_with_conditions() -> None:
    made_before = model()
    with torch.inference_mode():
        scale = torch.ones(4, 1)
        assert sm.log_prob(made_before, X, cond={"scale": scale}).value.shape == (4,)
