r"""Denoising score matching, for any SDE with a Gaussian kernel.

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

from typing import Unpack

from torch import Tensor

from sde_models._utils.shapes import Time
from sde_models.losses.noising import NoisingOptions, add_noise
from sde_models.losses.weightings import Weighting, find_weighting
from sde_models.models.base import Model
from sde_models.solvers.options import check_options


def denoising_score_matching(
    model: Model,
    x0: Tensor,
    t: Time | None = None,
    noise: Tensor | None = None,
    *,
    weighting: str | Weighting = "output",
    **options: Unpack[NoisingOptions],
) -> Tensor:
    r"""Denoising score matching: a squared error averaged over samples and coordinates.

    - ``"output"``: :math:`|F - F^*|^2`, of the network's own output. With EDM preconditioning
      this is EDM's weighting. Times are log-normal unless given.
    - ``"edm"``: :math:`|\hat x_0 - x_0|^2 (s^2 + s_d^2) / (s s_d)^2` with
      :math:`s = \sigma / \alpha` and :math:`s_d` the ``data_std``, for any model. Times likewise.
    - ``"simple"``: :math:`|\hat\epsilon - \epsilon|^2`, that of DDPM and, as it weighs the score by
      :math:`\sigma^2`, of noise-conditional score networks. Times are uniform.
    - ``"min-snr"``: :math:`\min(\mathrm{SNR}, 5) |\hat x_0 - x_0|^2`. Times are uniform.
    - ``"likelihood"``: :math:`\frac{g^2}{2 \sigma^2 q(t)} |\hat\epsilon - \epsilon|^2` with q
      the density that t was drawn from: in nats, and times D a bound on the mean of
      :math:`-\log p` up to a constant, whatever the times. They are uniform in the log-SNR.

    Args:
        model: What is trained. "output" needs a :class:`~sde_models.ScoreModel`.
        x0: Data, shape ``(B, *event)``.
        t: Times, scalar or ``(B,)``; drawn by :func:`draw_times` if None. Times that are given
            count as uniform ones.
        noise: Standard normal numbers, shape of ``x0``; drawn if None.
        sigma: A single noise level :math:`\sigma / \alpha`, in units of the data, in place of
            ``t``.
        weighting: "output", "edm", "simple", "min-snr", "likelihood", or an object such as
            :func:`min_snr` and :func:`noise_weighting` make.
        times: "uniform", "log-snr" or "importance" (the same), "log-normal", a function like
            :func:`uniform_times`, such as :func:`level_times` makes of a list of noise levels, or
            :class:`LearnedTimes`. If None, those given above for the weighting.
        stratified: Whether times are drawn in strata or independently of each other.
        generator: Source of times and noise; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If ``x0`` is not floating, the SDE has no Gaussian kernel, or the model no
            output to compare.
        ValueError: For unknown names, shapes that do not fit, NaN, times or a noise level out of
            range, or more than one of ``t``, ``sigma`` and ``times``.

    Reference:
        Vincent 2011; Song and Ermon 2019, arXiv:1907.05600 (noise levels); Ho et al. 2020,
        arXiv:2006.11239 (simple); Song et al. 2021, arXiv:2101.09258, theorem 1 (likelihood);
        Karras et al. 2022, arXiv:2206.00364 (output, edm); Hang et al. 2023, arXiv:2303.09556
        (min-snr).

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE())
        >>> loss = denoising_score_matching(model, torch.randn(8, 2))
        >>> loss.backward()
    """
    options = check_options(denoising_score_matching, options, NoisingOptions)
    found = find_weighting(weighting)
    batch, given = add_noise(model, x0, t, noise, found.times, found.divides_by_density, **options)
    return batch.mean(found.error(model, batch.copied(), given))
