"""The table of schedules: the function that makes each, its name in configs, its options."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

LRS = (0.5, 0.125, 3e-4)


@dataclass(frozen=True)
class ScheduleCase:
    """A function of transformers.optimization with options. `ends` tells whether it takes
    num_training_steps."""

    function: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    warms_up: bool = True
    ends: bool = True

    def arguments(self, warmup: int, total: int) -> dict[str, Any]:
        given = dict(self.options)
        if self.warms_up:
            given["num_warmup_steps"] = warmup
        if self.ends:
            given["num_training_steps"] = total
        return given

    def make(self, module: Any, optimizer: Any, warmup: int, total: int, **more: Any) -> Any:
        arguments = {**self.arguments(warmup, total), **more}
        return getattr(module, self.function)(optimizer, **arguments)

    def __str__(self) -> str:
        options = "-".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}-{options}" if options else self.name


COSINE = "get_cosine_schedule_with_warmup"
RESTARTS = "get_cosine_with_hard_restarts_schedule_with_warmup"
POLYNOMIAL = "get_polynomial_decay_schedule_with_warmup"
SQRT = "get_inverse_sqrt_schedule"
MIN_LR = "get_cosine_with_min_lr_schedule_with_warmup"
MIN_LR_RATE = "get_cosine_with_min_lr_schedule_with_warmup_lr_rate"
WSD = "get_wsd_schedule"

SCHEDULE_CASES = [
    ScheduleCase("get_constant_schedule", "constant", {}, warms_up=False, ends=False),
    ScheduleCase("get_constant_schedule_with_warmup", "constant_with_warmup", {}, ends=False),
    ScheduleCase("get_linear_schedule_with_warmup", "linear"),
    *(ScheduleCase(COSINE, "cosine", options) for options in [
        {}, {"num_cycles": 1.0}, {"num_cycles": 0.3}, {"num_cycles": 2.5}, {"num_cycles": 3},
    ]),
    *(ScheduleCase(RESTARTS, "cosine_with_restarts", options) for options in [
        {}, {"num_cycles": 2}, {"num_cycles": 3}, {"num_cycles": 1.5},
    ]),
    *(ScheduleCase(POLYNOMIAL, "polynomial", options) for options in [
        {}, {"lr_end": 0.1}, {"power": 2.0}, {"power": 0.5, "lr_end": 0.01}, {"power": 0.0},
    ]),
    *(ScheduleCase(SQRT, "inverse_sqrt", options, ends=False) for options in [
        {}, {"timescale": 1}, {"timescale": 50},
    ]),
    *(ScheduleCase(MIN_LR, "cosine_with_min_lr", options) for options in [
        {"min_lr": 0.05}, {"min_lr_rate": 0.1}, {"min_lr_rate": 0.0},
        {"min_lr": 0.0, "num_cycles": 1.5},
    ]),
    *(ScheduleCase(MIN_LR_RATE, "cosine_warmup_with_min_lr", options) for options in [
        {"min_lr": 0.05}, {"min_lr_rate": 0.1}, {"min_lr_rate": 0.1, "warmup_lr_rate": 0.3},
        {"min_lr_rate": 0.5, "num_cycles": 2.0, "warmup_lr_rate": 0.0},
    ]),
    *(ScheduleCase(WSD, "warmup_stable_decay", {"num_decay_steps": 3, **options}) for options in [
        {}, {"min_lr_ratio": 0.1}, {"warmup_type": "cosine", "decay_type": "linear"},
        {"warmup_type": "1-sqrt", "decay_type": "1-sqrt", "min_lr_ratio": 0.2},
        {"num_cycles": 1.5}, {"num_decay_steps": 0},
    ]),
    ScheduleCase(WSD, "warmup_stable_decay", {"num_decay_steps": 3, "num_stable_steps": 4},
                 ends=False),
    ScheduleCase(WSD, "warmup_stable_decay", {"num_decay_steps": 2, "num_stable_steps": 0},
                 ends=False),
]  # fmt: skip

# No warm-up, a warm-up, one as long as the run, one that is longer, and runs of one step.
LENGTHS = [(0, 12), (3, 12), (5, 40), (12, 12), (20, 12), (1, 1), (0, 1), (1, 2)]


def optimizer_with(lrs: Any = LRS, *, tensor: bool = False, **options: Any) -> torch.optim.SGD:
    """An optimizer with a group for each learning rate. The first one is the default."""
    made = [torch.tensor(lr, dtype=torch.float64) if tensor else lr for lr in lrs]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in made]
    return torch.optim.SGD(groups, lr=made[0], **options)


def trace(schedule: Any, steps: int) -> list[list[Any]]:
    """The schedule's learning rates of all groups, at steps 0, 1, ..."""
    values = [deepcopy(schedule.get_last_lr())]  # older torch returns the tensors that it fills
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        values.append(deepcopy(schedule.get_last_lr()))
    return values
