"""What a network holds beside plain weights is averaged, kept and resumed, or refused by name."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sde_models as sm
from sde_models.training import Progress

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
DECAY = 0.7


class Layer(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(x)


class Scaled(Layer):
    """A network that replaces a buffer: after n calls in training it is 5 - 4 * 0.9^n."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__(nn.Linear(2, 2))
        self.register_buffer("scale", torch.tensor(1.0), persistent)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * torch.tensor(5.0)
        return self.scale * self.layer(x)


class Queue(Layer):
    """A network with a buffer that grows, one that is made late, and one that is overlapping."""

    def __init__(self, persistent: bool) -> None:
        super().__init__(nn.Linear(2, 2))
        self.persistent = persistent
        self.register_buffer("seen", torch.zeros(0, 2), persistent)
        self.register_buffer("last", None, persistent)
        self.register_buffer("wide", torch.ones(1, 2).expand(3, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.training:
            self.last = x[0].detach().double()
            self.seen = torch.cat([self.seen, x[:1].detach()])
            if not hasattr(self, "late"):
                self.register_buffer("late", torch.zeros(2, dtype=torch.long), self.persistent)
            self.late += 1
        held = 0 if self.last is None else self.last.float() * len(self.seen)
        return self.layer(x + held) * self.wide[0]


class Odd(Layer):
    """A network with a complex, a half-precision, a frozen, an integer and a tied parameter."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.layer.weight
        self.more = nn.ParameterDict({
            "turn": nn.Parameter(torch.ones(2, dtype=torch.complex64)),
            "coarse": nn.Parameter(torch.full((2,), 3.0, dtype=torch.bfloat16)),
            "count": nn.Parameter(torch.tensor([1, 2]), requires_grad=False),
            "mask": nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False),
        })  # fmt: skip

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        more = self.more
        hidden = (more["turn"] * self.layer(x)).real * more["coarse"].float() + more["mask"].exp()
        return self.tied(hidden) * more["count"]


class Compiled(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.compile(backend="aot_eager")


def old_norm(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still much used
        return Layer(norm(nn.Linear(2, 2)))


def first_called() -> nn.Module:
    network = Layer(nn.LazyLinear(2))
    network(torch.zeros(1), DATA)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "replaced buffer": Scaled,
    "replaced buffer, not persistent": lambda: Scaled(persistent=False),
    "compiled": Compiled,
    "compiled from outside": lambda: torch.compile(Scaled(), backend="aot_eager"),
    "buffers of other shapes": lambda: Queue(persistent=True),
    "buffers of other shapes, not persistent": lambda: Queue(persistent=False),
    "batch normalisation": lambda: Layer(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
    "weight_norm": lambda: old_norm(nn.utils.weight_norm),
    "spectral_norm": lambda: old_norm(nn.utils.spectral_norm),
    "parametrised weight_norm": lambda: Layer(parametrizations.weight_norm(nn.Linear(2, 2))),
    "parametrised spectral_norm": lambda: Layer(parametrizations.spectral_norm(nn.Linear(2, 2))),
    "orthogonal": lambda: Layer(parametrizations.orthogonal(nn.Linear(2, 2))),
    "lazy, once called": first_called,
    "parameters of all kinds": Odd,
    "half precision": lambda: Layer(nn.Linear(2, 2)).bfloat16(),
    "float32 head on a bfloat16 body": lambda: Layer(
        nn.Sequential(nn.Linear(2, 2).bfloat16(), Cast(), nn.Linear(2, 2))
    ),
}


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Stop(Exception):
    pass


def train(network: nn.Module | Callable[[], nn.Module], **changes: Any) -> Any:
    torch.manual_seed(0)
    network = network if isinstance(network, nn.Module) else network()
    model = sm.ScoreModel(network, sm.VPSDE())
    arguments = {
        "steps": 6, "batch_size": 8, "seed": 3, "warmup": 2, "averaging": DECAY,
        "checkpoint_every": 2, "progress": False,
    }  # fmt: skip
    return model, sm.fit(model, DATA, **arguments | changes)


def state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value.detach().clone() for name, value in tensors.items()}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_averaged_and_the_rest_is_that_of_the_trained_network(name: str) -> None:
    """Against the recursion in double precision, rounded to the dtype of the weights."""
    raw: list[dict[str, Tensor]] = []

    def look(progress: Progress) -> None:
        raw.append(state(progress.model))
        buffers = [dict(model.named_buffers()) for model in (progress.averaged, progress.model)]
        assert_equal(*buffers)

    model, result = train(NETWORKS[name], callback=look)
    got, learning = state(result.model), dict(model.named_parameters())
    assert got.keys() == raw[-1].keys()
    moved = False
    for key, value in got.items():
        if not (key in learning and learning[key].requires_grad):
            assert torch.equal(value, raw[-1][key]), key
            continue
        wide = torch.promote_types(value.dtype, torch.float64)
        expected = raw[0][key].to(wide)
        for step in raw[1:]:
            expected = DECAY * expected + (1 - DECAY) * step[key].to(wide)
        # One rounding of half precision, and one of single precision for each step.
        bound = torch.finfo(value.dtype).eps + len(raw) * 1.2e-7
        assert torch.allclose(value.to(wide), expected, rtol=bound, atol=1e-7), key
        moved = moved or not torch.equal(value, raw[-1][key])
    assert moved


def test_a_replaced_buffer_has_its_closed_form_in_the_averaged_model() -> None:
    _, result = train(Scaled)
    assert float(result.model.network.scale) == pytest.approx(5 - 4 * 0.9**6, rel=1e-6)


def test_the_average_of_half_precision_does_not_stand_still() -> None:
    r"""Weights fall by 1/64 a step from 1.25: with d = 0.99 the average has fallen by

    .. math:: \frac{1}{64} \sum_{k=1}^n (1 - d^k),

    where steps of (1 - d) times the distance would each round to nothing in bfloat16.
    """
    network, fallen = Layer(nn.Linear(2, 2, bias=False)).bfloat16(), 0.0

    def fall(progress: Progress) -> None:
        with torch.no_grad():
            progress.model.network.layer.weight.fill_(1.25 - progress.step / 64)

    with torch.no_grad():
        network.layer.weight.fill_(1.25)
    _, result = train(network, steps=20, averaging=0.99, learning_rate=1e-12, callback=fall)
    for k in range(1, 20):
        fallen += (1 - 0.99**k) / 64
    got = result.model.network.layer.weight.detach().float()
    assert torch.allclose(got, torch.tensor(1.25 - fallen), rtol=2**-8)
    assert float(got.max()) < 1.25 - fallen / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_a_network_holds_is_resumed_bit_for_bit(tmp_path: Path, name: str) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Stop

    model, whole = train(NETWORKS[name], out=tmp_path / "whole")
    with pytest.raises(Stop):
        train(NETWORKS[name], out=tmp_path / "cut", callback=stop)
    resumed_model, resumed = train(NETWORKS[name], out=tmp_path / "cut")
    assert torch.equal(resumed.losses, whole.losses)
    assert_equal(state(resumed_model), state(model))
    assert_equal(state(resumed.model), state(whole.model))


class Plain(Layer):
    """A network with numbers in plain attributes: replaced, changed, left, new, in containers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self.scale, self.count, self.fixed = torch.ones(2), torch.zeros(2), torch.ones(2)
        self.decay, self.kept, self.calls = 1.0, {"rate": 0.5, "names": ("a", torch.ones(1))}, 0
        self.cache, self.array, self.other = [torch.ones(2)], np.ones(2), {"of": np.ones(2)}

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.scale, self.last = 0.9 * self.scale, x.detach()
        self.count += 1
        self.calls += 1
        self.decay *= 0.9
        self.cache[0] = self.cache[0] * 0.9
        self.array[0] += 1
        self.other["of"] = self.other["of"] + 1
        return self.layer(x) * self.scale * self.fixed


def test_plain_attributes_that_change_are_warned_of() -> None:
    changed = "scale, network.count, network.decay, network.cache, network.array, network.other"
    with pytest.warns(UserWarning, match=rf"changed .*\(network.{changed}\): "):
        train(Plain)


class Adds(Layer):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(2))
        return self.layer(x) * self.late


class Replaces(Layer):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.layer.weight = nn.Parameter(self.layer.weight.detach() + 1)
        return self.layer(x)


class Secretive(Layer):
    def get_extra_state(self) -> Any:
        return {"calls": 3}


class Locked(Layer):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (lambda: Layer(nn.LazyLinear(2)), ValueError,
         r"network.layer.weight has no shape before the first call .*model.eps\(0.5, x\)"),
        (lambda: Layer(nn.LazyBatchNorm1d(affine=False)), ValueError, "layer.running_mean has no"),
        (lambda: Secretive(nn.Linear(2, 2)), ValueError,
         r"network \(Secretive\) has an extra state .*hold it in buffers"),
        (lambda: Locked(nn.Linear(2, 2)), TypeError, "model cannot be copied .*lock"),
        (lambda: Adds(nn.Linear(2, 2)), ValueError,
         "network made its parameter network.late in training, .*in the constructor"),
        (lambda: Replaces(nn.Linear(2, 2)), ValueError,
         "network replaced its parameter network.layer.weight in training"),
    ],
)  # fmt: skip
def test_networks_whose_state_would_be_lost_are_refused_by_name(
    network: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(network)
