"""What a network holds besides plain weights is averaged, kept and resumed, or refused by name."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks_with_state import (
    DECAY,
    NETWORKS,
    Layer,
    Scaled,
    Stop,
    assert_equal,
    state,
    train,
)
from torch import Tensor, nn

from sde_models.training import Progress


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
    _, result = train(network, steps=20, ema_decay=0.99, learning_rate=1e-12, callback=fall)
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
