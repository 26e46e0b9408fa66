r"""Times that learn where the loss varies most.

The mean of :math:`h / q` over times of density q has the least variance where q follows the root
mean square of h, which is estimated from the terms of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number
from sde_models._utils.integers import check_integer
from sde_models.losses.times import log_snr_range, log_snr_rate
from sde_models.sdes.gaussian import GaussianSDE


class LearnedTimes:
    r"""Times whose density follows the root mean square of the loss, bin by bin in the log-SNR.

    An object to be given as ``times=`` and kept from step to step. Each loss that is computed with
    gradients enabled calls :meth:`observe`. Times have a piecewise constant density in the log-SNR,
    and the loss is divided by it, so that its mean is the same as with any other times and its
    variance is smaller. It is only for weightings that divide by the density ("likelihood"), and
    raises ValueError for the others, of which the times are a part.

    In :func:`~sde_models.fit` they learn once a step, from the batch of all processes. Give them by
    ``functools.partial(loss, times=...)``: there checkpoints find what they have learned.

    Args:
        bins: Bins of equal width in the log-SNR.
        decay: Factor of the older squares at each step.
        uniform: Share of the times that stays uniform, so that every bin is visited.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Kingma et al. 2021 (a schedule of least variance), arXiv:2107.00630; Nichol
        and Dhariwal 2021 (the root mean square), arXiv:2102.09672.

    Example:
        >>> times, model = LearnedTimes(), sm.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> model = model.score_model(sm.VPSDE())
        >>> for _ in range(20):
        ...     _ = sm.losses.denoising_score_matching(
        ...         model, torch.randn(256, 2), weighting="likelihood", times=times
        ...     )
        >>> bool(times.density[0] > 2 * times.density[-1])  # the noise is hard to see in data
        True
    """

    described_apart = frozenset({"_squares", "_counts"})
    """What is learned is no setting of a run."""

    divides_by_density = True
    """Such times are for weightings that divide by their density."""

    def __init__(self, bins: int = 32, *, decay: float = 0.99, uniform: float = 0.1) -> None:
        self.bins = check_integer("bins", bins, least=2)
        self.decay, self.uniform = as_number("decay", decay), as_number("uniform", uniform)
        for name in ("decay", "uniform"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie within (0, 1), got {getattr(self, name)!r}")
        self._squares = torch.zeros(self.bins, dtype=torch.float64)
        self._counts = torch.zeros(self.bins, dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned."""
        return {"squares": self._squares.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state_dict` gave.

        Raises:
            ValueError: If it was learned with another number of bins.
        """
        bins = len(state["squares"])
        if bins != self.bins:
            raise ValueError(
                f"the state has {bins} bins, expected {self.bins}: use LearnedTimes(bins={bins})"
            )
        self._squares, self._counts = state["squares"].clone(), state["counts"].clone()

    def __repr__(self) -> str:
        return f"LearnedTimes(bins={self.bins}, decay={self.decay}, uniform={self.uniform})"

    @property
    def density(self) -> Tensor:
        """Density of each bin, from the data to the noise, relative to a uniform one."""
        seen = self._counts > 1e-12
        if not bool(seen.any()):
            return torch.ones_like(self._counts)
        root = (self._squares / self._counts.clamp(min=1e-12)).sqrt()
        root = torch.where(seen, root, root[seen].mean())
        if not float(root.sum()) > 0:
            return torch.ones_like(root)
        return (1 - self.uniform) * root / root.mean() + self.uniform

    def __call__(self, sde: GaussianSDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times and dt/du, as :func:`~sde_models.losses.uniform_times` gives them."""
        density = self.density.to(u)
        share = density / self.bins
        ends = share.cumsum(0)
        which = torch.searchsorted(ends[:-1].contiguous(), u.detach(), right=True)
        inside = ((u - (ends - share)[which]) / share[which]).clamp(0, 1)
        clean, noisy = log_snr_range(sde, u)
        span = noisy - clean
        t = sde.t_from_log_snr(clean + span * (which + inside) / self.bins)
        return t, span / density[which] / log_snr_rate(sde, t)

    def observe(self, sde: GaussianSDE, t: Tensor, values: Tensor) -> None:
        """Learn from the terms of a loss.

        Args:
            sde: Forward SDE.
            t: Their times, shape ``(B,)``, as drawn since the last call.
            values: The terms, shape ``(B,)``, already divided by the density.
        """
        clean, noisy = log_snr_range(sde, t)
        place = (sde.log_snr(t) - clean) / (noisy - clean) * self.bins
        which = place.long().clamp(0, self.bins - 1).cpu()
        squares = (values.cpu().double() * self.density[which]).square()
        known = torch.isfinite(squares)
        self._squares = (self.decay * self._squares).index_add(0, which[known], squares[known])
        self._counts = (self.decay * self._counts).index_add(
            0, which[known], torch.ones_like(squares[known])
        )
