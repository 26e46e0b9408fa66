"""Every method of torchsde that is valid here, as ``sde:<method>``.

Each interval of the grid is one call of the ``step`` of torchsde's own method object, whose loop,
``torchsde.sdeint``, ignores the spacing of its times where ``dt`` is fixed. The noise here does not
depend on the state, so Ito and Stratonovich agree, and each method is given the kind of SDE that it
needs. Step control is not offered: torchsde averages the error over the batch, and takes no other
norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torchsde
from torch import Tensor
from torchsde._core import methods
from torchsde._core.base_sde import ForwardSDE

from sde_models.sdes.brownian import FreshBrownian, remembering_brownian
from sde_models.solvers.base import Solver
from sde_models.solvers.external.known_times import KnownTimes
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
        fractions: tuple[float, ...] = (0.0,),
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
        self.fractions = fractions
        self.state_dependent_noise = state_dependent_noise
        super().__init__(**options)
        brownian = self.options.get("brownian", "fresh")
        if isinstance(brownian, str) and brownian not in ("fresh", "interval"):
            raise ValueError(
                f"brownian must be 'fresh', 'interval' or a Brownian motion, got {brownian!r}"
            )

    def integrate(self, problem: Problem) -> Tensor:
        shape, y = problem.x.shape, problem.x.flatten(1)
        clock = problem.times * problem.direction
        form = _DiagonalView if problem.system.state_dependent_noise else _AdditiveView
        view = form(problem, self.sde_type, self.fractions)
        method = methods.select(method=self.method, sde_type=self.sde_type)(
            sde=ForwardSDE(view), bm=self._brownian(problem, y, clock),
            dt=None, adaptive=False, rtol=None, atol=None, dt_min=None, options={},
        )  # fmt: skip
        ticks = view.ticks(clock)
        extra = method.init_extra_solver_state(ticks[0], y)
        for k, t in enumerate(problem.times[1:].tolist()):
            y, extra = method.step(ticks[k], ticks[k + 1], y, extra)
            view.forget()
            problem.recorder.reach(t, y.reshape(shape))
        return y.reshape(shape)

    def _brownian(self, problem: Problem, y: Tensor, clock: Tensor) -> torchsde.BaseBrownian:
        brownian = self.options.get("brownian", "fresh")
        if brownian == "fresh":
            return FreshBrownian(y, problem.generator)
        if brownian == "interval":
            return remembering_brownian(y, clock, problem.generator, self.levy_area)
        if tuple(brownian.shape) != tuple(y.shape):
            raise ValueError(
                f"brownian has shape {tuple(brownian.shape)}, expected that of the flat state, "
                f"{tuple(y.shape)}: give its size as (B, D)"
            )
        return brownian


class _AdditiveView:
    """A system in the form that torchsde takes: flat state, rising clock, additive noise.

    It has the product of g and a vector instead of g, so that no D x D matrix is made. It keeps
    the drifts of the current step, some of which torchsde evaluates several times.
    """

    noise_type = "additive"

    def __init__(self, problem: Problem, sde_type: str, fractions: tuple[float, ...]) -> None:
        self.sde_type = sde_type
        self._shape = problem.x.shape
        self._direction = problem.direction
        self._equation = KnownTimes(problem, fractions)
        self._known: list[tuple[float, Tensor, Tensor]] = []

    def ticks(self, clock: Tensor) -> Any:
        """The nodes of the clock for the methods; numbers are faster than tensors."""
        return clock.tolist()

    def f(self, c: float | Tensor, y: Tensor) -> Tensor:
        clock = float(c)
        for known_clock, known_y, drift in self._known:
            if known_clock == clock and known_y is y:
                return drift
        drift = self._equation(self._direction * clock, y.reshape(self._shape)).reshape(y.shape)
        drift = drift if self._direction > 0 else -drift
        self._known.append((clock, y, drift))
        return drift

    def g_prod(self, c: float | Tensor, y: Tensor, v: Tensor) -> Tensor:
        return (self._scale(c, y) * v.reshape(self._shape)).reshape(y.shape)

    def forget(self) -> None:
        """Drop the drifts of the step that ended."""
        self._known.clear()

    def _scale(self, c: float | Tensor, y: Tensor) -> Any:
        return self._equation.noise_scale(self._direction * float(c), y.reshape(self._shape))


class _DiagonalView(_AdditiveView):
    """The same for noise that depends on the state, coordinate by coordinate."""

    noise_type = "diagonal"

    def ticks(self, clock: Tensor) -> Any:
        return clock.unbind()  # the methods take the root of a step as of a tensor

    def g(self, c: float | Tensor, y: Tensor) -> Tensor:
        return self._scale(c, y).expand(self._shape).reshape(y.shape)


def torchsde_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for every torchsde method that is offered, by name."""
    ito = partial(TorchsdeSolver, sde_type="ito", state_dependent_noise=True)
    stratonovich = partial(TorchsdeSolver, sde_type="stratonovich")
    srk = partial(ito, "srk", order=1.5, evaluations=2, levy_area="space-time")
    middle = partial(stratonovich, order=1.0, evaluations=2, fractions=(0.0, 0.5))
    return {
        "sde:euler": partial(ito, "euler", order=1.0, evaluations=1),
        "sde:milstein": partial(ito, "milstein", order=1.0, evaluations=1),
        "sde:srk": partial(srk, fractions=(0.0, 0.75, 1.0)),
        "sde:euler_heun": partial(stratonovich, "euler_heun", order=1.0, evaluations=1),
        "sde:heun": partial(stratonovich, "heun", order=1.0, evaluations=2),
        "sde:midpoint": partial(middle, "midpoint"),
        "sde:log_ode": partial(middle, "log_ode", levy_area="foster"),
    }
