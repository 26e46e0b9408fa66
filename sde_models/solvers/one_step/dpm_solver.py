r"""DPM-Solver++(2S): two evaluations a step, exponential in the log-SNR, without history."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_models.sdes.system import as_coefficients
from sde_models.solvers.multistep.base import half_log_snr
from sde_models.solvers.one_step.base import OneStepSolver, Stepper
from sde_models.solvers.problem import Problem


class DPMSolver2S(OneStepSolver):
    r"""DPM-Solver++(2S): the estimate of x0 at a node and within the step after it.

    With :math:`\lambda = \log(\alpha/\sigma)`, :math:`h = \lambda_t - \lambda_s`, and u the time
    at which :math:`\lambda_u = \lambda_s + r h`,

    .. math:: x_u &= \frac{\sigma_u}{\sigma_s} x_s
                     + \alpha_u (1 - e^{-rh})\, \hat x_0(s, x_s) \\
              x_t &= \frac{\sigma_t}{\sigma_s} x_s + \alpha_t (1 - e^{-h})
                     \Big[\Big(1 - \frac{1}{2r}\Big) \hat x_0(s, x_s)
                     + \frac{1}{2r} \hat x_0(u, x_u)\Big] .

    Two evaluations a step, order 2, in either direction.

    Options:
        ratio: r, where in the step the second evaluation is; above 0 and at most 1, where it is
            at the end of the step. 1/2 if left out.

    Reference:
        Lu et al. 2022, algorithm 1, arXiv:2211.01095.
    """

    name = "dpmpp-2s"
    integrates = ("ODE",)
    diffusion_only = True
    order = 2
    evaluations = 2
    default_steps = 25
    option_names = ("ratio",)
    number_options = option_names

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ratio = self.options.get("ratio", 0.5)
        if self.ratio > 1:
            raise ValueError(
                f"option 'ratio' must be at most 1, the end of the step, got {self.ratio:g}"
            )

    def stepper(self, problem: Problem) -> Stepper:
        # The ends of the steps are the even nodes, the points within them the odd ones.
        times = self._with_inner_times(problem)
        nodes, scales = problem.at_nodes(times), problem.scales(times)
        alpha, sigma, clock = scales.alpha, scales.sigma, half_log_snr(scales)
        start, inner, end = slice(0, -1, 2), slice(1, None, 2), slice(2, None, 2)
        to_inner, to_end = clock[inner] - clock[start], clock[end] - clock[start]
        gained = -alpha[end] * torch.expm1(-to_end)
        # The ratio of the rounded inner time, which keeps the order.
        of_inner = gained * to_end / (2 * to_inner)
        x_inner = as_coefficients(sigma[inner] / sigma[start])
        x0_inner = as_coefficients(-alpha[inner] * torch.expm1(-to_inner))
        x_end = as_coefficients(sigma[end] / sigma[start])
        x0_end = as_coefficients(gained - of_inner)
        inner_x0_end = as_coefficients(of_inner)

        def step(k: int, x: Tensor) -> Tensor:
            x0 = nodes.x0(2 * k, x)
            inside = nodes.x0(2 * k + 1, x_inner[k] * x + x0_inner[k] * x0)
            return x_end[k] * x + x0_end[k] * x0 + inner_x0_end[k] * inside

        return step

    def _with_inner_times(self, problem: Problem) -> Tensor:
        times, sde = problem.times, problem.system.sde
        log_snr = problem.scales().log_snr.detach()
        within = sde.t_from_log_snr(torch.lerp(log_snr[:-1], log_snr[1:], self.ratio)).cpu()
        if self.ratio == 1:
            within = times[1:]
        pairs = torch.stack([within.to(times), times[1:]], dim=1)
        return torch.cat([times[:1], pairs.flatten()])
