r"""Denoising score matching, continuous in time, for any SDE with a Gaussian kernel.

With :math:`x_t = \alpha x_0 + \sigma \epsilon` the loss is a weighted squared error of what the
model predicts from :math:`x_t`, averaged over data, noise and times. Whatever the weighting and
the distribution of times, its minimiser over all functions is the score of the diffused data.

References:
    Vincent 2011, A connection between score matching and denoising autoencoders.
    Song et al. 2021, Score-based generative modeling through SDEs, arXiv:2011.13456.
    Song et al. 2021, Maximum likelihood training of score-based models, arXiv:2101.09258.
    Karras et al. 2022, Elucidating the design space of diffusion models, arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models._shapes import Time, as_time, check_batch, per_sample
from sde_models.errors import nearest_names
from sde_models.gaussian_sdes import GaussianSDE
from sde_models.models import Model, ScoreModel
from sde_models.randomness import standard_normal_like, uniform_like

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

    The likelihood weighting then weighs every time alike.

    Reference:
        Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630.
    """
    clean, noisy = _log_snr_range(sde, u)
    span = noisy - clean
    t = sde.t_from_log_snr(clean + span * u)
    return t, span / _log_snr_rate(sde, t)


def log_normal_times(
    sde: GaussianSDE, u: Tensor, mean: float = -1.2, std: float = 1.2
) -> tuple[Tensor, Tensor]:
    r"""Times with :math:`\log(\sigma_t / \alpha_t) \sim N(m, s^2)`, cut to the span of the SDE.

    Arguments and results as in :func:`uniform_times`; for others than the published m and s wrap
    it in a function of your own.

    Args:
        sde: Forward SDE.
        u: Numbers uniform on [0, 1), shape ``(B,)``.
        mean: Mean m of the logarithm of the noise level, in units of the data.
        std: Standard deviation s of it.

    Reference:
        Karras et al. 2022, table 1, arXiv:2206.00364.
    """
    clean, noisy = _log_snr_range(sde, u)
    low, high = torch.special.ndtr((-0.5 * torch.stack((clean, noisy)) - mean) / std)
    normal = torch.special.ndtri(low + (high - low) * u)
    log_snr = (-2 * (mean + std * normal)).clamp(noisy, clean)
    t = sde.t_from_log_snr(log_snr)
    normal = (-0.5 * log_snr - mean) / std
    density = torch.exp(-0.5 * normal.square()) / (2 * torch.pi) ** 0.5
    return t, -2 * std * (high - low) / density / _log_snr_rate(sde, t)


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": uniform_times,
    "log-snr": log_snr_times,
    "log-normal": log_normal_times,
}


def draw_times(
    sde: GaussianSDE,
    like: Tensor,
    times: str | TimeSampler = "uniform",
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one time for each sample, one in each of B strata, in random order.

    Args:
        sde: Forward SDE.
        like: Batch whose size, dtype and device the times take.
        times: "uniform", "log-snr", "log-normal", or a function like :func:`uniform_times`.
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
    if isinstance(times, str):
        if times not in TIME_SAMPLERS:
            raise ValueError(f"unknown times {times!r}; {nearest_names(times, TIME_SAMPLERS)}")
        times = TIME_SAMPLERS[times]
    count = like.shape[0]
    drawn_on = like.device if generator is None else generator.device
    # In random order, or the first sample of every batch would always get the least noise.
    stratum = torch.randperm(count, generator=generator, device=drawn_on).to(like)
    t, inverse_density = times(sde, (stratum + uniform_like(stratum, generator)) / count)
    return t.clamp(sde.t_min, sde.t_max), inverse_density


@dataclass(frozen=True)
class NoisedBatch:
    """Data, the noise that met them, and when.

    Attributes:
        x0: Data, shape ``(B, *event)``.
        noise: Standard normal numbers, shape of ``x0``.
        t: Times, scalar or ``(B,)``.
        inverse_density: One over the density of ``t``, shape of ``t``.
        xt: Noised data, shape of ``x0``.
    """

    x0: Tensor
    noise: Tensor
    t: Tensor
    inverse_density: Tensor
    xt: Tensor


def _output_error(model: Model, batch: NoisedBatch, cond: dict[str, Any]) -> Tensor:
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"weighting='output' compares the output of a ScoreModel's network, "
            f"{type(model).__name__} has none: use weighting='simple' or 'likelihood'"
        )
    target = model.target(batch.t, batch.x0, batch.noise)
    return (model.output(batch.t, batch.xt, **cond) - target).square()


def _simple_error(model: Model, batch: NoisedBatch, cond: dict[str, Any]) -> Tensor:
    return (model.denoise(batch.t, batch.xt, **cond)[1] - batch.noise).square()


def _likelihood_error(model: Model, batch: NoisedBatch, cond: dict[str, Any]) -> Tensor:
    rate = _log_snr_rate(_kernel_of(model), batch.t)
    weight = per_sample(-0.5 * rate * batch.inverse_density, batch.xt)
    return weight * _simple_error(model, batch, cond)


@dataclass(frozen=True)
class Weighting:
    """A squared error, and the times that it is usually averaged over."""

    error: Callable[[Model, NoisedBatch, dict[str, Any]], Tensor]
    times: str


WEIGHTINGS: dict[str, Weighting] = {
    "output": Weighting(_output_error, times="log-normal"),
    "simple": Weighting(_simple_error, times="uniform"),
    "likelihood": Weighting(_likelihood_error, times="log-snr"),
}


def denoising_score_matching(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    weighting: str = "output",
    times: str | TimeSampler | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    r"""Denoising score matching: a squared error averaged over samples and coordinates.

    - ``"output"``: :math:`|F - F^*|^2`, of the network's own output. With EDM preconditioning
      this is EDM's weighting. Times are log-normal unless told.
    - ``"simple"``: :math:`|\hat\epsilon - \epsilon|^2`, that of DDPM. Times are uniform.
    - ``"likelihood"``: :math:`\frac{g^2}{2 \sigma^2 q(t)} |\hat\epsilon - \epsilon|^2` with q
      the density that t was drawn from: in nats, and times D a bound on the mean of
      :math:`-\log p` but for a constant, whatever the times. They are uniform in the log-SNR.

    Args:
        model: What is trained. "output" needs a :class:`~sde_models.ScoreModel`.
        x0: Data, shape ``(B, *event)``.
        t: Times, scalar or ``(B,)``; drawn by :func:`draw_times` if None. Times that are given
            count as uniform ones.
        noise: Standard normal numbers, shape of ``x0``; drawn if None.
        weighting: "output", "simple" or "likelihood".
        times: "uniform", "log-snr", "log-normal", or a function like :func:`uniform_times`; what
            is usual for the weighting if None.
        generator: Source of times and noise; torch's global one if None.
        **cond: Handed to the network.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If ``x0`` is not floating, the SDE has no Gaussian kernel, or the model no
            output to compare.
        ValueError: For unknown names, shapes that do not fit, NaN, times out of range, or both
            ``t`` and ``times``.

    Reference:
        Vincent 2011; Ho et al. 2020, arXiv:2006.11239 (simple); Song et al. 2021,
        arXiv:2101.09258, theorem 1 (likelihood); Karras et al. 2022, arXiv:2206.00364 (output).

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE())
        >>> loss = denoising_score_matching(model, torch.randn(8, 2))
        >>> loss.backward()
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}; {nearest_names(weighting, WEIGHTINGS)}")
    check_batch(x0, model.event_shape, "x0")
    sde, chosen = _kernel_of(model), WEIGHTINGS[weighting]
    if t is None:
        t, inverse_density = draw_times(sde, x0, times or chosen.times, generator=generator)
    elif times is not None:
        raise ValueError("times says how t is drawn: give t or times, not both")
    else:
        t = as_time(t, x0)
        inverse_density = torch.full_like(t, sde.t_max - sde.t_min)
    if noise is None:
        noise = standard_normal_like(x0, generator)
    xt = sde.perturb(t, x0, noise)
    return chosen.error(model, NoisedBatch(x0, noise, t, inverse_density, xt), cond).mean()


def _kernel_of(model: Model) -> GaussianSDE:
    if not isinstance(model.sde, GaussianSDE):
        raise TypeError(
            f"denoising score matching needs the Gaussian kernel of a GaussianSDE, "
            f"{type(model.sde).__name__} has none"
        )
    return model.sde


def _log_snr_range(sde: GaussianSDE, like: Tensor) -> tuple[Tensor, Tensor]:
    """The log-SNR at t_min and at t_max."""
    clean, noisy = sde.log_snr(like.new_tensor([sde.t_min, sde.t_max]))
    return clean, noisy


def _log_snr_rate(sde: GaussianSDE, t: Tensor) -> Tensor:
    r"""Time derivative of the log-SNR, :math:`-g^2 / \sigma^2`."""
    return -(sde.diffusion(t) / sde.sigma(t)).square()
