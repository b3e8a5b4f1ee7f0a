"""Makes a schedule from a training config: its name, the length of the run, the warm-up."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from .. import words
from . import checks, cosine, factories
from .greedy import GreedyLR
from .named import FOLLOW_A_METRIC, TYPE_TO_SCHEDULER_FUNCTION, SchedulerType
from .schedule import check_learning_rates
from .shared_arguments import with_shared_arguments
from .warm_up import WarmUp

CONFIG_NAMES: dict[str, Callable[..., Any]] = {
    "Constant": factories.get_constant_schedule,
    "ConstantWithWarmup": factories.get_constant_schedule_with_warmup,
    "CosineAnnealingLR": lr_scheduler.CosineAnnealingLR,
    "CosineAnnealingWarmRestarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "CosineWithHardRestartsWithWarmup": (cosine.get_cosine_with_hard_restarts_schedule_with_warmup),
    "CosineWithWarmup": cosine.get_cosine_schedule_with_warmup,
    "CyclicLR": lr_scheduler.CyclicLR,
    "ExponentialLR": lr_scheduler.ExponentialLR,
    "InverseSQRT": factories.get_inverse_sqrt_schedule,
    "LinearLR": lr_scheduler.LinearLR,
    "LinearWithWarmup": factories.get_linear_schedule_with_warmup,
    "OneCycleLR": lr_scheduler.OneCycleLR,
    "PolynomialDecayWithWarmup": factories.get_polynomial_decay_schedule_with_warmup,
    "StepLR": lr_scheduler.StepLR,
}
# The get_* functions of these two take **kwargs, so we read the arguments from the classes.
METRIC_CLASSES: dict[str, Callable[..., Any]] = {
    SchedulerType.REDUCE_ON_PLATEAU.value: lr_scheduler.ReduceLROnPlateau,
    SchedulerType.GREEDY.value: GreedyLR,
}
SCHEDULES: dict[str, Callable[..., Any]] = {
    **{kind.value: make for kind, make in TYPE_TO_SCHEDULER_FUNCTION.items()},
    **METRIC_CLASSES,
    **CONFIG_NAMES,
}
# What a config says about the run, as the schedules name these arguments.
RUN = ("num_training_steps", "num_warmup_steps", "last_epoch")
MISSING = {
    "num_training_steps": "give num_training_steps, or epochs and steps_per_epoch",
    "num_warmup_steps": "give num_warmup_steps or warmup_ratio, 0 for no warm-up",
}
# The argument of torch's classes that is the number of steps after the warm-up.
LENGTHS = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}


@with_shared_arguments
def by_name(
    name: str,
    optimizer: Optimizer,
    *,
    num_training_steps: int | None = None,
    num_warmup_steps: float | None = None,
    warmup_ratio: float | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    last_epoch: int = -1,
    **arguments: Any,
) -> lr_scheduler.LRScheduler:
    """The schedule of that name: transformers' ("cosine") or a config's ("CosineWithWarmup",
    "OneCycleLR"). `SCHEDULES` lists them.

    The length of the run (`num_training_steps`, or `epochs` and `steps_per_epoch`) and `last_epoch`
    are passed to the schedules that use them. A warm-up is never ignored: a schedule without one of
    its own is wrapped in `WarmUp`, and gets the steps that are left.

    Arguments:
        name: transformers' or a config's name of the schedule.
        num_training_steps: the length of the run, with the warm-up.
        num_warmup_steps: a number of steps; below 1, a share of num_training_steps, rounded up.
        warmup_ratio: the same, but always a share.
        epochs: how often the run goes over its data.
        steps_per_epoch: how many steps each of them takes.
        arguments: the schedule's own arguments.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = by_name("CosineWithWarmup", opt, num_training_steps=100, warmup_ratio=0.1)
        >>> opt.step(), schedule.step(), schedule.get_last_lr()
        (None, None, [0.05])
    """
    kind = name.value if isinstance(name, Enum) else name
    make = find(kind)
    label = f"schedule {kind!r}"
    check_learning_rates(optimizer, label)
    known = inspect.signature(make).parameters
    given = _own_arguments(arguments, list(known), label)
    total = _training_steps(num_training_steps, epochs, steps_per_epoch, label)
    last_epoch = int(words.read(last_epoch))
    warmup = warmup_steps(num_warmup_steps, warmup_ratio, total, label)
    sleeps = bool(warmup) and "num_warmup_steps" not in known
    if sleeps and kind in FOLLOW_A_METRIC:
        raise ValueError(
            f"{label} follows a metric and has no warm-up: leave out num_warmup_steps and "
            "warmup_ratio, or wrap it in fusedstep.schedules.WarmUp and give its step the metric"
        )
    run = dict(zip(RUN, (total, warmup, last_epoch), strict=True))
    if kind in LENGTHS and total is not None:
        run[LENGTHS[kind]] = total - (warmup or 0)
        if run[LENGTHS[kind]] < 1:
            raise ValueError(
                f"{label}: a warm-up of {warmup} steps leaves none of {total} for the schedule. "
                "Give a shorter warm-up, or more num_training_steps."
            )
    if last_epoch != -1 and "last_epoch" not in known:
        raise ValueError(f"{label} has no last_epoch: resume it with load_state_dict")
    given = {**{k: v for k, v in run.items() if k in known and v is not None}, **given}
    for key, parameter in known.items():
        is_needed = parameter.default is inspect.Parameter.empty or key == LENGTHS.get(kind)
        if is_needed and key not in ("optimizer", *given):
            way = MISSING.get("num_training_steps" if key == LENGTHS.get(kind) else key)
            raise ValueError(f"{label} needs {key}: {way or f'give {key}=...'}")
    schedule = make(optimizer, **given)
    return WarmUp(schedule, warmup or 0) if sleeps else schedule


def find(name: str) -> Callable[..., Any]:
    """The class or function that makes the schedule of that name.

    Example:
        >>> find("StepLR")
        <class 'torch.optim.lr_scheduler.StepLR'>
    """
    checks.choice(name, "name", "fusedstep.schedules", SCHEDULES)
    return SCHEDULES[name]


def _own_arguments(arguments: dict[str, Any], known: list[str], label: str) -> dict[str, Any]:
    choices = [own for own in known if own not in ("optimizer", *RUN)]
    words.check_known(arguments, choices, label)
    return {key: words.read(value) for key, value in arguments.items()}


def _training_steps(
    steps: int | None, epochs: int | None, steps_per_epoch: int | None, label: str
) -> Any:
    total = None if steps is None else _count(steps, "num_training_steps", label)
    if epochs is None or steps_per_epoch is None:
        if total is None and epochs is not steps_per_epoch:
            missing = "epochs" if epochs is None else "steps_per_epoch"
            raise ValueError(
                f"{label}: {missing} is missing: the run's length is epochs x steps_per_epoch"
            )
        return total
    product = _count(epochs, "epochs", label) * _count(steps_per_epoch, "steps_per_epoch", label)
    if total not in (None, product):
        raise ValueError(
            f"{label}: num_training_steps={total}, but epochs x steps_per_epoch is {product}. "
            "Give one of the two."
        )
    return product


def warmup_steps(
    steps: float | None, ratio: float | None, num_training_steps: int | None, label: str
) -> int | None:
    """The length of the warm-up in steps. A config gives it as a number of steps or as a share."""
    ratio, steps = words.read(ratio), words.read(steps)
    if ratio is None and steps is None:
        return None
    if ratio is not None and steps is not None:
        raise ValueError(f"{label}: give num_warmup_steps or warmup_ratio, not both")
    argument = "num_warmup_steps" if ratio is None else "warmup_ratio"
    value = checks.not_negative(steps if ratio is None else ratio, argument, label)
    if ratio is not None and value > 1:
        raise ValueError(f"{label}: warmup_ratio should be from 0 to 1 but is: {value}")
    if value == 0 or (ratio is None and value >= 1):
        return int(value)
    if num_training_steps is None:
        raise ValueError(
            f"{label}: {argument}={value} is a share of num_training_steps, which is not given. "
            "Give num_training_steps, or epochs and steps_per_epoch."
        )
    return math.ceil(value * num_training_steps)


def _count(value: Any, argument: str, label: str) -> int:
    """The count as an int, which torch's classes need. 7.0 is fine, 7.5 is not."""
    number = checks.not_negative(words.read(value), argument, label)
    if number != int(number):
        raise ValueError(f"{label}: {argument} should be a whole number but is: {number}")
    return int(number)
