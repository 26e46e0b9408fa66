"""Every method of torchsde that is valid here, as ``sde:<method>``.

Each interval of the grid is one call of ``torchsde.sdeint``, since with a fixed ``dt`` it ignores
the spacing of its times. The noise here does not depend on the state, so Ito and Stratonovich
agree, and each method is given the kind of SDE that it wants. Step control is not offered:
torchsde averages the error over the batch, and takes no other norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchsde
from torch import Tensor

from sde_models.solvers.base import Solver
from sde_models.solvers.brownian import FreshBrownian, remembering_brownian
from sde_models.solvers.problem import Problem


class TorchsdeSolver(Solver):
    """A fixed-step method of torchsde on the nodes of a grid.

    Options:
        brownian: "fresh" (default) draws each increment once from the generator; "interval" uses
            torchsde's BrownianInterval; or a torchsde Brownian motion over the clock
            ``[-t_max, -t_min]`` for a reverse SDE, ``[t_min, t_max]`` for a forward one, with
            the flat shape ``(B, D)``, to drive two solves by one path.
    """

    library = "torchsde"
    integrates = ("SDE",)
    adaptive = False
    option_names = ("brownian",)

    def __init__(
        self,
        method: str,
        sde_type: str,
        order: float,
        evaluations: int,
        levy_area: str = "none",
        *,
        state_dependent_noise: bool = False,
        **options: Any,
    ) -> None:
        self.name = f"sde:{method}"
        self.method = method
        self.sde_type = sde_type
        self.order = order
        self.evaluations = evaluations
        self.levy_area = levy_area
        self.state_dependent_noise = state_dependent_noise
        super().__init__(**options)
        brownian = self.options.get("brownian", "fresh")
        if isinstance(brownian, str) and brownian not in ("fresh", "interval"):
            raise ValueError(
                f"brownian must be 'fresh', 'interval' or a Brownian motion, got {brownian!r}"
            )

    def integrate(self, problem: Problem) -> Tensor:
        shape = problem.x.shape
        y = problem.x.flatten(1)
        clock = problem.times * problem.direction
        brownian = self._brownian(problem, y, clock)
        view = _view_of(problem, self.sde_type)
        # torchsde's shape checks draw from the global generator, which is not theirs to move when
        # another one was given.
        devices = [y.device] if y.device.type == "cuda" else []
        own = problem.generator is None or problem.generator is torch.default_generator
        with torch.random.fork_rng(devices, enabled=not own):
            return self._steps(problem, view, y, clock, brownian).reshape(shape)

    def _steps(
        self,
        problem: Problem,
        view: _AdditiveView,
        y: Tensor,
        clock: Tensor,
        brownian: torchsde.BaseBrownian,
    ) -> Tensor:
        for k in range(len(clock) - 1):
            interval = clock[k : k + 2]
            # torchsde steps to min(t + dt, end): a dt beyond the end makes exactly one step.
            dt = 2 * float(interval[1] - interval[0])
            y = torchsde.sdeint(view, y, interval, bm=brownian, method=self.method, dt=dt)[-1]
            view.forget()
            reached = float(problem.times[k + 1])
            problem.recorder.reach(reached, y.reshape(problem.x.shape))
        return y

    def _brownian(self, problem: Problem, y: Tensor, clock: Tensor) -> torchsde.BaseBrownian:
        brownian = self.options.get("brownian", "fresh")
        if brownian == "fresh":
            return FreshBrownian(y, problem.generator)
        if brownian == "interval":
            return remembering_brownian(y, clock, problem.generator, self.levy_area)
        return brownian


class _AdditiveView:
    """A system as torchsde wants it: flat state, rising clock, additive noise.

    It offers the product of g and a vector instead of g, so that no D x D matrix is made. It
    remembers the drifts of the current step: torchsde asks for some of them several times, once in
    a hidden check of each call.
    """

    noise_type = "additive"

    def __init__(self, problem: Problem, sde_type: str) -> None:
        self.sde_type = sde_type
        self._problem = problem
        self._known: list[tuple[float, Tensor, Tensor]] = []

    def f(self, c: Tensor, y: Tensor) -> Tensor:
        clock = float(c)
        for known_clock, known_y, drift in self._known:
            if known_clock == clock and known_y is y:
                return drift
        t, x = self._at(c, y)
        drift = self._problem.direction * self._problem.drift(t, x).reshape(y.shape)
        self._known.append((clock, y, drift))
        return drift

    def g_prod(self, c: Tensor, y: Tensor, v: Tensor) -> Tensor:
        t, x = self._at(c, y)
        return (self._problem.noise_scale(t, x) * v.reshape(x.shape)).reshape(y.shape)

    def forget(self) -> None:
        """Drop the drifts of the step that ended."""
        self._known.clear()

    def _at(self, c: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (c * self._problem.direction).to(y), y.reshape(self._problem.x.shape)


class _DiagonalView(_AdditiveView):
    """The same for noise that depends on the state, coordinate by coordinate."""

    noise_type = "diagonal"

    def g(self, c: Tensor, y: Tensor) -> Tensor:
        t, x = self._at(c, y)
        return self._problem.noise_scale(t, x).expand_as(x).reshape(y.shape)


def _view_of(problem: Problem, sde_type: str) -> _AdditiveView:
    view = _DiagonalView if problem.system.state_dependent_noise else _AdditiveView
    return view(problem, sde_type)


def torchsde_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for every torchsde method that is offered, by name."""
    ito = partial(TorchsdeSolver, sde_type="ito", state_dependent_noise=True)
    stratonovich = partial(TorchsdeSolver, sde_type="stratonovich")
    return {
        "sde:euler": partial(ito, "euler", order=1.0, evaluations=1),
        "sde:milstein": partial(ito, "milstein", order=1.0, evaluations=1),
        "sde:srk": partial(ito, "srk", order=1.5, evaluations=2, levy_area="space-time"),
        "sde:euler_heun": partial(stratonovich, "euler_heun", order=1.0, evaluations=1),
        "sde:heun": partial(stratonovich, "heun", order=1.0, evaluations=2),
        "sde:midpoint": partial(stratonovich, "midpoint", order=1.0, evaluations=2),
        "sde:log_ode": partial(
            stratonovich, "log_ode", order=1.0, evaluations=2, levy_area="foster"
        ),
    }
