"""Makes an optimizer from its name and settings, as a config or a command line gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

from .. import words
from .base import FusedOptimizer

# The packages whose optimizers have names. They are imported when a name is looked up, because
# `hf` builds on this package.
FOLDERS = ("optim", "hf")


def found() -> Iterator[tuple[str, str, type[torch.optim.Optimizer]]]:
    """The package, the name and the class of every optimizer."""
    for folder in FOLDERS:
        package = import_module(f"fusedstep.{folder}")
        for name in package.__all__:
            own = getattr(package, name)
            # InZero has no arguments of its own: it changes what another optimizer does.
            is_class = isinstance(own, type) and issubclass(own, torch.optim.Optimizer)
            if is_class and own.__init__ is not FusedOptimizer.__init__:
                yield folder, name, own


def classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer by its name. If two packages have the same name, the later one's is with the
    package before it: "Adafactor" is torch's, "hf.Adafactor" transformers'.

    Example:
        >>> classes()["hf.Adafactor"]
        <class 'fusedstep.hf.adafactor.Adafactor'>
    """
    known: dict[str, type[torch.optim.Optimizer]] = {}
    for folder, name, own in found():
        known[name if name not in known else f"{folder}.{name}"] = own
    return known


def names() -> list[str]:
    """The names that `by_name` takes. It ignores case, underscores and other signs.

    Example:
        >>> from fusedstep import optim
        >>> [name for name in optim.names() if "ada" in name.lower()][:2]
        ['Adadelta', 'Adafactor']
    """
    return sorted(classes(), key=lambda name: ("." in name, name))


def find(name: str) -> type[torch.optim.Optimizer]:
    """The class of that name.

    Example:
        >>> find("adam_w")
        <class 'fusedstep.optim.adamw.AdamW'>
    """
    known = classes()
    by_letters = {words.plain(own): kind for own, kind in known.items()}
    for folder, own, kind in found():  # "optim.AdamW", even where there is no other AdamW
        by_letters.setdefault(words.plain(f"{folder}.{own}"), kind)
    letters = words.plain(name) if isinstance(name, str) else None
    if letters not in by_letters:
        raise ValueError(
            f"optimizer should be one of {', '.join(map(repr, names()))} but is: {name!r}"
            f"{words.nearest(name, known)}"
        )
    return by_letters[letters]


def by_name(
    name: str, params_or_model: nn.Module | Iterable[Any], **settings: Any
) -> torch.optim.Optimizer:
    """The optimizer of that name over some parameters: ``by_name("adamw", model, lr=1e-3)``.

    Arguments:
        name: one of ``names()``, in any case, with or without underscores.
        params_or_model: parameters, (name, parameter) pairs or groups, as every optimizer takes
            them; or a module, for all its parameters that require a gradient.
        settings: the optimizer's own arguments. Numbers may be strings.

    Example:
        >>> from fusedstep import optim
        >>> opt = optim.by_name("adamw", torch.nn.Linear(8, 8), lr="1e-3", weight_decay=0.1)
        >>> type(opt).__name__, opt.param_groups[0]["lr"]
        ('AdamW', 0.001)
    """
    return make(find(name), params_or_model, settings)


def make(
    kind: type[torch.optim.Optimizer],
    params_or_model: nn.Module | Iterable[Any],
    settings: dict[str, Any],
) -> torch.optim.Optimizer:
    """An optimizer of the class, with checked settings."""
    check_settings(kind, settings)
    params = params_or_model
    if isinstance(params, nn.Module):
        params = [param for param in params.parameters() if param.requires_grad]
        if not params:
            raise ValueError(
                f"{type(params_or_model).__name__} has no parameter that requires a gradient. "
                "Unfreeze parameters with .requires_grad_() first."
            )
    constructor: Any = kind  # each class has arguments of its own
    made: torch.optim.Optimizer = constructor(params, **settings)
    return made


def check_settings(kind: type[torch.optim.Optimizer], settings: Iterable[str]) -> None:
    """Refuses a setting that is no argument of the class."""
    known = [name for name in words.arguments_of(kind) if name != "params"]
    label = next((name for name, own in classes().items() if own is kind), kind.__name__)
    words.check_known(settings, known, f"optimizer {label!r}")
