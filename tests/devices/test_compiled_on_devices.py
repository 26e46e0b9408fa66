"""Compiled networks on every device that is here, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm

SDE = sm.VPSDE(t_min=1e-3)
KEEPING = {
    "dpmpp-2m": "x0",
    "unipc-3": "x0",
    "exp-adams-3": "x0",
    "heun-edm": "eps",
    "rk-batch": "x0",
}
"""Solvers that keep an output over the next call, with the prediction for which they do."""

# The compiler says this and that of the machine, in each release something else.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((4,), width=32, depth=2).eval()
    for parameter in network.parameters():  # its output starts at zero
        nn.init.normal_(parameter, std=0.2)
    return network


def overwriting(graph: Any, inputs: Any) -> Any:
    """A backend that writes each output over the last, as a replayed CUDA graph does."""
    kept: dict[Any, Tensor] = {}

    def run(*given: Any) -> Any:
        found = []
        for place, value in enumerate(graph(*given)):
            if isinstance(value, Tensor):
                key = (place, value.shape)
                value = kept.setdefault(key, torch.empty_like(value)).copy_(value.detach())
            found.append(value)
        return tuple(found)

    return run


def compile_here(network: nn.Module, device: str) -> nn.Module:
    backend = "inductor" if device == "cuda" else "aot_eager"  # inductor takes long on a CPU
    compiled: nn.Module = torch.compile(network, backend=backend)
    return compiled


def draw(model: sm.Model, name: str, device: str) -> Tensor:
    solver = sm.make_solver(name)
    arguments = {"rtol": 1e-3, "atol": 1e-3} if solver.adaptive else {"steps": 12}
    generator = torch.Generator().manual_seed(0)
    return sm.sample(model, (8, 4), name, generator=generator, **arguments).x


@pytest.mark.parametrize(("name", "prediction"), KEEPING.items())
def test_a_network_that_writes_over_its_output(device: str, name: str, prediction: str) -> None:
    """On CUDA by torch's own CUDA graphs, elsewhere by a backend that does what they do."""
    how: Any = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": overwriting}
    compiled = torch.compile(make_network().to(device), **how)
    plain = sm.ScoreModel(make_network().to(device), SDE, prediction)
    found = draw(sm.ScoreModel(compiled, SDE, prediction), name, device)
    torch.testing.assert_close(found, draw(plain, name, device), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("divergence", [sm.Hutchinson(1), sm.XTrace(2), sm.Exact()], ids=repr)
def test_the_likelihood_of_a_compiled_network(device: str, divergence: sm.Divergence) -> None:
    """Some estimators take several products from one forward pass."""
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    plain = make_network().to(device)
    found, wanted = (
        sm.log_prob(
            sm.ScoreModel(network, SDE),
            x,
            divergence=divergence,
            intervals=12,
            rtol=1e-3,
            atol=1e-3,
            generator=torch.Generator().manual_seed(1),
        )
        for network in (compile_here(plain, device), plain)
    )
    torch.testing.assert_close(found.value, wanted.value, rtol=1e-3, atol=1e-3)


def test_the_training_of_a_compiled_network(device: str) -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    losses = [
        sm.fit(sm.ScoreModel(network, SDE), x, steps=5, batch_size=8, seed=0, progress=False).losses
        for network in (compile_here(make_network().to(device), device), make_network().to(device))
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


def test_a_compiled_model(device: str) -> None:
    model = sm.ScoreModel(make_network().to(device), SDE)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(draw(compiled, "ddim", device), draw(model, "ddim", device))
