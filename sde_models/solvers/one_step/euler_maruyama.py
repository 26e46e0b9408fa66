r"""Euler-Maruyama: the first solver of SDEs."""

from __future__ import annotations

from torch import Tensor

from sde_models.sdes.system import add_scaled
from sde_models.solvers.one_step.base import OneStepSolver, Stepper
from sde_models.solvers.problem import Problem


class EulerMaruyama(OneStepSolver):
    r"""Euler-Maruyama with fresh noise at each step.

    .. math:: x_{k+1} = x_k + b(t_k, x_k)\,\Delta t + c(t_k)\sqrt{|\Delta t|}\,\xi_k, \qquad
              \xi_k \sim N(0, I)

    One evaluation a step. Weak order 1; strong order 1 since the noise does not depend on the
    state, 1/2 where it does.

    Reference:
        Kloeden and Platen 1992, Numerical solution of stochastic differential equations, 10.2.
    """

    name = "euler-maruyama"
    integrates = ("SDE",)
    order = 1.0
    evaluations = 1
    state_dependent_noise = True

    def stepper(self, problem: Problem) -> Stepper:
        nodes = problem.at_nodes()

        def step(k: int, x: Tensor) -> Tensor:
            dt = nodes.steps[k]
            noise = problem.noise()
            scale = problem.check_noise_scale(nodes.noise_scale(k, x), x) * abs(dt) ** 0.5
            return add_scaled(add_scaled(x, dt, nodes.drift(k, x)), scale, noise)

        return step
