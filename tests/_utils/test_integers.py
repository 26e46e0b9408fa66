"""Every integer that a user gives is checked by one function, with one kind of message."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_models as sm
from sde_models._utils.integers import check_integer, check_integers
from sde_models.demo.run import DemoSettings
from sde_models.nn import find_network
from sde_models.solvers.langevin import langevin_epsilon, largest_sigma, level_ratio
from sde_models.training.settings import Settings

MODEL = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
X = torch.zeros(2, 2)

Call = Callable[[Any], Any]

RUN: dict[str, Any] = {
    "steps": 1, "seconds": None, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.0,
    "ema_decay": 0.9, "warmup": 0, "clip_norm": 1.0, "mixed_precision": None,
    "gradient_accumulation_steps": 1, "checkpoint_every": 1, "keep": 1,
}  # fmt: skip


def setting(name: str) -> tuple[str, Call, int]:
    """An integer of a training run, with its least value."""
    return name, lambda n: Settings(**{**RUN, name: n}), 0 if name == "warmup" else 1


def option(name: str, solver: str, **others: Any) -> tuple[str, Call, int]:
    """An integer among the options of a solver."""
    return name, lambda n: sm.make_solver(solver, **{name: n}, **others), 1


def network(name: str, make: Callable[..., Any] = sm.nn.ResidualNetwork) -> tuple[str, Call, int]:
    """An integer that a network is made with."""
    sizes: dict[str, Any] = {"event_shape": (3, 4, 4), "width": 8, "depth": 1}
    return name, lambda n: make(**{**sizes, name: n}), 2 if name == "frequencies" else 1


ARGUMENTS: list[tuple[str, Call, int]] = [
    ("steps", lambda n: sm.sample(MODEL, (2, 2), "ddim", steps=n), 1),
    ("max_steps", lambda n: sm.encode(MODEL, X, max_steps=n, rtol=0.5), 1),
    option("order", "adams-batch"),
    option("window", "picard"),
    option("corrector_steps", "pc"),
    option("steps_per_level", "ald"),
    ("dim", level_ratio, 1),
    ("steps_per_level", lambda n: langevin_epsilon(1.1, n), 1),
    ("block", lambda n: largest_sigma(torch.eye(3), n), 1),
    ("probes", sm.Hutchinson, 1),
    ("probes", sm.HutchPlusPlus, 2),
    ("probes", sm.XTrace, 2),
    ("chunk", lambda n: sm.Exact(chunk=n), 1),
    ("limit", lambda n: sm.Exact(limit=n), 1),
    ("bins", sm.losses.LearnedTimes, 2),
    ("probes", lambda n: sm.losses.sliced_score_matching(MODEL, X, probes=n), 1),
    ("probes", lambda n: sm.losses.asymmetry(MODEL, 0.5, X, probes=n), 1),
    ("steps", lambda n: sm.losses.simulated_score_matching(MODEL, X, steps=n), 1),
    ("intervals", lambda n: sm.log_prob(MODEL, X, intervals=n), 1),
    ("levels", lambda n: sm.data.dequantize(IMAGES, n), 2),
    ("levels", lambda n: sm.data.quantize(IMAGES.float(), n), 2),
    ("levels", lambda n: sm.data.Dequantized(IMAGES, n), 2),
    ("seed", lambda n: sm.data.Dequantized(IMAGES, seed=n), 0),
    ("n", lambda n: sm.data.toy("two-moons", n), 1),
    ("n", lambda n: sm.GaussianMixture(torch.zeros(1, 2), 1.0).sample(n), 1),
    ("importance_samples", lambda n: bits(importance_samples=n), 1),
    ("repeats", lambda n: bits(repeats=n), 1),
    network("width"),
    network("depth"),
    network("classes"),
    network("frequencies"),
    network("width", sm.nn.MixingNetwork),
    ("count", lambda n: sm.nn.FourierFeatures(n), 2),
    *map(setting, ("steps", "batch_size", "warmup", "checkpoint_every", "keep")),
    ("train_steps", lambda n: DemoSettings(train_steps=n), 1),
    ("every", lambda n: sm.training.SampleImages(n, (1, 4, 4)), 1),
    ("count", lambda n: sm.training.SampleImages(1, (1, 4, 4), count=n), 1),
    ("every", lambda n: sm.training.BitsPerDimCurve(n, IMAGES), 1),
]  # fmt: skip


def bits(**counts: Any) -> Any:
    """Bits per dimension of one small image, roughly."""
    images = torch.zeros(1, 2, dtype=torch.uint8)
    return sm.bits_per_dim(MODEL, images, 4, rtol=1e-1, atol=1e-1, intervals=12, **counts)


@pytest.mark.parametrize(("name", "call", "least"), ARGUMENTS)
def test_what_is_no_such_integer_is_refused_by_name(name: str, call: Call, least: int) -> None:
    wrong: list[Any] = [2.5, 3.0, True, np.True_, torch.tensor(True), "3", least - 1, -5]
    for value in wrong:
        with pytest.raises(
            ValueError, match=f"^{name} must (be an integer|hold integers) "
        ) as caught:
            call(value)
        assert str(caught.value).endswith(f"got {value!r}")


@pytest.mark.parametrize(("name", "call", "least"), ARGUMENTS)
def test_integers_of_numpy_and_torch_are_accepted(name: str, call: Call, least: int) -> None:
    del least
    for value in (np.int64(12), np.uint8(12), torch.tensor(12)):
        call(value if name != "order" else value // 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda shape: sm.sample(MODEL, (4, *shape), "ddim", steps=2),
        lambda shape: sm.ReverseSDE(MODEL, shape),
        lambda shape: sm.nn.ResidualNetwork(shape, width=8, depth=1),
        lambda shape: sm.ScoreModel(torch.nn.Identity(), sm.VPSDE(), event_shape=shape),
        lambda shape: sm.ScoreDistribution(MODEL, shape),
        lambda shape: sm.adapt_grid(MODEL, shape, samples=4, tol=1e-2),
    ],
)
def test_sizes_of_a_shape_are_integers(call: Call) -> None:
    for wrong in ((2.5,), (2.0,), (True,), (0,), (-2,), ("2",)):
        with pytest.raises(ValueError, match="shape must hold integers of 1 or more, got"):
            call(wrong)
    call((np.int64(2),))
    call(torch.Size([2]))


@pytest.mark.parametrize(
    "make", [lambda shape: sm.nn.MixingNetwork(shape, 8, 1), partial(find_network, "mixing")]
)
@pytest.mark.parametrize("wrong", [3, (1, 2.5, 4), (1, 4, 0), None])
def test_sizes_of_an_image_are_integers(make: Call, wrong: Any) -> None:
    with pytest.raises(ValueError, match="event_shape must hold integers of 1 or more, got"):
        make(wrong)
    assert make((np.int64(1), 4, 4)).event_shape == (1, 4, 4)


def test_the_range_is_part_of_the_message() -> None:
    with pytest.raises(ValueError, match=r"^order must be an integer from 1 to 8, got 9$"):
        check_integer("order", 9, most=8)
    assert type(check_integer("n", np.int32(7))) is int
    with pytest.raises(ValueError, match=r"^shape must hold integers of 1 or more, got 3$"):
        check_integers("shape", 3)


def test_integers_of_numpy_reach_the_files(tmp_path: Path) -> None:
    """JSON takes no numbers of NumPy: what was accepted must be written and read again."""
    width, seed = np.int64(8), np.int64(3)
    network = sm.nn.ResidualNetwork((width,), width, 1)
    model = sm.ScoreModel(network, sm.VPSDE(), event_shape=(width,))
    sm.save_model(tmp_path / "model", model)
    assert sm.load_model(tmp_path / "model").event_shape == (8,)
    counts: dict[str, Any] = {"steps": np.int64(2), "batch_size": np.int64(4), "seed": seed}
    for _ in range(2):  # made, and found again
        sm.fit(model, torch.ones(8, 8), **counts, out=tmp_path / "run", progress=False)
        sm.evaluate(
            MODEL, torch.zeros(3, 2).int(), tmp_path / "values", levels=np.int64(4), seed=seed,
            chunk=np.int64(2), progress=False, rtol=1e-1, atol=1e-1,
        )  # fmt: skip
        drawn = sm.sample_to_folder(
            MODEL, np.int64(3), tmp_path / "x", solver="ddim", steps=2, seed=seed, progress=False
        )
    assert drawn.resumed == 3


@pytest.mark.parametrize("wrong", [2.5, True, -1])
def test_seeds_are_integers_of_0_or_more(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^seed must be an integer of 0 or more, got"):
        sm.sample_to_folder(MODEL, 3, tmp_path / "x", solver="ddim", seed=wrong)
    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), 8, 1), sm.VPSDE())
    with pytest.raises(ValueError, match=r"^seed must be an integer of 0 or more, got"):
        sm.fit(model, torch.ones(8, 2), steps=1, seed=wrong)
