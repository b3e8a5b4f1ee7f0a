"""get_scheduler and SchedulerType: schedules by the names that transformers' configs use."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, overload

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..words import nearest
from . import cosine, factories, greedy
from .layerwise import LayerWiseSchedule, optimizers_of_layers
from .shared_arguments import with_shared_arguments

MetricName = Literal["reduce_lr_on_plateau", "greedy"]
# `get_scheduler` takes any string, as its peer does; these are for editors that complete them.
StepName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


class SchedulerType(str, Enum):
    """The names of `get_scheduler`. A member equals its string and has the same hash.

    Example:
        >>> SchedulerType("cosine") is SchedulerType.COSINE
        True
    """

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    GREEDY = "greedy"

    # Enum hashes a member's name. With that hash, transformers' enum could not look a member up by
    # its value.
    __hash__ = str.__hash__

    @classmethod
    def _missing_(cls, value: object) -> SchedulerType:
        if isinstance(value, Enum) and value.value is not value:  # transformers' own member
            return cls(value.value)
        known = [member.value for member in cls]
        raise ValueError(
            f"schedule name should be one of {', '.join(map(repr, known))} but is: {value!r}"
            f"{nearest(value, known)}"
        )


TYPE_TO_SCHEDULER_FUNCTION: dict[SchedulerType, Callable[..., LRScheduler]] = {
    SchedulerType.LINEAR: factories.get_linear_schedule_with_warmup,
    SchedulerType.COSINE: cosine.get_cosine_schedule_with_warmup,
    SchedulerType.COSINE_WITH_RESTARTS: (cosine.get_cosine_with_hard_restarts_schedule_with_warmup),
    SchedulerType.POLYNOMIAL: factories.get_polynomial_decay_schedule_with_warmup,
    SchedulerType.CONSTANT: factories.get_constant_schedule,
    SchedulerType.CONSTANT_WITH_WARMUP: factories.get_constant_schedule_with_warmup,
    SchedulerType.INVERSE_SQRT: factories.get_inverse_sqrt_schedule,
    SchedulerType.REDUCE_ON_PLATEAU: factories.get_reduce_on_plateau_schedule,
    SchedulerType.COSINE_WITH_MIN_LR: cosine.get_cosine_with_min_lr_schedule_with_warmup,
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR: (
        cosine.get_cosine_with_min_lr_schedule_with_warmup_lr_rate
    ),
    SchedulerType.WARMUP_STABLE_DECAY: factories.get_wsd_schedule,
    SchedulerType.GREEDY: greedy.get_greedy_schedule,
}

# The step of these takes a metric, and they ignore the numbers of steps.
FOLLOW_A_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


@overload
def get_scheduler(
    name: MetricName,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> ReduceLROnPlateau: ...
@overload
def get_scheduler(
    name: StepName | str | SchedulerType,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> LRScheduler: ...
@with_shared_arguments
def get_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> LRScheduler:
    """The schedule of that name, as ``transformers.get_scheduler``.

    Arguments:
        name: a string, a SchedulerType, or a member of transformers' own enum.
        scheduler_specific_kwargs: further arguments of the function that makes the schedule.
            "constant" and "constant_with_warmup" ignore them.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = get_scheduler("polynomial", opt, 10, 100, {"power": 2.0})
    """
    kind = SchedulerType(name)
    layers = optimizers_of_layers(optimizer)
    if layers is not None and kind in FOLLOW_A_METRIC:
        raise ValueError(
            f"schedule {kind.value!r} follows a metric, but the hooks that step layer-wise "
            "optimizers have no metric. Choose a schedule that follows the step."
        )
    if layers is not None:
        return LayerWiseSchedule(
            {
                param: get_scheduler(
                    kind, own, num_warmup_steps, num_training_steps, scheduler_specific_kwargs
                )
                for param, own in layers.items()
            }
        )
    make = TYPE_TO_SCHEDULER_FUNCTION[kind]
    further = scheduler_specific_kwargs or {}
    if kind is SchedulerType.CONSTANT:
        return make(optimizer)
    if kind in FOLLOW_A_METRIC:
        return make(optimizer, **further)
    _needed(kind, "num_warmup_steps", num_warmup_steps)
    if kind is SchedulerType.CONSTANT_WITH_WARMUP:
        return make(optimizer, num_warmup_steps=num_warmup_steps)
    if kind is SchedulerType.INVERSE_SQRT:
        return make(optimizer, num_warmup_steps=num_warmup_steps, **further)
    if kind is not SchedulerType.WARMUP_STABLE_DECAY:  # that one may have num_stable_steps instead
        _needed(kind, "num_training_steps", num_training_steps)
    return make(
        optimizer,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        **further,
    )


def _needed(kind: SchedulerType, argument: str, value: int | None) -> None:
    if value is None:
        raise ValueError(
            f"schedule {kind.value!r} needs `{argument}`: pass get_scheduler a number of steps"
        )
