"""One step of training: gradients of the full batch, clipping, AdamW, the moving average."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from sde_models._utils.buffers import find_buffers, find_transient
from sde_models._utils.conditions import leave_inference_mode
from sde_models._utils.seeds import global_seed, seed_at
from sde_models._utils.shapes import without_waiting
from sde_models._utils.split_batches import RowGenerator
from sde_models.training.averaging import MovingAverage
from sde_models.training.group import Group
from sde_models.training.module_state import load_tensors
from sde_models.training.objective import Loss, find_states
from sde_models.training.progress import AnyModel
from sde_models.training.settings import PRECISIONS, Settings
from sde_models.training.sources import Order, Rows

Tensors = Mapping[str, Tensor]

FUSED = ("cpu", "cuda")
"""Devices on which all of AdamW is one kernel."""


class LossOfModel(nn.Module):
    """The loss as a module, so that gradients are exchanged whichever method of the model runs."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, x0: Tensor, **arguments: Any) -> Tensor:
        return self.loss(self.model, x0, **arguments)


class Learner(Generic[AnyModel]):
    """The weights, their average and the optimiser: everything that a step changes.

    Args:
        model: What is trained, in place.
        loss: What is minimised.
        settings: Those of the run.
        order: Which rows of the batch this process has.
        group: The processes that share the batch.
    """

    def __init__(
        self, model: AnyModel, loss: Loss, settings: Settings, order: Order, group: Group
    ) -> None:
        self.settings, self.order, self.group = settings, order, group
        self.states = find_states(loss)
        self.model = model
        self.module = group.wrap(LossOfModel(model, loss))
        self.average = MovingAverage(model, settings.ema_decay)
        self.device = model.device
        self.generator = RowGenerator(self.device)
        self.parameters = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
        real = all(parameter.is_floating_point() for parameter in self.parameters)
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.99),
            fused=True if real and self.device.type in FUSED else None,
        )
        # Half precision with few bits in its exponent needs a scale for its gradients.
        scaled = settings.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def compute_gradients(self, rows: Rows, step: int) -> Tensor:
        """Compute the gradients of the mean loss over the full batch.

        Args:
            rows: This process's rows of the batch, with their conditions.
            step: Steps done before.

        Returns:
            This process's share of the loss, and the norm of the gradient before clipping,
            shape ``(2,)``.
        """
        data, given = rows
        x0 = _to_device(data, self.device)
        cond = given.mapped(lambda value: _to_device(value, self.device))
        size, first = self.order.batch_size, self.order.own.start
        total = torch.zeros((), device=self.device)
        self.optimiser.zero_grad()
        for part in range(parts := self.settings.gradient_accumulation_steps):
            begin, end = (len(x0) * k // parts for k in (part, part + 1))
            self.generator.begin(
                slice(first + begin, first + end), size,
                seed=seed_at(self.order.seed, "loss", step),
                seed_of_part=seed_at(self.order.seed, "part", step, first + begin),
            )  # fmt: skip
            own = {"cond": cond.take(slice(begin, end))} if cond else {}
            exchange = self.group.no_sync(self.module) if part < parts - 1 else nullcontext()
            # Numbers that the network draws, for dropout for example, differ between parts.
            chance = global_seed(
                seed_at(self.order.seed, "network", step, first + begin), self.device
            )
            with exchange, chance:
                with self._autocast(), without_waiting():
                    value = self.module(x0[begin:end], generator=self.generator, **own)
                value = value * ((end - begin) / size)
                # Gradients are averaged over the processes, and their sum is needed.
                self.scaler.scale(value * self.group.count).backward()
            total = total + value.detach()
        self.generator.finish(self.group.sum)
        self.scaler.unscale_(self.optimiser)
        norm = clip_grad_norm_(self.parameters, self.settings.clip_norm)
        return torch.stack((total, norm.to(total)))

    def update(self, rate: float, first: bool) -> None:
        """Move the weights against the gradients, and the average after them."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.group.count > 1:
            self.group.share([buffer for buffer, _ in find_buffers(self.model).values()])
        self.average.update(first)

    def state(self) -> dict[str, Any]:
        """Everything besides the weights that is needed to resume exactly."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss": [part.state_dict() for part in self.states],
            "transient": find_transient(self.model),
            "average": self.average.state(),
        }

    def load(self, weights: Tensors, averaged: Tensors, state: dict[str, Any]) -> None:
        """Put back the raw weights, the averaged ones, and what :meth:`state` gave."""
        for model, tensors in ((self.model, weights), (self.average.model, averaged)):
            load_tensors(model, tensors, state["transient"])
        self.average.load_state(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        for part, kept in zip(self.states, state["loss"], strict=True):
            part.load_state_dict(kept)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.settings.mixed_precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Data on the device, as constants for autograd."""
    found: Tensor = leave_inference_mode(values.detach().to(device, non_blocking=True))
    return found
