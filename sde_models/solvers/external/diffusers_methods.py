"""The schedulers of diffusers as solvers, ``diffusers:<SchedulerClass>``.

diffusers is an optional extra and slow to import: it is imported when one of its solvers is made.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.errors import nearest_names
from sde_models._utils.randomness import independent_parts
from sde_models.sdes.system import System, as_coefficients
from sde_models.solvers.base import Solver
from sde_models.solvers.external.diffusers_schedulers import LEFT_OUT, OPTIONS, SCHEDULERS, SETTINGS
from sde_models.solvers.problem import Problem

PREFIX = "diffusers:"


class DiffusersSolver(Solver):
    """A scheduler of diffusers on the nodes of a grid, from noise to data.

    It steps between the noise levels of the grid instead of those of its own table, and sees the
    model at the exact time of each. A deterministic one integrates the probability flow, one with
    noise the reverse SDE with eta = 1; ``DDIMScheduler`` and ``SASolverScheduler`` take both, the
    first with any eta up to 1, the second with any. Some round the state to float32 at each step.

    Options:
        The scheduler's own settings, as far as they are about its formula: ``solver_order``,
        ``algorithm_type``, ``solver_type``, ``predict_x0``, ``lower_order_final``,
        ``thresholding`` and the like; for ``LMSDiscreteScheduler`` also ``order``. Samples are
        clipped only where ``clip_sample`` asks for it.

    Args:
        name: "diffusers:" and the name of the class.

    Attributes:
        etas: Least and greatest eta that it integrates; the flow is 0.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If the scheduler is unknown or left out, or cannot use the options.
    """

    library = "diffusers"
    diffusion_only = True
    directions = (-1,)
    adaptive = False
    default_steps = 50

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self._class = _find_class(name)
        self._scheduler = row = SCHEDULERS[name.removeprefix(PREFIX)]
        parameters = inspect.signature(self._class).parameters
        self._defaults = {key: parameter.default for key, parameter in parameters.items()}
        formula = [key for key in OPTIONS if key in self._defaults]
        self.option_names = (*formula, *row.step_options)  # type: ignore[misc]
        usual = {**self._defaults, **row.step_options}
        self.number_options = tuple(  # type: ignore[misc]
            key for key in self.option_names if type(usual[key]) in (int, float)
        )
        for key in options:
            if key in self._defaults and key not in formula:
                raise ValueError(
                    f"solver {name!r} does not take {key!r}: noise levels and the meaning of the "
                    "network's output are the model's, and nodes are laid out by grid=, such as "
                    "grid='karras'"
                )
        super().__init__(**options)
        given = {**SETTINGS, **row.settings, **row.step_options, **self.options}
        self._settings = {key: given[key] for key in given if key in self._defaults}
        self._step_options = {key: given[key] for key in row.step_options}
        settings = {**self._defaults, **given}
        noisy = str(settings.get("algorithm_type")).startswith("sde-")
        if noisy and settings["solver_order"] > 2:
            raise ValueError(
                f"solver {name!r} cannot have solver_order={settings['solver_order']} with noise: "
                "the third-order steps of diffusers have a wrong sign there and do not converge; "
                "use solver_order=2"
            )
        self._try_options()
        self.etas = (1, 1) if noisy else row.etas
        self.integrates = ("ODE",) * (self.etas[0] == 0) + ("SDE",) * (self.etas[1] > 0)
        order = row.order(settings) if callable(row.order) else row.order
        self.order = 1 if noisy else order
        self.evaluations = row.evaluations

    def check_system(self, system: System) -> None:
        super().check_system(system)
        least, most = self.etas
        if not least <= system.eta <= most:
            possible = "1" if least == most else f"up to {most:g}"
            raise ValueError(
                f"solver {self.name!r} adds the noise of eta {possible}, and the eta of "
                f"{type(system).__name__} is {system.eta:g}: use 'diffusers:SASolverScheduler' or "
                "another SDE solver"
            )

    def integrate(self, problem: Problem) -> Tensor:
        size, output = self._scheduler.size, self._scheduler.output
        system, sde, nodes = problem.system, problem.system.sde, problem.scales()
        ratios = torch.exp(-0.5 * nodes.log_snr)
        if ratios.requires_grad:
            raise ValueError(
                f"solver {self.name!r} has no gradient for the parameters of alpha and sigma: "
                "freeze them, or use another solver such as 'ddim'"
            )
        scheduler = self._make(len(ratios) - 1, system.eta)
        evaluations = self._scheduler.layout(scheduler, ratios.to("cpu", torch.float64))
        log_snr = sde.times(-2 * evaluations.ratios.log())
        times = sde.t_from_log_snr(log_snr).clamp(sde.t_min, sde.t_max).to(problem.times)
        scales = problem.scales(times)
        estimate = problem.at_nodes(times).weighted(*output(scales.alpha, scales.sigma))
        of_input = as_coefficients(size(scales.alpha, scales.sigma))
        of_node = as_coefficients(size(nodes.alpha, nodes.sigma))
        # SA-Solver draws numbers for the flow too, which multiplies them by 0.
        source = problem.generator if system.stochastic else torch.Generator(problem.x.device)
        generators = [own for _, own in independent_parts(source, len(problem.x))]
        step = self._stepper(scheduler, system.eta, generators, problem.noise)
        ends = zip(problem.times[1:].tolist(), of_node[1:], strict=True)
        x = problem.x
        state = x / of_node[0]
        asked = zip(evaluations.timesteps, evaluations.ends_step, strict=True)
        for k, (timestep, ends_step) in enumerate(asked):
            state = step(estimate(k, of_input[k] * state), timestep, state)[0]
            if ends_step:
                t, scale = next(ends)
                x = scale * state
                problem.recorder.reach(t, x)
        return x

    def _make(self, steps: int, eta: float) -> Any:
        """A scheduler of so many steps, before its first."""
        known = {"num_train_timesteps": steps, "tau_func": lambda timestep: eta}
        known = {key: known[key] for key in known if key in self._defaults}
        return self._class(**self._settings, **known)

    def _stepper(
        self,
        scheduler: Any,
        eta: float,
        generators: list[torch.Generator | None],
        draw: Callable[[], Tensor],
    ) -> Callable[[Tensor, Any, Tensor], tuple[Tensor, ...]]:
        """The scheduler's step with the arguments it takes; several generators are one a row."""
        generator = generators if len(generators) > 1 else generators[0]
        given = {"generator": generator, "eta": eta, **self._step_options, "return_dict": False}
        taken = inspect.signature(scheduler.step).parameters
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = BrownianIncrements(draw)
        return partial(scheduler.step, **{key: given[key] for key in given if key in taken})

    def _try_options(self) -> None:
        """Refuse options for which the scheduler has no formula, by taking a few steps."""
        x = torch.zeros(1, 1)
        try:
            scheduler = self._make(10, 1.0)
            ratios = torch.logspace(1, -1, 11, dtype=torch.float64)
            evaluations = self._scheduler.layout(scheduler, ratios)
            step = self._stepper(scheduler, 1.0, [torch.Generator()], lambda: x)
            for timestep in evaluations.timesteps:
                x = step(x, timestep, x)[0]
        except Exception as error:
            raise ValueError(
                f"diffusers cannot run solver {self.name!r} with {self.options}: {error!r}"
            ) from error


class BrownianIncrements:
    """Increments of a Brownian path, each over its standard deviation.

    Replaces the path of schedulers that keep one, which does not draw from the generator and has a
    resolution of 1e-6. Two increments that start at one place belong to one path.

    Args:
        draw: Source of standard normal numbers.
    """

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._start = math.nan

    def __call__(self, start: Any, end: Any) -> Tensor:
        start, end = float(start), float(end)
        if start != self._start:
            self._start = self._reached = start
            self._increment: Any = 0.0
        self._increment = self._increment + math.sqrt(self._reached - end) * self._draw()
        self._reached = end
        return self._increment / math.sqrt(start - end)


def _find_class(name: str) -> Any:
    """The class of a scheduler; refuse one that is unknown, left out or not installed."""
    scheduler = name.removeprefix(PREFIX)
    if scheduler in LEFT_OUT:
        raise ValueError(f"there is no solver {name!r}: {scheduler} {LEFT_OUT[scheduler]}")
    if scheduler not in SCHEDULERS:
        known = [PREFIX + key for key in SCHEDULERS]
        begun = [key for key in known if key.startswith(name)]
        raise ValueError(f"unknown solver {name!r}; {nearest_names(name, begun or known)}")
    schedulers = _import_schedulers(f"solver {name!r}")
    if not hasattr(schedulers, scheduler):
        raise ValueError(f"the installed diffusers has no {scheduler}: pip install -U diffusers")
    return getattr(schedulers, scheduler)


def _import_schedulers(who: str) -> ModuleType:
    try:
        return importlib.import_module("diffusers.schedulers")
    except ImportError as error:
        raise ImportError(f"{who} needs diffusers: pip install sde-models[diffusers]") from error
