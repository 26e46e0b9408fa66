"""Tables with which a scheduler of diffusers steps between the noise levels of a solve.

It reads sigma / alpha, or what follows from it, from a table for the integer time steps of a
training discretisation. That table is replaced here by one for the nodes of the solve, in double
precision, so that each step is the scheduler's own formula on our grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluations:
    """When a scheduler evaluates the network.

    Attributes:
        timesteps: The time step passed to its ``step`` at each evaluation.
        ratios: sigma / alpha of each evaluation, shape ``(E,)``.
        ends_step: Whether the state after the evaluation is that at the next node.
    """

    timesteps: Sequence[Any]
    ratios: Tensor
    ends_step: Sequence[bool]


Layout = Callable[[Any, Tensor], Evaluations]
"""Gives a scheduler the ratios at the nodes, shape ``(K + 1,)``."""


def one_evaluation(scheduler: Any, ratios: Tensor) -> Evaluations:
    """A table of ratios, one evaluation a step."""
    steps = len(ratios) - 1
    timesteps = _begin(scheduler, steps)
    scheduler.sigmas = ratios
    return Evaluations(timesteps, ratios[:-1], [True] * steps)


def heun(scheduler: Any, ratios: Tensor) -> Evaluations:
    """A table of ratios, evaluations at the start and the end of a step."""
    return _two_evaluations(scheduler, ratios, ratios[1:])


def midpoint(scheduler: Any, ratios: Tensor) -> Evaluations:
    """A table of ratios, evaluations at the start of a step and at its middle in log-SNR."""
    middles = (ratios[:-1] * ratios[1:]).sqrt()
    evaluations = _two_evaluations(scheduler, ratios, middles)
    scheduler.sigmas_interpol = middles.repeat_interleave(2)
    return evaluations


def ancestral_midpoint(scheduler: Any, ratios: Tensor) -> Evaluations:
    """The same for a step that goes below its node, to which noise brings it back."""
    below = ratios[1:].square() / ratios[:-1]
    middles = (ratios[:-1] * below).sqrt()
    evaluations = _two_evaluations(scheduler, ratios, middles)
    scheduler.sigmas_interpol = middles.repeat_interleave(2)
    scheduler.sigmas_down = below.repeat_interleave(2)
    scheduler.sigmas_up = (ratios[1:].square() - below.square()).sqrt().repeat_interleave(2)
    return evaluations


def in_flow_time(layout: Layout) -> Layout:
    """The same with a table of sigma / (alpha + sigma)."""

    def lay(scheduler: Any, ratios: Tensor) -> Evaluations:
        evaluations = layout(scheduler, ratios)
        scheduler.sigmas = scheduler.sigmas / (1 + scheduler.sigmas)
        return evaluations

    return lay


def angles(scheduler: Any, ratios: Tensor) -> Evaluations:
    """Tables of sigma and alpha where alpha^2 + sigma^2 = 1, one evaluation a step."""
    steps = len(ratios) - 1
    timesteps = _begin(scheduler, steps)
    scheduler.alphas = 1 / (1 + ratios.square()).sqrt()
    scheduler.betas = ratios * scheduler.alphas
    return Evaluations(timesteps, ratios[:-1], [True] * steps)


def integer_timesteps(scheduler: Any, ratios: Tensor) -> Evaluations:
    """A table of alpha^2 from the data up, in which a step goes one entry down."""
    steps = len(ratios) - 1
    scheduler.alphas_cumprod = _alphas_cumprod(ratios)
    if not hasattr(scheduler, "previous_timestep"):  # without the number DDPM goes one down
        scheduler.num_inference_steps = steps
    return Evaluations(range(steps, 0, -1), ratios[:-1], [True] * steps)


def half_integer_timesteps(scheduler: Any, ratios: Tensor) -> Evaluations:
    """Such a table for PNDM, which needs the middles for the Runge-Kutta steps at its start."""
    steps = len(ratios) - 1
    if steps < 4 and not scheduler.config.skip_prk_steps:
        raise ValueError(
            "PNDMScheduler starts with three Runge-Kutta steps and takes at least one more: give "
            f"steps=4 or more, or the option skip_prk_steps=True; got {steps}"
        )
    scheduler.register_to_config(num_train_timesteps=2 * steps, steps_offset=2)
    scheduler.set_timesteps(steps)
    middles = (ratios[:-1] * ratios[1:]).sqrt()
    halves = torch.cat([torch.stack([ratios[:-1], middles], 1).flatten(), ratios[-1:]])
    scheduler.alphas_cumprod = _alphas_cumprod(halves)
    timesteps = scheduler.timesteps.tolist()
    extra = len(timesteps) - steps
    start = [False] * extra if extra < 9 else 3 * [False, False, False, True]
    ends_step = start + [True] * (len(timesteps) - len(start))
    return Evaluations(timesteps, halves.flip(0)[timesteps], ends_step)


def _two_evaluations(scheduler: Any, ratios: Tensor, second: Tensor) -> Evaluations:
    steps = len(ratios) - 1
    timesteps = _begin(scheduler, steps, 2)
    scheduler.sigmas = ratios.repeat_interleave(2)[1:-1]
    evaluated = torch.stack([ratios[:-1], second], 1).flatten()
    return Evaluations(timesteps, evaluated, [False, True] * steps)


def _begin(scheduler: Any, steps: int, evaluations: int = 1) -> tuple[Tensor, ...]:
    """Have the scheduler start at its first entry, whatever time steps it is given."""
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.arange(evaluations * steps, 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True  # the input is scaled here
    return tuple(scheduler.timesteps)


def _alphas_cumprod(ratios: Tensor) -> Tensor:
    return 1 / (1 + ratios.flip(0).square())
