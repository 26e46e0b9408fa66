r"""Predictor-corrector sampling: steps towards the data, each followed by Langevin dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.errors import find_by_name, nearest_names
from sde_models.sdes.system import System
from sde_models.solvers.base import Solver
from sde_models.solvers.langevin.correctors import langevin, langevin_by_norm
from sde_models.solvers.one_step.ancestral import Ancestral, ReverseDiffusion
from sde_models.solvers.one_step.base import Stepper
from sde_models.solvers.one_step.ddim import DDIM
from sde_models.solvers.one_step.euler_maruyama import EulerMaruyama
from sde_models.solvers.one_step.heun_edm import HeunEDM
from sde_models.solvers.problem import Problem

PREDICTORS: dict[str, Callable[[], Solver]] = {
    ReverseDiffusion.name: ReverseDiffusion,
    Ancestral.name: Ancestral,
    EulerMaruyama.name: EulerMaruyama,
    DDIM.name: DDIM,
    HeunEDM.name: HeunEDM,
}

CORRECTORS: dict[str, Callable[[Problem, Tensor], Stepper]] = {
    "annealed-langevin": langevin,
    "langevin": langevin_by_norm,
}


class PredictorCorrector(Solver):
    r"""Predictor-corrector sampling of Song et al.

    Each step is one of the predictor, then ``corrector_steps`` of Langevin dynamics at the new
    node, the last node too:

    .. math:: x \leftarrow x + \varepsilon \nabla \log p_t(x) + \sqrt{2 \varepsilon}\, \xi .

    Evaluations a step: those of the predictor and one for each corrector step. The order is that
    of the predictor, down to what Langevin dynamics of fixed ``snr`` leaves: up to
    :math:`\mathrm{snr}^2` of the variance, however many steps are taken.

    Options:
        predictor: "reverse-diffusion" (default), "ancestral", "euler-maruyama", "ddim", or
            "heun-edm", which steps along the probability flow and needs eta = 0; or an object of
            :func:`~sde_models.make_solver` whose step can be taken by itself.
        corrector: The rule for the step, with :math:`a = \alpha_s/\alpha_t` of the predictor's
            step from s to t, which for VP is :math:`\sqrt{1 - \beta}`:
            "annealed-langevin" (default), :math:`\varepsilon = 2 a^2 (\mathrm{snr}\, \sigma_t)^2`;
            "langevin", :math:`\varepsilon = 2 a^2 (\mathrm{snr}\, \sqrt D / |\nabla \log p_t|)^2`
            but :math:`\sigma_t^2 / 2` at most; or "none".
        corrector_steps: Langevin steps after each step of the predictor, 1.
        snr: Ratio of score to noise in a Langevin step, 0.16; below 1.

    "langevin" takes the norm of the score for each sample by itself, so that batch-mates do not
    matter, and the average norm of the noise. Its step then depends on the state, which draws
    samples to where the score is large: an error of 2/D of the variance for D numbers a sample,
    negligible for images and large in the plane.

    Raises:
        ValueError: For an unknown predictor or corrector, an ``snr`` of 1 or more, and options of
            a corrector where there is none.

    Reference:
        Song et al. 2021, algorithms 2 to 5 and appendix G, arXiv:2011.13456.
    """

    name = "pc"
    integrates = ("SDE",)
    diffusion_only = True
    directions = (-1,)
    adaptive = False
    option_names = ("predictor", "corrector", "corrector_steps", "snr")
    number_options = ("snr",)
    integer_options = ("corrector_steps",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.predictor = _find_predictor(self.options.get("predictor", ReverseDiffusion.name))
        self.corrector = self.options.get("corrector", "annealed-langevin")
        self.snr = self.options.get("snr", 0.16)
        corrector_steps: int = self.options.get("corrector_steps", 1)
        self._check_corrector()
        self.corrector_steps = 0 if self.corrector == "none" else corrector_steps
        self.order = self.predictor.order
        predicting = self.predictor.evaluations
        self.evaluations = None if predicting is None else predicting + self.corrector_steps

    def _check_corrector(self) -> None:
        if self.corrector not in (*CORRECTORS, "none"):
            raise ValueError(
                f"unknown corrector {self.corrector!r}; "
                + nearest_names(self.corrector, (*CORRECTORS, "none"))
            )
        unused = [key for key in ("corrector_steps", "snr") if key in self.options]
        if self.corrector == "none" and unused:
            raise ValueError(
                f"corrector='none' cannot use {unused[0]}=: leave it out, or choose a corrector"
            )
        if self.snr >= 1:
            raise ValueError(
                f"snr must be a number below 1, where Langevin dynamics diverges, got {self.snr!r}"
            )

    def check_system(self, system: System) -> None:
        super().check_system(system)
        if self.predictor.stochastic:
            self.predictor.check_system(system)
        elif system.eta != 0:
            raise ValueError(
                f"predictor {self.predictor.name!r} steps along the probability flow and this "
                f"{type(system).__name__} has eta={system.eta:g}: give eta=0 with it, or choose "
                f"another predictor ({', '.join(PREDICTORS)})"
            )

    def correcting(self, problem: Problem) -> Stepper:
        """The Langevin step at each node."""
        alpha = problem.scales().alpha
        kept = (alpha[:-1] / alpha[1:]).square()
        steps = 2 * self.snr**2 * torch.cat([kept[:1], kept])
        return CORRECTORS[self.corrector](problem, steps)

    def integrate(self, problem: Problem) -> Tensor:
        predict, x = self.predictor.stepper(problem), problem.x
        correct = self.correcting(problem) if self.corrector_steps else predict
        for k, t in enumerate(problem.times[1:].tolist()):
            x = predict(k, x)
            for _ in range(self.corrector_steps):
                x = correct(k + 1, x)
            problem.recorder.reach(t, x)
        return x


def _find_predictor(predictor: Any) -> Any:
    """Return the predictor of this name, or the given solver if it can be one."""
    if isinstance(predictor, str):
        return find_by_name("predictor", predictor, PREDICTORS)()
    if not (isinstance(predictor, Solver) and hasattr(predictor, "stepper")):
        raise ValueError(
            f"predictor must be a name ({', '.join(PREDICTORS)}) or a solver with a stepper, "
            f"whose step can be taken by itself; got {predictor!r}"
        )
    return predictor
