"""Work on many samples on every device that is here, and memory that runs out there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm
from sde_models._utils.seeds import generator_at

MEBIBYTE = 2**20
ROOM, OF_A_SAMPLE = 320 * MEBIBYTE, 40 * MEBIBYTE
MIXTURE = sm.GaussianMixture([[-1.0, 0.2], [0.8, -0.3]], [0.3, 0.5], [0.4, 0.6])
X = MIXTURE.sample(20, generator=torch.Generator().manual_seed(0))


class Greedy(nn.Module):
    """A network that takes much memory for each sample while it is called.

    On a device whose memory is not cut short it says itself when there is no more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.sizes: list[int] = []
        self.room: int | None = None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if self.room is not None and len(x) * OF_A_SAMPLE > self.room:
            raise torch.OutOfMemoryError("out of memory, as it would be on a device")
        if x.is_cuda:
            torch.empty(len(x) * OF_A_SAMPLE, dtype=torch.uint8, device=x.device)
        return self.weight * x


@contextmanager
def little_memory(network: Greedy, device: str) -> Iterator[None]:
    """A block in which the network finds so much memory and no more."""
    if device != "cuda":
        network.room = ROOM
        yield
        network.room = None
        return
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def make_model(device: str) -> tuple[Greedy, sm.ScoreModel]:
    network = Greedy().to(device)
    return network, sm.ScoreModel(network, sm.VPSDE(t_min=1e-3), event_shape=(2,))


def test_an_evaluation_is_halved_where_memory_runs_out(device: str, tmp_path: Path) -> None:
    network, model = make_model(device)
    arguments = {"solver": "ode:rk4", "steps": 10, "estimate_solver_error": False}
    arguments |= {"divergence": "exact", "progress": False}
    with little_memory(network, device):
        found = sm.evaluate(model, X, out=tmp_path / "little", chunk=20, **arguments)
    assert network.sizes[:2] == [20, 10]
    assert network.sizes[-1] * OF_A_SAMPLE <= ROOM
    ample = sm.evaluate(make_model("cpu")[1], X, out=tmp_path / "ample", chunk=20, **arguments)
    torch.testing.assert_close(found.value, ample.value, rtol=0, atol=1e-3)


def test_samples_are_drawn_in_smaller_parts(device: str, tmp_path: Path) -> None:
    network, model = make_model(device)
    with little_memory(network, device):
        drawn = sm.sample_to_folder(
            model, 20, tmp_path, solver="dpmpp-2m", steps=4, chunk=20, progress=False
        )
    assert network.sizes[:2] == [20, 10]
    part = network.sizes[-1]
    assert set(network.sizes[2:]) == {part}
    assert part * OF_A_SAMPLE <= ROOM < 10 * OF_A_SAMPLE
    got = torch.stack([drawn[i] for i in range(20)])
    for first in range(0, 20, part):
        alone = sm.sample(
            make_model("cpu")[1], (part, 2), "dpmpp-2m", steps=4, generator=generator_at(0, first)
        )
        torch.testing.assert_close(got[first : first + part], alone.x, rtol=0, atol=1e-4)


def test_a_sample_that_does_not_fit_is_named(device: str, tmp_path: Path) -> None:
    network, model = make_model(device)
    network.room = OF_A_SAMPLE // 2
    with pytest.raises(torch.OutOfMemoryError, match="sample 0 alone"):
        sm.sample_to_folder(model, 4, tmp_path, solver="ddim", steps=2, chunk=4, progress=False)


@pytest.mark.parametrize("divergence", ["hutchinson", "auto"])
def test_an_evaluation_begun_on_one_device_goes_on_on_another(
    device: str, divergence: str, tmp_path: Path
) -> None:
    """Its probes follow from the seed and the sample, and from no device."""
    settings = {"divergence": divergence, "chunk": 8, "progress": False}
    found = []
    for d in ("cpu", device):
        mixture = sm.GaussianMixture(MIXTURE.means, [0.3, 0.5], [0.4, 0.6])
        model = mixture.score_model(sm.VPSDE(t_min=1e-3)).to(d)
        found.append(sm.evaluate(model, X, out=tmp_path / d, **settings))
        (tmp_path / d / "chunk-000002.safetensors").unlink()
        resumed = sm.evaluate(model.to("cpu"), X, out=tmp_path / d, **settings)
        assert resumed.resumed == 16
        torch.testing.assert_close(resumed.value, found[-1].value, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[0].value, found[1].value, rtol=0, atol=1e-3)


def test_latents_go_to_folders_and_back(device: str, tmp_path: Path) -> None:
    mixture = sm.GaussianMixture(MIXTURE.means, [0.3, 0.5], [0.4, 0.6])
    model = mixture.score_model(sm.VPSDE(t_min=1e-3)).to(device)
    z = sm.encode_to_folder(model, X, tmp_path / "z", chunk=8, progress=False)
    x = sm.decode_to_folder(model, z, tmp_path / "x", chunk=8, progress=False)
    back = torch.stack([x[i] for i in range(20)])
    torch.testing.assert_close(back, X, rtol=0, atol=1e-3)
