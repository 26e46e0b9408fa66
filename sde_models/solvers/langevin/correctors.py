r"""Langevin dynamics at one noise level, with two rules for its step.

.. math:: x \leftarrow x + \delta \sigma_t^2\, \nabla \log p_t(x) + \sqrt{2 \delta}\, \sigma_t\, \xi

The step :math:`\delta` is in units of :math:`\sigma_t^2`, since no density at noise level sigma is
sharper than a Gaussian of that width: with delta of 1 or less, the drift never overshoots. Where
the density is as sharp as that, the variance settles at :math:`1 / (1 - \delta/2)` of the true one;
with 2 it is infinite.
"""

from __future__ import annotations

from torch import Tensor

from sde_models._utils.shapes import per_sample
from sde_models.sdes.system import add_scaled, as_coefficients
from sde_models.solvers.one_step.base import Stepper
from sde_models.solvers.problem import Problem

LONGEST_STEP = 0.5
"""The longest default delta."""


def langevin(problem: Problem, steps: Tensor) -> Stepper:
    r"""Langevin dynamics whose step is fixed at each node.

    Args:
        problem: What is solved.
        steps: The step :math:`\delta` at each node, shape ``(K + 1,)``.

    Returns:
        A function of node and state; the state moves and the node stays.
    """
    nodes, sigma = problem.at_nodes(), problem.scales().sigma
    of_eps = as_coefficients(-steps * sigma)
    of_noise = as_coefficients((2 * steps).sqrt() * sigma)

    def move(k: int, x: Tensor) -> Tensor:
        drifted = add_scaled(x, of_eps[k], nodes.denoise(k, x)[1])
        return add_scaled(drifted, of_noise[k], problem.noise())

    return move


def langevin_by_norm(problem: Problem, steps: Tensor) -> Stepper:
    r"""Langevin dynamics whose step is the longer the smaller the score of the sample is.

    .. math:: \delta = \min\Big(\delta_k \frac{D}{|\hat\epsilon|^2},\, \tfrac12\Big)

    Args:
        problem: What is solved.
        steps: :math:`\delta_k`, the step where the score is as large as that of noise alone,
            shape ``(K + 1,)``.

    Returns:
        A function of node and state; the state moves and the node stays.
    """
    nodes = problem.at_nodes()
    least, scale = as_coefficients(steps), as_coefficients(problem.scales().sigma)

    def move(k: int, x: Tensor) -> Tensor:
        eps = nodes.denoise(k, x)[1]
        mean_square = eps.flatten(1).square().mean(1)
        step = per_sample(least[k] / mean_square.clamp(min=least[k] / LONGEST_STEP), x)
        return add_scaled(x, scale[k], (2 * step).sqrt() * problem.noise() - step * eps)

    return move
