"""Ours under names of their own in timm's registry: "fusedstepadamw"."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

from .. import words
from ..optim.by_name import classes
from ..optim.mirrored import mirrored
from .packages import hook, imported
from .swaps import Swap

NEEDS = "timm 1.0.12 or newer, which has a registry of optimizers"
PREFIX = "fusedstep"


def swaps() -> list[Swap]:
    """A new name for each optimizer: as timm describes torch's class if it has it ("sgd" and
    "momentum" are one class with other settings), else as its arguments say."""
    module = imported("timm.optim._optim_factory", NEEDS)
    registry = hook(module, "default_registry", "timm", NEEDS)
    describe = hook(module, "OptimInfo", "timm", NEEDS)
    known = hook(registry, "_optimizers", "timm", NEEDS)
    create = hook(registry, "create_optimizer", "timm", NEEDS)
    entries: dict[str, Any] = {}
    for name, kind in classes().items():
        arguments = words.arguments_of(kind)
        own = PREFIX + words.plain(name)
        entries[own] = describe(
            name=own,
            opt_class=kind,
            description=f"fusedstep's {name}, in one pass over memory",
            has_eps="eps" in arguments,
            has_momentum="momentum" in arguments,
            has_betas="betas" in arguments,
        )
    ours = mirrored()
    for name, info in known.items():
        if info.opt_class in ours:
            own = PREFIX + words.plain(name)
            kind = ours[info.opt_class]
            entries[own] = replace(
                info,
                name=own,
                opt_class=kind,
                description=f"fusedstep's {kind.__name__}, as timm's {name}",
            )

    @wraps(create)
    def guarded(model_or_params: Any, opt: str, *args: Any, **kwargs: Any) -> Any:
        before, _, last = opt.lower().rpartition("_")
        if PREFIX in before:
            start, _, rest = opt.lower().partition(PREFIX)
            meant = start + PREFIX + words.plain(rest)
            raise ValueError(
                f"timm keeps only what follows the last underscore, so {opt!r} would be its own "
                f"{last!r}. Write {meant!r}."
            )
        return create(model_or_params, opt, *args, **kwargs)

    found = [Swap(known, name, info) for name, info in entries.items()]
    return [*found, Swap(registry, "create_optimizer", guarded)]
