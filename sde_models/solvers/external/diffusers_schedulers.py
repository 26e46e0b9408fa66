r"""The schedulers of diffusers: a row for each, and a reason for those left out.

A scheduler knows a diffusion by :math:`\sigma / \alpha` and by how its samples are scaled, and any
:class:`~sde_models.GaussianSDE` can be put in its form:

.. math:: \text{vp: } x / \sqrt{\alpha^2 + \sigma^2}, \qquad \text{ve: } x / \alpha, \qquad
          \text{flow: } x / (\alpha + \sigma) .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_models.solvers.external.diffusers_layouts import (
    Layout,
    ancestral_midpoint,
    angles,
    half_integer_timesteps,
    heun,
    in_flow_time,
    integer_timesteps,
    midpoint,
    one_evaluation,
)

Size = Callable[[Tensor, Tensor], Tensor]
"""Divisor of the state, from alpha and sigma."""
Output = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Factors of x0 and eps in the network's output as the scheduler reads it, from alpha and sigma."""


def vp(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Size of a variance-preserving state."""
    return torch.hypot(alpha, sigma)


def ve(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Size of a state whose signal keeps its scale."""
    return alpha


def flow(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Size of a state between data and noise."""
    return alpha + sigma


def eps(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The noise."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def v(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity of a variance-preserving state; for data_std 1 minus the residual of EDM."""
    return -sigma / vp(alpha, sigma), alpha / vp(alpha, sigma)


def eps_minus_x0(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity of a state between data and noise."""
    return -torch.ones_like(alpha), torch.ones_like(alpha)


Order = Callable[[Mapping[str, Any]], float]
"""Order of convergence, by the settings."""


def order_of(option: str, at_most: float) -> Order:
    """The order that an option sets, up to a highest one."""
    return lambda settings: min(settings[option], at_most)


def order_of_unipc(settings: Mapping[str, Any]) -> float:
    """The order of the corrector, up to 3 because of the first step, of one evaluation."""
    return min(settings["solver_order"] + 1, 3)


def order_of_sa_solver(settings: Mapping[str, Any]) -> float:
    """The same where the order of the corrector is an option."""
    return min(settings["predictor_order"] + 1, settings["corrector_order"], 3)


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers.

    Attributes:
        layout: Its table of ratios.
        order: Order of convergence of the flow, or how it follows from the settings.
        size: Scale of its state.
        output: The network's output as it reads it.
        settings: Settings that are not its own defaults.
        evaluations: Evaluations a step, beyond a constant.
        etas: Least and greatest eta that it integrates; the flow is eta = 0.
        step_options: Options that go to each step, with their defaults.
    """

    layout: Layout = one_evaluation
    order: Order | float = 1
    size: Size = vp
    output: Output = eps
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int = 1
    etas: tuple[float, float] = (0, 0)
    step_options: Mapping[str, Any] = field(default_factory=dict)


OPTIONS = (
    "algorithm_type",
    "clip_sample",
    "clip_sample_range",
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "lower_order_final",
    "predict_x0",
    "predictor_order",
    "sample_max_value",
    "skip_prk_steps",
    "solver_order",
    "solver_type",
    "thresholding",
)
"""Settings of a scheduler's formula, which are options of the solver."""

SETTINGS: Mapping[str, Any] = {"clip_sample": False, "final_sigmas_type": "sigma_min"}
"""Settings of every scheduler that has them: nothing is clipped, and the end is at its node."""

EDM: Mapping[str, Any] = {"prediction_type": "v_prediction", "sigma_data": 1.0}

_DDIM = Scheduler(integer_timesteps, etas=(0, 1))
_DDPM = Scheduler(integer_timesteps, etas=(1, 1))

SCHEDULERS: Mapping[str, Scheduler] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "CogVideoXDDIMScheduler": Scheduler(integer_timesteps),
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DPMSolverMultistepScheduler": Scheduler(order=order_of("solver_order", 2)),
    "DPMSolverSinglestepScheduler": Scheduler(order=order_of("solver_order", 3)),
    "DEISMultistepScheduler": Scheduler(order=order_of("solver_order", 3)),
    "UniPCMultistepScheduler": Scheduler(order=order_of_unipc),
    "SASolverScheduler": Scheduler(order=order_of_sa_solver, etas=(0, math.inf)),
    "PNDMScheduler": Scheduler(half_integer_timesteps, order=2),
    "IPNDMScheduler": Scheduler(angles, order=2, output=v),
    "EulerDiscreteScheduler": Scheduler(size=ve),
    "EulerAncestralDiscreteScheduler": Scheduler(size=ve, etas=(1, 1)),
    "HeunDiscreteScheduler": Scheduler(heun, 2, ve, evaluations=2),
    "KDPM2DiscreteScheduler": Scheduler(midpoint, 2, ve, evaluations=2),
    "KDPM2AncestralDiscreteScheduler": Scheduler(
        ancestral_midpoint, size=ve, evaluations=2, etas=(1, 1)
    ),
    "DPMSolverSDEScheduler": Scheduler(midpoint, size=ve, evaluations=2, etas=(1, 1)),
    "LMSDiscreteScheduler": Scheduler(
        order=order_of("order", 4), size=ve, step_options={"order": 4}
    ),
    "EDMEulerScheduler": Scheduler(size=ve, output=v, settings=EDM),
    "EDMDPMSolverMultistepScheduler": Scheduler(
        order=order_of("solver_order", 2), size=ve, output=v, settings=EDM
    ),
    "CosineDPMSolverMultistepScheduler": Scheduler(size=ve, output=v, settings=EDM, etas=(1, 1)),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        in_flow_time(one_evaluation), size=flow, output=eps_minus_x0
    ),
    "FlowMatchHeunDiscreteScheduler": Scheduler(
        in_flow_time(heun), 2, flow, eps_minus_x0, evaluations=2
    ),
}
"""Every scheduler that can be driven, by the name of its class."""

_DISTILLED = "is for networks distilled to a few steps, which predict where the flow ends"
_TOKENS = "samples discrete tokens"
_ONE_MODEL = "is made for one model, whose stages or guidance are in it"
_UPWARD = "runs up: encode, or an ODE solver such as 'ddim', goes from data to noise"
_DEPRECATED = "is deprecated and has no step of the usual form"

LEFT_OUT: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _DISTILLED,
    "CogVideoXDPMScheduler": "needs its last estimate at each step; it is "
    "DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++'",
    "ConsistencyDecoderScheduler": _DISTILLED,
    "DDIMInverseScheduler": _UPWARD,
    "DDPMWuerstchenScheduler": "is DDPMScheduler with a cosine schedule in it",
    "DPMSolverMultistepInverseScheduler": _UPWARD,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": "is for networks of two times, which predict a flow map",
    "FlowMatchLCMScheduler": _DISTILLED,
    "HeliosDMDScheduler": _DISTILLED,
    "HeliosScheduler": _ONE_MODEL,
    "KarrasVeScheduler": _DEPRECATED,
    "LCMScheduler": _DISTILLED,
    "LTXEulerAncestralRFScheduler": "is EulerAncestralDiscreteScheduler in another scale",
    "MiniMaxH3Scheduler": "is FlowMatchEulerDiscreteScheduler with time running up",
    "PiflowScheduler": "is for networks that predict a policy",
    "RFD4ProteinaScheduler": _ONE_MODEL,
    "RePaintScheduler": "paints in a mask",
    "SCMScheduler": _DISTILLED,
    "ScoreSdeVeScheduler": "is a predictor and a corrector, each with a step of its own: use 'pc'",
    "ScoreSdeVpScheduler": _DEPRECATED,
    "TCDScheduler": _DISTILLED,
    "UnCLIPScheduler": "is DDPMScheduler with a table of betas in it",
    "VQDiffusionScheduler": _TOKENS,
}
"""The schedulers that cannot be used, each with the reason."""
