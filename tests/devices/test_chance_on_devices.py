"""What a network draws and holds on an accelerator; the CPU is held to the same in other tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks_with_state import NETWORKS, Stop, assert_equal, state
from torch import Tensor, nn

import sde_models as sm

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


class Random(nn.Module):
    """A network with dropout and noise of its own, which keeps what it drew in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(2, 2), nn.Dropout(0.5)
        self.drawn: list[Tensor] = []

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        mask, noise = self.dropout(x.new_ones(64)), torch.randn(64, device=x.device)
        self.drawn.append(torch.stack([mask, noise]))
        return self.layer(x) * mask[:2] + noise[:2]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_what_a_network_draws_follows_from_the_seed_on_every_device(device: str) -> None:
    """No two calls draw the same; by chance two masks are alike at 2^-64."""
    state_now = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state

    def draw(before: int, **changes: Any) -> Tensor:
        torch.manual_seed(before)
        model = sm.ScoreModel(Random(), sm.VPSDE()).to(device)
        here = state_now()
        arguments = {"steps": 4, "batch_size": 8, "seed": 3, "progress": False}
        sm.fit(model, DATA, **arguments | changes)
        assert torch.equal(state_now(), here)
        return torch.stack(model.network.drawn)

    whole = draw(0)
    assert torch.equal(draw(1), whole)
    drawn = torch.cat([whole, draw(0, gradient_accumulation_steps=2), draw(0, seed=4)])
    # The first part of two begins where the whole begins, and so draws the same: four of them.
    assert len(drawn) == 4 + 8 + 4
    for rows in drawn.unbind(1):
        assert len(rows.unique(dim=0)) == 12


@needs_cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_a_network_holds_is_resumed_on_an_accelerator(tmp_path: Path, name: str) -> None:
    def train(out: Path, callback: Any = None) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = sm.ScoreModel(NETWORKS[name](), sm.VPSDE()).to("cuda")
        result = sm.fit(
            model, DATA, steps=6, batch_size=8, seed=3, ema_decay=0.7, checkpoint_every=2,
            progress=False, out=out, callback=callback,
        )  # fmt: skip
        return model, result

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise Stop

    model, whole = train(tmp_path / "whole")
    buffers = [dict(which.named_buffers()) for which in (whole.model, model)]
    assert_equal(*buffers)
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop)
    resumed_model, resumed = train(tmp_path / "cut")
    assert torch.equal(resumed.losses, whole.losses)
    assert_equal(state(resumed_model), state(model))
    assert_equal(state(resumed.model), state(whole.model))
