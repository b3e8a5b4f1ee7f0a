"""The values of a schedule, by itself: for tables, pictures, and a look before a long run."""

from __future__ import annotations

from typing import Any

import torch

from ..optim import AdamW
from .by_name import METRIC_CLASSES, by_name


def example_loss(step: int, num_training_steps: int) -> float:
    """A loss for schedules that follow one: 1 / (1 + 9 s / T) up to T / 2, and flat after it.

    Example:
        >>> [round(example_loss(step, 10), 2) for step in (0, 5, 9)]
        [1.0, 0.18, 0.18]
    """
    return 1.0 / (1.0 + 9.0 * min(step / num_training_steps, 0.5))


def trace(
    name: str, num_training_steps: int, steps: int, lr: float = 1.0, **given: Any
) -> list[float]:
    """The learning rate at the steps 0, 1, ... of a run whose optimizer was made with `lr`. A
    schedule that follows a metric gets `example_loss`.

    Arguments:
        steps: how many values; there may be more than num_training_steps.
        given: the other arguments of `by_name`.

    Example:
        >>> trace("linear", 4, steps=6, num_warmup_steps=2)
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    # Without a gradient a step changes nothing. AdamW has the momentum that some schedules move.
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = by_name(name, optimizer, num_training_steps=num_training_steps, **given)
    values = []
    for step in range(steps):
        values.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step + 1 == steps:
            break
        if name in METRIC_CLASSES:
            schedule.step(example_loss(step, num_training_steps))
        else:
            schedule.step()
    return values
