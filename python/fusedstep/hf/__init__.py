"""Fused versions of the names in transformers.optimization; schedules are computed on the host.

Its TensorFlow names are here for PyTorch: AdamWeightDecay, create_optimizer, WarmUp,
GradientAccumulator.
"""

from ..accumulate import GradientAccumulator
from ..optim import param_groups
from ..schedules import (
    TYPE_TO_SCHEDULER_FUNCTION,
    GreedyLR,
    SchedulerType,
    StreamingAverage,
    WarmUp,
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    get_greedy_schedule,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_reduce_on_plateau_schedule,
    get_scheduler,
    get_wsd_schedule,
)
from .adafactor import Adafactor
from .adafactor_schedule import AdafactorSchedule, get_adafactor_schedule
from .adam_weight_decay import AdamWeightDecay
from .adamw import AdamW
from .create_optimizer import create_optimizer
from .trainer import optimizer_cls_and_kwargs

__all__ = [
    "TYPE_TO_SCHEDULER_FUNCTION",
    "Adafactor",
    "AdafactorSchedule",
    "AdamW",
    "AdamWeightDecay",
    "GradientAccumulator",
    "GreedyLR",
    "SchedulerType",
    "StreamingAverage",
    "WarmUp",
    "create_optimizer",
    "get_adafactor_schedule",
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
    "optimizer_cls_and_kwargs",
    "param_groups",
]
