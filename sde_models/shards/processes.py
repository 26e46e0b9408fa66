"""The processes that share work on many samples, or a single one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sde_models._utils.user_networks import WRAPPERS
from sde_models.models.base import Model

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """This process among those that share the work.

    Args:
        accelerator: That of the caller. If None, one is made where environment variables show
            several processes, and none otherwise.

    Attributes:
        rank: Index of this process.
        count: Number of processes.
    """

    def __init__(self, accelerator: Accelerator | None) -> None:
        if accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            accelerator = make_accelerator()
        self.accelerator: Any = accelerator
        self.rank: int = 0 if accelerator is None else accelerator.process_index
        self.count: int = 1 if accelerator is None else accelerator.num_processes

    def place(self, model: Any) -> Any:
        """Take a model out of its wrappers, and move it to the device of this process.

        Wrappers exchange tensors in their forward pass, but solves need different numbers of
        passes in different processes.
        """
        if self.accelerator is not None:
            model = self.accelerator.unwrap_model(model)
        model = unwrap(model)
        if self.accelerator is not None and isinstance(model, nn.Module):
            model = model.to(self.accelerator.device)
        return model

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def first(self, act: Callable[[], object]) -> None:
        """Call a function in the first process, while the others wait.

        Raises:
            Exception: That of the function, in the first process.
            OSError: In the others, if it fails.
        """
        caught = None
        if self.rank == 0:
            try:
                act()
            except Exception as error:
                caught = error
        failed = self.add_up(int(caught is not None))
        if caught is not None:
            raise caught
        if failed:
            raise OSError("the first process failed here: see its own error for the cause")

    def add_up(self, number: int) -> int:
        """Sum of a number over the processes."""
        if self.accelerator is None:
            return number
        own = torch.tensor(number, device=self.accelerator.device)
        return int(self.accelerator.reduce(own, "sum"))


def unwrap(model: Any) -> Any:
    """Take a model, and the network in it, out of DistributedDataParallel and DataParallel.

    Args:
        model: The model; it is left as it is.

    Returns:
        The model itself where nothing is wrapped, or one that shares its weights.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> unwrap(sm.ScoreModel(torch.nn.DataParallel(network), sm.VPSDE())).network is network
        True
    """
    while isinstance(model, WRAPPERS):
        model = model.module
    if not (isinstance(model, Model) and any(isinstance(m, WRAPPERS) for m in model.children())):
        return model
    bare = copy.copy(model)
    bare.__dict__["_modules"] = {
        name: module.module if isinstance(module, WRAPPERS) else module
        for name, module in model._modules.items()
    }
    return bare


def make_accelerator() -> Accelerator:
    """An accelerator that waits as long as the slowest process may take."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=1))])
