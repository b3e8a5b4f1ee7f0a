"""register and unregister: ours under the names of transformers' Trainer, accmt and timm."""

from __future__ import annotations

from collections.abc import Callable

from . import accmt_names, timm_names, trainer_names
from .swaps import Swap, make_all, undo_all

# What can be registered, and the function that lists its changes.
PARTS: dict[str, Callable[[], list[Swap]]] = {
    "transformers": trainer_names.swaps,
    "accmt": accmt_names.swaps,
    "repair_epochs": accmt_names.repaired_epochs,
    "timm": timm_names.swaps,
}
_made: dict[str, list[Swap]] = {}


def register(
    transformers: bool = False,
    accmt: bool = False,
    timm: bool = False,
    *,
    repair_epochs: bool = False,
) -> None:
    """Puts our optimizers where a framework looks them up by name, until ``unregister()``.

    Only classes that ours mirror are replaced: what fusedstep lacks stays the framework's. It holds
    in this process only, for optimizers that are made afterwards. A second call changes nothing
    more. After an error nothing is registered that was not before.

    Arguments:
        transformers: ``Trainer`` and its subclasses make ours for ``TrainingArguments(optim=...)``
            ("adafactor", "adamw_torch", "adamw_torch_fused", ...), and our schedules for
            ``lr_scheduler_type=``.
        accmt: ``Optimizer`` and ``Scheduler`` hold ours, so an ``hps:`` YAML trains with them.
        timm: ``create_optimizer_v2(model, "fusedstepadamw")``, and so on for every optimizer. timm
            keeps only what follows the last underscore of a name, so "fusedstep_adamw" would be
            torch's: it is an error instead.
        repair_epochs: with ``accmt``: a schedule is as long as the training. accmt counts the
            epochs twice, so that a run of 3 epochs ends at a third of its schedule.

    Example:
        >>> import fusedstep
        >>> fusedstep.register(transformers=True)
        >>> import transformers
        >>> args = transformers.TrainingArguments("unused", optim="adafactor", use_cpu=True)
        >>> transformers.Trainer.get_optimizer_cls_and_kwargs(args)[0]
        <class 'fusedstep.hf.adafactor.Adafactor'>
        >>> fusedstep.unregister()
    """
    asked = {
        "transformers": transformers,
        "accmt": accmt,
        "repair_epochs": repair_epochs,
        "timm": timm,
    }
    if repair_epochs and not (accmt or "accmt" in _made):
        raise ValueError(
            "register: repair_epochs=True repairs accmt's schedules: pass accmt=True too"
        )
    if not any(asked.values()):
        frameworks = ", ".join(f"{name}=True" for name in asked if name != "repair_epochs")
        raise ValueError(f"register: nothing is asked for: pass one or more of {frameworks}")
    new = {
        name: PARTS[name]() for name, is_asked in asked.items() if is_asked and name not in _made
    }
    make_all(swap for swaps in new.values() for swap in swaps)
    _made.update(new)


def unregister() -> None:
    """Takes back everything that ``register`` changed. Optimizers that exist keep working.

    Example:
        >>> import fusedstep
        >>> fusedstep.unregister()  # nothing is registered, so nothing happens
    """
    while _made:
        undo_all(_made.popitem()[1])
