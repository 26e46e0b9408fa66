"""The probability flow with the integral of its divergence in the state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.shapes import Time
from sde_models.divergence.base import Divergence
from sde_models.models.systems import ProbabilityFlow
from sde_models.sdes.base import SDE
from sde_models.sdes.system import System


class AugmentedFlow(System):
    """The probability flow with the integral of its divergence as further coordinates.

    The state is flat: D numbers of the sample, then one integral for each probe. The error norm is
    the larger of the two parts, so that D coordinates do not hide an error in the integral.

    Args:
        flow: The probability flow.
        event_shape: Shape of one sample.
        divergence: Trace estimator.
        probes: What it drew for this batch.
    """

    stochastic = False

    def __init__(
        self,
        flow: ProbabilityFlow,
        event_shape: tuple[int, ...],
        divergence: Divergence,
        probes: Tensor | None,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.sample_shape = event_shape
        self.size = torch.Size(event_shape).numel()
        self.divergence = divergence
        self.probes = probes
        self.event_shape = (self.size + divergence.probes,)
        self.t_min, self.t_max = flow.t_min, flow.t_max

    @property
    def sde(self) -> SDE:
        return self.flow.sde

    @property
    def cond(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Those of the flow."""
        return self.flow.cond

    def given_tensors(self) -> list[tuple[str, Tensor]]:
        return self.flow.given_tensors()

    def conditioned(self, cond: Mapping[str, Any] | None, x: Tensor) -> AugmentedFlow:
        flow = self.flow.conditioned(cond, x)
        return AugmentedFlow(flow, self.sample_shape, self.divergence, self.probes)

    def of_rows(self, rows: Tensor) -> AugmentedFlow:
        probes = None if self.probes is None else self.probes[:, rows]
        return AugmentedFlow(self.flow.of_rows(rows), self.sample_shape, self.divergence, probes)

    def start(self, x: Tensor) -> Tensor:
        """Samples, each followed by integrals of zero."""
        return torch.cat([x.flatten(1), x.new_zeros(len(x), self.divergence.probes)], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(B, *event)`` and integrals ``(B, probes)``."""
        samples, integrals = state[:, : self.size], state[:, self.size :]
        return samples.reshape(-1, *self.sample_shape), integrals

    def drift(self, t: Time, x: Tensor) -> Tensor:
        samples, _ = self.split(x)
        known = self.flow.isotropic(t, samples)
        velocity, trace = self.divergence(lambda y: self.flow(t, y), samples, self.probes, known)
        return torch.cat([velocity.flatten(1), trace.estimates], dim=1)

    def error_norm(self, error: Tensor) -> Tensor:
        samples, integrals = self.split(error)
        return torch.maximum(self.flow.error_norm(samples), integrals.abs().amax(dim=1))
