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

__version__ = "0.2.0"

# What is for users: packages, modules, and two functions. They are loaded when they are first used,
# so that `import fusedstep` does not import torch.
__all__ = [
    "__version__",
    "accumulate",
    "config",
    "convert",
    "hf",
    "optim",
    "register",
    "schedules",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name in ("register", "unregister"):
        from . import frameworks

        return getattr(frameworks, name)
    if name in __all__:
        from importlib import import_module

        return import_module(f"fusedstep.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
