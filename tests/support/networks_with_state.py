"""Networks that hold more than plain weights, and what a training of them leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sde_models as sm

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
        "steps": 6, "batch_size": 8, "seed": 3, "warmup": 2, "ema_decay": DECAY,
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
