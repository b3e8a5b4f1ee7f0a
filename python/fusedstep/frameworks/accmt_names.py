"""Ours under accmt's names, and its count of epochs repaired."""

from __future__ import annotations

from functools import wraps
from typing import Any

from .. import schedules
from ..optim.mirrored import mirrored
from .packages import hook, imported
from .swaps import Swap

NEEDS = "accmt 1.9, beside a transformers that it can import (4.57, not 5)"


def swaps() -> list[Swap]:
    """The changes in accmt, which looks names up in two classes. Those of its schedules that are
    torch's stay."""
    module = imported("accmt.hyperparameters", NEEDS)
    optimizers = hook(module, "Optimizer", "accmt", NEEDS)
    makers = hook(module, "Scheduler", "accmt", NEEDS)
    ours = mirrored()
    found = [
        Swap(optimizers, name, ours[kind])
        for name, kind in vars(optimizers).items()
        if isinstance(kind, type) and kind in ours
    ]
    for name, make in vars(makers).items():
        own = getattr(schedules, getattr(make, "__name__", name), None)
        if own is not None and str(getattr(make, "__module__", "")).startswith("transformers."):
            found.append(Swap(makers, name, own))
    return found


def repaired_epochs() -> list[Swap]:
    """accmt gives the number of all steps as the steps of an epoch. What makes the schedule
    multiplies it by the epochs, as `get_scheduler` of a module may do too."""
    trainer = hook(imported("accmt.trainer", NEEDS), "Trainer", "accmt", NEEDS)
    make = hook(trainer, "_get_scheduler", "accmt", NEEDS)

    @wraps(make)
    def repaired(self: Any, module: Any, optimizer: Any, steps: int, epochs: int) -> Any:
        return make(self, module, optimizer, steps // epochs, epochs)

    return [Swap(trainer, "_get_scheduler", repaired)]
