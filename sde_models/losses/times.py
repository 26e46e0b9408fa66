r"""At which times a loss is taken: maps from uniform numbers to times, and their densities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number, check_positive
from sde_models._utils.errors import find_by_name
from sde_models._utils.randomness import drawn_on, uniform_like
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.grids import times_of_sigmas

TimeSampler = Callable[[GaussianSDE, Tensor], tuple[Tensor, Tensor]]
"""Maps numbers u in [0, 1) to times t of an SDE and to dt/du, one over the density of t."""


def uniform_times(sde: GaussianSDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times uniform on ``[t_min, t_max]``.

    Args:
        sde: Forward SDE.
        u: Numbers uniform on [0, 1), shape ``(B,)``.

    Returns:
        Times, shape ``(B,)``, and dt/du, their inverse density in units of time.
    """
    span = sde.t_max - sde.t_min
    return sde.t_min + span * u, torch.full_like(u, span)


def log_snr_times(sde: GaussianSDE, u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Times uniform in the log-SNR; arguments and results as in :func:`uniform_times`.

    The log-SNR falls at the rate :math:`g^2 / \sigma^2`, so their density is

    .. math:: q(t) \propto g(t)^2 / \sigma_t^2 ,

    which is the importance sampling of the likelihood weighting: every time then has the same
    weight. "importance" is another name for it.

    Reference:
        Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630; Song et al. 2021,
        arXiv:2101.09258 (importance sampling).
    """
    clean, noisy = log_snr_range(sde, u)
    span = noisy - clean
    t = sde.t_from_log_snr(clean + span * u)
    return t, span / log_snr_rate(sde, t)


def log_normal_times(
    sde: GaussianSDE, u: Tensor, mean: float = -1.2, std: float = 1.2
) -> tuple[Tensor, Tensor]:
    r"""Times with :math:`\log(\sigma_t / \alpha_t) \sim N(m, s^2)`, cut to the span of the SDE.

    Arguments and results as in :func:`uniform_times`; ``functools.partial`` sets other m and s
    than the published ones.

    Args:
        sde: Forward SDE.
        u: Numbers uniform on [0, 1), shape ``(B,)``.
        mean: Mean m of the logarithm of the noise level, in units of the data.
        std: Standard deviation s of it.

    Reference:
        Karras et al. 2022, table 1, arXiv:2206.00364.
    """
    mean, std = as_number("mean", mean), check_positive("std", std)
    clean, noisy = log_snr_range(sde, u)
    low, high = torch.special.ndtr((-0.5 * torch.stack((clean, noisy)) - mean) / std)
    normal = torch.special.ndtri(low + (high - low) * u)
    log_snr = (-2 * (mean + std * normal)).clamp(noisy, clean)
    t = sde.t_from_log_snr(log_snr)
    normal = (-0.5 * log_snr - mean) / std
    density = torch.exp(-0.5 * normal.square()) / (2 * torch.pi) ** 0.5
    return t, -2 * std * (high - low) / density / log_snr_rate(sde, t)


def level_times(sigmas: Tensor | Sequence[float]) -> TimeSampler:
    r"""Noise levels :math:`\sigma_i / \alpha_i`, each as likely as the others.

    One network learns them all. With ``weighting="simple"``, which weighs the error of the score
    by sigma squared, and the levels of
    :func:`~sde_models.solvers.langevin.geometric_sigmas` this is the objective of
    noise-conditional score networks.

    Args:
        sigmas: Two levels or more in units of the data, shape ``(L,)``.

    Raises:
        ValueError: If there are fewer than two, or when used with an SDE that lacks one of them.

    Reference:
        Song and Ermon 2019, arXiv:1907.05600.

    Example:
        >>> times = level_times([1.0, 0.1, 0.01])
        >>> t, _ = draw_times(sm.VESDE(), torch.zeros(6, 2), times)
        >>> sm.VESDE().sigma(t).sort().values
        tensor([0.0100, 0.0100, 0.1000, 0.1000, 1.0000, 1.0000])
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"expected two noise levels or more, shape (L,), got shape {tuple(levels.shape)}; for "
            "a single level use sigma="
        )
    levels = levels.sort().values
    (widths,) = torch.gradient(levels.log())

    def times(sde: GaussianSDE, u: Tensor) -> tuple[Tensor, Tensor]:
        which = (u * len(levels)).long().clamp(max=len(levels) - 1).cpu()
        t = times_of_sigmas(sde, levels).to(u)[which.to(u.device)]
        # The weight of each level in the integral: its share of the log-SNR.
        width = 2 * len(levels) * widths[which].to(u)
        return t, -width / log_snr_rate(sde, t)

    return times


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": uniform_times,
    "log-snr": log_snr_times,
    "importance": log_snr_times,
    "log-normal": log_normal_times,
}


def find_times(times: str | TimeSampler) -> TimeSampler:
    """Look up a sampler of times by name; a function is returned as it is."""
    if isinstance(times, str):
        return find_by_name("times", times, TIME_SAMPLERS)
    if not callable(times):
        raise TypeError(f"times must be a name, or a function (sde, u) of time, got {times!r}")
    return times


def draw_times(
    sde: GaussianSDE,
    like: Tensor,
    times: str | TimeSampler = "uniform",
    *,
    stratified: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one time for each sample.

    Args:
        sde: Forward SDE.
        like: Batch whose size, dtype and device the times take.
        times: "uniform", "log-snr", "importance" (the same), "log-normal", or a function like
            :func:`uniform_times`.
        stratified: Whether to draw one time in each of B strata, in random order: each has the
            same distribution, and their mean varies less. Otherwise they are independent.
        generator: Source of randomness; torch's global one if None.

    Returns:
        Times and their inverse density, each of shape ``(B,)``.

    Raises:
        ValueError: For an unknown name.

    Example:
        >>> t, _ = draw_times(sm.VPSDE(), torch.zeros(4, 2), "uniform")
        >>> t.sort().values.mul(4).floor()
        tensor([0., 1., 2., 3.])
    """
    times = find_times(times)
    if stratified:
        u = draw_strata(like, generator)
    else:
        u = uniform_like(like.new_empty(len(like)), generator)
    t, inverse_density = times(sde, u)
    return t.clamp(sde.t_min, sde.t_max), inverse_density


def draw_strata(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers uniform on [0, 1), one in each of B strata, shape ``(B,)``."""
    count = len(like)
    where = drawn_on(generator, like.device)
    # In random order; otherwise the first sample of every batch would get the least noise.
    stratum = torch.randperm(count, generator=generator, device=where).to(like)
    return (stratum + uniform_like(stratum, generator)) / count


def log_snr_range(sde: GaussianSDE, like: Tensor) -> tuple[Tensor, Tensor]:
    """The log-SNR at t_min and at t_max."""
    # Made there: numbers that are copied to an accelerator make the host wait for it.
    ends = torch.linspace(sde.t_min, sde.t_max, 2, dtype=like.dtype, device=like.device)
    clean, noisy = sde.log_snr(ends)
    return clean, noisy


def log_snr_rate(sde: GaussianSDE, t: Tensor) -> Tensor:
    r"""Time derivative of the log-SNR, :math:`-g^2 / \sigma^2`."""
    return -(sde.diffusion(t) / sde.sigma(t)).square()
