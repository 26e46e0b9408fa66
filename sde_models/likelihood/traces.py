"""Estimates of the divergence at nodes along the paths of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import Conditions, copied
from sde_models._utils.fields import Fields
from sde_models._utils.randomness import Source, of_some_rows
from sde_models._utils.shapes import time_precision
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import MOST_NUMBERS, Divergence
from sde_models.divergence.complement import Complement
from sde_models.divergence.forms import Forms
from sde_models.likelihood.nodes import Nodes
from sde_models.models.base import Model


@dataclass(frozen=True)
class Traces(Fields):
    """Estimates of the divergence of eps at nodes along the paths of samples.

    Attributes:
        value: Their means less the isotropic part, times sigma, shape ``(M, B)``, with a graph if
            asked for.
        stderr: Standard errors, shape ``(M, B)``; 0 if exact.
        products: Number of vector-Jacobian products of each, shape ``(M, B)``; 0 where unknown.
        unit: Variance of an estimate from one product, shape ``(M, B)``.
        exact: Where there is no error, shape ``(M, B)``.
    """

    value: Tensor
    stderr: Tensor
    products: Tensor
    unit: Tensor
    exact: Tensor

    @classmethod
    def none(cls, states: Tensor) -> Traces:
        """Without any product yet, for states ``(M, B, *event)``."""
        zeros = states.detach().new_zeros(states.shape[:2], dtype=time_precision(states))
        return cls(zeros, zeros, zeros, zeros, zeros > 0)

    def reshaped(self, shape: Sequence[int]) -> Traces:
        """In another shape."""
        return self.each(lambda value: value.reshape(shape))

    @classmethod
    def joined(cls, parts: Sequence[Traces]) -> Traces:
        """Those of several, one after the other."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def spread(self, nodes: Nodes, factor: int) -> Traces:
        """In their places among finer nodes, with zeros elsewhere."""
        return self.each(lambda value: nodes.spread(value, factor))

    def smoothed(self, length: float = math.inf) -> Traces:
        """With standard errors by the variances of each node and its neighbours.

        Those of its own few probes are small where these are small by luck.

        Args:
            length: Number of probes without replacement that give the trace exactly.
        """
        unit = 0.5 * (self.unit + neighbours(self.unit))
        left = (1 - (self.products - 1) / (length - 1)).clamp(min=0)
        stderr = (unit / self.products.clamp(min=1) * left).sqrt()
        return replace(self, stderr=stderr.masked_fill(self.exact, 0))

    def pooled(self, others: Traces) -> Traces:
        """Means with independent estimates of the same, by their numbers of products."""
        total = self.products + others.products
        own, other = self.products / total, others.products / total
        return Traces(
            own * self.value + other * others.value,
            ((own * self.stderr).square() + (other * others.stderr).square()).sqrt(),
            total,
            torch.where(self.products > 0, own * self.unit + other * others.unit, others.unit),
            others.exact,
        )


def neighbours(values: Tensor) -> Tensor:
    """Means of the two neighbours of each node, shape ``(M, B)``; of one at the ends, twice."""
    padded = torch.cat([values[1:2], values, values[-2:-1]])
    return 0.5 * (padded[:-2] + padded[2:])


@dataclass(frozen=True)
class Probes:
    """Probes that are drawn already, shape ``(k, n, *event)`` for n points."""

    drawn: Tensor

    def at(self, rows: Tensor) -> Probes:
        """Those of some points."""
        return Probes(self.drawn[:, rows])


@dataclass(frozen=True)
class Points:
    """Points along paths at which traces are taken.

    Attributes:
        model: The model whose eps it is.
        t: Times as the SDE makes them, shape ``(n,)``.
        x: States, shape ``(n, *event)``.
        cond: Conditions of the points.
    """

    model: Model
    t: Tensor
    x: Tensor
    cond: Conditions

    def estimate(
        self, estimator: Divergence, source: Source | Probes, complement: Complement | None = None
    ) -> Traces:
        """Estimate the integrand f, with probes for each; fields of shape ``(n,)``.

        Args:
            estimator: Trace estimator.
            source: Source of the probes, where a sequence has a generator for each point; or probes
                that are drawn already.
            complement: Directions to leave out, if any.
        """
        estimates, stderr = self._each(estimator, source, complement)
        products = torch.full_like(stderr, estimator.count_products(self._size))
        exact = torch.full_like(stderr, estimator.exact, dtype=torch.bool)
        return Traces(estimates.mean(1), stderr, products, stderr.square() * products, exact)

    def forms(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Forms ``(k, n)`` of vectors ``(k, n, D)`` with the Jacobian of f, and the products."""
        forms = Forms(len(vectors))
        drawn = Probes(vectors.reshape(len(vectors), *self.x.shape))
        with torch.set_grad_enabled(self.x.requires_grad):
            estimates, _ = self._each(forms, drawn, None)
        products = torch.cat(forms.found, 1).to(estimates)
        return estimates.T, self._sigma.to(estimates)[:, None] * products

    @property
    def _size(self) -> int:
        return self.x[0].numel()

    @property
    def _sigma(self) -> Tensor:
        sde: Any = self.model.sde
        sigma: Tensor = sde.sigma(self.t)
        return sigma.detach()

    def _each(
        self, estimator: Divergence, source: Source | Probes, complement: Complement | None
    ) -> tuple[Tensor, Tensor]:
        """Estimates ``(n, probes)`` of f and their standard errors, as many at once as fit."""
        sde: Any = self.model.sde
        alpha, sigma = sde.alpha(self.t), sde.sigma(self.t)
        spread = (alpha * sde.data_std).square() + sigma.square()
        isotropic = (sigma / spread).detach().to(self.x)
        window = max(1, MOST_NUMBERS // (self._size * estimator.probes))
        window = window if self.cond.repeatable else 1
        found = []
        for rows in torch.arange(len(self.x), device=self.x.device).split(window):
            own = self.cond.take(rows)
            at, part = self.t[rows].to(self.x), self.x[rows]

            def eps(y: Tensor, at: Tensor = at, own: Conditions = own) -> Tensor:
                return self.model.denoise(at.clone(), y, **copied(own))[1]

            probes: Tensor | None
            if isinstance(source, Probes):
                probes = source.drawn[:, rows].to(self.x.dtype)
            else:
                probes = draw_rows(estimator.draw, part.clone(), of_some_rows(source, rows), dim=1)
            within = None if complement is None else complement.at(rows)
            found.append(estimator(eps, part, probes, isotropic[rows], within)[1])
        scale = self._sigma.to(self.x.device, time_precision(self.x))
        estimates = torch.cat([trace.estimates for trace in found]).to(scale)
        stderr = torch.cat([trace.stderr for trace in found]).to(scale)
        known = self._size * isotropic.to(scale)
        return scale[:, None] * (estimates - known[:, None]), scale * stderr
