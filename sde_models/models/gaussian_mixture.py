r"""Closed-form models: Gaussian mixtures, whose every diffused density and score are known.

The solvers, likelihoods and estimators of this library are tested against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_models._utils.counting import record_call
from sde_models._utils.integers import check_integer, check_integers
from sde_models._utils.randomness import Source, as_source, drawn_on, standard_normal_like
from sde_models._utils.shapes import Time, as_time, per_sample
from sde_models._utils.split_batches import draw_rows
from sde_models.models.base import Model
from sde_models.sdes.gaussian import GaussianSDE


class GaussianMixture(nn.Module):
    r"""A mixture of Gaussians, :math:`p(x) = \sum_k w_k N(x; m_k, \Sigma_k)`.

    Points may have any event shape with D numbers in all.

    Args:
        means: Centres :math:`m_k`, shape ``(K, D)``.
        stds: Standard deviations: a number for all, ``(K,)`` for one each, or ``(K, D)`` for a
            diagonal covariance each.
        weights: Weights :math:`w_k`, shape ``(K,)``, positive; normalised here. Equal if None.
        covariances: Full covariances :math:`\Sigma_k`, shape ``(K, D, D)``, in place of ``stds``.

    Raises:
        ValueError: If shapes do not fit, a standard deviation or weight is not positive, a
            covariance is not symmetric positive definite, or not exactly one of ``stds`` and
            ``covariances`` is given.

    Example:
        >>> mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5)
        >>> mixture.log_prob(torch.zeros(1, 2))
        tensor([-2.4516])
    """

    means: Tensor
    axes: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float] | float | None = None,
        weights: Tensor | Sequence[float] | None = None,
        *,
        covariances: Tensor | None = None,
    ) -> None:
        super().__init__()
        means = torch.as_tensor(means)
        if not means.is_floating_point():
            means = means.to(torch.get_default_dtype())
        if means.ndim != 2 or means.numel() == 0 or not bool(torch.isfinite(means).all()):
            raise ValueError(
                f"means must be finite and have shape (K, D) with K and D of 1 or more, got shape "
                f"{tuple(means.shape)}"
            )
        if (stds is None) == (covariances is None):
            got = "neither" if stds is None else "both"
            raise ValueError(f"give exactly one of stds and covariances, got {got}")
        if covariances is not None:
            variances, axes = _eigen(_like(covariances, means), means)
        else:
            variances = _as_std_matrix(_like(stds, means), means).square()
            axes = means.new_zeros(0)
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("axes", axes)  # eigenvectors (K, D, D) in columns; empty: diagonal
        self.register_buffer("log_weights", _as_log_weights(weights, means))

    @property
    def dim(self) -> int:
        """Number of coordinates D of a point."""
        return self.means.shape[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, shape ``(B,)``, of points of shape ``(B, *event)``."""
        return self._log_joint(self._whiten(self._flat(x) - self.means[:, None])).logsumexp(0)

    def sample(self, n: int | Sequence[int], *, generator: Source = None) -> Tensor:
        """Draw points: shape ``(n, D)``, or ``(*n, D)`` for a shape ``n``.

        Args:
            n: Number of points, or their shape.
            generator: Source of randomness; a sequence has one for each point.

        Raises:
            TypeError: If ``generator`` is neither a generator nor a sequence of them.
            ValueError: If ``n`` is below 1, or there is not one generator for each point.
        """
        shape = check_integers("n", n) if isinstance(n, Sequence) else (check_integer("n", n),)
        count = math.prod(shape)
        like = self.means.new_empty(count, self.dim)
        return draw_rows(self._draw, like, as_source(generator, count)).reshape(*shape, self.dim)

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Points in the shape of ``like``."""
        weights = self.log_weights.exp().to(drawn_on(generator, self.means.device))
        component = torch.multinomial(weights, len(like), replacement=True, generator=generator)
        component = component.to(self.means.device)
        deviation = self.variances[component].sqrt() * standard_normal_like(like, generator)
        if self.axes.numel():
            deviation = torch.einsum("bij,bj->bi", self.axes[component], deviation)
        return self.means[component] + deviation

    def mean(self) -> Tensor:
        """Mean of the mixture, shape ``(D,)``."""
        return self.log_weights.exp() @ self.means

    def covariance(self) -> Tensor:
        """Covariance of the mixture, shape ``(D, D)``."""
        if self.axes.numel():
            within = torch.einsum("kij,kj,klj->kil", self.axes, self.variances, self.axes)
        else:
            within = torch.diag_embed(self.variances)
        weights = self.log_weights.exp()
        centred = self.means - self.mean()
        between = torch.einsum("k,ki,kj->ij", weights, centred, centred)
        return torch.einsum("k,kij->ij", weights, within) + between

    def diffuse(self, sde: GaussianSDE, t: Time) -> GaussianMixture:
        r"""The density of :math:`x_t`: means :math:`\alpha m_k`, variances
        :math:`\alpha^2 \Sigma_k + \sigma^2 I`.

        Args:
            sde: Forward SDE.
            t: One time in ``[t_min, t_max]``.

        Raises:
            ValueError: If ``t`` is out of range or not a scalar.
        """
        t = as_time(t, self.means)
        if t.ndim:
            raise ValueError(f"diffuse takes one time, got shape {tuple(t.shape)}")
        sde.check_times(t)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        diffused = GaussianMixture(alpha * self.means, 1.0, self.log_weights.exp())
        diffused.variances = alpha.square() * self.variances + sigma.square()
        diffused.axes = self.axes
        return diffused

    def score_model(
        self, sde: GaussianSDE, event_shape: Sequence[int] | None = None
    ) -> MixtureModel:
        """The model whose score is that of the diffused mixture, exactly.

        Args:
            sde: Forward SDE.
            event_shape: Shape that points are given in, ``(D,)`` if None.
        """
        return MixtureModel(self, sde, event_shape)

    def _flat(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.dim:
            raise ValueError(
                f"points of shape {tuple(x.shape)} have {flat.shape[1]} coordinates each, "
                f"this mixture has {self.dim}"
            )
        return flat

    def _whiten(self, deviation: Tensor) -> Tensor:
        """Deviations (K, B, D) in the axes of each component."""
        return deviation @ self.axes.to(deviation) if self.axes.numel() else deviation

    def _unwhiten(self, deviation: Tensor) -> Tensor:
        return deviation @ self.axes.mT.to(deviation) if self.axes.numel() else deviation

    def _log_joint(self, deviation: Tensor, variances: Tensor | None = None) -> Tensor:
        """Log of w_k N_k, shape (K, B), from deviations in the axes of each component."""
        if variances is None:
            variances = self.variances[:, None]
        quadratic = (deviation.square() / variances).sum(-1)
        log_volume = (2 * math.pi * variances).log().sum(-1)
        return self.log_weights[:, None] - 0.5 * (quadratic + log_volume)


class MixtureModel(Model):
    """Exact score of a diffused Gaussian mixture; made by :meth:`GaussianMixture.score_model`."""

    def __init__(
        self,
        mixture: GaussianMixture,
        sde: GaussianSDE,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        shape = (
            (mixture.dim,) if event_shape is None else check_integers("event_shape", event_shape)
        )
        if math.prod(shape) != mixture.dim:
            raise ValueError(
                f"event_shape {shape} holds {math.prod(shape)} numbers, the mixture's points "
                f"have {mixture.dim}"
            )
        super().__init__(sde, shape)
        self.mixture = mixture
        self._gaussian()

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        if cond:
            raise TypeError(f"a mixture takes no conditions, got {', '.join(cond)}")
        record_call(len(x))
        mixture, sde = self.mixture, self._gaussian()
        flat = mixture._flat(x)
        alpha, sigma = per_sample(sde.alpha(t), flat), per_sample(sde.sigma(t), flat)
        means = mixture.means.to(flat)[:, None]
        variances = mixture.variances.to(flat)[:, None]
        deviation = mixture._whiten(flat - alpha * means)
        diffused = alpha.square() * variances + sigma.square()
        share = mixture._log_joint(deviation, diffused).softmax(0)[..., None]
        standardised = deviation / diffused
        x0 = means + mixture._unwhiten(alpha * variances * standardised)
        eps = mixture._unwhiten(sigma * standardised)
        x0, eps = (share * x0).sum(0), (share * eps).sum(0)
        return x0.to(x).reshape(x.shape), eps.to(x).reshape(x.shape)


def _like(values: Any, means: Tensor) -> Tensor:
    """Numbers in the dtype of the means, not rounded to torch's default dtype on the way."""
    if isinstance(values, Tensor):
        return values.to(means)
    return torch.as_tensor(values, dtype=means.dtype, device=means.device)


def _as_std_matrix(stds: Tensor, means: Tensor) -> Tensor:
    count, dim = means.shape
    if stds.ndim > 2 or (stds.ndim and stds.shape not in ((count,), (count, dim))):
        raise ValueError(
            f"stds must be a number or have shape ({count},) or ({count}, {dim}) like the means, "
            f"got {tuple(stds.shape)}"
        )
    if not bool((stds > 0).all()):
        raise ValueError(f"stds must be positive, the smallest given is {float(stds.min()):g}")
    return (stds[:, None] if stds.ndim == 1 else stds).expand(count, dim)


def _eigen(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    count, dim = means.shape
    if covariances.shape != (count, dim, dim):
        raise ValueError(
            f"covariances must have shape ({count}, {dim}, {dim}), got {tuple(covariances.shape)}"
        )
    if not torch.allclose(covariances, covariances.mT):
        differ = float((covariances - covariances.mT).abs().max())
        raise ValueError(
            f"covariances must be symmetric, and entries differ by up to {differ:.3g} from those "
            "across the diagonal: give (C + C.mT) / 2"
        )
    variances, axes = torch.linalg.eigh(covariances)
    if not bool((variances > 0).all()):
        raise ValueError(
            f"covariances must be positive definite, the smallest eigenvalue given is "
            f"{float(variances.min()):g}"
        )
    return variances, axes


def _as_log_weights(weights: Tensor | Sequence[float] | None, means: Tensor) -> Tensor:
    count = means.shape[0]
    if weights is None:
        return means.new_full((count,), -math.log(count))
    weights = _like(weights, means)
    if weights.shape != (count,) or not bool((weights > 0).all()):
        raise ValueError(f"weights must be {count} positive numbers, got {weights.tolist()}")
    return (weights / weights.sum()).log()
