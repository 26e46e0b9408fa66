"""One rule for a model in training mode, in every function that solves."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm

X = torch.ones(2, 4)


class Holds(nn.Module):
    """A network that holds a layer; what it computes is of no concern here."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x.clone()


class StochasticDepth(nn.Module):
    """As torchvision has it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p


class Functional(nn.Module):
    """A layer that drops by a function and holds the probability."""

    def __init__(self, name: str, rate: float) -> None:
        super().__init__()
        setattr(self, name, rate)


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))


def old_spectral() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.spectral_norm(nn.Linear(4, 4))  # type: ignore[no-any-return]


REFUSED: dict[str, nn.Module] = {
    **{
        kind.__name__: kind(0.1)
        for kind in (
            nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
            nn.FeatureAlphaDropout, StochasticDepth,
        )
    },
    "attention": nn.MultiheadAttention(4, 2, dropout=0.1),
    "transformer": nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1),
    "lstm": nn.LSTM(4, 4, num_layers=2, dropout=0.1),
    "gru": nn.GRU(4, 4, num_layers=2, dropout=0.1),
    "functional": Functional("attn_dropout", 0.1),
    "drop path": Functional("drop_prob", 0.1),
    "rrelu": nn.RReLU(),
    "batch norm": nn.BatchNorm1d(4),
    "sync batch norm": nn.SyncBatchNorm(4),
    "instance norm": nn.InstanceNorm1d(4, track_running_stats=True),
    "spectral norm": spectral(),
    "old spectral norm": old_spectral(),
}  # fmt: skip

TAKEN: dict[str, nn.Module] = {
    "dropout of 0": nn.Dropout(0.0),
    "attention": nn.MultiheadAttention(4, 2),
    "one recurrent layer": Functional("drop_last", True),
    "lstm": nn.LSTM(4, 4, num_layers=2),
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": nn.LayerNorm(4),
    "instance norm": nn.InstanceNorm1d(4),
    "fixed slope": nn.RReLU(0.2, 0.2),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
}

FUNCTIONS: dict[str, Any] = {
    "sample": lambda model: sm.sample(model, (2, 4), "ddim", steps=2),
    "encode": lambda model: sm.encode(model, X, "ddim", steps=2),
    "decode": lambda model: sm.decode(model, X, "ddim", steps=2),
    "solve": lambda model: sm.solve(sm.ProbabilityFlow(model), X, (1.0, 0.5), "ode:rk4", steps=2),
    "reverse": lambda model: sm.sample(model, (2, 4), "euler-maruyama", steps=2),
    "log_prob": lambda model: sm.log_prob(model, X, rtol=0.5, atol=0.5, intervals=12),
    "augmented": lambda model: sm.log_prob(model, X, "ode:rk4", trace="augmented", steps=2),
    "bits": lambda model: sm.bits_per_dim(model, X.long(), 4, rtol=0.5, atol=0.5, intervals=12),
    "grid": lambda model: sm.adapt_grid(model, (4,), samples=2, tol=0.1),
    "distribution": lambda model: sm.ScoreDistribution(model, (4,)).log_prob(X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_in_training_mode_is_refused(name: str) -> None:
    model = sm.ScoreModel(Holds(REFUSED[name]), sm.VPSDE()).train()
    for call in (FUNCTIONS["sample"], FUNCTIONS["log_prob"]):
        with pytest.raises(ValueError, match=r"training mode.*network\.layer.*call model\.eval"):
            call(model)
    assert FUNCTIONS["sample"](model.eval()).x.shape == (2, 4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_rule_is_the_same_everywhere(function: str) -> None:
    """The attention of the issue: a number that no layer of dropout holds."""
    layer = nn.MultiheadAttention(4, 2, dropout=0.1)
    with pytest.raises(ValueError, match=r"layer \(MultiheadAttention\) drops entries at random"):
        FUNCTIONS[function](sm.ScoreModel(Holds(layer), sm.VPSDE()))


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_a_function_may_train(name: str) -> None:
    model = sm.ScoreModel(Holds(TAKEN[name]), sm.VPSDE()).train()
    assert FUNCTIONS["sample"](model).x.shape == (2, 4)


def test_a_single_recurrent_layer_drops_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says so as well
        layer = nn.LSTM(4, 4, dropout=0.1)
    assert FUNCTIONS["sample"](sm.ScoreModel(Holds(layer), sm.VPSDE())).nfe == 2


def test_batch_statistics_are_refused_in_any_mode() -> None:
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    model = sm.ScoreModel(Holds(layer), sm.VPSDE()).eval()
    with pytest.raises(ValueError, match=r"evaluation mode.*over the batch.*track_running_stats"):
        FUNCTIONS["sample"](model)
