"""Learning rate schedules: functions of the step, computed on the host.

`formulas` has each one as a pure function. The `get_*` functions and `get_scheduler` are those of
transformers.optimization. `by_name` takes the names that training configs use.
"""

from . import formulas
from .by_name import SCHEDULES, by_name
from .cosine import (
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
)
from .factories import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_reduce_on_plateau_schedule,
    get_wsd_schedule,
)
from .greedy import GreedyLR, get_greedy_schedule
from .layerwise import LayerWiseSchedule
from .named import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType, get_scheduler
from .schedule import Schedule
from .streaming_average import StreamingAverage
from .warm_up import WarmUp

__all__ = [
    "SCHEDULES",
    "TYPE_TO_SCHEDULER_FUNCTION",
    "GreedyLR",
    "LayerWiseSchedule",
    "Schedule",
    "SchedulerType",
    "StreamingAverage",
    "WarmUp",
    "by_name",
    "formulas",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_greedy_schedule",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_reduce_on_plateau_schedule",
    "get_scheduler",
    "get_wsd_schedule",
]
