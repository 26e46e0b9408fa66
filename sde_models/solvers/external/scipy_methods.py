"""Every method of ``scipy.integrate.solve_ivp``, as ``scipy:<method>``.

SciPy's solver objects are stepped one by one, so that steps are counted, capped and saved like
those of any other solver. The state goes through NumPy in float64 on the CPU: no gradients.

The error norm is the worst sample's. The explicit Runge-Kutta methods are given that norm. Radau
and BDF average over the batch by a norm that cannot be changed, so their tolerances are divided by
the square root of the batch size, which bounds the worst sample's error by the given tolerance.
LSODA takes the largest component by itself. The implicit methods are given a Jacobian without
coupling between samples, so that it costs as many evaluations as an event has numbers, not as the
batch has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate
from scipy.sparse import block_diag, coo_array
from torch import Tensor

from sde_models._utils.errors import StepSizeError
from sde_models.solvers.base import Solver
from sde_models.solvers.problem import Problem

Array = NDArray[np.float64]


class ScipySolver(Solver):
    """A method of SciPy's ``solve_ivp``.

    Options: ``first_step`` and ``max_step``, as SciPy documents them.
    """

    library = "scipy"
    integrates = ("ODE",)
    adaptive = True
    differentiable = False
    option_names = ("first_step", "max_step")
    number_options = option_names

    def __init__(self, method: str, order: float, **options: Any) -> None:
        self.name = f"scipy:{method}"
        self.method = method
        self.order = order
        self.evaluations: int | None = None
        super().__init__(**options)

    def integrate(self, problem: Problem) -> Tensor:
        stepper = self._stepper(problem)
        recorder = problem.recorder
        recorder.rejected = self._rejections(stepper)
        start = float(problem.times[0])
        pending = [] if recorder.save_at is None else recorder.save_at.tolist()
        pending = [t for t in pending if t != start]
        while stepper.status == "running":
            recorder.check_cap(stepper.t, _as_state(stepper.y, problem))
            message = stepper.step()
            if stepper.status == "failed":
                raise StepSizeError(
                    f"{self.name} failed at t={stepper.t:.6g} after {recorder.cost}: "
                    f"{message} Loosen rtol={problem.rtol:g} and "
                    f"atol={problem.atol:g}, or use float64",
                    t=stepper.t, x=_as_state(stepper.y, problem), nfe=recorder.cost.nfe,
                )  # fmt: skip
            recorder.rejected = self._rejections(stepper)
            recorder.accept(stepper.t)
            recorder.notify(stepper.t, _as_state(stepper.y, problem))
            while pending and (stepper.t - pending[0]) * problem.direction >= 0:
                t = pending.pop(0)
                y = stepper.y if t == stepper.t else stepper.dense_output()(t)
                recorder.save(t, _as_state(y, problem))
            if recorder.save_all:
                recorder.save(stepper.t, _as_state(stepper.y, problem))
        return _as_state(stepper.y, problem)

    def _stepper(self, problem: Problem) -> Any:
        def drift(t: float, y: Array) -> Array:
            time = torch.tensor(t, dtype=problem.x.dtype, device=problem.x.device)
            return _as_array(problem.drift(time, _as_state(y, problem)))

        return self._stepper_class(problem)(
            drift,
            float(problem.times[0]),
            _as_array(problem.x),
            float(problem.times[-1]),
            **self._tolerances(problem),
            **self._structure(problem),
            **self.options,
        )

    def _stepper_class(self, problem: Problem) -> Any:
        return getattr(integrate, self.method)

    def _tolerances(self, problem: Problem) -> dict[str, float]:
        return {"rtol": problem.rtol, "atol": problem.atol}

    def _structure(self, problem: Problem) -> dict[str, Any]:
        return {}

    def _rejections(self, stepper: Any) -> int | None:
        return None


class ExplicitScipy(ScipySolver):
    """RK23, RK45 and DOP853, with the worst sample's error norm."""

    def _stepper_class(self, problem: Problem) -> Any:
        base = getattr(integrate, self.method)

        def sizes(error: Array) -> Array:
            state = torch.from_numpy(error).reshape(problem.x.shape)
            return np.asarray(problem.system.error_norm(state).numpy())

        class WorstSample(base):  # type: ignore[misc, valid-type]
            """The method with its error norm taken sample by sample."""

            rejected = 0

            def _estimate_error_norm(self, K: Array, h: float, scale: Array) -> float:
                norm = self._worst(K, h, scale)
                self.rejected += norm >= 1
                return norm

            def _worst(self, K: Array, h: float, scale: Array) -> float:
                return float(sizes(self._estimate_error(K, h) / scale).max())

        class WorstSample853(WorstSample):
            """DOP853 weighs an error of fifth order by one of third."""

            def _worst(self, K: Array, h: float, scale: Array) -> float:
                fifth = sizes(np.dot(K.T, self.E5) / scale) ** 2
                third = sizes(np.dot(K.T, self.E3) / scale) ** 2
                denominator = np.sqrt(fifth + 0.01 * third)
                ratio = np.divide(
                    fifth, denominator, out=np.zeros_like(fifth), where=denominator > 0
                )
                return float(abs(h) * ratio.max())

        return WorstSample853 if self.method == "DOP853" else WorstSample

    def _rejections(self, stepper: Any) -> int | None:
        return int(stepper.rejected)


class ImplicitScipy(ScipySolver):
    """Radau and BDF, with a block-diagonal Jacobian and tolerances for the worst sample."""

    def _tolerances(self, problem: Problem) -> dict[str, float]:
        share = 1 / math.sqrt(problem.x.shape[0])
        smallest = 100 * float(np.finfo(np.float64).eps)  # below it SciPy warns and takes this
        return {"rtol": max(problem.rtol * share, smallest), "atol": problem.atol * share}

    def _structure(self, problem: Problem) -> dict[str, Any]:
        batch, size = problem.x.shape[0], problem.x[0].numel()
        block = coo_array(np.ones((size, size)))
        return {"jac_sparsity": block_diag([block] * batch, format="csc")}


class LsodaScipy(ScipySolver):
    """LSODA, whose norm is the largest component's, with a banded Jacobian."""

    def _structure(self, problem: Problem) -> dict[str, Any]:
        if problem.x.shape[0] == 1:
            return {}
        width = problem.x[0].numel() - 1
        return {"lband": width, "uband": width}


def _as_array(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).reshape(-1).numpy().copy()


def _as_state(y: Array, problem: Problem) -> Tensor:
    return torch.from_numpy(np.array(y)).to(problem.x).reshape(problem.x.shape)


def scipy_solvers() -> dict[str, Callable[..., Solver]]:
    """A maker for every SciPy method, by name."""
    return {
        "scipy:RK23": partial(ExplicitScipy, "RK23", 3),
        "scipy:RK45": partial(ExplicitScipy, "RK45", 5),
        "scipy:DOP853": partial(ExplicitScipy, "DOP853", 8),
        "scipy:Radau": partial(ImplicitScipy, "Radau", 5),
        "scipy:BDF": partial(ImplicitScipy, "BDF", 5),
        "scipy:LSODA": partial(LsodaScipy, "LSODA", 12),
    }
