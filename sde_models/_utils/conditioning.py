"""Conditioning: keywords that a verb does not know are handed to the network.

So that a misspelt ``step=10`` does not vanish into a network that takes any keyword, those that
look like an argument of a verb are refused unless the network's own signature names them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

VERB_ARGUMENTS = frozenset(
    [
        "steps",
        "rtol",
        "atol",
        "grid",
        "path",
        "max_steps",
        "generator",
        "gradient",
        "progress",
        "callback",
        "solver",
        "eta",
        "denoise",
        "prior",
        "return_log_prob",
        "density",
        "dtype",
        "device",
        "divergence",
        "method",
        "nodes",
        "tol",
        "estimate_solver_error",
        "levels",
        "dequantization",
        "data_range",
        "importance_samples",
        "repeats",
        "transform",
    ]
)
"""Arguments of the verbs and of solve; a test holds this against their signatures."""

PROMISED = frozenset({"seed", "probes"})
"""Words that users try, and that no verb of a single batch takes."""


def check_conditioning(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse conditioning that is more likely a misspelt argument.

    Args:
        model: The model whose network the conditioning would go to.
        names: Names of the keywords.

    Raises:
        TypeError: Naming the keyword, and the argument that it resembles.
    """
    names = tuple(names)
    if not names:
        return
    network = getattr(model, "network", None)
    named = _named_by(getattr(network, "forward", network))
    for name in names:
        if name in ("t", "x"):
            raise TypeError(f"{name}= cannot be conditioning: the network is given {name} already")
        if name in named:
            continue
        known = name in VERB_ARGUMENTS or name in PROMISED
        near = get_close_matches(name, VERB_ARGUMENTS, n=1, cutoff=0.75)
        if known or near:
            guess = "this verb has no such argument" if known else f"did you mean {near[0]}=?"
            raise TypeError(
                f"unexpected argument {name}=: {guess}; a network that wants it as conditioning "
                "must name it in its forward"
            )


def usable(value: Any) -> Any:
    """A tensor made in inference mode as one that autograd can take; anything else as it is."""
    if not (isinstance(value, Tensor) and value.is_inference()):
        return value
    with torch.inference_mode(False):
        return value.clone()


def copied(value: Any) -> Any:
    """Tensors and arrays copied, also those in mappings, lists, tuples and dataclasses, which stay
    of their class; anything else as it is.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: copied(entry) for key, entry in value.items()}
    other: Any
    if isinstance(value, MutableMapping):
        other = copy(value)
        other.update({key: copied(entry) for key, entry in value.items()})
        return other
    if is_dataclass(value) and not isinstance(value, type):
        other = copy(value)
        for field in fields(value):
            object.__setattr__(other, field.name, copied(getattr(value, field.name)))
        return other
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def of_each_sample(cond: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """The conditioning that has one entry for each sample, by name.

    Args:
        cond: Conditioning by name. What is shared by the samples, and happens to be that long,
            wants a first dimension of 1.
        count: Number of samples.
    """
    return {
        name: value
        for name, value in cond.items()
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
    }


def of_some_samples(cond: Mapping[str, Any], rows: Tensor, count: int) -> dict[str, Any]:
    """Conditioning of some samples: what is shared, and their entries of what is not.

    Args:
        cond: Conditioning of all samples by name.
        rows: Which samples, shape ``(n,)``.
        count: Number of all samples.
    """
    own = of_each_sample(cond, count)
    return {**cond, **{name: value[rows.to(value.device)] for name, value in own.items()}}


def _named_by(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
