"""Ours under the names of transformers' Trainer: `TrainingArguments(optim="adafactor")`."""

from __future__ import annotations

from functools import wraps
from typing import Any

from ..optim.mirrored import ours_for
from ..schedules import SchedulerType, get_scheduler
from .packages import hook, imported
from .swaps import Swap

NEEDS = "transformers 4.57 or 5"
KNOWN = {kind.value for kind in SchedulerType}


def swaps() -> list[Swap]:
    """The changes in transformers. Every Trainer asks one static method for its optimizer, and
    calls a function of its own module for its schedule."""
    trainer = imported("transformers.trainer", NEEDS)
    kind = hook(trainer, "Trainer", "transformers", NEEDS)
    choose = hook(kind, "get_optimizer_cls_and_kwargs", "transformers", NEEDS)
    schedule = hook(trainer, "get_scheduler", "transformers", NEEDS)

    @wraps(choose)
    def chosen(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        found, settings = choose(*args, **kwargs)
        return ours_for(found), settings

    @wraps(schedule)
    def scheduled(name: Any, *args: Any, **kwargs: Any) -> Any:
        is_ours = getattr(name, "value", name) in KNOWN
        return (get_scheduler if is_ours else schedule)(name, *args, **kwargs)

    return [
        Swap(kind, "get_optimizer_cls_and_kwargs", staticmethod(chosen)),
        Swap(trainer, "get_scheduler", scheduled),
    ]
