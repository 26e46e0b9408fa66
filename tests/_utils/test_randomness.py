"""Numbers come from the generator given, or torch's global one, with the distribution promised.

False-alarm rate of each statistical test: 1e-6, over seeds; the seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.closed_forms import assert_distribution
from torch import Tensor

from sde_models._utils.randomness import (
    entropy_from,
    rademacher_like,
    standard_normal,
    standard_normal_like,
    uniform_like,
)
from sde_models._utils.seeds import generator_at, seed_at

LIKE = [standard_normal_like, uniform_like, rademacher_like]
Draw = Callable[[Tensor, torch.Generator | None], Tensor]


def _entropy(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.tensor(entropy_from(generator))


every_draw = pytest.mark.parametrize("draw", [*LIKE, _entropy])


@every_draw
def test_the_same_seed_gives_the_same_numbers(draw: Draw) -> None:
    x = torch.zeros(50, 2)
    first = draw(x, torch.Generator().manual_seed(7))
    assert torch.equal(first, draw(x, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, draw(x, torch.Generator().manual_seed(8)))


@every_draw
def test_a_generator_moves_on(draw: Draw) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.zeros(50, 2)
    assert not torch.equal(draw(x, generator), draw(x, generator))


@every_draw
def test_without_a_generator_the_global_one_is_used(draw: Draw) -> None:
    x = torch.zeros(50, 2)
    torch.manual_seed(7)
    first = draw(x, None)
    torch.manual_seed(7)
    assert torch.equal(first, draw(x, None))
    assert torch.equal(first, draw(x, torch.Generator().manual_seed(7)))


@every_draw
def test_a_generator_leaves_every_other_stream_alone(draw: Draw) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(torch.zeros(50, 2), torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("draw", LIKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_take_shape_and_dtype_of_the_batch(draw: Draw, dtype: torch.dtype) -> None:
    drawn = draw(torch.zeros(3, 1, 2, dtype=dtype, requires_grad=True), None)
    assert drawn.shape == (3, 1, 2)
    assert drawn.dtype == dtype
    assert not drawn.requires_grad


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def test_normal_numbers_are_standard_normal() -> None:
    x = torch.empty(20_000, dtype=torch.float64)
    drawn = standard_normal_like(x, _generator())
    assert_distribution(drawn, torch.special.ndtr, false_alarm=1e-6)
    assert torch.equal(drawn, standard_normal((20_000,), generator=_generator(), dtype=x.dtype))


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    drawn = uniform_like(torch.empty(20_000), _generator())
    assert_distribution(drawn, lambda u: u, false_alarm=1e-6)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1


def test_rademacher_numbers_are_fair_signs() -> None:
    signs = rademacher_like(torch.empty(20_000), _generator())
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # Hoeffding: |mean| exceeds sqrt(2 log(2e6) / n) = 0.038 with probability below 1e-6.
    assert abs(float(signs.mean())) < 0.038
    assert abs(float((signs[1:] * signs[:-1]).mean())) < 0.038


def test_entropy_has_all_its_bits() -> None:
    """A bit that is the same in 40 draws is a false alarm of 62 * 2 * 2^-40 = 1e-10."""
    generator = _generator()
    draws = [entropy_from(generator) for _ in range(40)]
    assert all(isinstance(v, int) and 0 <= v < 2**62 for v in draws)
    assert len(set(draws)) == 40
    for bit in range(62):
        assert len({v >> bit & 1 for v in draws}) == 2


def test_a_shape_may_be_any_sequence() -> None:
    assert standard_normal([2, 3]).shape == standard_normal(torch.Size([2, 3])).shape == (2, 3)


def test_seeds_of_places_are_those_of_the_runs_that_are_stored() -> None:
    """Results on disk are resumed with these: the mixing of a seed and a place never changes."""
    assert seed_at(0, 256) == 6351481472441470260  # of a batch, by its first sample
    assert seed_at(3, "order", 12) == 211907658726421483  # of a step of training
    assert generator_at(0, 256).initial_seed() == seed_at(0, 256)
    drawn = torch.randint(1000, (3,), generator=generator_at(0, 256))
    assert drawn.tolist() == [382, 367, 941]
