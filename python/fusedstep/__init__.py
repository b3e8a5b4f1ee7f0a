"""Fused multi-tensor optimizers for PyTorch: one changed import, one pass over memory."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import accumulate as accumulate
    from . import config as config
    from . import convert as convert
    from . import hf as hf
    from . import optim as optim
    from . import schedules as schedules
    from .frameworks import register as register
    from .frameworks import unregister as unregister

__version__ = "0.1.0"


# Packages and modules for users. They are loaded when they are first used, and so are the two
# functions, so that `import fusedstep` does not import torch.
PUBLIC = ("accumulate", "config", "convert", "hf", "optim", "schedules")
FUNCTIONS = ("register", "unregister")


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        from . import frameworks

        return getattr(frameworks, name)
    if name in PUBLIC:
        from importlib import import_module

        return import_module(f"fusedstep.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *PUBLIC, *FUNCTIONS])
