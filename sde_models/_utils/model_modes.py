"""One rule for a model in training mode: it must be a function of t and x, sample by sample."""

from __future__ import annotations

from inspect import getattr_static

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

DROPS = "drops entries at random"
LEARNS = "changes with every call"


def check_is_function(model: nn.Module) -> None:
    """Refuse a model whose output for a sample depends on chance, on its batch or on the call.

    Refused in training mode are: layers of dropout, and those that hold its probability as a
    number (attention, recurrent layers, a user's ``self.attn_dropout = 0.1``); stochastic depth;
    randomised slopes; batch normalisation; instance normalisation that tracks its statistics; and
    spectral normalisation, whose weights move. Batch normalisation without running statistics is
    refused in any mode. A dropout whose probability no layer holds cannot be seen.

    Raises:
        ValueError: With the name of the layer, and what to do.
    """
    for name, module in model.named_modules():
        why = _no_function(module)
        if why is None:
            continue
        where, cure = f"{name or 'it'} ({type(module).__name__})", "call model.eval() first"
        if not module.training:
            cure = "give it track_running_stats=True, or use GroupNorm"
        mode = "training" if module.training else "evaluation"
        raise ValueError(
            f"the model is in {mode} mode, and {where} {why}, so that it is not one function of "
            f"(t, x): {cure}"
        )


def _no_function(module: nn.Module) -> str | None:
    """Why a layer is no function of t and x in the mode it is in; None if it is one."""
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        return "normalises over the batch: the output for a sample depends on the others"
    if not module.training:
        return None
    if isinstance(module, nn.RReLU) and module.lower != module.upper:
        return "draws its slopes at random"
    if isinstance(module, _InstanceNorm) and module.running_mean is not None:
        return LEARNS
    hooks = module._forward_pre_hooks.values()
    if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
        return LEARNS
    return DROPS if _drops(module) else None


def _drops(module: nn.Module) -> bool:
    """Whether a layer has a probability with which it drops something."""
    if isinstance(module, nn.RNNBase):  # between its layers only
        return module.dropout > 0 and module.num_layers > 1
    kind = str(getattr(module, "original_name", type(module).__name__)).lower()
    rates = {key: value for key, value in vars(module).items() if "drop" in key.lower()}
    # Looked up without the module's own __getattr__, which may warn; a scripted layer needs it.
    scripted = isinstance(module, torch.jit.ScriptModule)
    rates["dropout"] = (getattr if scripted else getattr_static)(module, "dropout", None)
    if "drop" in kind or "stochasticdepth" in kind:
        rates["p"] = getattr(module, "p", None)
    return any(_is_rate(value) for value in rates.values())


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= 1
