"""Descriptions of values by content: what must differ differs, and the same value agrees."""

from __future__ import annotations

import enum
import functools
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    ComposeTransform,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torch.utils.data import Dataset, Subset, TensorDataset

import sde_models as sm
from sde_models.losses import denoising_score_matching, level_times, min_snr
from sde_models.shards.fingerprints import (
    ITEMS,
    describe,
    describe_data,
    describe_module,
    list_differences,
)

Point = namedtuple("Point", "x y")
Other = namedtuple("Other", "x y")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Choice:
    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Slotted:
    weight: float


class Plain(nn.Module):
    """A network with numbers where torch does not look."""

    def __init__(self, k: float = 0.1, hidden: float = 1.0, most: int = 3) -> None:
        super().__init__()
        self.k, self._hidden, self.most = k, {"of": [torch.tensor(hidden)]}, most
        self.layer = nn.Linear(2, 2)
        self.register_buffer("fixed", torch.tensor([hidden]), persistent=False)
        nn.init.constant_(self.layer.weight, 0.3)
        nn.init.zeros_(self.layer.bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(x) * self.k


class Nested:
    """A value in itself, with a lock and a generator."""

    def __init__(self, value: float) -> None:
        self.value, self.me, self.lock = value, [self], threading.Lock()
        self.generator, self.numbers = torch.Generator(), np.random.default_rng()


def scaled(by: Any, more: float = 1.0) -> Callable[[float], float]:
    def inner(x: float, *, offset: float = more) -> float:
        return float(x * by + offset)

    return inner


def score(network: nn.Module | None = None, sde: Any = None, **arguments: Any) -> sm.ScoreModel:
    return sm.ScoreModel(network or Plain(), sde or sm.VPSDE(), **arguments)


def pictures(network: nn.Module) -> sm.ScoreModel:
    return score(network, event_shape=(1, 8, 8))


def large(index: int | None = None, by: float = 1e-9) -> np.ndarray:
    values = np.ones(3000)
    if index is not None:
        values[index] += by
    return values


def normal(loc: float) -> Independent:
    return Independent(Normal(torch.full((2,), loc), torch.ones(2)), 1)


def layers(*names: str) -> nn.Sequential:
    made = {"a": nn.Flatten(), "b": nn.Tanh()}
    return nn.Sequential(OrderedDict((name, made[name]) for name in names))


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "integers": (lambda: 1, lambda: 2),
    "integer and float": (lambda: 1, lambda: 1.0),
    "boolean and integer": (lambda: True, lambda: 1),
    "floats": (lambda: 1.0, lambda: 1.0 + 2**-52),
    "text": (lambda: "None", lambda: None),
    "bytes": (lambda: b"a", lambda: b"b"),
    "enumerations": (lambda: Color.RED, lambda: Color.BLUE),
    "dtypes": (lambda: torch.float32, lambda: torch.float64),
    "paths": (lambda: Path("a"), lambda: Path("b")),
    "ranges": (lambda: range(3), lambda: range(4)),
    "fifth digit of a tensor": (lambda: torch.tensor(1.00001), lambda: torch.tensor(1.00002)),
    "tensors in a mapping": (lambda: {"w": torch.zeros(9)}, lambda: {"w": torch.ones(9)}),
    "dtype of a tensor": (lambda: torch.zeros(2), lambda: torch.zeros(2).half()),
    "shape of a tensor": (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
    "long array": (large, lambda: large(1500)),
    "long list": (lambda: [1.0] * 3000, lambda: [1.0] * 2999 + [1.5]),
    "array of text": (lambda: np.array(["a"]), lambda: np.array(["b"])),
    "array of objects": (lambda: np.array([None, 1]), lambda: np.array([None, 2])),
    "sets": (lambda: {"a", "b"}, lambda: {"a", "c"}),
    "named tuples": (lambda: Point(1, 2), lambda: Other(1, 2)),
    "dataclasses": (lambda: Choice("a", 1.0), lambda: Choice("a", 2.0)),
    "slots": (lambda: Slotted(1.0), lambda: Slotted(2.0)),
    "plain objects": (lambda: SimpleNamespace(a=[large()]), lambda: SimpleNamespace(a=[large(7)])),
    "cycles": (lambda: Nested(1.0), lambda: Nested(2.0)),
    "classes": (lambda: Plain, lambda: Nested),
    "enclosed values": (lambda: scaled(1.0), lambda: scaled(2.0)),
    "enclosed arrays": (lambda: scaled(large()), lambda: scaled(large(9))),
    "keyword defaults": (lambda: scaled(1.0, 1.0), lambda: scaled(1.0, 2.0)),
    "lambdas": (lambda: lambda x: x, lambda: lambda x: x + 1),
    "constants of lambdas": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "bound methods": (lambda: Point(1, 2).index, lambda: Point(1, 3).index),
    "functions of torch": (lambda: torch.tanh, lambda: torch.sin),
    "levels of noise": (lambda: level_times([1, 2]), lambda: level_times([1, 3])),
    "min-SNR": (lambda: min_snr(1), lambda: min_snr(9)),
    "partials": (
        lambda: functools.partial(denoising_score_matching, weighting=min_snr(1)),
        lambda: functools.partial(denoising_score_matching, weighting=min_snr(2)),
    ),
    "distributions": (lambda: normal(0.0), lambda: normal(1e-7)),
    "covariances": (
        lambda: MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda: MultivariateNormal(torch.zeros(2), 2 * torch.eye(2)),
    ),
    "logits": (lambda: Categorical(torch.ones(3)), lambda: Categorical(torch.tensor([1, 1, 2]))),
    "transforms": (lambda: AffineTransform(0.0, 1.0), lambda: AffineTransform(0.0, 2.0)),
    "inverse transforms": (
        lambda: AffineTransform(0.0, 1.0).inv,
        lambda: AffineTransform(0.0, 2.0).inv,
    ),
    "composed transforms": (
        lambda: ComposeTransform([TanhTransform(), AffineTransform(0.0, 1.0)]),
        lambda: ComposeTransform([TanhTransform(), AffineTransform(0.0, 2.0)]),
    ),
    "transformed distributions": (
        lambda: TransformedDistribution(normal(0.0), [AffineTransform(0.0, 1.0)]),
        lambda: TransformedDistribution(normal(0.0), [AffineTransform(0.0, 2.0)]),
    ),
    "margins": (lambda: sm.data.LogitTransform(), lambda: sm.data.LogitTransform(0.1)),
    "solvers": (
        lambda: sm.make_solver("heun-edm", churn=40),
        lambda: sm.make_solver("heun-edm", churn=1),
    ),
    "predictions": (lambda: score(prediction="eps"), lambda: score(prediction="x0")),
    "preconditioning": (lambda: score(preconditioning="edm"), lambda: score(prediction="eps")),
    "attributes": (lambda: score(Plain(k=0.1)), lambda: score(Plain(k=0.2))),
    "hidden attributes": (lambda: score(Plain(hidden=1.0)), lambda: score(Plain(hidden=2.0))),
    "standard deviations": (lambda: score(sde=sm.VESDE()), lambda: score(sde=sm.VESDE(data_std=2))),
    "first times": (lambda: sm.CosineSDE(), lambda: sm.CosineSDE(t_min=1e-2)),
    "bound tensors": (
        lambda: score().bind(w=torch.tensor([1.00001])),
        lambda: score().bind(w=torch.tensor([1.00002])),
    ),
    "bound mappings": (
        lambda: score().bind(c={"w": torch.zeros(2000)}),
        lambda: score().bind(c={"w": torch.ones(2000)}),
    ),
    "bound arrays": (lambda: score().bind(w=large()), lambda: score().bind(w=large(1500))),
    "mixtures": (
        lambda: sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE()),
        lambda: sm.GaussianMixture(torch.zeros(1, 2), 1.5).score_model(sm.VPSDE()),
    ),
    "order of layers": (lambda: layers("a", "b"), lambda: layers("b", "a")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_described_otherwise_and_the_same_value_alike(name: str) -> None:
    first, second = PAIRS[name]
    assert describe(first()) == describe(first())
    assert describe(second()) == describe(second())
    assert describe(first()) != describe(second())


SCRIPT = f"""
import sys
sys.path.insert(0, sys.argv[1])
from {__name__} import PAIRS, describe
print("\\n".join(describe(make()) for pair in PAIRS.values() for make in pair))
"""


def test_another_process_describes_the_same_values_alike() -> None:
    """With another hash seed, so that sets come in another order."""
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"},
    ).stdout  # fmt: skip
    assert there.splitlines() == [describe(make()) for pair in PAIRS.values() for make in pair]
    assert " at 0x" not in there


def used(model: sm.ScoreModel) -> sm.ScoreModel:
    """The same after a training step's worth of use, which leaves the weights as they were."""
    shape = model.event_shape or (2,)
    sm.sample(model, (2, *shape), solver="ddim", steps=2)
    sm.log_prob(model, torch.zeros(2, *shape), rtol=1.0, atol=1.0)
    denoising_score_matching(model, torch.zeros(2, *shape), weighting="simple").backward()
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "plain": score,
    "edm": lambda: score(preconditioning="edm"),
    "residual": lambda: score(sm.nn.ResidualNetwork((2,), width=8, depth=1)),
    "mixing": lambda: pictures(sm.nn.MixingNetwork((1, 8, 8), width=8, depth=1)),
    "unet": lambda: pictures(sm.nn.find_network("ddpm++", (1, 8, 8), width=32, depth=1)),
    "energy": lambda: sm.EnergyModel(Energy(), sm.VPSDE()),
    "bound": lambda: score().bind(),
    "recurrent": lambda: score(Recurrent()),
}


class Energy(Plain):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return super().forward(t, x).square().sum(1)


class Recurrent(nn.Module):
    """An LSTM lists its weights in an attribute, with weak references."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(2, 2, batch_first=True)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.inner(x[:, None])[0][:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_use_mode_and_place_change_no_description(name: str) -> None:
    model = MODELS[name]()
    before = describe(model), describe_module("model", model, trained=False)
    for change in (used, nn.Module.eval, nn.Module.train, lambda m: m.cpu(), nn.Module.zero_grad):
        change(model)
        assert (describe(model), describe_module("model", model, trained=False)) == before
    model.register_forward_hook(lambda *_: None)
    assert describe(model) == before[0]
    assert describe(torch.compile(model)) == before[0]
    network = getattr(model, "network", None)
    if network is not None:
        network.compile()
        assert describe(model) == before[0]
        model.network = torch.compile(network)
        assert describe(model) == before[0]
    model.data_range = (0.0, 1.0)
    assert describe(model) == before[0]


def test_weights_count_where_they_are_not_trained() -> None:
    model = score()
    full, shape = describe(model), describe(model, trained=False)
    with torch.no_grad():
        model.network.layer.bias.add_(1e-3)
    assert describe(model) != full
    assert describe(model, trained=False) == shape
    model.network.layer.bias.requires_grad_(False)
    assert describe(model, trained=False) != shape


def test_use_changes_no_distribution_and_no_transform() -> None:
    made = [
        MultivariateNormal(torch.zeros(2), torch.eye(2)), Categorical(torch.ones(3)),
        TanhTransform(cache_size=1), AffineTransform(0.0, 1.0), normal(0.0),
    ]  # fmt: skip
    before = [describe(value) for value in made]
    made[0].precision_matrix.sum()
    made[1].logits.sum()
    made[2].inv(made[2](torch.zeros(2)))
    assert made[3].inv is not made[3]
    made[4].sample((3,))
    assert [describe(value) for value in made] == before


def test_the_same_numbers_agree_however_they_are_held() -> None:
    numbers = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    assert describe(numbers) == describe(numbers.numpy())
    assert describe(numbers.T) == describe(numbers.T.contiguous())
    assert describe(numbers.to_sparse()) == describe(numbers)
    assert describe(np.float64(0.1)) == describe(0.1)
    assert describe({"a": 1, "b": 2}) == describe({"b": 2, "a": 1})
    assert describe(nn.Parameter(numbers)) == describe(numbers)
    numbers = torch.complex(numbers, numbers)
    assert describe(numbers.conj()) == describe(numbers.conj_physical()) != describe(numbers)


def test_attributes_that_a_class_names_are_left_out() -> None:
    class Counts(Plain):
        described_apart = frozenset({"most"})

    assert describe(Counts(most=1)) == describe(Counts(most=2)) != describe(Counts(k=2.0))


def test_large_tensors_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    whole = describe(x), describe(x.numpy()), describe(x[::2])
    monkeypatch.setattr("sde_models.shards.tensor_hashes.AT_ONCE", 100)
    assert (describe(x), describe(x.numpy()), describe(x[::2])) == whole


class Items(Dataset[Any]):
    """Items with one that differs, and a list of those that are read."""

    def __init__(self, length: int, odd: int | None = None) -> None:
        self.length, self.odd, self.read = length, odd, list[int]()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return torch.full((2,), float(index == self.odd)), index


class Noisy(Items):
    def __getitem__(self, index: int) -> Any:
        return torch.randn(2) + float(index == self.odd)


class Free(Items):
    """Noise that no seed of torch's or NumPy's fixes."""

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(np.random.default_rng().normal(size=2))


def test_a_dataset_is_compared_by_a_spread_of_its_items() -> None:
    data = Items(10_000)
    described = describe_data(data)
    places = set(data.read)
    assert len(places) == ITEMS
    assert {0, 9_999} < places
    for odd in (0, sorted(places)[30], 9_999):
        assert describe_data(Items(10_000, odd)) != described
    assert describe_data(Items(9_999)) != described
    assert describe_data(Items(3, 1)) != describe_data(Items(3))
    assert describe_data(Noisy(3)) == describe_data(Noisy(3)) != describe_data(Noisy(3, 1))
    assert describe_data(Free(3)) == describe_data(Free(3))
    x = torch.zeros(1000, 2)
    y = x.clone()
    y[500] = 1
    for hold in (lambda v: v, TensorDataset, lambda v: Subset(TensorDataset(v), range(900))):
        assert describe_data(hold(x)) != describe_data(hold(y))
        assert describe_data(hold(x)) == describe_data(hold(x.clone()))


class Around:
    """A prior of a user's own."""

    def __init__(self, mean: float) -> None:
        self.mean = normal(mean)

    def sample(self, shape: Any, generator: torch.Generator) -> Tensor:
        return self.mean.mean + torch.randn(*shape, 2, generator=generator)


class Linear(nn.Module):
    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, t: Tensor, x: Tensor, w: Any = 0.0) -> Tensor:
        return self.k * x + torch.as_tensor(w).to(x).mean()


X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def work(out: Path, **changes: Any) -> tuple[int, Tensor]:
    """Number of samples that were resumed, and the results of all."""
    given = {
        "k": 0.1, "prediction": "eps", "sde": sm.VPSDE(), "x": X, "w": large(), "bound": None,
        "do": sm.evaluate,
    } | changes  # fmt: skip
    names = ("k", "prediction", "sde", "x", "w", "bound", "do")
    k, prediction, sde, x, w, bound, do = (given.pop(name) for name in names)
    model: sm.Model = sm.ScoreModel(Linear(k), sde, prediction=prediction)
    if bound is None:
        given["cond"] = {"w": w[None]}
    else:
        model = model.bind(w=bound)
    if do is sm.sample_to_folder:
        given |= {"event_shape": (2,), "solver": "ddim", "steps": 3}
        x = len(x)
    else:
        given |= {"rtol": 0.1, "atol": 0.1}
    found = do(model, x, out, chunk=3, progress=False, **given)
    value = found.value if do is sm.evaluate else torch.stack(list(found))
    return found.resumed, value


CHANGES: list[tuple[str, dict[str, Any]]] = [
    (r"model.prediction: .*Eps.* there, .*X0.* now", {"prediction": "x0"}),
    (r"model.network.k: 0.1 there, 0.2 now", {"k": 0.2}),
    (r"model.sde.data_std: 1.0 there, 0.5 now", {"sde": sm.VPSDE(data_std=0.5)}),
    (r"cond: ", {"w": large(1500)}),
    (r"model: .*ScoreModel there, .*BoundModel now", {"bound": large()}),
]
OF_DATA = [(r"data: tensor", {"x": X + 1}), (r"data: tensor", {"x": X.double()})]


@pytest.mark.parametrize("do", [sm.evaluate, sm.encode_to_folder, sm.decode_to_folder])
def test_work_on_other_models_conditions_and_data_is_refused_by_name(
    tmp_path: Path, do: Any
) -> None:
    assert work(tmp_path, do=do)[0] == 0
    resumed, value = work(tmp_path, do=do)
    assert resumed == 6
    for difference, changes in CHANGES + OF_DATA:
        with pytest.raises(ValueError, match=f"other settings .*{difference}"):
            work(tmp_path, do=do, **changes)
    assert torch.equal(work(tmp_path, do=do, x=X.clone())[1], value)


def test_samples_of_other_models_conditions_and_arguments_are_refused_by_name(
    tmp_path: Path,
) -> None:
    sample = sm.sample_to_folder
    assert work(tmp_path, do=sample, prior=Around(0.0))[0] == 0
    assert work(tmp_path, do=sample, prior=Around(0.0))[0] == 6
    prior = (r"argument prior: .*Around.* there", {"prior": Around(1.0)})
    for difference, changes in [*CHANGES, prior]:
        with pytest.raises(ValueError, match=f"other settings .*{difference}"):
            work(tmp_path, do=sample, **{"prior": Around(0.0)} | changes)


def test_bound_conditions_are_compared(tmp_path: Path) -> None:
    work(tmp_path, bound=torch.tensor([1.00001]))
    assert work(tmp_path, bound=torch.tensor([1.00001]))[0] == 6
    with pytest.raises(ValueError, match=r"model\.bound_w: "):
        work(tmp_path, bound=torch.tensor([1.00002]))


def test_shards_of_other_content_are_other_data(tmp_path: Path) -> None:
    work(tmp_path / "a", do=sm.encode_to_folder)
    work(tmp_path / "b", do=sm.encode_to_folder, x=X + 1)
    a, b = sm.Shards(tmp_path / "a"), sm.Shards(tmp_path / "b")
    work(tmp_path / "out", do=sm.decode_to_folder, x=a)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert work(tmp_path / "out", do=sm.decode_to_folder, x=sm.Shards(tmp_path / "moved"))[0] == 6
    with pytest.raises(ValueError, match=r"other settings \(data: "):
        work(tmp_path / "out", do=sm.decode_to_folder, x=b)


def test_results_of_an_earlier_format_are_refused(tmp_path: Path) -> None:
    work(tmp_path)
    file = tmp_path / "settings.json"
    settings = json.loads(file.read_text()) | {"format": 1}
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"other settings \(format: 1 there, 2 now\)"):
        work(tmp_path)


def test_a_difference_has_a_name() -> None:
    first, second = (
        describe_module("model", score(Plain(k), sde))
        for k, sde in ((1, sm.VPSDE()), (2, sm.VPSDE(beta_max=10.0)))
    )
    assert list_differences(first, second) == [
        "model.network.k: 1 there, 2 now", "model.sde.beta_max: 20.0 there, 10.0 now"
    ]  # fmt: skip


def test_many_and_long_differences_are_cut() -> None:
    first = {f"{k}": k for k in range(9)} | {"name": "tensor float32 (2,) " + 64 * "a"}
    second = {f"{k}": k + 1 for k in range(9)} | {"name": "tensor float32 (2,) " + 64 * "b"}
    assert list_differences(first, second) == [
        *(f"{k}: {k} there, {k + 1} now" for k in range(5)), "and 5 more"
    ]  # fmt: skip
    [line] = list_differences({"name": first["name"]}, {"name": second["name"]})
    assert line == "name: tensor float32 (2,) aaaaaaaa there, tensor float32 (2,) bbbbbbbb now"
    [cut] = list_differences({"name": 99 * "x"}, {"name": "y" + 99 * "x"})
    assert len(cut) <= 100
    one, two = (
        {"n": f"Times({{{'x' * 60}, 'decay': {decay}, 'bins': 4}})"} for decay in (0.99, 0.5)
    )
    [cut] = list_differences(one, two)
    assert len(cut) <= 100
    assert "...0.99, 'bi there" in cut
    assert "...0.5, 'bin now" in cut
    plain = {"z": 1, "name": first["name"]}
    assert list_differences(plain, {"z": 2, "name": second["name"]}) == ["z: 1 there, 2 now", line]
