"""The loss of a training run, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """A scalar to be minimised, such as :func:`~sde_models.losses.denoising_score_matching`.

    The generator is a :class:`~sde_models.training.RowGenerator`. All losses of the library draw
    from it by :func:`~sde_models.training.draw_rows`, for the whole batch, and so may sums of them
    and losses of a user's own. What is drawn from it directly is drawn for each part of the batch
    anew.
    """

    def __call__(
        self,
        model: Any,
        x0: Tensor,
        *,
        generator: torch.Generator | None,
        cond: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Mean loss over the samples of a batch, with ``cond`` if the data have conditions."""


def check_loss(loss: Any) -> None:
    """Raise TypeError for what cannot be called."""
    if not callable(loss):
        raise TypeError(
            f"loss is {loss!r}; expected a function called as loss(model, x0, "
            "generator=generator, cond=cond), such as sm.losses.sliced_score_matching, or "
            "functools.partial of one"
        )


def find_states(loss: Any) -> list[Any]:
    """Parts of a loss that have a state: the loss itself, or arguments of ``functools.partial``.

    They have ``state_dict`` and ``load_state_dict``, such as
    :class:`~sde_models.losses.LearnedTimes`.

    Example:
        >>> times = sm.losses.LearnedTimes()
        >>> loss = partial(sm.losses.denoising_score_matching, times=times)
        >>> find_states(loss) == [times]
        True
    """
    if isinstance(loss, partial):
        parts = (loss.func, *loss.args, *loss.keywords.values())
        return list(dict.fromkeys(chain.from_iterable(map(find_states, parts))))
    return [loss] if hasattr(loss, "load_state_dict") and not isinstance(loss, type) else []
