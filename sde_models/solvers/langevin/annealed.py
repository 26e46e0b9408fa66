r"""Annealed Langevin dynamics: the sampler of noise-conditional score networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.arguments import check_switch
from sde_models.sdes.system import System, as_coefficients
from sde_models.solvers.base import Solver
from sde_models.solvers.langevin.correctors import LONGEST_STEP, langevin
from sde_models.solvers.one_step.ancestral import refuse_other_eta
from sde_models.solvers.problem import Problem, Scales


class AnnealedLangevin(Solver):
    r"""Annealed Langevin dynamics: at every node T Langevin steps, from the noisiest to the data.

    .. math:: x \leftarrow x + \delta \sigma_i^2\, \nabla \log p_i(x)
              + \sqrt{2 \delta}\, \sigma_i\, \xi

    Each node is a noise level, the first too, and between two x is multiplied by
    :math:`\alpha_{i-1} / \alpha_i`, which is 1 for VE. ``grid=`` gives any list of levels; see
    :func:`~sde_models.times_of_sigmas`. T evaluations a step, T more for the first node, and one
    to denoise.

    The variance has two relative errors: :math:`h / (T \delta)`, with h the step in
    :math:`\log(\alpha / \sigma)`, since the samples lag behind the levels, and :math:`\delta / 2`
    from the step of Langevin dynamics. The default :math:`\delta = \sqrt{2 h / T}`, at most 1/2,
    minimises the sum, which is of order 1/2 in h. A fixed step does not converge.

    Options:
        steps_per_level: T, 5.
        epsilon: The step :math:`\delta`, relative to the variance of the noise at each level;
            below 2. It is :math:`\epsilon / \sigma_L^2` of Song and Ermon 2020, and half of that
            in 2019, where the step is written :math:`\alpha_i / 2`;
            :func:`~sde_models.solvers.langevin.langevin_epsilon` chooses one.
        denoise: Whether to replace the state by the estimate of x0 where a solve ends at
            ``t_min``, True.

    Raises:
        ValueError: For an ``epsilon`` of 2 or more, a ``denoise`` that is not True or False, and
            on a system with another eta than 1: Langevin dynamics has none.

    Reference:
        Song and Ermon 2019, algorithm 1, arXiv:1907.05600; Song and Ermon 2020, section 3.4 and
        appendix, arXiv:2006.09011 (the step; denoising).
    """

    name = "ald"
    integrates = ("SDE",)
    diffusion_only = True
    directions = (-1,)
    order = 0.5
    adaptive = False
    option_names = ("steps_per_level", "epsilon", "denoise")
    number_options = ("epsilon",)
    integer_options = ("steps_per_level",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps_per_level: int = self.options.get("steps_per_level", 5)
        self.evaluations = self.steps_per_level
        self.epsilon = self.options.get("epsilon")
        self.denoise = check_switch("denoise", self.options.get("denoise", True))
        if self.epsilon is not None and self.epsilon >= 2:
            raise ValueError(
                "epsilon must be a number below 2, where Langevin dynamics diverges, got "
                f"{self.epsilon!r}"
            )

    def check_system(self, system: System) -> None:
        super().check_system(system)
        refuse_other_eta(self.name, system, "'ddim' or 'euler-maruyama', which take every eta")

    def integrate(self, problem: Problem) -> Tensor:
        scales = problem.scales()
        grown = as_coefficients(scales.alpha[1:] / scales.alpha[:-1])
        move = langevin(problem, self._steps(scales))
        times, x = problem.times.tolist(), problem.x
        to_data = math.isclose(times[-1], problem.system.t_min, rel_tol=1e-6)
        for k, t in enumerate(times):
            if k:
                x = grown[k - 1] * x
            for _ in range(self.steps_per_level):
                x = move(k, x)
            if t == times[-1] and to_data and self.denoise:
                x = problem.at_nodes(problem.times[-1:]).denoise(0, x)[0]
            if k:
                problem.recorder.reach(t, x)
        return x

    def _steps(self, scales: Scales) -> Tensor:
        """The step at each node."""
        if self.epsilon is not None:
            return torch.full_like(scales.sigma, self.epsilon)
        h = 0.5 * scales.log_snr.diff()
        best = (2 / self.steps_per_level * torch.cat([h[:1], h])).sqrt()
        return best.clamp(max=LONGEST_STEP)
