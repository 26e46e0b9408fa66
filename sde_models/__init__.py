"""Score-based generative models as torchsde and torchdiffeq systems.

See the documentation, or ``help(sde_models.solve)``.

The names are those of ``sde_models._public``, which is loaded when the first of them is asked for:
the help of the command line then needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sde_models._version import __version__ as __version__

if TYPE_CHECKING:
    from sde_models._public import *  # noqa: F403
else:

    class _Roof(ModuleType):
        """The package, in which ``solvers`` is the function, and not the package of that name.

        Python binds a package that is imported to its name here; a property keeps that out.
        """

        @property
        def solvers(self) -> Any:
            return import_module("sde_models._public").solvers

        @solvers.setter
        def solvers(self, package: ModuleType) -> None:
            """Leave it as it is."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            public = import_module("sde_models._public")
            vars(self).update({known: getattr(public, known) for known in public.__all__})
            vars(self)["__all__"] = public.__all__
            if name not in vars(self):  # among these are the modules that have been loaded
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            return vars(self)[name]

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *self.__all__})

    sys.modules[__name__].__class__ = _Roof
