"""The processes that train one model together, or a single one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sde_models.shards.processes import Processes, make_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU")


class Group(Processes):
    """Processes with a copy of the model each, and a part of every batch.

    Args:
        accelerator: That of the caller. If None, one is made where environment variables show
            several processes or ``accelerate launch``, and none otherwise.

    Raises:
        ValueError: If the accelerator splits the model itself.
    """

    def __init__(self, accelerator: Accelerator | None) -> None:
        if accelerator is None and "ACCELERATE_MIXED_PRECISION" in os.environ:
            # `accelerate launch` of a single process: it still chooses device and precision.
            accelerator = make_accelerator()
        super().__init__(accelerator)
        kind = "NO" if self.accelerator is None else self.accelerator.distributed_type.value
        if kind not in DATA_PARALLEL:
            raise ValueError(
                f"fit gives every process the full model and a part of each batch, and the "
                f"accelerator is set up for {kind}: use one without plugins, Accelerator()"
            )

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def mixed_precision(self) -> str | None:
        """The precision that the accelerator was made or launched with."""
        chosen = None if self.accelerator is None else self.accelerator.mixed_precision
        return None if chosen == "no" else chosen

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move a module to the device of this process, and average its gradients over all."""
        return module if self.accelerator is None else self.accelerator.prepare_model(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Let gradients add up here before they are exchanged."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(module)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        return values if self.count == 1 else self.accelerator.reduce(values, "sum")

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give the tensors of every process the values that the first process has."""
        if not tensors:
            return
        from accelerate.utils import broadcast

        # As bytes, so that one exchange suffices for all dtypes.
        own = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors]
        first = broadcast(torch.cat(own)).split([len(part) for part in own])
        with torch.no_grad():
            for tensor, part in zip(tensors, first, strict=True):
                tensor.copy_(part.clone().view(tensor.dtype).reshape(tensor.shape))

    def agree(self, value: int) -> int:
        """The number that the first process has."""
        return self.add_up(value if self.main else 0)

    def gather(self, value: Tensor) -> list[Tensor]:
        """A small tensor of each process, on the CPU."""
        if self.count == 1:
            return [value]
        rows = self.accelerator.gather(value[None].to(self.accelerator.device)).cpu()
        # torch.set_rng_state reads a view from the wrong place, and crashes.
        return [row.clone() for row in rows]
