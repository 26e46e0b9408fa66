"""Score-based generative models as torchsde and torchdiffeq systems.

See the documentation, or ``help(sde_models.solve)``.

The names are those of ``sde_models._public``, which is loaded when the first of them is asked for:
the help of the command line then needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_models._version import __version__ as __version__

if TYPE_CHECKING:
    from sde_models._public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module("sde_models._public")
        here = globals()
        here.update({known: getattr(public, known) for known in public.__all__})
        here["__all__"] = public.__all__
        if name not in here:  # among these are the packages that have been loaded
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return here[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
