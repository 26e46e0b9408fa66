r"""Euler-Maruyama: the first solver of SDEs."""

from __future__ import annotations

from torch import Tensor

from sde_models.randomness import standard_normal_like
from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem


class EulerMaruyama(Solver):
    r"""Euler-Maruyama with fresh noise at each step.

    .. math:: x_{k+1} = x_k + b(t_k, x_k)\,\Delta t + c(t_k)\sqrt{|\Delta t|}\,\xi_k, \qquad
              \xi_k \sim N(0, I)

    One evaluation a step. Weak order 1; strong order 1 since the noise does not depend on the
    state, 1/2 where it does.

    Reference:
        Kloeden and Platen 1992, Numerical solution of stochastic differential equations, 10.2.
    """

    name = "euler-maruyama"
    order = 1.0
    stochastic = True
    adaptive = False
    evaluations = 1
    state_dependent_noise = True

    def integrate(self, problem: Problem) -> Tensor:
        x = problem.x
        times = problem.times.to(x).unbind()
        steps = problem.times.diff()
        for k, dt in enumerate(steps.tolist()):
            t = times[k]
            noise = standard_normal_like(x, problem.generator)
            scale = problem.noise_scale(t, x) * abs(dt) ** 0.5
            x = x + problem.drift(t, x) * dt + scale * noise
            reached = float(problem.times[k + 1])
            problem.recorder.accept(reached)
            if problem.recorder.wants(reached):
                problem.recorder.save(reached, x)
        return x
